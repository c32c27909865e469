#pragma once

#include <kvcondense/any/any_codec.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/evict/erased.hpp>

namespace kvcondense::any {

class AnyQuant;

/// The quantizer inside a wrapper that was chosen at run time: everything below the wrapper in its chain.
struct InnerQuant {
  static constexpr Descriptor about{"any", Stage::quant, "chosen at run time"};

  const AnyQuant* chain = nullptr;
  int links = 0;
  index_t sinks = 0;

  AnyCodec key_codec(const CacheShape& shape, HeadIndex at = {}) const;
  AnyCodec value_codec(const CacheShape& shape, HeadIndex at = {}) const;
  Flush key_flush(const CacheShape& shape, HeadIndex at = {}) const;
  Flush value_flush(const CacheShape& shape, HeadIndex at = {}) const;
  bool differs_per_head() const;
  bool has_saliency() const;
  evict::AnyPipeline saliency() const;
  Status validate(const CacheShape& shape) const;

 private:
  const auto& here() const;
  InnerQuant below() const { return {chain, links - 1, sinks}; }
};

namespace detail {

using QuantRoom = InlineValue<192>;

struct QuantTable {
  AnyCodec (*key_codec)(const QuantRoom&, InnerQuant below, const CacheShape&, HeadIndex);
  AnyCodec (*value_codec)(const QuantRoom&, InnerQuant below, const CacheShape&, HeadIndex);
  Flush (*key_flush)(const QuantRoom&, InnerQuant below, const CacheShape&, HeadIndex);
  Flush (*value_flush)(const QuantRoom&, InnerQuant below, const CacheShape&, HeadIndex);
  bool (*differs_per_head)(const QuantRoom&, InnerQuant below);
  bool (*has_saliency)(const QuantRoom&, InnerQuant below);
  evict::AnyPipeline (*saliency)(const QuantRoom&, InnerQuant below);
  Status (*validate)(const QuantRoom&, InnerQuant below, const CacheShape&);
  const char* (*word)(const QuantRoom&);
  const char* (*missing)(const QuantRoom&);
  StageTraits traits;
};

/// A quantizer (Member is nullptr) or a wrapper whose quantizer is its member `Member`.
template <class Q, auto Member = nullptr>
struct QuantCalls {
  static Q whole(const QuantRoom& room, InnerQuant below) {
    Q q = room.as<Q>();
    if constexpr (!std::is_null_pointer_v<decltype(Member)>) q.*Member = below, q.sinks = below.sinks;
    return q;
  }
  static AnyCodec key_codec(const QuantRoom& q, InnerQuant below, const CacheShape& shape, HeadIndex at) {
    return AnyCodec(key_codec_of(whole(q, below), shape, at));
  }
  static AnyCodec value_codec(const QuantRoom& q, InnerQuant below, const CacheShape& shape, HeadIndex at) {
    return AnyCodec(value_codec_of(whole(q, below), shape, at));
  }
  static Flush key_flush(const QuantRoom& q, InnerQuant below, const CacheShape& shape, HeadIndex at) {
    return key_flush_of(whole(q, below), shape, at);
  }
  static Flush value_flush(const QuantRoom& q, InnerQuant below, const CacheShape& shape, HeadIndex at) {
    return value_flush_of(whole(q, below), shape, at);
  }
  static bool differs_per_head(const QuantRoom& q, InnerQuant below) {
    return kvcondense::differs_per_head(whole(q, below));
  }
  static bool has_saliency(const QuantRoom& q, InnerQuant below) { return kvcondense::has_saliency(whole(q, below)); }
  static evict::AnyPipeline saliency(const QuantRoom& q, InnerQuant below) {
    return evict::AnyPipeline(saliency_of(whole(q, below)));
  }
  static Status validate(const QuantRoom& q, InnerQuant below, const CacheShape& shape) {
    return whole(q, below).validate(shape);
  }
  static const char* word(const QuantRoom& q) { return word_of(q.as<Q>()); }
  static const char* missing(const QuantRoom& q) { return missing_fact(q.as<Q>()); }

  static constexpr QuantTable table{key_codec,    value_codec, key_flush, value_flush, differs_per_head,
                                    has_saliency, saliency,    validate,  word,      missing,   stage_traits<Q>()};
};

}  // namespace detail

/// Any quant stage as a value: a quantizer and up to two wrappers around it, of at most 192 bytes each.
/// Trivially copyable.
class AnyQuant {
 public:
  static constexpr Descriptor about{"any", Stage::quant, "chosen at run time"};
  static constexpr int most_links = 3;

  AnyQuant();  ///< KeepExact
  template <class Q>
  requires(Described<Q> && !std::same_as<Q, AnyQuant>) explicit AnyQuant(const Q& stage) : sinks(stage.sinks) {
    link_[0] = {detail::QuantRoom(stage), &detail::QuantCalls<Q>::table};
  }

  /// Puts `wrapper` around this stage: `wrap<&quant::Hadamard<InnerQuant>::base>(quant::Hadamard<InnerQuant>{...})`.
  /// out_of_range when two wrappers are already there.
  template <auto Member, class W>
  Status wrap(const W& wrapper) {
    if (links_ == most_links) return Status::out_of_range;
    link_[links_++] = {detail::QuantRoom(wrapper), &detail::QuantCalls<W, Member>::table};
    return Status::ok;
  }

  AnyCodec key_codec(const CacheShape& shape, HeadIndex at = {}) const { return top().key_codec(shape, at); }
  AnyCodec value_codec(const CacheShape& shape, HeadIndex at = {}) const { return top().value_codec(shape, at); }
  Flush key_flush(const CacheShape& shape, HeadIndex at = {}) const { return top().key_flush(shape, at); }
  Flush value_flush(const CacheShape& shape, HeadIndex at = {}) const { return top().value_flush(shape, at); }
  bool differs_per_head() const { return top().differs_per_head(); }
  bool has_saliency() const { return top().has_saliency(); }
  evict::AnyPipeline saliency() const { return top().saliency(); }
  Status validate(const CacheShape& shape) const { return top().validate(shape); }
  const char* word() const { return link_[links_ - 1].table->word(link_[links_ - 1].room); }
  /// Of the first method of the chain that lacks one.
  MissingFact missing() const {
    for (int i = 0; i < links_; ++i)
      if (const char* fact = link_[i].table->missing(link_[i].room); fact != nullptr) return {fact, link_[i].table->word(link_[i].room)};
    return {};
  }
  StageTraits traits() const {
    StageTraits all;
    for (int i = 0; i < links_; ++i) all = all | link_[i].table->traits;
    return all;
  }

  index_t sinks = 0;  ///< copied from the quantizer

 private:
  friend struct InnerQuant;
  struct Link {
    detail::QuantRoom room;
    const detail::QuantTable* table = nullptr;
  };

  InnerQuant top() const { return {this, links_, sinks}; }

  Link link_[most_links];
  int links_ = 1;
};

inline const auto& InnerQuant::here() const { return chain->link_[links - 1]; }
inline AnyCodec InnerQuant::key_codec(const CacheShape& shape, HeadIndex at) const {
  return here().table->key_codec(here().room, below(), shape, at);
}
inline AnyCodec InnerQuant::value_codec(const CacheShape& shape, HeadIndex at) const {
  return here().table->value_codec(here().room, below(), shape, at);
}
inline Flush InnerQuant::key_flush(const CacheShape& shape, HeadIndex at) const {
  return here().table->key_flush(here().room, below(), shape, at);
}
inline Flush InnerQuant::value_flush(const CacheShape& shape, HeadIndex at) const {
  return here().table->value_flush(here().room, below(), shape, at);
}
inline bool InnerQuant::differs_per_head() const { return here().table->differs_per_head(here().room, below()); }
inline bool InnerQuant::has_saliency() const { return here().table->has_saliency(here().room, below()); }
inline evict::AnyPipeline InnerQuant::saliency() const { return here().table->saliency(here().room, below()); }
inline Status InnerQuant::validate(const CacheShape& shape) const {
  return here().table->validate(here().room, below(), shape);
}

}  // namespace kvcondense::any
