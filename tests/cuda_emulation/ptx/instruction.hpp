#pragma once
// For tests: runs one instruction over many operands, and operands worth trying.

#include <catch2/catch.hpp>

#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "session.hpp"

namespace ptx::test {

using Row = std::vector<u64>;  // the operands of one lane, in 64 bits each

inline u32 width_of(char letter) { return letter == 'h' ? 16 : letter == 'l' ? 64 : 32; }

/// The result of `opcode` for each row. `letters` as in opcodes.hpp ("r=rrp"); `tail` is put
/// behind the operands (an immediate, say).
inline std::vector<u64> results(std::string const& opcode, std::string const& letters,
                                std::vector<Row> const& rows, std::string const& tail = "") {
  std::string const name[] = {"%h", "%r", "%l", "%p"};
  auto const reg = [&](char letter, std::size_t n) {
    return name[letter == 'h' ? 0 : letter == 'r' ? 1 : letter == 'l' ? 2 : 3] + std::to_string(n);
  };
  std::string const sources = letters.substr(2);
  std::string text = R"(.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out, .param .u64 in) {
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %l<9>;
.reg .b32 %tid, %cta, %at; .reg .b64 %from, %to;
mov.u32 %tid, %tid.x; mov.u32 %cta, %ctaid.x; mad.lo.u32 %at, %cta, 32, %tid;
ld.param.u64 %from, [in]; ld.param.u64 %to, [out];
)";
  text += "mad.wide.u32 %from, %at, " + std::to_string(8 * sources.size()) + ", %from;\n";
  text += "mad.wide.u32 %to, %at, 8, %to;\n";
  std::string list;
  for (std::size_t n = 0; n < sources.size(); ++n) {
    std::string const place = "[%from+" + std::to_string(8 * n) + "];\n";
    if (sources[n] == 'p')
      text += "ld.global.b32 %r8, " + place + "setp.ne.u32 " + reg('p', n) + ", %r8, 0;\n";
    else
      text += "ld.global.b" + std::to_string(width_of(sources[n])) + " " + reg(sources[n], n) + ", " + place;
    list += ", " + reg(sources[n], n);
  }
  text += opcode + " " + reg(letters[0], 7) + list + tail + ";\n";
  if (letters[0] == 'p')
    text += "selp.b32 %r8, 1, 0, %p7; st.global.b32 [%to], %r8;\n";
  else
    text += "st.global.b" + std::to_string(width_of(letters[0])) + " [%to], " + reg(letters[0], 7) + ";\n";
  text += "ret;\n}\n";
  Session session(text);
  std::size_t const padded = (rows.size() + 31) / 32 * 32;
  std::vector<u64> flat(padded * sources.size());
  for (std::size_t i = 0; i < padded; ++i)
    for (std::size_t n = 0; n < sources.size(); ++n)
      flat[i * sources.size() + n] = rows[i < rows.size() ? i : 0][n];
  u64 const in = session.put(flat), out = session.put(std::vector<u64>(padded));
  session.launch("k", {static_cast<u32>(padded / 32)}, {32}, {out, in});
  std::vector<u64> got = session.get<u64>(out, padded);
  got.resize(rows.size());
  return got;
}

inline constexpr u64 low_bits(u64 x, u32 bits) { return bits >= 64 ? x : x & ((u64{1} << bits) - 1); }

/// Numbers at the edges of every format, and random ones of every magnitude.
class Numbers {
 public:
  explicit Numbers(u64 seed) : random_(seed) {}
  u64 integer(u32 bits) {
    static constexpr u64 edges[] = {0, 1, 2, 31, 32, 63, 64, ~u64{0}, ~u64{0} - 1};
    u64 const draw = random_();
    u64 x = draw % 4 == 0 ? edges[draw / 4 % 9] : random_() >> (draw / 64 % 64);
    if (draw / 4096 % 8 == 0) x = u64{1} << (bits - 1);
    if (draw / 4096 % 8 == 1) x = (u64{1} << (bits - 1)) - 1;
    return low_bits(draw / 65536 % 2 ? x : u64{0} - x, bits);
  }
  /// Bits of a float with this many exponent and fraction bits.
  u64 real(u32 exponent_bits, u32 fraction_bits) {
    u64 const draw = random_(), fraction_mask = (u64{1} << fraction_bits) - 1;
    u64 const top = (u64{1} << exponent_bits) - 1, middle = top / 2;
    u64 exponent = random_() % (top + 1);
    if (draw % 4 != 0) exponent = std::min(top, middle - std::min<u64>(middle, 6) + random_() % 14);
    if (draw % 32 == 0) exponent = draw / 32 % 3 == 0 ? 0 : draw / 32 % 3 == 1 ? top : top - 1;
    u64 fraction = random_() & fraction_mask;
    if (draw / 128 % 8 == 0) fraction = 0;
    if (draw / 128 % 8 == 1) fraction = fraction_mask;
    if (draw / 128 % 8 == 2) fraction &= ~(fraction_mask >> 3);
    return (draw >> 63) << (exponent_bits + fraction_bits) | exponent << fraction_bits | fraction;
  }
  u64 f16() { return real(5, 10); }
  u64 bf16() { return real(8, 7); }
  u64 f32() { return real(8, 23); }
  u64 f64() { return real(11, 52); }
  u64 any() { return random_(); }

 private:
  std::mt19937_64 random_;
};

/// Rows of operands, one function per operand.
inline std::vector<Row> rows(std::size_t count, std::vector<std::function<u64()>> const& operands) {
  std::vector<Row> out(count);
  for (Row& row : out)
    for (auto const& operand : operands) row.push_back(operand());
  return out;
}

/// Every row's result is `want(row)`.
inline void check(std::string const& opcode, std::string const& letters, std::vector<Row> const& rows,
                  std::function<u64(Row const&)> const& want, std::string const& tail = "") {
  std::vector<u64> const got = results(opcode, letters, rows, tail);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    u64 const wanted = want(rows[i]);
    if (got[i] == wanted) continue;
    std::string operands;
    for (u64 x : rows[i]) operands += " " + std::to_string(x);
    FAIL(opcode << " of" << operands << " gives " << got[i] << " instead of " << wanted);
  }
  SUCCEED();
}

/// Runs f, which must fault; the message.
template <class F>
std::string fault_of(F f) {
  try {
    f();
  } catch (Fault const& fault) {
    return fault.what();
  }
  return "no fault";
}

}  // namespace ptx::test
