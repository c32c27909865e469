#pragma once

#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/row_transform.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Divides key channels by a power of their largest numbers before any quantizer codes them; queries take the factor instead.
///
/// Idea     a few key channels are large in all tokens, and make the step of every number that shares a scale with them
///          wide; a query's product with a channel is the same when one is divided and the other multiplied.
/// Source   QServe's SmoothAttention, arXiv:2405.04532.
/// Needs    what the quantizer needs.
/// Shapes   one factor per head and channel; keys only.
/// Cost     the quantizer's; head_dim products per new slot and query head, and 8 * head_dim bytes per head.
/// Numbers  factors max|K|^alpha over the rows that are coded first, `least` of them or more, cut to [2^-8, 2^8]; from then on they
///          never change. Until there are as many, keys stay exact: channels that are small in a few rows by chance would get factors
///          that make every later step wide.
/// Differs  factors come from the first rows of a cache, not from calibration, and are not folded into weights. The two channels of
///          a rotation pair need no common factor: keys come with RoPE in them, or are divided back before they turn.
/// Errors   invalid_argument unless 0 < alpha <= 1 and least >= 0, and where the quantizer says so; incompatible when it maps key rows itself.
template <class Quantizer = GroupInt<4>>
struct SmoothAttention {
  static constexpr Descriptor about{"smooth_attention", Stage::quant, "arXiv:2405.04532"};

  static constexpr Inputs needs = [] {
    if constexpr (requires { Quantizer::needs; }) return Quantizer::needs;
    else return Inputs{};
  }();

  Quantizer base{};
  float alpha = 0.5f;
  index_t least = 32;          ///< slots that factors are found from, at least
  index_t sinks = base.sinks;  ///< as the quantizer says

  constexpr auto key_codec(const CacheShape& shape, HeadIndex at = {}) const {
    return prim::Transformed{prim::ChannelScale{prim::ChannelScale::Rule::root_max, alpha}, key_codec_of(base, shape, at)};
  }
  constexpr auto value_codec(const CacheShape& shape, HeadIndex at = {}) const { return value_codec_of(base, shape, at); }
  constexpr Flush key_flush(const CacheShape& shape, HeadIndex at = {}) const {
    Flush rule = key_flush_of(base, shape, at);
    rule.first = rule.first > least ? rule.first : least;
    return rule;
  }
  constexpr Flush value_flush(const CacheShape& shape, HeadIndex at = {}) const { return value_flush_of(base, shape, at); }
  constexpr bool differs_per_head() const { return kvcondense::differs_per_head(base); }
  constexpr auto saliency() const requires requires { base.saliency(); } { return base.saliency(); }
  constexpr bool has_saliency() const requires requires { base.has_saliency(); } { return base.has_saliency(); }

  constexpr Status validate(const CacheShape& shape) const {
    if (!(alpha > 0.0f && alpha <= 1.0f) || least < 0) return Status::invalid_argument;
    if (const Status s = base.validate(shape); s != Status::ok) return s;
    return prim::maps_rows(key_codec_of(base, shape)) ? Status::incompatible : Status::ok;
  }
};

template <class Quantizer>
SmoothAttention(Quantizer) -> SmoothAttention<Quantizer>;

}  // namespace kvcondense::quant
