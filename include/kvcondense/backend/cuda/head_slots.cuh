#pragma once

#include <span>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/keep_rows.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// What a cache keeps per slot: how new tokens enter its pages and old ones become codes there, and its numbers per slot, which lie with
// room to grow while words want them one head behind the other.

namespace kvcondense::prim {

/// How many slots of a head are exact first ones, and how many are codes; all others are exact newest ones.
struct PartCounts {
  index_t first = 0, coded = 0;
};

/// One column (all keys, or all values) of a layer: [ first slots exact ][ codes ][ newest slots exact ], each part in pages of its own
/// from the front; of codes that cannot move alone the host says where they lie. Counts are the device's: what leaves a part is known there alone.
struct ColumnParts {
  PageTable first{}, coded{}, newest{};
  const SlotRun* coded_runs = nullptr;  ///< null: pages of codes are filled from the front; else head h has those from coded.offset[h] on, which count from its first code
  const PartCounts* counts = nullptr;
  index_t fresh = 0;  ///< more first slots than `counts` says, in every head: the host knows those that came since

  __device__ PartCounts of(index_t head) const { return {counts[head].first + fresh, counts[head].coded}; }
  KVCONDENSE_HD index_t heads() const { return newest.heads; }
};

/// Of every head whether it has what its codes need and its first rows say: a number that is 0 before.
struct MapFlags {
  const float* at = nullptr;  ///< null: nobody waits for one
  index_t step = 0;

  __device__ bool waits(index_t head) const { return at != nullptr && at[head * step] == 0.0f; }
};

namespace cuda_kernels {

inline constexpr int append_threads = 128, append_warps = append_threads / cuda::warp_lanes;

/// The newest slots of every head become these rows, of which `first` are first slots: a warp a slot. Grid: blocks of slots, heads.
template <class T>
__global__ void __launch_bounds__(append_threads) append_head_rows(ExactRows codec, ColumnParts column, index_t first, const index_t* slots,
                                                                  TensorView<const T, 3> rows, index_t* repaired) {
  const index_t head = blockIdx.y, tokens = rows.extent[1];
  const index_t t = static_cast<index_t>(blockIdx.x) * append_warps + cuda::warp_of_block();
  if (t >= tokens) return;
  const PartCounts n = column.of(head);  // `first` of them are among these rows
  const PageTable& table = t < first ? column.first : column.newest;
  const index_t slot = t < first ? n.first - first + t : slots[head] - n.first - n.coded - tokens + t;
  std::byte* at = table.pages[table.offset[head] + slot / table.page_slots];
  const RowPage<ExactRows> page(codec, at, static_cast<int>(table.page_slots), static_cast<int>(table.dim));
  int bad = 0;
  for (int c = cuda::lane_of_warp(); c < page.dim; c += cuda::warp_lanes) {
    const float x = static_cast<float>(rows(head, t, static_cast<index_t>(c)));
    bad += static_cast<int>(!can_store(codec.dtype, x));
    write_number(codec.dtype, page.row(static_cast<int>(slot % table.page_slots)), c, x);
  }
  bad = cuda::warp_sum(bad);
  if (cuda::lane_of_warp() == 0) add_repaired(repaired, bad);
}

/// Which kept slots lie in which part, how many of the newest become codes, and what the parts then hold: a thread a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) plan_parts(ColumnParts column, const index_t* slots, KeptSlots keep, Flush rule, MapFlags maps,
                                                     PartCounts* counts, PartCounts* told, KeptRange* ranges) {
  const index_t heads = column.heads(), h = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (h >= heads) return;
  const PartCounts was = column.of(h);
  const HeadKept kept = keep.of(h);
  const index_t n = kept.list == nullptr ? slots[h] : kept.size;
  const auto below = [&](index_t slot) {  // kept slots in front of one
    index_t low = 0, high = n;
    while (low < high) {
      const index_t middle = low + (high - low) / 2;
      if (kept[middle] < slot) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const index_t first = below(was.first), coded = below(was.first + was.coded) - first, rest = n - first - coded;
  const index_t most = due_of(rule, rest, coded > 0), base = was.first + was.coded;
  const index_t due = most < rule.first && maps.waits(h) ? 0 : most;
  ranges[h] = {0, first, 0, 0};
  ranges[heads + h] = {first, coded, was.first, 0};
  ranges[2 * heads + h] = {first + coded, due, base, coded};
  ranges[3 * heads + h] = {first + coded + due, rest - due, base, 0};
  counts[h] = told[h] = {first, coded + due};
}

/// Exact newest rows of a head that become codes.
struct DueRows {
  static constexpr bool counted = true;  ///< by append_head_rows
  ExactRows codec;
  PageTable table;
  index_t head;
  HeadKept due;
  const float* scores = nullptr;  ///< of the newest slots, for codecs that tell them apart

  __device__ float score(int i) const { return scores[due[i]]; }
  __device__ auto row(int i) const {
    const index_t slot = due[i];
    std::byte* page = table.pages[table.offset[head] + slot / table.page_slots];
    const DType type = codec.dtype;
    const std::byte* at = RowPage<ExactRows>(codec, page, 0, static_cast<int>(table.dim)).row(static_cast<int>(slot % table.page_slots));
    return [type, at](int c) { return read_number(type, at, c); };
  }
};

/// Slots with parameters of their own: a warp a slot. Grid: blocks of slots, heads.
template <class Codec>
__global__ void __launch_bounds__(codec_threads, 8) code_due_rows(Codec codec, ExactRows exact, ColumnParts column, KeptSlots due, index_t* repaired) {
  RowsShared<Codec>& shared = cuda::shared_as<RowsShared<Codec>>();
  const index_t head = blockIdx.y, i = static_cast<index_t>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  const HeadKept mine = due.of(head);
  if (i >= mine.size) return;  // whole warps leave, and no block barrier follows
  const PageTable& to = column.coded;
  const index_t slot = due.ranges[head].to + i;
  const RowPage<Codec> page(of_head(codec, head), to.pages[to.offset[head] + slot / to.page_slots], static_cast<int>(to.page_slots), static_cast<int>(to.dim));
  const int bad = page.encode(static_cast<int>(slot % to.page_slots), DueRows{exact, column.newest, head, mine}, static_cast<int>(i),
                              shared.of_warp[cuda::warp_of_block()]);
  if (cuda::lane_of_warp() == 0) add_repaired(repaired, bad);
}

/// The runs of every head, one a page that holds something, and of the newest part all pages; of codes those of the host, where it has some. Entries that
/// are left over begin behind every slot. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) lay_runs(ColumnParts column, const index_t* offset, SlotRun* runs) {
  const index_t head = blockIdx.x;
  const PartCounts n = column.of(head);
  SlotRun* out = runs + offset[head];
  const index_t room = offset[head + 1] - offset[head];
  const auto pages = [](const PageTable& t, index_t slots) { return (slots + t.page_slots - 1) / t.page_slots; };
  const SlotRun* const listed = column.coded_runs == nullptr ? nullptr : column.coded_runs + column.coded.offset[head];
  const index_t first = pages(column.first, n.first);
  const index_t coded = first + (listed == nullptr ? pages(column.coded, n.coded) : column.coded.offset[head + 1] - column.coded.offset[head]);
  const index_t all = coded + column.newest.offset[head + 1] - column.newest.offset[head];
  for (index_t i = threadIdx.x; i < room; i += Threads) {
    const auto put = [&](const PageTable& t, index_t page, index_t base, bool codes) {
      out[i] = {t.pages[t.offset[head] + page], static_cast<std::int32_t>(base + page * t.page_slots), 0, codes};
    };
    if (i < first) put(column.first, i, 0, false);
    else if (i < coded && listed == nullptr) put(column.coded, i - first, n.first, true);
    else if (i < coded) out[i] = {listed[i - first].page, static_cast<std::int32_t>(n.first) + listed[i - first].begin, listed[i - first].place, true};
    else if (i < all) put(column.newest, i - coded, n.first + n.coded, false);
    else out[i] = {nullptr, 0x7fffffff, 0, false};
  }
}

struct ReadShared {
  float row[append_warps][max_head_dim];
};

/// out[i] = slot first + i of a head: a warp a slot.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) read_slots(SlotRows<Cuda> rows, index_t head, index_t first, TensorView<float, 2> out) {
  const index_t i = static_cast<index_t>(blockIdx.x) * append_warps + cuda::warp_of_block();
  if (i >= out.extent[0]) return;
  float* row = cuda::shared_as<ReadShared>().row[cuda::warp_of_block()];
  rows.load(rows.locate(head, first + i), row);
  for (int c = cuda::lane_of_warp(); c < static_cast<int>(rows.dim()); c += cuda::warp_lanes) out(i, static_cast<index_t>(c)) = row[c];
}

/// out[h] = the head's numbers, but for the last `fresh`: these are first, first + step, ... Grid: blocks, heads.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) read_head_numbers(HeadNumbers<const T> from, index_t fresh, T first, T step, RaggedView<T> out) {
  const index_t head = blockIdx.y, n = out.length(head), old = n - fresh;
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads)
    out.row(head)[i] = i < old ? from.row(head)[i] : first + static_cast<T>(i - old) * step;
}

/// Some integers for a kernel: they travel with its arguments.
struct SomeNumbers {
  static constexpr index_t most = 256;
  std::int32_t at[most];
};
/// Numbers [n - last, n - last + count) of every head become these, as bits. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) write_newest_numbers(SomeNumbers from, index_t last, index_t count, RaggedView<float> to) {
  const index_t head = blockIdx.x, first = to.length(head) - last;
  for (index_t i = threadIdx.x; i < count; i += Threads) to.row(head)[first + i] = detail::bit_cast<float>(from.at[i]);
}

/// The head's numbers become those of the kept slots; keep.data null: of the first. Grid: blocks, heads.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) write_head_numbers(RaggedView<const T> from, RaggedView<const std::int32_t> keep, const index_t* count,
                                                              HeadNumbers<T> to) {
  const index_t head = blockIdx.y, n = count[head];
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads)
    to.row(head)[i] = from.row(head)[keep.data == nullptr ? i : keep.row(head)[i]];
}

}  // namespace cuda_kernels

/// Pages, tables, lengths and numbers lie on the device.
struct HeadSlots {
  /// New rows behind the old ones, the `first` of them as first slots. `slots` and `column.fresh` count them already, and the pages have room
  /// for them.
  ///
  /// Numbers  as PageCodec<Cuda, ExactRows>::encode; what the stored type cannot hold is stored as Inf or NaN and added to
  ///          `repaired`.
  template <class T>
  static Status append(Context<Cuda>& ctx, const ExactRows& codec, const ColumnParts& column, index_t first, const index_t* slots,
                       TensorView<const T, 3> rows, index_t* repaired) {
    using namespace cuda_kernels;
    if (rows.extent[0] != column.heads() || rows.extent[2] != column.newest.dim) return Status::shape_mismatch;
    return cuda::launch(ctx, append_head_rows<T>, {cuda::covering(rows.extent[1], append_warps), column.heads()}, append_threads, 0, codec, column,
                        first, slots, rows, repaired);
  }
  /// Where the slots that stay lie, and which of the newest become codes by the rule; `counts` and `told`, which the host may read once the
  /// stream is there, are what the parts hold when all of that has moved. `ranges`: room for four per head.
  static Status plan(Context<Cuda>& ctx, const ColumnParts& column, const index_t* slots, const KeptSlots& keep, const Flush& rule,
                     const MapFlags& maps, PartCounts* counts, PartCounts* told, KeptRange* ranges) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, plan_parts<64>, {cuda::covering(column.heads(), 64)}, 64, 0, column, slots, keep, rule, maps, counts, told, ranges);
  }
  /// Newest slots become codes behind those that are there, at most `most` of a head. In one launch. Token axis.
  ///
  /// Numbers  as PageCodec<Cuda, Codec>::encode; what `append` has counted is not counted again.
  template <class Codec>
  static Status code(Context<Cuda>& ctx, const Codec& codec, const ExactRows& exact, const ColumnParts& column, const KeptSlots& due,
                     index_t most, index_t* repaired) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, code_due_rows<Codec>, {cuda::covering(most, codec_warps), column.heads()}, codec_threads, sizeof(RowsShared<Codec>), codec,
                        exact, column, due, repaired);
  }
  /// The runs by which the column is read: of head h those from offset[h] on, a page each.
  static Status lay(Context<Cuda>& ctx, const ColumnParts& column, const index_t* offset, SlotRun* runs) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, lay_runs<128>, {column.heads()}, 128, 0, column, offset, runs);
  }
  /// Slots [first, first + rows) of a head as floats.
  static Status rows(Context<Cuda>& ctx, const SlotRows<Cuda>& from, index_t head, index_t first, TensorView<float, 2> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, read_slots<append_threads>, {cuda::covering(out.extent[0], append_warps)}, append_threads, sizeof(ReadShared), from, head, first, out);
  }
  /// Numbers of all slots as words take them; those of the last `fresh` slots are first, first + step, ...
  template <class T>
  static Status read(Context<Cuda>& ctx, HeadNumbers<const T> from, index_t fresh, T first, T step, RaggedView<T> out) {
    return cuda::launch(ctx, cuda_kernels::read_head_numbers<T, 256>, {blocks, out.heads}, 256, 0, from, fresh, first, step, out);
  }
  /// The numbers of the newest slots of every head become these integers of the host, as bits. A launch for each 256 of them.
  static Status write_newest(Context<Cuda>& ctx, std::span<const index_t> from, RaggedView<float> to) {
    using namespace cuda_kernels;
    const auto n = static_cast<index_t>(from.size());
    for (index_t first = 0; first < n; first += SomeNumbers::most) {
      SomeNumbers some;
      const index_t count = n - first < SomeNumbers::most ? n - first : SomeNumbers::most;
      for (index_t i = 0; i < count; ++i) some.at[i] = static_cast<std::int32_t>(from[static_cast<std::size_t>(first + i)]);
      const Status s = cuda::launch(ctx, write_newest_numbers<128>, {to.heads}, 128, 0, some, n - first, count, to);
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }
  /// Back again, those of kept slots alone; keep.data null: of the first `count`.
  template <class T>
  static Status write(Context<Cuda>& ctx, RaggedView<const T> from, RaggedView<const std::int32_t> keep, const index_t* count, HeadNumbers<T> to) {
    return cuda::launch(ctx, cuda_kernels::write_head_numbers<T, 256>, {blocks, from.heads}, 256, 0, from, keep, count, to);
  }

 private:
  static constexpr index_t blocks = 16;  ///< of a head; lengths are known to the device only, so they stride
};

}  // namespace kvcondense::prim
