#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/complex_vq.hpp>

namespace kvcondense::prim {

/// Stages, codewords of a stage, beam, bits of a code, whether pairs are halves of a row, whether lengths are taken off; then the book.
template <>
struct CodecTable<ComplexVq> {
  static constexpr int book_at = 6;
  static index_t floats(const ComplexVq& codec, index_t dim) { return book_at + static_cast<index_t>(codec.stages) * codec.base * dim; }
  static void fill(const ComplexVq& codec, index_t dim, float* out) {
    out[0] = static_cast<float>(codec.stages), out[1] = static_cast<float>(codec.base), out[2] = static_cast<float>(codec.beam);
    out[3] = static_cast<float>(codec.code_bits()), out[4] = codec.pairing == RopePairing::half_split ? 1.0f : 0.0f, out[5] = codec.lengths ? 1.0f : 0.0f;
    for (index_t i = 0; i < static_cast<index_t>(codec.stages) * codec.base * dim; ++i) out[book_at + i] = codec.book[i];
  }
};

namespace cuda_kernels {

template <>
struct RowPage<Tabled<ComplexVq>> {
  const float* table;
  std::byte* data;
  int dim, stages, base, bits, codes, bytes;
  bool halves;

  __device__ RowPage(const float* t, std::byte* page, int, int row)
      : table(t), data(page), dim(row), stages(static_cast<int>(t[0])), base(static_cast<int>(t[1])), bits(static_cast<int>(t[3])), codes((2 * stages * bits + 7) / 8),
        bytes(codes + 2), halves(t[4] != 0.0f) {}
  __device__ RowPage(const Tabled<ComplexVq>& c, std::byte* page, int slots, int row) : RowPage(c.table, page, slots, row) {}

  __device__ std::byte* row(int slot) const { return data + slot * bytes; }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, bytes, 0}; }
  __device__ float value(int slot, int c) const {
    const std::byte* at = row(slot);
    const bool real = is_first(c);
    const int other = partner(c);
    float x = 0.0f;
    for (int s = 0; s < stages; ++s) {
      x = __fadd_rn(x, word(s, known(row_code(at, bits, 2 * s)))[c]);
      const float turned = word(s, known(row_code(at, bits, 2 * s + 1)))[other];
      x = real ? __fadd_rn(x, -turned) : __fadd_rn(x, turned);
    }
    return __fmul_rn(x, half_at(at + codes));
  }

  struct Scratch {
    float rest[max_head_dim], turned[max_head_dim], square[ComplexVq::most_base];
    std::uint8_t codes[ComplexVq::most_codes], taken[ComplexVq::most_base];
  };
  /// A stage after the other; a lane a codeword.
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const int lane = cuda::lane_of_warp();
    int bad = clean_row(rows.row(i), dim, rows.counted, s.rest);
    const bool lengths = table[5] != 0.0f;
    float inverse = 1.0f;
    if (lengths) {
      double square = 0.0;  // in the order of channels, in every lane the same: products of floats are exact in double
      for (int c = 0; c < dim; ++c) square += static_cast<double>(s.rest[c]) * static_cast<double>(s.rest[c]);
      bool saturated = false;
      const float length = stored(ParamType::f16, static_cast<float>(sqrt(square)), saturated);
      inverse = length > 0.0f ? __frcp_rn(length) : 0.0f;
      if (lane == 0) put_half(row(slot) + codes, static_cast<float>(sqrt(square)), bad);
    } else if (lane == 0) {
      put_half(row(slot) + codes, 1.0f, bad);
    }
    __syncwarp();
    for (int c = lane; c < dim; c += cuda::warp_lanes) s.rest[c] = limit_to(lengths ? __fmul_rn(s.rest[c], inverse) : s.rest[c], 1e6f);
    __syncwarp();
#pragma unroll 1
    for (int stage = 0; stage < stages; ++stage) choose(stage, s);
    pack_row(bits, s.codes, 2 * stages, row(slot));
    return cuda::warp_sum(bad);
  }

 private:
  __device__ const float* word(int stage, int code) const { return table + CodecTable<ComplexVq>::book_at + (stage * base + code) * dim; }
  /// A damaged code must not lead out of the book.
  __device__ int known(int code) const { return code < base ? code : base - 1; }
  __device__ bool is_first(int c) const { return halves ? c < dim / 2 : c % 2 == 0; }
  __device__ int partner(int c) const { return halves ? (c < dim / 2 ? c + dim / 2 : c - dim / 2) : c ^ 1; }

  /// The codes of a stage; `rest` becomes what they leave. As on the CPU: the codewords that leave least, each with the best that is turned.
  __device__ void choose(int stage, Scratch& s) const {
    const int lane = cuda::lane_of_warp(), wanted = static_cast<int>(table[2]), beam = wanted < base ? wanted : base;
    for (int a = lane; a < base; a += cuda::warp_lanes) s.square[a] = far(s.rest, word(stage, a)), s.taken[a] = 0;
    __syncwarp();
    for (int k = 0; k < beam; ++k) {
      const int a = first_extreme<false>(base, [&](int j) { return s.taken[j] != 0; }, [&](int j) { return s.square[j]; });
      __syncwarp();
      if (lane == 0) s.taken[a] = 1;
      __syncwarp();
    }
    std::uint64_t least = static_cast<std::uint64_t>(detail::bit_cast<std::uint32_t>(INFINITY)) << 32;  // errors are not negative: bits ascend as they do
#pragma unroll 1
    for (int a = 0; a < base; ++a) {
      if (s.taken[a] == 0) continue;  // the same in all lanes
      const float* z = word(stage, a);
      for (int c = lane; c < dim; c += cuda::warp_lanes) {
        const int other = partner(c);
        const float left = s.rest[other] - z[other];
        s.turned[c] = is_first(c) ? left : -left;
      }
      __syncwarp();
      for (int b = lane; b < base; b += cuda::warp_lanes) {
        const std::uint64_t mine = static_cast<std::uint64_t>(detail::bit_cast<std::uint32_t>(far(s.turned, word(stage, b)))) << 32 | static_cast<std::uint64_t>(a << 8 | b);
        least = mine < least ? mine : least;  // of equal errors the first pair
      }
      __syncwarp();
    }
    least = cuda::warp_reduce(least, [](std::uint64_t a, std::uint64_t b) { return a < b ? a : b; });
    const int first = static_cast<int>(least >> 8 & 255u), second = static_cast<int>(least & 255u);
    if (lane == 0) s.codes[2 * stage] = static_cast<std::uint8_t>(first), s.codes[2 * stage + 1] = static_cast<std::uint8_t>(second);
    const float *z = word(stage, first), *w = word(stage, second);
    for (int c = lane; c < dim; c += cuda::warp_lanes) {
      const float turned = w[partner(c)], sum = is_first(c) ? __fadd_rn(z[c], -turned) : __fadd_rn(z[c], turned);
      s.rest[c] = __fadd_rn(s.rest[c], -sum);
    }
    __syncwarp();
  }
  /// Square distance, in the eight sums of the CPU.
  __device__ float far(const float* a, const float* b) const {
    float sum[8] = {};
    int i = 0;
#pragma unroll 1
    for (; i + 8 <= dim; i += 8)
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float apart = a[i + k] - b[i + k];
        sum[k] = __fadd_rn(sum[k], __fmul_rn(apart, apart));
      }
    float all = __fadd_rn(__fadd_rn(__fadd_rn(sum[0], sum[4]), __fadd_rn(sum[2], sum[6])), __fadd_rn(__fadd_rn(sum[1], sum[5]), __fadd_rn(sum[3], sum[7])));
    for (; i < dim; ++i) {
      const float apart = a[i] - b[i];
      all = __fadd_rn(all, __fmul_rn(apart, apart));
    }
    return all;
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
