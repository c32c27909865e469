#pragma once

#include <type_traits>

#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/evict/erased.hpp>
#include <kvcondense/evict/keep_all.hpp>

namespace kvcondense::any {

class AnyEvict;

/// The policy inside a wrapper that was chosen at run time: everything below the wrapper in its
/// chain. `budget::Ada<Inner>` is compiled once and wraps whatever the text named.
struct Inner {
  static constexpr Descriptor about{"any", Stage::evict, "chosen at run time"};
  static constexpr Inputs needs = Inputs::all();

  const AnyEvict* chain = nullptr;
  int links = 0;

  evict::AnyPipeline pipeline() const;
  Status validate(const CacheShape& shape) const;
};

namespace detail {

using EvictRoom = InlineValue<192>;

struct EvictTable {
  evict::AnyPipeline (*pipeline)(const EvictRoom&, Inner below);
  Status (*validate)(const EvictRoom&, Inner below, const CacheShape&);
  const char* (*word)(const EvictRoom&);
  const char* (*missing)(const EvictRoom&);
  StageTraits (*traits)(const EvictRoom&);
};

/// A policy (Member is nullptr) or a wrapper whose inner policy is its member `Member`.
template <class P, auto Member = nullptr>
struct EvictCalls {
  static P whole(const EvictRoom& room, Inner below) {
    P p = room.as<P>();
    if constexpr (!std::is_null_pointer_v<decltype(Member)>) p.*Member = below;
    return p;
  }
  static evict::AnyPipeline pipeline(const EvictRoom& room, Inner below) {
    return evict::AnyPipeline(whole(room, below).pipeline());
  }
  static Status validate(const EvictRoom& room, Inner below, const CacheShape& shape) {
    return whole(room, below).validate(shape);
  }
  static const char* word(const EvictRoom& room) { return word_of(room.as<P>()); }

  static const char* missing(const EvictRoom& room) { return missing_fact(room.as<P>()); }

  static StageTraits traits(const EvictRoom& room) { return traits_of(room.as<P>()); }

  static constexpr EvictTable table{pipeline, validate, word, missing, traits};
};

}  // namespace detail

/// Any eviction stage as a value: a policy and up to three wrappers around it. Trivially copyable.
class AnyEvict {
 public:
  static constexpr Descriptor about{"any", Stage::evict, "chosen at run time"};
  static constexpr Inputs needs = Inputs::all();  ///< at most: `pipeline().inputs()` knows
  static constexpr int most_links = 4;

  AnyEvict();  ///< KeepAll
  template <class P>
  requires(Described<P> && !std::same_as<P, AnyEvict>) explicit AnyEvict(const P& policy) {
    link_[0] = {detail::EvictRoom(policy), &detail::EvictCalls<P>::table};
    keeps_all_ = std::same_as<P, evict::KeepAll>;
  }

  /// Puts `wrapper` around this stage:
  /// `wrap<&budget::Ada<Inner>::policy>(budget::Ada<Inner>{...})`. out_of_range when three wrappers
  /// are already there.
  template <auto Member, class W>
  Status wrap(const W& wrapper) {
    if (links_ == most_links) return Status::out_of_range;
    link_[links_++] = {detail::EvictRoom(wrapper), &detail::EvictCalls<W, Member>::table};
    return Status::ok;
  }

  evict::AnyPipeline pipeline() const { return pipeline(links_); }
  Status validate(const CacheShape& shape) const { return validate(links_, shape); }
  const char* word() const { return link_[links_ - 1].table->word(link_[links_ - 1].room); }
  /// Of the first method of the chain that lacks one.
  MissingFact missing() const {
    for (int i = 0; i < links_; ++i)
      if (const char* fact = link_[i].table->missing(link_[i].room); fact != nullptr)
        return {fact, link_[i].table->word(link_[i].room)};
    return {};
  }
  StageTraits traits() const {
    StageTraits all;
    for (int i = 0; i < links_; ++i) all = all | link_[i].table->traits(link_[i].room);
    return all;
  }
  bool changes_length() const { return !keeps_all_; }

 private:
  friend struct Inner;
  struct Link {
    detail::EvictRoom room;
    const detail::EvictTable* table = nullptr;
  };

  evict::AnyPipeline pipeline(int links) const {
    return link_[links - 1].table->pipeline(link_[links - 1].room, Inner{this, links - 1});
  }
  Status validate(int links, const CacheShape& shape) const {
    return link_[links - 1].table->validate(link_[links - 1].room, Inner{this, links - 1}, shape);
  }

  Link link_[most_links];
  int links_ = 1;
  bool keeps_all_ = false;
};

inline evict::AnyPipeline Inner::pipeline() const { return chain->pipeline(links); }
inline Status Inner::validate(const CacheShape& shape) const {
  return chain->validate(links, shape);
}

}  // namespace kvcondense::any
