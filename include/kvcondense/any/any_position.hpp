#pragma once

#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::any {

/// Any position stage as a value: what the cache reads of one, and a way to ask the stage itself.
class AnyPosition {
 public:
  static constexpr Descriptor about{"any", Stage::position, "chosen at run time"};

  AnyPosition();  ///< Absolute
  template <class P>
  requires(Described<P> && !std::same_as<P, AnyPosition>) explicit AnyPosition(const P& stage)
      : raw_keys(stage.raw_keys),
        rotated_input(stage.rotated_input),
        rope(stage.rope),
        room_(stage),
        calls_(&calls<P>) {}

  Status validate(const CacheShape& shape) const { return calls_->validate(room_, shape); }
  const char* word() const { return calls_->word; }

  bool raw_keys = false;
  bool rotated_input = true;
  prim::RopeConfig rope{};

 private:
  using Room = InlineValue<sizeof(prim::RopeConfig) + 64>;
  struct Calls {
    Status (*validate)(const Room&, const CacheShape&);
    const char* word;
  };
  template <class P>
  static constexpr Calls calls{
      [](const Room& room, const CacheShape& shape) { return room.as<P>().validate(shape); },
      P::about.word};

  Room room_;
  const Calls* calls_;
};

}  // namespace kvcondense::any
