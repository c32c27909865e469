#pragma once
// What every part of the interpreter speaks of: lanes, faults, and the types PTX names.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;
__extension__ typedef __int128 i128;
__extension__ typedef unsigned __int128 u128;

inline constexpr u32 warp_size = 32;
using Mask = u32;  // one bit per lane
inline constexpr Mask all_lanes = ~Mask{0};

/// What a kernel did wrong, or what the interpreter does not cover. The message says where.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Dim3 {
  u32 x = 1, y = 1, z = 1;
  u64 count() const { return u64{x} * y * z; }
};

enum class Kind : u8 { none, predicate, bits, unsigned_int, signed_int, floating, bfloat };

/// A type as an opcode names it. A pair (f16x2, bf16x2) holds two elements in one register.
struct Type {
  Kind kind = Kind::none;
  u8 bits = 0;  // of one element
  bool pair = false;

  u32 bytes() const { return bits * (pair ? 2U : 1U) / 8; }
  bool is_signed() const { return kind == Kind::signed_int; }
  friend bool operator==(Type, Type) = default;
};

/// The type of this name ("u32", "f16x2", "pred"), or Kind::none.
Type type_named(std::string_view name);

enum class Rounding : u8 { nearest, zero, down, up };
enum class Space : u8 { generic, global, shared, local, param, constant };

// Generic addresses: each space has a window no host pointer lies in (the addresses are not
// canonical on x86-64), so that a host that follows a device pointer faults at once.
inline constexpr u64 window_bytes = u64{1} << 52;
inline constexpr u64 shared_window = 0x00a0'0000'0000'0000;
inline constexpr u64 local_window = 0x00b0'0000'0000'0000;
inline constexpr u64 param_window = 0x00c0'0000'0000'0000;
inline constexpr u64 device_window = 0x00d0'0000'0000'0000;

inline bool in_window(u64 address, u64 window) { return address - window < window_bytes; }

}  // namespace ptx
