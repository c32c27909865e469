#pragma once

#include <cstdint>
#include <span>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/query_rows.cuh>
#include <kvcondense/backend/cuda/rope.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

// Rows on their way into and out of a cache of raw keys: keys lose the rotation that they came with, queries stand at the slots of their own tokens.

namespace kvcondense::prim {
namespace cuda_kernels {

/// Where rows come to stand. Without lengths: all at `at`. Else row r of `rows` at the slot of the newest of these tokens, in the head of its query head;
/// where nobody says which tokens slots hold, the newest slots are those of the rows.
struct RowPlaces {
  index_t at = 0;
  SlotTokens held{};
  const index_t* slots = nullptr;
  index_t group = 1, rows = 0;

  __device__ index_t of(index_t q_head, index_t row) const {
    if (slots == nullptr) return at;
    const index_t head = q_head / group;
    if (!held.known()) return slots[head] - rows + row;
    return held.below(head, slots[head], held.seen - rows + row + 1) - 1;
  }
};

/// Rows [first, first + count) of every head; `from`: where each of them is, if anywhere. Grid: rows, heads.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) turn_rows(RopeAngles angles, TensorView<const T, 3> in, index_t first, SomeNumbers from, bool rotated, RowPlaces places,
                                                     TensorView<float, 3> out) {
  const index_t row = first + blockIdx.x, head = blockIdx.y, dim = in.extent[2];
  const index_t place = places.of(head, row), by = place < 0 ? 0 : place - (rotated ? from.at[blockIdx.x] : 0);
  const bool halves = angles.pairing == RopePairing::half_split;
  for (index_t pair = threadIdx.x; pair < angles.pairs; pair += Threads) {
    const CosSin turn = cos_sin(angles, pair, by);
    const index_t near = halves ? pair : 2 * pair, far = halves ? pair + angles.pairs : 2 * pair + 1;
    const float x = static_cast<float>(in(head, row, near)), y = static_cast<float>(in(head, row, far));
    out(head, row, near) = x * turn.cosine - y * turn.sine;
    out(head, row, far) = y * turn.cosine + x * turn.sine;
  }
  for (index_t c = 2 * angles.pairs + threadIdx.x; c < dim; c += Threads) out(head, row, c) = static_cast<float>(in(head, row, c));
}

}  // namespace cuda_kernels

/// Positions are the host's, one per row, and travel with the launches, one for each 256 rows; rows and what comes out lie on the device.
///
/// Numbers  angles in double from one position to the other, cos, sin and products in float.
struct TurnRows {
  /// Keys as they were before they were rotated to `positions`.
  template <class T>
  static Status back(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const T, 3> keys, std::span<const index_t> positions, TensorView<float, 3> out) {
    return run(ctx, angles, keys, positions, {}, out);
  }
  /// Queries of the newest tokens, without rotation or (`positions` not empty) rotated to these, as they stand at the slots of their tokens.
  static Status to_slots(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const float, 3> queries, std::span<const index_t> positions, const SlotTokens& held,
                         const index_t* slots, index_t kv_heads, TensorView<float, 3> out) {
    return run(ctx, angles, queries, positions, {0, held, slots, queries.extent[0] / kv_heads, queries.extent[1]}, out);
  }
  /// The same at the last places of lists, of which there are `lists`, each for as many query heads, of `slots` places each.
  static Status to_list_ends(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const float, 3> queries, std::span<const index_t> positions, const index_t* slots,
                             index_t lists, TensorView<float, 3> out) {
    return run(ctx, angles, queries, positions, {0, {}, slots, queries.extent[0] / lists, queries.extent[1]}, out);
  }
  /// The same all at one place.
  static Status to_place(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const float, 3> queries, std::span<const index_t> positions, index_t place,
                         TensorView<float, 3> out) {
    return run(ctx, angles, queries, positions, {place}, out);
  }

 private:
  template <class T>
  static Status run(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const T, 3> in, std::span<const index_t> positions, const cuda_kernels::RowPlaces& places,
                    TensorView<float, 3> out) {
    using namespace cuda_kernels;
    const index_t rows = in.extent[1];
    if (!positions.empty() && static_cast<index_t>(positions.size()) != rows) return Status::shape_mismatch;
    for (index_t first = 0; first < rows; first += SomeNumbers::most) {
      const index_t count = rows - first < SomeNumbers::most ? rows - first : SomeNumbers::most;
      SomeNumbers from{};
      for (index_t i = 0; !positions.empty() && i < count; ++i) from.at[i] = static_cast<std::int32_t>(positions[static_cast<std::size_t>(first + i)]);
      const Status s = cuda::launch(ctx, turn_rows<T, 128>, {count, in.extent[0]}, 128, 0, angles, in, first, from, !positions.empty(), places, out);
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
