#pragma once

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/attend_columns.hpp>

// What a cache keeps of queries, and what it knows of the tokens that its slots hold: for columns of attention.

namespace kvcondense {

/// Attention of the newest queries of a layer over its slots, as policies ask for it.
template <>
class QueryColumns<Cuda> {
 public:
  virtual ~QueryColumns() = default;
  /// Query tokens at hand; a request may name that many rows or fewer.
  virtual index_t rows() const noexcept = 0;
  /// Brings its own scratch memory. Errors as prim::AttendColumns; out_of_range with too many rows.
  virtual Status run(Context<Cuda>& ctx, const prim::ColumnRequest& request) const noexcept = 0;
};

namespace prim {

/// Which tokens the slots of a layer hold: `ids` of those that a step has seen, and behind them the newest `pending` tokens of `seen`.
struct SlotTokens {
  HeadNumbers<const std::int32_t> ids{};
  index_t seen = 0, pending = 0;

  KVCONDENSE_HD bool known() const { return seen > 0; }
  __device__ index_t token(index_t head, index_t slots, index_t slot) const {
    const index_t stepped = slots - pending;
    return slot < stepped ? ids.row(head)[slot] : seen - pending + slot - stepped;
  }
  /// Slots of tokens below this one.
  __device__ index_t below(index_t head, index_t slots, index_t token) const {
    const index_t stepped = slots - pending, fresh = token - (seen - pending);
    if (fresh > 0) return stepped + fresh;
    index_t low = 0, high = stepped;
    while (low < high) {
      const index_t middle = low + (high - low) / 2;
      if (ids.row(head)[middle] < token) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

namespace cuda_kernels {

/// A block a row: `old` rows of the window, from `first` on, then the newest of `fresh`. Grid: rows, query heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) join_query_rows(TensorView<const float, 3> window, index_t first, index_t old, TensorView<const float, 3> fresh,
                                                           index_t skip, TensorView<float, 3> to) {
  const index_t r = blockIdx.x, h = blockIdx.y;
  for (index_t c = threadIdx.x; c < to.extent[2]; c += Threads) to(h, r, c) = r < old ? window(h, first + r, c) : fresh(h, skip + r - old, c);
}

}  // namespace cuda_kernels

struct QueryRows {
  /// to [q_heads, rows, head_dim]: the newest rows of `window` that there is room for, then the newest of `fresh`.
  static Status join(const Context<Cuda>& ctx, TensorView<const float, 3> window, TensorView<const float, 3> fresh, TensorView<float, 3> to) {
    using namespace cuda_kernels;
    const index_t rows = to.extent[1], now = rows < fresh.extent[1] ? rows : fresh.extent[1], old = rows - now;
    if (old > window.extent[1]) return Status::shape_mismatch;
    return cuda::launch(ctx, join_query_rows<128>, {rows, to.extent[0]}, 128, 0, window, window.extent[1] - old, old, fresh, fresh.extent[1] - now, to);
  }
};

}  // namespace prim
}  // namespace kvcondense
