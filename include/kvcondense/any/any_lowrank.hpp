#pragma once

#include <kvcondense/any/any_transform.hpp>
#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/core/step_inputs.hpp>

namespace kvcondense::any {

/// Any low-rank stage as a value, of at most 192 bytes; of itself none. Trivially copyable.
class AnyLowRank {
 public:
  static constexpr Descriptor about{"any", Stage::lowrank, "chosen at run time"};
  static constexpr Inputs needs = Inputs::all();  ///< at most: `inputs()` knows

  AnyLowRank() = default;
  template <class L>
  requires(Described<L> && !std::same_as<L, AnyLowRank>) explicit AnyLowRank(const L& stage)
      : sinks(stage.sinks), room_(stage), calls_(&calls<L>) {}

  bool none() const { return calls_ == nullptr; }
  AnyTransform key_transform(const CacheShape& shape, HeadIndex at) const {
    return none() ? AnyTransform{} : calls_->key_transform(room_, shape, at);
  }
  AnyTransform value_transform(const CacheShape& shape, HeadIndex at) const {
    return none() ? AnyTransform{} : calls_->value_transform(room_, shape, at);
  }
  Flush key_flush() const { return none() ? Flush{0, 0} : calls_->key_flush(room_); }
  Flush value_flush() const { return none() ? Flush{0, 0} : calls_->value_flush(room_); }
  bool differs_per_head() const { return !none() && calls_->differs_per_head(room_); }
  RowGroups row_groups(const CacheShape& shape) const { return none() ? RowGroups{} : calls_->row_groups(room_, shape); }
  bool takes_keys(bool raw) const { return none() || calls_->takes_keys(room_, raw); }
  MissingFact missing() const { return none() ? MissingFact{} : MissingFact{calls_->missing(room_), word()}; }
  Status validate(const CacheShape& shape) const { return none() ? Status::ok : calls_->validate(room_, shape); }
  Inputs inputs() const { return none() ? Inputs{} : calls_->inputs; }
  StageTraits traits() const { return none() ? StageTraits{} : calls_->traits; }
  const char* word() const { return none() ? "none" : calls_->word; }

  index_t sinks = 0;  ///< copied from the stage

 private:
  using Room = InlineValue<192>;
  struct Calls {
    AnyTransform (*key_transform)(const Room&, const CacheShape&, HeadIndex);
    AnyTransform (*value_transform)(const Room&, const CacheShape&, HeadIndex);
    Flush (*key_flush)(const Room&);
    Flush (*value_flush)(const Room&);
    bool (*differs_per_head)(const Room&);
    RowGroups (*row_groups)(const Room&, const CacheShape&);
    bool (*takes_keys)(const Room&, bool raw);
    const char* (*missing)(const Room&);
    Status (*validate)(const Room&, const CacheShape&);
    Inputs inputs;
    const char* word;
    StageTraits traits;
  };
  template <class L>
  static bool takes(const L& stage, bool raw) {
    if constexpr (requires { stage.takes_keys(raw); }) return stage.takes_keys(raw);
    else return true;
  }
  template <class L>
  static RowGroups groups(const L& stage, const CacheShape& shape) {
    if constexpr (requires { stage.row_groups(shape); }) return stage.row_groups(shape);
    else return {};
  }
  template <class T>
  static AnyTransform erased(const T& transform) {
    if constexpr (std::same_as<T, prim::NoTransform>) return {};
    else return AnyTransform(transform);
  }
  template <class L>
  static constexpr Calls calls{
      [](const Room& r, const CacheShape& s, HeadIndex at) { return erased(r.as<L>().key_transform(s, at)); },
      [](const Room& r, const CacheShape& s, HeadIndex at) { return erased(r.as<L>().value_transform(s, at)); },
      [](const Room& r) { return r.as<L>().key_flush(); },
      [](const Room& r) { return r.as<L>().value_flush(); },
      [](const Room& r) { return r.as<L>().differs_per_head(); },
      [](const Room& r, const CacheShape& s) { return groups(r.as<L>(), s); },
      [](const Room& r, bool raw) { return takes(r.as<L>(), raw); },
      [](const Room& r) { return missing_fact(r.as<L>()); },
      [](const Room& r, const CacheShape& s) { return r.as<L>().validate(s); },
      L::needs,
      L::about.word,
      stage_traits<L>()};

  Room room_;
  const Calls* calls_ = nullptr;
};

}  // namespace kvcondense::any
