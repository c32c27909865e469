#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block_rows.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense {

/// Rows of one column of a layer on the device, in whatever form they are stored: one type for all codecs, so that
/// policies need not know which one. Kernels read single numbers of it.
template <>
class SlotRows<Cuda> {
 public:
  SlotRows() = default;
  /// Exact numbers alone.
  SlotRows(prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads, index_t max_slots, index_t dim)
      : runs_(runs), slots_(slots), heads_(heads), max_slots_(max_slots), dim_(dim), exact_(exact) {}
  /// Exact numbers and codes.
  template <int Bits>
  SlotRows(const prim::GroupInt<Bits>& codec, prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads,
           index_t max_slots, index_t dim)
      : SlotRows(exact, runs, slots, heads, max_slots, dim) {
    kind_ = Kind::groups, groups_ = prim::cuda_kernels::GroupPlaces(codec, runs.page_slots, dim);
  }
  SlotRows(const prim::BlockCodes& codec, prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads, index_t max_slots, index_t dim)
      : SlotRows(exact, runs, slots, heads, max_slots, dim) {
    kind_ = Kind::blocks, blocks_ = codec;
  }

  KVCONDENSE_HD index_t dim() const { return dim_; }
  KVCONDENSE_HD index_t heads() const { return heads_; }
  KVCONDENSE_HD index_t max_slots() const { return max_slots_; }  ///< no head has more
  __device__ index_t slots(index_t head) const { return slots_[head]; }

  /// The run of a slot, with the slot's own place in it.
  __device__ prim::SlotRun locate(index_t head, index_t slot) const {
    prim::SlotRun run = prim::run_of(runs_, head, static_cast<std::int32_t>(slot));
    run.place += static_cast<std::int32_t>(slot) - run.begin;
    return run;
  }
  /// Channel c of the slot that `locate` found.
  __device__ float value(const prim::SlotRun& at, int c) const {
    using namespace prim::cuda_kernels;
    const int dim = static_cast<int>(dim_);
    if (!at.coded || kind_ == Kind::exact) return RowPage<prim::ExactRows>(exact_, at.page, 0, dim).value(at.place, c);
    if (kind_ == Kind::groups) return groups_.value(at.page, dim, at.place, c);
    return RowPage<prim::BlockCodes>(blocks_, at.page, static_cast<int>(runs_.page_slots), dim).value(at.place, c);
  }
  /// As on the host (`cache::bring_into_range`), what the stored type has no number for becomes the nearest one it has, a NaN becomes 0.
  __device__ float in_range(float x) const { return prim::limit_to(prim::without_nan(x), exact_.dtype == DType::f16 ? 65504.0f : 3.38e38f); }
  /// Writes channel c of a slot that lies in exact numbers, brought into range; whether it had to be.
  __device__ bool set(const prim::SlotRun& at, int c, float x) const {
    using namespace prim::cuda_kernels;
    const float stored = in_range(x);
    write_number(exact_.dtype, RowPage<prim::ExactRows>(exact_, at.page, 0, static_cast<int>(dim_)).row(at.place), c, stored);
    return stored != x;
  }

 private:
  enum class Kind : std::uint8_t { exact, groups, blocks };  ///< what coded slots are

  prim::ColumnRuns runs_{};
  const index_t* slots_ = nullptr;
  index_t heads_ = 0, max_slots_ = 0, dim_ = 0;
  prim::ExactRows exact_{};
  Kind kind_ = Kind::exact;
  prim::cuda_kernels::GroupPlaces groups_{};
  prim::BlockCodes blocks_{};
};

}  // namespace kvcondense
