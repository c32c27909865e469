#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/pack_bits.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int pack_threads = 256;

template <class P>
struct DenseBits : std::integral_constant<int, 0> {};
template <int Bits>
struct DenseBits<DenseLe<Bits>> : std::integral_constant<int, Bits> {};

/// Codes that one thread puts together without touching another one's bytes: neighbours, in a run or, of a dense stream, eight.
/// Where runs are cut in pieces (`run`), it is the codes of one byte.
template <class P>
KVCONDENSE_HD index_t unit_codes(const P& packing) {
  if constexpr (DenseBits<P>::value > 0) return 8;
  else if constexpr (requires { packing.run; }) return P::parts;
  else return packing.run_length();
}
template <class P>
KVCONDENSE_HD index_t unit_bytes(const P& packing) {
  if constexpr (requires { packing.run; }) return 1;
  else return packing.bytes(unit_codes(packing));
}

template <class P>
__global__ void __launch_bounds__(pack_threads) pack_codes(P packing, const std::uint8_t* codes, index_t n, std::byte* bytes, index_t size) {
  constexpr int most = 32;  // bytes of the largest unit: eight planes of 32 codes
  const index_t mine = static_cast<index_t>(blockIdx.x) * pack_threads + threadIdx.x, each = unit_codes(packing), width = unit_bytes(packing);
  if (mine * width >= size) return;
  const auto code = [&](index_t i) { return i < n ? codes[i] % P::levels : 0u; };
  std::byte packed[most] = {};
  if constexpr (requires { packing.run; }) {
    const index_t piece = packing.run / P::parts, first = mine / piece * packing.run + mine % piece;
    P small = packing;
    small.run = P::parts;
    for (int part = 0; part < P::parts; ++part) small.set(packed, part, code(first + part * piece));
  } else {
    for (index_t i = 0; i < each; ++i) packing.set(packed, i, code(mine * each + i));
  }
  for (index_t b = 0; b < width && mine * width + b < size; ++b) bytes[mine * width + b] = packed[b];
}

/// A thread a code.
template <class P>
__global__ void __launch_bounds__(pack_threads) unpack_codes(P packing, const std::byte* bytes, std::uint8_t* codes, index_t n) {
  const index_t i = static_cast<index_t>(blockIdx.x) * pack_threads + threadIdx.x;
  if (i < n) codes[i] = static_cast<std::uint8_t>(packing.get(bytes, i));
}

}  // namespace cuda_kernels

/// Byte for byte the CPU's. Codes lie on the device, so one that is too large is taken modulo `levels` instead of refused.
template <>
struct PackBits<Cuda> {
  template <Packing P>
  static Status pack(Context<Cuda>& ctx, const P& packing, std::span<const std::uint8_t> codes, std::span<std::byte> bytes) {
    using namespace cuda_kernels;
    if (const Status s = packing_fits(packing, codes.size(), bytes.size()); s != Status::ok) return s;
    const auto size = static_cast<index_t>(bytes.size());
    return cuda::launch(ctx, cuda_kernels::pack_codes<P>, {cuda::covering(cuda::covering(size, unit_bytes(packing)), pack_threads)}, pack_threads, 0, packing,
                        codes.data(), static_cast<index_t>(codes.size()), bytes.data(), size);
  }

  template <Packing P>
  static Status unpack(Context<Cuda>& ctx, const P& packing, std::span<const std::byte> bytes, std::span<std::uint8_t> codes) {
    using namespace cuda_kernels;
    if (const Status s = packing_fits(packing, codes.size(), bytes.size()); s != Status::ok) return s;
    const auto n = static_cast<index_t>(codes.size());
    return cuda::launch(ctx, cuda_kernels::unpack_codes<P>, {cuda::covering(n, pack_threads)}, pack_threads, 0, packing, bytes.data(), codes.data(), n);
  }
};

}  // namespace kvcondense::prim
