#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>

namespace kvcondense::test {

inline constexpr prim::GroupForm group_forms[] = {prim::GroupForm::minimum, prim::GroupForm::integer_zero, prim::GroupForm::float_zero,
                                                  prim::GroupForm::symmetric, prim::GroupForm::mid_rise};

inline std::size_t size_of_block(index_t rows, index_t columns) { return static_cast<std::size_t>(rows * columns); }

inline std::vector<float> normal_rows(index_t rows, index_t columns, std::uint64_t seed) {
  std::vector<float> x(size_of_block(rows, columns));
  fill_normal(x.data(), x.size(), seed);
  return x;
}

/// A page of GroupInt with canaries around it, and the rows it was made of.
template <int Bits>
struct CodedPage {
  using Codec = prim::PageCodec<Cpu, prim::GroupInt<Bits>>;

  CodedPage(const prim::GroupInt<Bits>& c, index_t slot_count, index_t d, std::vector<float> of)
      : codec(c), slots(slot_count), dim(d), rows(std::move(of)), bytes(c.page_bytes(slots, dim)) {
    encode();
  }
  CodedPage(const prim::GroupInt<Bits>& c, index_t slot_count, index_t d, std::uint64_t seed)
      : CodedPage(c, slot_count, d, normal_rows(slot_count, d, seed)) {}

  index_t encode() { return Codec::encode(codec, span(), 0, slots, {rows.data(), slots, dim}); }
  prim::PageSpan span() { return {bytes.data(), slots, dim}; }
  std::vector<float> decoded(index_t first, index_t count) {
    Guarded<float> out(size_of_block(count, dim));
    Codec::decode(codec, span(), first, count, {out.data(), count, dim});
    REQUIRE(out.ok());
    return {out.begin(), out.end()};
  }

  prim::GroupInt<Bits> codec;
  index_t slots, dim;
  std::vector<float> rows;
  Guarded<std::byte> bytes;
};

}  // namespace kvcondense::test
