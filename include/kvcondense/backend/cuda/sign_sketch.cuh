#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cuda/hadamard.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/core/random.hpp>
#include <kvcondense/prim/sign_sketch.hpp>

// Signs of a row's products with random directions, and its length: of a whole row, or of what another codec leaves of it. Directions are made
// from a seed as they are needed; those of a matrix of the caller's are the CPU's.

namespace kvcondense::prim {
namespace cuda_kernels {

/// A SignSketch as kernels take it: in a table, bits and the two halves of a seed, which are read when they are needed.
struct WarpSketch {
  static constexpr int floats = 3;

  static void fill(const SignSketch& s, float* out) {
    out[0] = static_cast<float>(s.bits);
    out[1] = detail::bit_cast<float>(static_cast<std::uint32_t>(s.seed)), out[2] = detail::bit_cast<float>(static_cast<std::uint32_t>(s.seed >> 32));
  }
  __device__ static int bits(const float* table) { return static_cast<int>(table[0]); }
  /// A half of the turn by which block `block` of the directions comes from the first.
  __device__ static Hadamard half_turn(const float* table, int block, int half) {
    const std::uint64_t seed = detail::bit_cast<std::uint32_t>(table[1]) | static_cast<std::uint64_t>(detail::bit_cast<std::uint32_t>(table[2])) << 32;
    return {0, random_bits(seed, static_cast<std::uint64_t>(2 * block + half)) | 1u, true};
  }
  KVCONDENSE_HD static constexpr int row_bytes(int bits) { return bits == 0 ? 0 : bits / 8 + 2; }

  struct Scratch {
    float turned[max_head_dim];
    std::uint8_t positive[SignSketch::most_bits];
  };
};

// One function of each for all kernels.

/// The signs and the length of a row in shared memory, which all lanes see. How many lengths did not fit, in one lane.
__attribute__((noinline)) __device__ inline int write_sketch(const float* table, const float* x, int dim, std::byte* signs, std::byte* length, WarpSketch::Scratch& s) {
  const int lane = cuda::lane_of_warp(), bits = WarpSketch::bits(table);
#pragma unroll 1
  for (int first = 0, block = 0; first < bits; first += dim, ++block) {
    for (int c = lane; c < dim; c += cuda::warp_lanes) s.turned[c] = x[c];
    __syncwarp();
#pragma unroll 1
    for (int half = 0; half < 2; ++half) map_hadamard(WarpSketch::half_turn(table, block, half), dim, s.turned, false);
    for (int c = lane; c < dim && first + c < bits; c += cuda::warp_lanes) s.positive[first + c] = static_cast<std::uint8_t>(s.turned[c] > 0.0f);
    __syncwarp();
  }
  pack_row(1, s.positive, bits, signs);
  double square = 0.0;  // in the order of channels; products of floats are exact in double
  for (int c = 0; c < dim; ++c) square += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  int bad = 0;
  if (lane == 0) put_half(length, static_cast<float>(sqrt(square)), bad);
  return bad;
}

/// Signs that lie in a page, and the lengths that go with them.
struct StoredSigns {
  const std::byte* signs[2];     ///< of most channels, and of the strong ones
  const std::byte* lengths;      ///< a half of each
  const std::byte* strong;       ///< channels, a byte each
  int strong_count;              ///< 0: the first signs are of all
};
/// row[c] += number c of what signs stand for, in shared memory, where a lane reads and writes its own channels. The sketches lie in `table`, one behind
/// the other. A warp.
__attribute__((noinline)) __device__ inline void add_sketches(const float* table, const StoredSigns& from, int dim, float* row) {
  constexpr int each = static_cast<int>(max_head_dim) / cuda::warp_lanes;  // channels of a lane
  const int lane = cuda::lane_of_warp();
  const float root = __fsqrt_rn(static_cast<float>(dim));
  unsigned strong = 0;  // of this lane's channels
  for (int k = 0; k < from.strong_count; ++k)
    if (const int c = static_cast<int>(from.strong[k]); c % cuda::warp_lanes == lane) strong |= 1u << c / cuda::warp_lanes;
  float sum[each];
#pragma unroll
  for (int i = 0; i < each; ++i) sum[i] = lane + i * cuda::warp_lanes < dim ? row[lane + i * cuda::warp_lanes] : 0.0f;
#pragma unroll 1
  for (int which = 0; which < (from.strong_count > 0 ? 2 : 1); ++which) {
    const float* const sketch = table + which * WarpSketch::floats;
    const int bits = WarpSketch::bits(sketch);
    const float size = __fmul_rn(half_at(from.lengths + 2 * which), __fsqrt_rn(std::numbers::pi_v<float> / 2.0f) / static_cast<float>(bits));
    const unsigned mine = which == 0 ? ~strong : strong;
#pragma unroll 1
    for (int first = 0, block = 0; first < bits; first += dim, ++block) {
      for (int c = lane; c < dim; c += cuda::warp_lanes)
        row[c] = first + c >= bits ? 0.0f : row_code(from.signs[which], 1, first + c) != 0 ? size : 0.0f - size;
      __syncwarp();
#pragma unroll 1
      for (int half = 1; half >= 0; --half) map_hadamard(WarpSketch::half_turn(sketch, block, half), dim, row, true);
#pragma unroll
      for (int i = 0; i < each; ++i)
        if (lane + i * cuda::warp_lanes < dim && (mine >> i & 1u) != 0) sum[i] += __fmul_rn(root, row[lane + i * cuda::warp_lanes]);
    }
  }
#pragma unroll
  for (int i = 0; i < each; ++i)
    if (lane + i * cuda::warp_lanes < dim) row[lane + i * cuda::warp_lanes] = sum[i];
}

}  // namespace cuda_kernels

/// A sketch, then the table of the codec that it corrects.
template <HasCodecTable C>
struct CodecTable<Sketched<C>> {
  static bool serves(const Sketched<C>& codec) { return codec.sketch.matrix == nullptr; }
  static index_t floats(const Sketched<C>& codec, index_t dim) { return cuda_kernels::WarpSketch::floats + CodecTable<C>::floats(codec.codec, dim); }
  static void fill(const Sketched<C>& codec, index_t dim, float* out) {
    cuda_kernels::WarpSketch::fill(codec.sketch, out);
    CodecTable<C>::fill(codec.codec, dim, out + cuda_kernels::WarpSketch::floats);
  }
};

namespace cuda_kernels {

/// Slots of the codec below are one piece each.
template <class C>
struct RowPage<Tabled<Sketched<C>>> : RowPage<Tabled<C>> {
  using Inner = RowPage<Tabled<C>>;

  const float* table;
  int slots, bits_of_sketch;

  __device__ RowPage(const float* of_head, std::byte* page, int page_slots, int row)
      : Inner(of_head + WarpSketch::floats, page, page_slots, row), table(of_head), slots(page_slots), bits_of_sketch(WarpSketch::bits(of_head)) {}
  __device__ RowPage(const Tabled<Sketched<C>>& c, std::byte* page, int page_slots, int row) : RowPage(c.table, page, page_slots, row) {}

  __device__ int sketch_bytes() const { return WarpSketch::row_bytes(bits_of_sketch); }
  __device__ std::byte* signs(int slot) const { return this->data + slots * Inner::slot_bytes(0).size() + slot * sketch_bytes(); }
  __device__ SlotBytes slot_bytes(int slot) const {
    const SlotBytes own = Inner::slot_bytes(slot);
    return {own.row, signs(slot), own.row_bytes, sketch_bytes()};
  }
  __device__ void load(int slot, float* row) const {
    load_row(static_cast<const Inner&>(*this), slot, row);
    if (bits_of_sketch > 0) add_sketches(table, {{signs(slot), nullptr}, signs(slot) + bits_of_sketch / 8, nullptr, 0}, this->dim, row);
  }

  struct Scratch {
    typename Inner::Scratch inner;
    float left[max_head_dim];
    WarpSketch::Scratch sketch;
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    int bad = Inner::encode(slot, rows, i, s.inner);
    if (bits_of_sketch == 0) return bad;
    clean_row(rows.row(i), this->dim, rows.counted, s.left);  // it has counted what it repairs
    for (int c = cuda::lane_of_warp(); c < this->dim; c += cuda::warp_lanes) s.left[c] -= Inner::value(slot, c);
    __syncwarp();
    return bad + cuda::warp_sum(write_sketch(table, s.left, this->dim, signs(slot), signs(slot) + bits_of_sketch / 8, s.sketch));
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
