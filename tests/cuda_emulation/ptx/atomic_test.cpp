// atom and red in global and shared memory.

#include "kernel_text.hpp"
#include "numbers.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

// All lanes apply `op` to one word: what is left there, and what each lane got.
struct Outcome {
  u32 left;
  std::vector<u32> old;
};
Outcome apply(std::string const& op, u32 start, std::vector<u32> const& values, bool shared, bool reduce = false) {
  std::string const place = shared ? "[s]" : "[%A+128]";
  std::string const space = shared ? ".shared" : ".global";
  std::string const act = reduce ? "red" + space + op + " " + place + ", %x;"
                                 : "atom" + space + op + " %y, " + place + ", %x;";
  std::string const text = kernel(shared ? ".shared .u32 s; setp.ne.u32 %p0, %t, 0;"
                                           "@!%p0 ld.global.u32 %r0, [%A+128]; @!%p0 st.shared.u32 [s], %r0;"
                                           "bar.warp.sync 0xffffffff;" + act +
                                           "bar.warp.sync 0xffffffff; ld.shared.u32 %r1, [s];"
                                           "@!%p0 st.global.u32 [%A+128], %r1;"
                                         : act);
  Session session(text);
  std::vector<u32> in = values;
  in.push_back(start);
  u64 const a = session.put(in), b = session.put(std::vector<u32>(32));
  session.launch("k", {1}, {32}, {a, b});
  return {session.get<u32>(a, 33)[32], session.get<u32>(b, 32)};
}

}  // namespace

TEST_CASE("ptx: atomics of 32 bits, lane after lane") {
  Numbers numbers(81);
  struct Case {
    std::string op;
    std::function<u32(u32, u32)> f;
  };
  auto const s = [](u32 x) { return static_cast<i32>(x); };
  auto const real = [](u32 x) { return std::bit_cast<float>(x); };
  std::vector<Case> const cases = {
      {".add.u32", [](u32 a, u32 b) { return a + b; }},
      {".add.s32", [](u32 a, u32 b) { return a + b; }},
      {".min.u32", [](u32 a, u32 b) { return std::min(a, b); }},
      {".max.u32", [](u32 a, u32 b) { return std::max(a, b); }},
      {".min.s32", [&](u32 a, u32 b) { return s(a) < s(b) ? a : b; }},
      {".max.s32", [&](u32 a, u32 b) { return s(a) < s(b) ? b : a; }},
      {".and.b32", [](u32 a, u32 b) { return a & b; }},
      {".or.b32", [](u32 a, u32 b) { return a | b; }},
      {".xor.b32", [](u32 a, u32 b) { return a ^ b; }},
      {".exch.b32", [](u32, u32 b) { return b; }},
      {".inc.u32", [](u32 a, u32 b) { return a >= b ? 0 : a + 1; }},
      {".dec.u32", [](u32 a, u32 b) { return a == 0 || a > b ? b : a - 1; }},
      {".add.f32", [&](u32 a, u32 b) { return std::bit_cast<u32>(canonical(real(a) + real(b))); }},
      {".add.noftz.f16x2", [](u32 a, u32 b) {
         auto const sum = [](u32 x, u32 y) {
           return u32{narrow_f16(widen_f16(static_cast<u16>(x)) + widen_f16(static_cast<u16>(y)))};
         };
         return sum(a & 0xffff, b & 0xffff) | sum(a >> 16, b >> 16) << 16;
       }}};
  for (Case const& c : cases)
    for (bool const shared : {false, true}) {
      INFO(c.op << (shared ? " shared" : " global"));
      std::vector<u32> values(32);
      for (u32& v : values) v = static_cast<u32>(numbers.integer(32));
      u32 const start = static_cast<u32>(numbers.integer(32));
      u32 left = start;
      std::vector<u32> old;
      for (u32 v : values) old.push_back(left), left = c.f(left, v);
      Outcome const got = apply(c.op, start, values, shared);
      CHECK(got.left == left);
      CHECK(got.old == old);
      if (c.op != ".exch.b32") CHECK(apply(c.op, start, values, shared, true).left == left);
    }
}

TEST_CASE("ptx: atomics of 16 and 64 bits, compare and swap") {
  auto const first = [](std::string const& body, std::vector<u32> in) {
    in.resize(32);
    Session session(kernel("setp.ne.u32 %p0, %t, 0; @%p0 bra DONE;" + body + "DONE:"));
    u64 const a = session.put(in), b = session.put(std::vector<u32>(32));
    session.launch("k", {1}, {32}, {a, b});
    auto out = session.get<u32>(a, 2);
    out.push_back(session.get<u32>(b, 1)[0]);
    return out;
  };
  using V = std::vector<u32>;
  CHECK(first("atom.global.cas.b32 %y, [%A], 5, 9;", {5, 1}) == V{9, 1, 5});
  CHECK(first("atom.global.cas.b32 %y, [%A], 5, 9;", {6, 1}) == V{6, 1, 6});
  CHECK(first("atom.relaxed.gpu.global.cas.b64 %l0, [%A], 4294967301, 7; cvt.u32.u64 %y, %l0;", {5, 1}) == V{7, 0, 5});
  CHECK(first("mov.u16 %h0, 5; mov.u16 %h1, 9; atom.global.cas.b16 %h2, [%A+2], %h0, %h1; cvt.u32.u16 %y, %h2;",
              {0x50003, 1}) == V{0x90003, 1, 5});
  CHECK(first("atom.global.add.u64 %l0, [%A], 1; cvt.u32.u64 %y, %l0;", {0xffffffff, 1}) == V{0, 2, 0xffffffff});
  CHECK(first("atom.global.max.s64 %l0, [%A], -1;", {5, 0x80000000}) == V{0xffffffff, 0xffffffff, 0});
  CHECK(first("atom.global.min.u64 %l0, [%A], 4;", {5, 0}) == V{4, 0, 0});
  CHECK(first("mov.u64 %l1, 0d3ff0000000000000; atom.global.add.f64 %l0, [%A], %l1;", {0, 0x3ff00000}) == V{0, 0x40000000, 0});
  CHECK(first("mov.u16 %h0, 0x3c00; atom.global.add.noftz.f16 %h1, [%A], %h0; cvt.u32.u16 %y, %h1;", {0x3c00, 1}) ==
        V{0x4000, 1, 0x3c00});
  CHECK(first("atom.global.add.u32 _, [%A], 3;", {5, 1}) == V{8, 1, 0});
  CHECK_THAT(fault_of([&] { first("atom.global.add.u32 %y, [%A+2], 3;", {1}); }), Catch::Contains("misaligned"));
}
