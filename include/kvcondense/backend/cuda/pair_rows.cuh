#pragma once

#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/paired_rows.cuh>
#include <kvcondense/backend/cuda/shared_direction.cuh>
#include <kvcondense/backend/cuda/shared_rows.cuh>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/status.hpp>

// How newest slots of two layers become pages of directions.

namespace kvcondense::prim {

/// A page of directions of the newest slots [first, first + page) of a head in two layers, and what either has of its own.
struct PairedPage {
  std::byte* directions = nullptr;
  std::byte* own[2] = {};
  std::uint32_t stays[JoinedPages::most_slots / JoinedPages::word_bits] = {};  ///< a bit a slot: that stays as it is
  index_t head = 0, first = 0;
};

namespace cuda_kernels {

/// Row `slot` of the newest slots of a head, as an array.
template <class Row>
struct NumbersOf {
  Row row;
  __device__ float operator[](index_t d) const { return row(static_cast<int>(d)); }
};
template <class Row>
NumbersOf(Row) -> NumbersOf<Row>;

/// How far rows of two layers are apart; 2 where a length cannot be stored. A warp a row. Grid: blocks of rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) newest_distances(SharingLayers<PairedRows> layers, index_t head, index_t rows, float* distance) {
  const index_t i = static_cast<index_t>(blockIdx.x) * direction_rows + cuda::warp_of_block();
  if (i >= rows) return;  // the whole warp
  const NumbersOf a{newest_row(layers, 0, head, i)}, b{newest_row(layers, 1, head, i)};
  const RowAngle found = angle_of(a, b, layers.dim());
  const DType type = layers.exact.dtype;
  if (cuda::lane_of_warp() == 0) distance[i] = holds_length(type, found.a) && holds_length(type, found.b) ? static_cast<float>(found.angle / std::numbers::pi) : 2.0f;
}

struct PairShared {
  float row[direction_rows][2][max_head_dim];
};
/// A warp a slot. Grid: pages, slots.
template <int Threads>
__global__ void __launch_bounds__(Threads) pair_pages(SharingLayers<PairedRows> layers, double weight, const PairedPage* pages) {
  const PairedPage& job = pages[blockIdx.x];
  const int slot = static_cast<int>(blockIdx.y) * direction_rows + cuda::warp_of_block(), page_slots = static_cast<int>(layers.at[0].newest.page_slots);
  const int dim = static_cast<int>(layers.dim()), lane = cuda::lane_of_warp();
  if (slot >= page_slots) return;  // the whole warp
  float *const a = cuda::shared_as<PairShared>().row[cuda::warp_of_block()][0], *const b = a + max_head_dim;
  for (int l = 0; l < 2; ++l) {
    const auto x = newest_row(layers, l, job.head, job.first + slot);
    for (int c = lane; c < dim; c += cuda::warp_lanes) (l == 0 ? a : b)[c] = x(c);  // a lane reads what it wrote
  }
  const RowAngle found = angle_of(a, b, dim);
  const DirectionMix mix = mix_of(weight, found, a, b, dim);
  const RowPage<ExactRows> directions(layers.exact, job.directions, page_slots, dim);
  for (int c = lane; c < dim; c += cuda::warp_lanes)
    write_number(layers.exact.dtype, directions.row(slot), c, static_cast<float>((mix.of_a * static_cast<double>(a[c]) + mix.of_b * static_cast<double>(b[c])) * mix.norm));
  const int word = slot / JoinedPages::word_bits;
  const std::uint32_t bit = 1u << (slot % JoinedPages::word_bits);
  const bool stays = (job.stays[word] & bit) != 0;
  int before = 0, all = 0;  // rows that stay
  for (int w = 0; w < JoinedPages::most_slots / JoinedPages::word_bits; ++w) {
    const std::uint32_t here = job.stays[w];
    all += __popc(here), before += w < word ? __popc(here) : w == word ? __popc(here & (bit - 1u)) : 0;
  }
#pragma unroll 1
  for (int l = 0; l < 2; ++l) {
    const PairedPart own(layers.exact, job.own[l], PairedHead{job.directions, all, 0}, page_slots, dim);
    if (slot == 0 && lane == 0) *reinterpret_cast<PairedHead*>(job.own[l]) = own.head;
    if (lane == 0) own.set_length(slot, stays ? 0.0f : static_cast<float>(l == 0 ? found.a : found.b));
    if (!stays) continue;
    if (lane == 0) own.kept_slots()[before] = static_cast<std::uint16_t>(slot);
    for (int c = lane; c < dim; c += cuda::warp_lanes) write_number(layers.exact.dtype, own.kept_rows().row(before), c, l == 0 ? a[c] : b[c]);
  }
}

}  // namespace cuda_kernels

/// Pages, tables and lists lie on the device.
struct PairRows {
  /// How far the `rows` oldest newest slots of a head are apart in two layers, and which of them stay as they are: `kept`, a byte each, and how many.
  static Status measure(Context<Cuda>& ctx, const SharingLayers<PairedRows>& layers, const DirectionRule& rule, index_t head, index_t rows, float* distance,
                        std::uint8_t* kept, index_t* count) {
    using namespace cuda_kernels;
    const Status s = cuda::launch(ctx, newest_distances<direction_block>, {cuda::covering(rows, direction_rows)}, direction_block, 0, layers, head, rows, distance);
    return s == Status::ok ? SharedDirection<Cuda>::apart(ctx, rule, distance, rows, kept, count) : s;
  }
  /// Pages of directions and what either layer has of its own; those are zeros before.
  ///
  /// Numbers  as SharedDirection, rounded to the cache's type; lengths to 16 bits where that has as many.
  static Status run(Context<Cuda>& ctx, const SharingLayers<PairedRows>& layers, float weight, const PairedPage* pages, index_t count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, pair_pages<direction_block>, {count, cuda::covering(layers.at[0].newest.page_slots, direction_rows)}, direction_block, sizeof(PairShared), layers,
                        static_cast<double>(weight), pages);
  }
};

}  // namespace kvcondense::prim
