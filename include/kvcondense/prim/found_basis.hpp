#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Rows as coordinates in their own principal directions, found once from the rows that are coded first.
///
/// Source   the singular value decomposition of a prompt's keys in ShadowKV, arXiv:2410.21465, and xKV, arXiv:2503.18893.
/// Shapes   state: rank directions of dim numbers each, then the mean where rows are centred. While rows are observed it
///          holds their sums of products, dim * dim numbers more.
/// Cost     dim * (dim + 1) multiplications per observed row, about 10 dim^3 once; then as a Projection.
/// Numbers  sums of products in float32, so directions below about 3e-4 of the largest singular value are noise. The entry of
///          largest size in a direction is positive. Rows that span fewer than `rank` directions get any others.
struct FoundBasis {
  std::int32_t rank = 0;
  bool center = false;

  constexpr bool identity() const { return rank == 0; }  ///< rows stay as they are
  constexpr index_t stored_dim(index_t dim) const { return identity() ? dim : rank; }
  constexpr bool centred() const { return center && !identity(); }
  constexpr index_t state_floats(index_t dim) const {
    return identity() ? 0 : rank * dim + (center ? dim : 0);
  }
  constexpr index_t finding_floats(index_t dim) const { return identity() ? 0 : dim * dim + dim + 1; }
  constexpr bool valid(index_t dim) const { return dim >= 1 && dim <= max_head_dim && rank >= 0 && rank <= dim; }
  constexpr std::int64_t fingerprint() const { return identity() ? 0 : 0xf0dba51 + rank * 2 + (center ? 1 : 0); }
};

static_assert(TransformDescription<FoundBasis>);

}  // namespace kvcondense::prim
