#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/pack_bits.hpp>

namespace kvcondense::prim {

template <>
struct PackBits<Cpu> {
  template <Packing P>
  static Status pack(Context<Cpu>&, const P& packing, std::span<const std::uint8_t> codes, std::span<std::byte> bytes) {
    if (const Status s = packing_fits(packing, codes.size(), bytes.size()); s != Status::ok) return s;
    for (const std::uint8_t c : codes)
      if (c >= P::levels) return Status::invalid_argument;
    const auto n = static_cast<index_t>(codes.size());
    if constexpr (dense_bits<P> > 0) {
      cpu::pack_codes<dense_bits<P>>(codes.data(), n, bytes.data());
    } else {
      std::fill(bytes.begin(), bytes.end(), std::byte{});
      for (index_t i = 0; i < n; ++i) packing.set(bytes.data(), i, codes[static_cast<std::size_t>(i)]);
    }
    return Status::ok;
  }

  template <Packing P>
  static Status unpack(Context<Cpu>&, const P& packing, std::span<const std::byte> bytes, std::span<std::uint8_t> codes) {
    if (const Status s = packing_fits(packing, codes.size(), bytes.size()); s != Status::ok) return s;
    const auto n = static_cast<index_t>(codes.size());
    if constexpr (dense_bits<P> > 0) {
      // A last partial step goes through a buffer: fast unpacking writes whole steps.
      constexpr index_t step = cpu::code_step;
      const index_t whole = n / step * step;
      cpu::unpack_codes<dense_bits<P>>(bytes.data(), whole, codes.data());
      std::uint8_t tail[2 * step];
      cpu::unpack_codes<dense_bits<P>>(bytes.data() + packing.bytes(whole), n - whole, tail);
      std::copy_n(tail, n - whole, codes.data() + whole);
    } else {
      for (index_t i = 0; i < n; ++i)
        codes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(packing.get(bytes.data(), i));
    }
    return Status::ok;
  }

 private:
  template <class P>
  struct DenseBits : std::integral_constant<int, 0> {};
  template <int Bits>
  struct DenseBits<DenseLe<Bits>> : std::integral_constant<int, Bits> {};
  template <class P>
  static constexpr int dense_bits = DenseBits<P>::value;
};

}  // namespace kvcondense::prim
