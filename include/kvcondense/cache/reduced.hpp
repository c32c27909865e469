#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>

#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// What stores rows exactly, in place of a codec that codes none; a codec of which there is no such form stays.
template <class C>
C as_exact(const C& codec, DType dtype) {
  if constexpr (std::same_as<C, prim::ExactRows>) return prim::ExactRows{dtype};
  else if constexpr (!std::is_aggregate_v<C> && std::constructible_from<C, prim::ExactRows>) return C(prim::ExactRows{dtype});
  else return codec;
}

/// A low-rank stage and the quant stage behind it as one: rows are mapped, what is left of them is coded. Where the quant
/// stage codes nothing, what is left is stored exactly.
///
/// A row leaves the exact window when both stages let it; first tokens stay exact where either wants it.
template <class LowRank, class Quant>
struct Reduced {
  static constexpr Inputs needs = [] {
    if constexpr (requires { Quant::needs; }) return LowRank::needs | Quant::needs;
    else return LowRank::needs;
  }();

  LowRank lowrank{};
  Quant quant{};
  index_t sinks = std::max(lowrank.sinks, quant.sinks);

  /// A quant stage that is asked about shorter rows must not be asked about longer ones.
  CacheShape latents(CacheShape shape, HeadIndex at) const {
    const index_t k = lowrank.key_transform(shape, at).stored_dim(shape.head_dim);
    const index_t v = lowrank.value_transform(shape, at).stored_dim(shape.values());
    shape.head_dim = k, shape.value_dim = v;
    return shape;
  }

  auto key_codec(const CacheShape& shape, HeadIndex at) const {
    return prim::behind(lowrank.key_transform(shape, at),
                        stored(key_codec_of(quant, latents(shape, at), at), key_flush_of(quant, shape, at), lowrank.key_flush(), shape));
  }
  auto value_codec(const CacheShape& shape, HeadIndex at) const {
    return prim::behind(lowrank.value_transform(shape, at),
                        stored(value_codec_of(quant, latents(shape, at), at), value_flush_of(quant, shape, at), lowrank.value_flush(), shape));
  }
  Flush key_flush(const CacheShape& shape, HeadIndex at) const {
    return both(lowrank.key_flush(), key_flush_of(quant, shape, at));
  }
  Flush value_flush(const CacheShape& shape, HeadIndex at) const {
    return both(lowrank.value_flush(), value_flush_of(quant, shape, at));
  }
  bool differs_per_head() const { return lowrank.differs_per_head() || kvcondense::differs_per_head(quant); }

  bool has_saliency() const {
    if constexpr (requires { quant.has_saliency(); }) return quant.has_saliency();
    else return requires(const Quant& q) { q.saliency(); };
  }
  auto saliency() const requires requires(const Quant& q) { q.saliency(); } { return quant.saliency(); }

  Status validate(const CacheShape& shape) const {
    if (const Status s = lowrank.validate(shape); s != Status::ok) return s;
    const bool own = differs_per_head();
    CacheShape last = shape;
    last.head_dim = 0;
    for (index_t l = 0; l < (own ? shape.layers : 1); ++l)
      for (index_t h = 0; h < (own ? shape.kv_heads : 1); ++h) {
        const HeadIndex at{l, h};
        if (!lowrank.key_transform(shape, at).valid(shape.head_dim) || !lowrank.value_transform(shape, at).valid(shape.values()))
          return Status::invalid_argument;
        const CacheShape here = latents(shape, at);
        if (here.head_dim == last.head_dim && here.value_dim == last.value_dim) continue;
        if (const Status s = quant.validate(here); s != Status::ok) return s;
        // Two transforms that are found from data, one from what the other has not found yet.
        if (!meets(lowrank.key_transform(shape, at), key_codec_of(quant, here, at), shape.head_dim) ||
            !meets(lowrank.value_transform(shape, at), value_codec_of(quant, here, at), shape.values()))
          return Status::incompatible;
        last = here;
      }
    return Status::ok;
  }

 private:
  /// What the quant stage stores; exact numbers where it codes nothing and the other stage does.
  template <class C>
  static C stored(const C& codec, const Flush& quants, const Flush& ours, const CacheShape& shape) {
    return quants.block == 0 && ours.block > 0 ? as_exact(codec, shape.dtype) : codec;
  }
  template <class T, class C>
  static bool meets(const T& first, const C& codec, index_t dim) {
    if (prim::leaves_rows(first)) return true;
    const auto& second = prim::CodecParts<C>::transform(codec);
    const bool two = prim::floats_of(first, dim) > 0 && prim::floats_of(second, first.stored_dim(dim)) > 0;
    return !two && !prim::needs_queries(second) && !prim::is_centred(second);
  }
};

}  // namespace kvcondense::cache
