#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Stores keys and values of two neighbouring layers as one direction between theirs and two lengths.
///
/// Idea     in the deeper half of a model rows of neighbouring layers point nearly the same way and differ in length. A
///          token's rows in layers l and l + 1 become one direction, stored once; each layer keeps its length, and
///          tokens whose rows are far apart keep both rows as they are.
/// Source   MiniCache, arXiv:2405.14366.
/// Needs    nothing of a step. A pair of layers: `start` leaves at least two.
/// Shapes   per KV head, keys and values each for themselves, a page of `page_slots` slots at a time: at the end of a prompt
///          all whole pages, then one whenever the window holds a page. Tokens behind them stay exact in both layers.
/// Cost     two reads of the rows that are merged, one write; attention reads as many rows as ever, and a length per slot.
/// Numbers  spherical interpolation in float64, `weight` for the deeper layer; lengths in 16 bits (32 in caches of 32-bit
///          numbers), rows whose length these cannot hold next to exactly stay as they are. Behind a quantizer the
///          direction is coded, once for both, and kept rows are exact. A page that would not become smaller stays.
/// Differs  pages merge where both layers hold the same tokens; heads that an eviction stage left different ones keep
///          theirs, and a layer that loses half of a page takes its rows back when they fit one with a neighbour's.
///          The paper prints its rule of what stays as the opposite of what its text says; this is the text's.
/// Errors   invalid_argument when weight, start or part is not in [0, 1], recent is negative, or there is no pair;
///          incompatible with a low-rank stage, and with a quantizer that finds factors from data or tells slots apart.
struct MiniCache {
  static constexpr Descriptor about{"minicache", Stage::merge, "arXiv:2405.14366"};
  static constexpr Inputs needs{};

  float weight = 0.6f;
  float start = 0.5f;
  prim::Apart apart = prim::Apart::fraction;
  float part = 0.05f;
  index_t recent = 0;

  constexpr AcrossLayers pipeline() const { return {{true, start, recent, {weight, apart, part}}}; }
  Status validate(const CacheShape& shape) const {
    const auto share = [](float x) { return x >= 0.0f && x <= 1.0f; };
    if (!share(weight) || !share(start) || !share(part) || recent < 0) return Status::invalid_argument;
    return shape.layers - pipeline().across.first(shape) >= 2 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_merge_policy<MiniCache, Cpu>());

}  // namespace kvcondense::merge
