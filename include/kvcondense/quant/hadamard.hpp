#pragma once

#include <cstdint>

#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Rotates keys and values before any quantizer codes them; queries are rotated once, outputs once.
///
/// Idea     a few large channels decide the step of every number that shares a scale with them; after a Hadamard
///          transform all channels are about equally large, and products of rotated vectors are the same.
/// Source   QuaRot, arXiv:2404.00456: hadamard(group_int(bits=4)), per token and head; llama.cpp over ggml's formats:
///          hadamard(q4_0).
/// Needs    keys and values only; keys as they are attended, with RoPE in them.
/// Shapes   blocks of `block` channels; 0: the largest power of two that divides head_dim (16 of 80, 32 of 96).
/// Cost     the quantizer's; dim * log2(block) additions per new slot, and per query head for the query and the output.
///          Queries and sums of values have two forms, so a call's rows are twice as wide.
/// Numbers  float32, orthonormal. An offset that all tokens share in one channel is spread over all of them: that helps
///          groups along channels and spoils groups along tokens, which are refused unless `spread_offsets`.
/// Differs  values are rotated when they are stored, not in the model's weights.
/// Errors   invalid_argument when block is no power of two that divides head_dim and the value size, and where the
///          quantizer says so; incompatible when it shares scales along tokens and spread_offsets is off, or maps
///          rows itself.
template <class Quantizer = GroupInt<4>>
struct Hadamard {
  static constexpr Descriptor about{"hadamard", Stage::quant, "arXiv:2404.00456"};

  static constexpr Inputs needs = [] {
    if constexpr (requires { Quantizer::needs; }) return Quantizer::needs;
    else return Inputs{};
  }();

  Quantizer base{};
  bool keys = true;
  bool values = true;
  index_t block = 0;
  std::uint64_t seed = 0;      ///< of random signs before the transform; 0: none
  bool spread_offsets = false; ///< also before groups along tokens
  index_t sinks = base.sinks;  ///< as the quantizer says

  constexpr auto key_codec(const CacheShape& shape, HeadIndex at = {}) const {
    return prim::Transformed{transform(keys), key_codec_of(base, shape, at)};
  }
  constexpr auto value_codec(const CacheShape& shape, HeadIndex at = {}) const {
    return prim::Transformed{transform(values), value_codec_of(base, shape, at)};
  }
  constexpr bool differs_per_head() const { return kvcondense::differs_per_head(base); }
  constexpr auto saliency() const requires requires { base.saliency(); } { return base.saliency(); }
  constexpr bool has_saliency() const requires requires { base.has_saliency(); } { return base.has_saliency(); }
  constexpr Flush key_flush(const CacheShape& shape, HeadIndex at = {}) const { return key_flush_of(base, shape, at); }
  constexpr Flush value_flush(const CacheShape& shape, HeadIndex at = {}) const { return value_flush_of(base, shape, at); }

  constexpr Status validate(const CacheShape& shape) const {
    if (const Status s = base.validate(shape); s != Status::ok) return s;
    if (!transform(keys).valid(shape.head_dim) || !transform(values).valid(shape.values())) return Status::invalid_argument;
    // One transform per side: what is mapped already may not be mapped again.
    const auto k = key_codec_of(base, shape);
    const auto v = value_codec_of(base, shape);
    if (prim::maps_rows(k) || prim::maps_rows(v)) return Status::incompatible;
    const bool shared = (keys && k.group_slots() > 1) || (values && v.group_slots() > 1);
    return shared && !spread_offsets ? Status::incompatible : Status::ok;
  }

 private:
  /// Blocks of one channel change nothing.
  constexpr prim::Hadamard transform(bool on) const { return on ? prim::Hadamard{block, seed} : prim::Hadamard{1, 0}; }
};

template <class Quantizer>
Hadamard(Quantizer) -> Hadamard<Quantizer>;

}  // namespace kvcondense::quant
