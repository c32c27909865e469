#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/found_basis.hpp>

namespace kvcondense::lowrank {

/// Stores keys before rotation as coordinates in directions found from the prompt; values stay whole.
///
/// Idea     keys before rotation lie nearer to a subspace than anything else in a cache: few coordinates per slot are enough
///          to make again the keys that a selection asks for.
/// Source   ShadowKV, arXiv:2410.21465, its keys; which slots are read is the retrieval stage shadow_select.
/// Needs    keys and values only; a position stage that stores raw keys.
/// Shapes   per layer and KV head a basis [rank, head_dim]; coordinates [slots, rank].
/// Cost     as online_pca, and head_dim * rank multiplications per key that is read.
/// Numbers  as online_pca, not centred. Slots are coded in whole chunks; the newest local_chunks chunks and what fills no
///          chunk stay exact. rank = floor(keep * head_dim), at least 1: 160 of 1024 in the paper.
/// Differs  one basis per KV head, where the paper has one over all heads of a layer: it stores as many numbers for the same
///          part of a layer, but directions that heads share are found once per head. Later tokens are stored in the same
///          directions, where the paper keeps them exact. Values are not moved to the host.
/// Errors   incompatible with a position stage that stores rotated keys; invalid_argument unless 0 < keep <= 1, 1 <= chunk <=
///          4096 and the others are not negative, none of them nor chunk * local_chunks above 2^31.
struct ShadowKV {
  static constexpr Descriptor about{"shadowkv", Stage::lowrank, "arXiv:2410.21465"};
  static constexpr Inputs needs{};

  double keep = 0.15625;     ///< part of a key's numbers
  index_t chunk = 8;         ///< slots that are coded at once
  index_t local_chunks = 4;  ///< newest whole chunks that stay exact
  index_t least = 64;        ///< slots that directions are found from, at least
  index_t sinks = 0;

  prim::FoundBasis key_transform(const CacheShape& shape, HeadIndex) const {
    const auto r = static_cast<index_t>(keep * static_cast<double>(shape.head_dim) + 1e-9);
    return {static_cast<std::int32_t>(std::clamp<index_t>(r, 1, shape.head_dim)), false};
  }
  constexpr prim::NoTransform value_transform(const CacheShape&, HeadIndex) const { return {}; }
  constexpr Flush key_flush() const { return {chunk, chunk * local_chunks, least}; }
  constexpr Flush value_flush() const { return {0, 0}; }
  constexpr bool differs_per_head() const { return false; }
  constexpr bool takes_keys(bool raw) const { return raw; }

  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = keep > 0.0 && keep <= 1.0 && chunk >= 1 && chunk <= 4096 && local_chunks >= 0 && local_chunks <= most / chunk &&
                      least >= 0 && least <= most && sinks >= 0 && sinks <= most;
    return good ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::lowrank
