#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <kvcondense/backend/cuda/block_rows.cuh>
#include <kvcondense/backend/cuda/boosted_int.cuh>
#include <kvcondense/backend/cuda/cluster_rows.cuh>
#include <kvcondense/backend/cuda/complex_vq.cuh>
#include <kvcondense/backend/cuda/corrected.cuh>
#include <kvcondense/backend/cuda/group_bits.cuh>
#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/level_codes.cuh>
#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/mixed_rows.cuh>
#include <kvcondense/backend/cuda/nuq_rows.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/paired_rows.cuh>
#include <kvcondense/backend/cuda/polar_pairs.cuh>
#include <kvcondense/backend/cuda/polar_tree.cuh>
#include <kvcondense/backend/cuda/scaled_rows.cuh>
#include <kvcondense/backend/cuda/sign_sketch.cuh>
#include <kvcondense/backend/cuda/sketch_rows.cuh>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense {

namespace prim::cuda_kernels {

/// Codecs with tables, by which rows of any of them are read.
template <class... C>
struct CodecList {
  static constexpr int size = sizeof...(C);

  template <class Codec>
  static constexpr int index_of() {
    int at = 0;
    static_cast<void>(((std::is_same_v<C, Codec> ? false : (++at, true)) && ...));
    return at;
  }
  template <class F>
  __device__ static void at(int index, F&& f) {
    int i = 0;
    static_cast<void>(((i++ == index ? (f.template operator()<C>(), false) : true) && ...));
  }
};
using TabledCodecs = CodecList<LevelCodes, NuqRows, ClusterRows, ComplexVq, PolarTree, Sketched<LevelCodes>, SketchRows, GroupBits>;

/// Codecs of groups of slots that are read by themselves, from a copy of their description.
using GroupedCodecs = CodecList<BoostedInt<2, 2>, PolarForm, CorrectedForm, MixedForm>;
struct GroupedCodec {
  alignas(8) std::byte bytes[24];
};

// One function of each for all kernels: they neither grow by it nor take longer to compile.
__attribute__((noinline)) __device__ inline void load_tabled(int codec, const float* table, std::byte* page, int page_slots, int slot, int dim, float* row) {
  TabledCodecs::at(codec, [&]<class C>() { load_row(RowPage<Tabled<C>>(table, page, page_slots, dim), slot, row); });
}
__attribute__((noinline)) __device__ inline void load_grouped(int codec, GroupedCodec description, std::byte* page, int page_slots, int slot, int dim, float* row) {
  GroupedCodecs::at(codec, [&]<class C>() {
    static_assert(sizeof(C) <= sizeof(GroupedCodec));
    load_row(RowPage<C>(*reinterpret_cast<const C*>(description.bytes), page, page_slots, dim), slot, row);
  });
}
__attribute__((noinline)) __device__ inline void scale_row(const float* factors, int dim, float* row) {
  for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = __fmul_rn(row[c], factors[c]);
}
__attribute__((noinline)) __device__ inline void unmap_latent(LatentMap maps, int head, float* row) { leave_latent(maps.of(head), row); }

}  // namespace prim::cuda_kernels

/// Rows of one column of a layer on the device, in whatever form they are stored: one type for all codecs, so that
/// policies need not know which one. Kernels read rows of it, a warp each.
template <>
class SlotRows<Cuda> {
 public:
  SlotRows() = default;
  /// Exact numbers alone.
  SlotRows(prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads, index_t max_slots, index_t dim)
      : runs_(runs), slots_(slots), heads_(heads), max_slots_(max_slots), dim_(dim), coded_dim_(dim), exact_(exact) {}
  /// Exact numbers and codes, as kernels take their codec (prim::DeviceCodec).
  template <class C>
  SlotRows(const C& codec, prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads, index_t max_slots, index_t dim)
      : SlotRows(exact, runs, slots, heads, max_slots, dim) {
    take(codec);
  }

  KVCONDENSE_HD index_t dim() const { return dim_; }
  KVCONDENSE_HD index_t heads() const { return heads_; }
  KVCONDENSE_HD index_t max_slots() const { return max_slots_; }  ///< no head has more
  __device__ index_t slots(index_t head) const { return slots_[head]; }

  /// The run of a slot, with the slot's own place in it, and its head for `begin`.
  __device__ prim::SlotRun locate(index_t head, index_t slot) const {
    prim::SlotRun run = prim::run_of(runs_, head, static_cast<std::int32_t>(slot));
    run.place += static_cast<std::int32_t>(slot) - run.begin;
    run.begin = static_cast<std::int32_t>(head);
    return run;
  }
  /// The slot that `locate` found, into shared memory. A warp. What a lane reads of it is what it wrote: channels lane, lane + 32, ...; others behind
  /// a barrier.
  __device__ void load(const prim::SlotRun& at, float* row) const {
    using namespace prim::cuda_kernels;
    const bool latent = at.coded && latent_.table != nullptr;
    const int dim = latent ? latent_.of(at.begin).rank : static_cast<int>(dim_);
    if (at.coded && kind_ == Kind::paired) {
      load_paired(exact_, at.page, static_cast<int>(runs_.page_slots), at.place, dim, row);
    } else if (at.coded && kind_ == Kind::grouped) {
      load_grouped(grouped_index_, grouped_, at.page, static_cast<int>(runs_.page_slots), at.place, dim, row);
    } else if (at.coded && kind_ >= Kind::tabled) {
      load_tabled(static_cast<int>(kind_) - static_cast<int>(Kind::tabled), table_ + at.begin * table_step_, at.page, static_cast<int>(runs_.page_slots), at.place, dim, row);
    } else {
#pragma unroll 1
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = value(at, dim, c);
    }
    if (at.coded && mapped_) unmap_row(map_, dim, row);
    if (at.coded && scales_ != nullptr) scale_row(scales_ + at.begin * table_step_ + dim, dim, row);
    if (latent) unmap_latent(latent_, static_cast<int>(at.begin), row);
  }
  /// What exact slots would hold of x.
  __device__ float in_range(float x) const { return prim::cuda_kernels::in_range(exact_.dtype, x); }
  /// Writes channel c of a slot that lies in exact numbers, brought into range; whether it had to be.
  __device__ bool set(const prim::SlotRun& at, int c, float x) const {
    using namespace prim::cuda_kernels;
    const float stored = in_range(x);
    write_number(exact_.dtype, RowPage<prim::ExactRows>(exact_, at.page, 0, static_cast<int>(dim_)).row(at.place), c, stored);
    return stored != x;
  }

 private:
  /// What coded slots are: `paired` with directions that two layers share, from `tabled` on those of TabledCodecs.
  enum class Kind : std::uint8_t { exact, groups, blocks, paired, grouped, tabled };

  void take(const prim::BlockCodes& codec) { kind_ = Kind::blocks, blocks_ = codec; }
  template <int Bits>
  void take(const prim::GroupInt<Bits>& codec) {
    kind_ = Kind::groups, groups_ = prim::cuda_kernels::GroupPlaces(codec, runs_.page_slots, coded_dim_);
  }
  template <int Bits>
  void take(const prim::BipolarInt<Bits>& codec) {
    kind_ = Kind::groups, groups_ = prim::cuda_kernels::GroupPlaces(codec, runs_.page_slots, coded_dim_);
  }
  template <class C>
    requires(prim::cuda_kernels::GroupCodec<C> && !prim::cuda_kernels::RowCodec<C>)
  void take(const C& codec) {
    using List = prim::cuda_kernels::GroupedCodecs;
    static_assert(List::index_of<C>() < List::size, "kvcondense: a codec of groups of slots that kernels read stands in GroupedCodecs.");
    kind_ = Kind::grouped, grouped_index_ = List::index_of<C>();
    std::memcpy(grouped_.bytes, &codec, sizeof codec);
  }
  template <class C>
  void take(const prim::Tabled<C>& codec) {
    constexpr int index = prim::cuda_kernels::TabledCodecs::index_of<C>();
    kind_ = static_cast<Kind>(static_cast<int>(Kind::tabled) + index), table_ = codec.table, table_step_ = codec.step;
  }
  template <class C>
  void take(const prim::Tabled<prim::Transformed<prim::ChannelScale, C>>& codec) {
    scales_ = codec.table, table_step_ = codec.step;
    take(codec.codec.codec);
  }
  template <class C>
  void take(const prim::Transformed<prim::Hadamard, C>& codec) {
    mapped_ = !codec.transform.identity(), map_ = codec.transform;
    take(codec.codec);
  }
  template <class C>
  void take(const prim::Latent<C>& codec) {
    latent_ = codec.map, coded_dim_ = codec.map.rank;
    take(codec.codec);
  }
  void take(const prim::PairedRows&) { kind_ = Kind::paired; }
  void take(const prim::ExactRows&) {}

  /// Number c of the `dim` of a slot as it is stored, without tables.
  __device__ float value(const prim::SlotRun& at, int dim, int c) const {
    using namespace prim::cuda_kernels;
    if (!at.coded || kind_ == Kind::exact) return RowPage<prim::ExactRows>(exact_, at.page, 0, dim).value(at.place, c);
    if (kind_ == Kind::groups) return groups_.value(at.page, dim, at.place, c);
    return RowPage<prim::BlockCodes>(blocks_, at.page, static_cast<int>(runs_.page_slots), dim).value(at.place, c);
  }

  prim::ColumnRuns runs_{};
  const index_t* slots_ = nullptr;
  index_t heads_ = 0, max_slots_ = 0, dim_ = 0;
  index_t coded_dim_ = 0;  ///< numbers of a row of codes; of coordinates those of the first head
  prim::ExactRows exact_{};
  Kind kind_ = Kind::exact;
  bool mapped_ = false;
  prim::Hadamard map_{};
  prim::LatentMap latent_{};  ///< no table: rows are no coordinates
  const float* table_ = nullptr;
  const float* scales_ = nullptr;  ///< factors of a head's channels, then their inverses
  index_t table_step_ = 0;
  prim::cuda_kernels::GroupPlaces groups_{};
  prim::cuda_kernels::GroupedCodec grouped_{};
  int grouped_index_ = 0;
  prim::BlockCodes blocks_{};
};

}  // namespace kvcondense
