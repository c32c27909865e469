#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Signs of a row's products with random directions s_j (a Johnson-Lindenstrauss sketch of one bit). With the row's length
/// they estimate any product with it: q . k ~ sqrt(pi / 2) / bits * |k| * sum_j (s_j . q) sign(s_j . k).
///
/// Source   QJL, arXiv:2406.03482.
/// Shapes   a row is `bits` signs, 1 for positive, the first in the lowest bit of the first byte; then its length in fp16.
/// Numbers  directions are rows of sqrt(dim) times orthogonal blocks: signs and a Hadamard transform, twice, with other
///          signs in each block. Or those of `matrix` [bits, dim], which the caller owns and keeps.
struct SignSketch {
  index_t bits = 0;  ///< directions; 0: nothing is stored
  std::uint64_t seed = 1;
  const float* matrix = nullptr;
  index_t columns = 0;  ///< of the matrix

  static constexpr index_t most_bits = 1024;

  constexpr index_t sign_bytes() const { return bits / 8; }
  constexpr index_t row_bytes() const { return bits == 0 ? 0 : sign_bytes() + 2; }
  constexpr bool valid(index_t dim) const {
    return bits >= 0 && bits <= most_bits && bits % 8 == 0 && (matrix == nullptr || columns == dim);
  }
  std::int64_t fingerprint() const {
    auto f = static_cast<std::uint64_t>(bits) * 0x9e3779b97f4a7c15u + seed;
    for (index_t i = 0; i < (matrix == nullptr ? 0 : bits * columns); ++i)
      f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(matrix[i]);
    return static_cast<std::int64_t>(f);
  }
};

/// Rows as sketches: one of most channels, and one of the few that are strongest in a group of slots, which would else
/// make up most of the length that all errors are proportional to.
///
/// Shapes   a page is a row of [signs, signs of the strong, length, length of the strong] per slot, then [channels] bytes
///          per group of slots, the strong channels, ascending. Without strong channels slots are independent.
struct SketchRows {
  SignSketch sketch{256, 1};
  SignSketch strong{256, 2};
  index_t channels = 8;     ///< of a group, those of largest length
  index_t group_size = 32;  ///< slots that agree on their strong channels

  constexpr index_t row_bytes() const { return sketch.row_bytes() + (channels == 0 ? 0 : strong.row_bytes()); }
  constexpr index_t group_at(index_t slots, index_t slot) const {
    return slots * row_bytes() + slot / group_slots() * channels;
  }
  constexpr std::size_t page_bytes(index_t slots, index_t) const {
    return static_cast<std::size_t>(group_at(slots, slots + group_slots() - 1));
  }
  constexpr index_t group_slots() const { return channels == 0 ? 1 : group_size; }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || dim > max_head_dim || channels < 0 || channels >= dim || group_size < 1 || group_size > 65536) return false;
    return sketch.valid(dim) && sketch.bits > 0 && strong.valid(dim) && (channels == 0 || strong.bits > 0);
  }
  std::int64_t fingerprint() const {
    return mix_fingerprints(mix_fingerprints(sketch.fingerprint(), strong.fingerprint()), channels * 65536 + group_size);
  }
};

static_assert(CodecDescription<SketchRows>);

/// Rows of another codec, and a sketch of what it leaves of each: scores become unbiased.
///
/// Shapes   the codec's page, then a row of signs and length per slot.
template <class C>
struct Sketched {
  C codec{};
  SignSketch sketch{};

  constexpr index_t sketch_at(index_t slots, index_t dim) const {
    return static_cast<index_t>(codec.page_bytes(slots, dim));
  }
  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>(sketch_at(slots, dim) + slots * sketch.row_bytes());
  }
  constexpr index_t group_slots() const { return codec.group_slots(); }
  constexpr bool valid(index_t dim) const { return codec.valid(dim) && sketch.valid(dim); }
  std::int64_t fingerprint() const {
    return sketch.bits == 0 ? codec.fingerprint() : mix_fingerprints(codec.fingerprint(), sketch.fingerprint());
  }
};

}  // namespace kvcondense::prim
