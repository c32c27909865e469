#pragma once

#include <type_traits>

#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Codes keys as one quantizer does and values as another one.
///
/// Idea     keys have strong channels and go through a softmax, values have neither: what suits one side need not suit the other.
/// Source   any two methods; the asymmetry is KIVI's, arXiv:2402.02750.
/// Needs    what both quantizers need.
/// Shapes   those of both, each of which must suit the whole shape; each side has its own exact window, and the larger number of sinks.
/// Cost     of keys the first quantizer's, of values the second one's.
/// Numbers  with as many sinks keys are byte for byte those of a cache with `keys` alone, values those of one with `values` alone (of a quantizer that tells
///          tokens apart by attention, those for attention as this pair's keys give it).
/// Errors   what either quantizer says to the shape; incompatible when both tell tokens apart by scores: a cache has one such set of scores.
template <class Keys = GroupInt<8>, class Values = GroupInt<4>>
struct PerSide {
  static constexpr Descriptor about{"per_side", Stage::quant, "arXiv:2402.02750"};

  static constexpr Inputs needs = [] {
    Inputs all{};
    if constexpr (requires { Keys::needs; }) all = all | Keys::needs;
    if constexpr (requires { Values::needs; }) all = all | Values::needs;
    return all;
  }();

  Keys keys{};
  Values values{};
  index_t sinks = keys.sinks > values.sinks ? keys.sinks : values.sinks;  ///< as the quantizers say

  constexpr auto key_codec(const CacheShape& shape, HeadIndex at = {}) const { return key_codec_of(keys, shape, at); }
  constexpr auto value_codec(const CacheShape& shape, HeadIndex at = {}) const { return value_codec_of(values, shape, at); }
  constexpr Flush key_flush(const CacheShape& shape, HeadIndex at = {}) const { return key_flush_of(keys, shape, at); }
  constexpr Flush value_flush(const CacheShape& shape, HeadIndex at = {}) const { return value_flush_of(values, shape, at); }
  constexpr bool differs_per_head() const { return kvcondense::differs_per_head(keys) || kvcondense::differs_per_head(values); }

  constexpr bool has_saliency() const requires(requires(const Keys& k) { k.saliency(); } || requires(const Values& v) { v.saliency(); }) {
    return tells_apart(keys) || tells_apart(values);
  }
  constexpr auto saliency() const requires(requires(const Keys& k) { k.saliency(); } || requires(const Values& v) { v.saliency(); }) {
    constexpr bool by_keys = requires(const Keys& k) { k.saliency(); }, by_values = requires(const Values& v) { v.saliency(); };
    if constexpr (!by_keys) return values.saliency();
    else if constexpr (!by_values) return keys.saliency();
    else if constexpr (std::is_same_v<decltype(keys.saliency()), decltype(values.saliency())>)
      return tells_apart(keys) ? keys.saliency() : values.saliency();
    else if constexpr (requires { keys.has_saliency(); } && !requires { values.has_saliency(); })
      return values.saliency();  // these always have one, and `validate` refuses keys that have one too
    else return keys.saliency();  // likewise; two that are fixed at compile time are refused
  }
  constexpr StageTraits traits() const { return traits_of(keys) | traits_of(values); }

  constexpr Status validate(const CacheShape& shape) const {
    if (const Status s = keys.validate(shape); s != Status::ok) return s;
    if (const Status s = values.validate(shape); s != Status::ok) return s;
    if (sinks < 0) return Status::invalid_argument;
    // Two of other types that say at run time whether they have one: only the keys' can be asked.
    if constexpr (requires { keys.has_saliency(); values.has_saliency(); keys.saliency(); values.saliency(); })
      if constexpr (!std::is_same_v<decltype(keys.saliency()), decltype(values.saliency())>)
        if (tells_apart(values)) return Status::incompatible;
    return tells_apart(keys) && tells_apart(values) ? Status::incompatible : Status::ok;
  }

 private:
  template <class Quantizer>
  static constexpr bool tells_apart(const Quantizer& q) {
    if constexpr (requires { q.has_saliency(); }) return q.has_saliency();
    else return requires { q.saliency(); };
  }
};

template <class Keys, class Values>
PerSide(Keys, Values) -> PerSide<Keys, Values>;

}  // namespace kvcondense::quant
