#pragma once

#include <cstdint>

namespace kvcondense::evict {

// What blocks of a pipeline say of themselves so that a cache may let a source work on the numbers of slots where they
// lie: a step that is refused leaves them as they were. Who says nothing gets a copy, which costs another pass or two.

/// Which of its numbers `observe` of a source may change.
enum class Touches : std::uint8_t {
  any,     ///< any of them, also where it is refused then
  whole,   ///< any of them; where it is refused, none: whoever may be refused midway must not say so
  newest,  ///< those of slots that came with the step, which are 0 before it
  none,    ///< none: numbers are written when slots are scored, in steps that fire
};
template <class Source>
constexpr Touches touches(const Source& source) {
  if constexpr (requires { source.touches(); }) return source.touches();
  else return Touches::any;
}
/// Whether an allocate or a select block is refused for nothing but too small a workspace.
template <class Block>
constexpr bool asks_for_room_alone(const Block& block) {
  if constexpr (requires { block.asks_for_room_alone(); }) return block.asks_for_room_alone();
  else return false;
}

}  // namespace kvcondense::evict
