#pragma once

#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/retrieve/erased.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::any {

/// Any retrieval stage as a value. Trivially copyable.
class AnyRetrieve {
 public:
  static constexpr Descriptor about{"any", Stage::retrieve, "chosen at run time"};

  AnyRetrieve();  ///< ReadAll
  template <class P>
  requires(Described<P> && !std::same_as<P, AnyRetrieve>) explicit AnyRetrieve(const P& stage)
      : keys(P::keys), room_(stage), calls_(&calls<P>) {}

  retrieve::AnyPipeline pipeline() const { return calls_->pipeline(room_); }
  Status validate(const CacheShape& shape) const { return calls_->validate(room_, shape); }
  const char* word() const { return calls_->word; }
  /// A fact of the model that the method needs and was not given; null: nothing is missing.
  MissingFact missing() const { return {calls_->missing(room_), word()}; }
  StageTraits traits() const { return calls_->traits; }

  retrieve::KeyState keys = retrieve::KeyState::any;

 private:
  using Room = InlineValue<192>;
  struct Calls {
    retrieve::AnyPipeline (*pipeline)(const Room&);
    Status (*validate)(const Room&, const CacheShape&);
    const char* (*missing)(const Room&);
    const char* word;
    StageTraits traits;
  };
  template <class P>
  static constexpr Calls calls{
      [](const Room& room) { return retrieve::AnyPipeline(room.as<P>().pipeline()); },
      [](const Room& room, const CacheShape& shape) { return room.as<P>().validate(shape); },
      [](const Room& room) { return missing_fact(room.as<P>()); }, P::about.word, stage_traits<P>()};

  Room room_;
  const Calls* calls_;
};

}  // namespace kvcondense::any
