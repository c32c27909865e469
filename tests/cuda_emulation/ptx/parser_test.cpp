// The text of PTX, and what is refused.

#include "kernel_text.hpp"
#include "lexer.hpp"
#include "opcodes.hpp"

using namespace ptx;
using namespace ptx::test;
using Catch::Contains;

TEST_CASE("ptx: numbers") {
  auto const number = [](std::string const& text) {
    u64 value = 0;
    REQUIRE(Lexer::number(text, value));
    return value;
  };
  CHECK(number("0") == 0);
  CHECK(number("42") == 42);
  CHECK(number("42U") == 42);
  CHECK(number("0x1fU") == 31);
  CHECK(number("0xffffffffffffffff") == ~u64{0});
  CHECK(number("017") == 15);
  CHECK(number("0b101") == 5);
  CHECK(number("0f3F800000") == 0x3f800000);
  CHECK(number("0d3FF0000000000000") == 0x3ff0000000000000);
  u64 value = 0;
  for (char const* bad : {"1.0", "0f3F8", "08", "0xg", "12ab", "0d1"}) CHECK_FALSE(Lexer::number(bad, value));
}

TEST_CASE("ptx: words, marks, comments, lines") {
  Lexer lex("a.b::c.d /* x\n y */ [%r1+-4], // end\n{\"q\\\"t\"}");
  CHECK(lex.word() == "a.b::c.d");
  lex.expect("[");
  CHECK(lex.word() == "%r1");
  lex.expect("+");
  CHECK(lex.integer() == ~u64{3});
  CHECK(lex.take("]"));
  CHECK(lex.take(","));
  CHECK(lex.peek().line == 3);
  CHECK_FALSE(lex.take("}"));
  CHECK_THAT(fault_of([&] { lex.expect("}"); }), Contains("PTX line 3: expected '}'"));
}

TEST_CASE("ptx: patterns of opcodes") {
  CHECK(matches("add{,.rn,.rz}{,.ftz}.f32", "add.f32"));
  CHECK(matches("add{,.rn,.rz}{,.ftz}.f32", "add.rz.ftz.f32"));
  CHECK_FALSE(matches("add{,.rn,.rz}{,.ftz}.f32", "add.ftz.rz.f32"));
  CHECK_FALSE(matches("add{,.rn,.rz}{,.ftz}.f32", "add.rm.f32"));
  CHECK_FALSE(matches("add{,.rn,.rz}{,.ftz}.f32", "add.f32x2"));
  CHECK(matches("ld{,.relaxed.{cta,gpu}}.u32", "ld.relaxed.gpu.u32"));
  CHECK(matches("{bar.{x,y},z}.p", "bar.y.p"));
  CHECK(matches("{bar.{x,y},z}.p", "z.p"));
  CHECK_FALSE(matches("{bar.{x,y},z}.p", "bar.p"));
}

TEST_CASE("ptx: whatever is not on the list stops the run with its text") {
  char const* const unknown[] = {
      "add.rn.sat.ftz.f32 %f0, %f1, %f2;",  // modifiers in another order
      "add.rna.f32 %f0, %f1, %f2;",         // no such rounding
      "fma.f32 %f0, %f1, %f2, %f3;",        // rounding is not optional
      "add.s32 %r0, %r1, %l0;",             // a register of another width
      "add.s32 %r0, %r1;",                  // an operand too few
      "add.s32 %r0, %r1, %r2, %r3;",        // one too many
      "cvt.f16.f32 %h0, %f0;",              // a narrowing without rounding
      "mul.s32 %r0, %r1, %r2;",             // neither lo nor hi nor wide
      "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1}, {%r2}, {%f0,%f1,%f2,%f3};",
      "lop3.b32 %r0, %r1, %r2, %r3, %r4;",  // the table is no immediate
      "bar.arrive 0, 64;", "wgmma.fence.sync.aligned;", "shfl.up.b32 %r0, %r1, 1, 0;",
      "mbarrier.init.shared.b64 [%l0], 1;", "call.uni vprintf, ();", "nosuch.op %r0, %r1;"};
  for (char const* text : unknown) {
    INFO(text);
    std::string const shown(text, std::strlen(text) - 1);
    CHECK_THAT(fault_of([&] { run_kernel(kernel(text, ".extern .func vprintf();"), iota(32)); }),
               Contains("instruction not covered") && Contains("at '" + shown + "'"));
    // What does not run cannot make the result wrong.
    CHECK(run_kernel(kernel("bra SKIP; " + std::string(text) + " SKIP: mov.u32 %y, 5;", ".extern .func vprintf();"),
                     iota(32))[0] == 5);
  }
}

TEST_CASE("ptx: text that cannot be read is refused at once") {
  Memory memory;
  auto const refused = [&](std::string const& text) { return fault_of([&] { parse(text, memory); }); };
  CHECK_THAT(refused(kernel("bra NOWHERE;")), Contains("no label NOWHERE"));
  CHECK_THAT(refused(kernel("add.u32 %q0, %r0, %r1;")), Contains("register %q0 is not covered"));
  CHECK_THAT(refused(kernel("@%r0 bra L; L:")), Contains("a guard that is no predicate"));
  CHECK_THAT(refused(kernel(".reg .b128 %w;")), Contains("registers of a type not covered"));
  CHECK_THAT(refused(kernel("mov.f32 %f0, 1.0;")), Contains("expected a number at '1.0'"));
  CHECK_THAT(refused(".version 8.0\n.tex .u32 t;"), Contains("not covered"));
  CHECK_THAT(refused(".global .u32 x[2] = {1, 2, 3};"), Contains("more values than elements"));
}

TEST_CASE("ptx: a fault names the source line that .loc gives") {
  CHECK_THAT(fault_of([] {
    run_kernel(".file 1 \"/some/where/decode.cuh\"\n" + kernel("\n.loc 1 42 7, function_name $x, inlined_at 1 9 9\ntrap;\n"), iota(32));
  }), Contains("at 'trap' (decode.cuh:42)"));
}

TEST_CASE("ptx: names in scopes, initial values, operands of every form") {
  CHECK(run_kernel(kernel("{ .reg .b32 %t; mov.u32 %t, 9; mov.u32 %y, %t; } add.u32 %y, %y, %t;"), iota(32))[5] == 14);
  CHECK(run_kernel(kernel("mov.u32 %y, WARP_SZ; {.reg.b32 k<3>; mov.u32 k2, 8; add.u32 %y, %y, k2; }"), iota(32))[5] == 40);
  CHECK(run_kernel(kernel("ld.global.u8 %y, [bytes+2];", ".global .align 4 .b8 bytes[4] = {1, 2, 0xff};"), iota(32))[0] == 255);
  CHECK(run_kernel(kernel("ld.global.u32 %y, [later+4];", ".visible .global .align 4 .u32 later[3] = {7, -8};"), iota(32))[0] == 0xfffffff8);
  CHECK(run_kernel(kernel("mov.b32 %r0, {%h0, %h1}; mov.u16 %h2, 513; mov.b32 %r1, {%h2, %h2}; mov.b32 {%h3, %h4}, %r1;"
                          "mov.b64 %l0, {%r1, %t}; mov.b64 {_, %r3}, %l0; cvt.u32.u16 %y, %h4; add.u32 %y, %y, %r3;"),
                   iota(32))[7] == 520);
}
