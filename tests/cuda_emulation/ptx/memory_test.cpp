// Loads and stores: spaces, widths, vectors; what is out of bounds or misaligned.

#include "kernel_text.hpp"

using namespace ptx;
using namespace ptx::test;

TEST_CASE("ptx: loads extend by type, stores cut") {
  u32 const word = 0x8081fe7f;
  auto const one = [&](std::string const& body) { return run_kernel(kernel(body), {word}, 1)[0]; };
  CHECK(one("ld.global.u8 %y, [%a0+3];") == 0x80);
  CHECK(one("ld.global.s8 %y, [%a0+3];") == 0xffffff80);
  CHECK(one("ld.global.u16 %y, [%a0+2];") == 0x8081);
  CHECK(one("ld.global.s16 %y, [%a0+2];") == 0xffff8081);
  CHECK(one("ld.global.b8 %h0, [%a0+1]; cvt.u32.u16 %y, %h0;") == 0xfe);
  CHECK(one("ld.global.s8 %h0, [%a0+1]; cvt.u32.u16 %y, %h0;") == 0xfffe);
  CHECK(one("ld.global.s32 %l0, [%a0]; shr.u64 %l0, %l0, 32; cvt.u32.u64 %y, %l0;") == 0xffffffff);
  CHECK(one("st.global.u8 [%a0+1], %t; ld.global.u32 %y, [%a0];") == 0x8081007f);
  CHECK(one("st.global.u16 [%a0+2], 4660; ld.global.u32 %y, [%a0];") == 0x1234fe7f);
}

TEST_CASE("ptx: vectors of 2 and 4, with holes") {
  auto const got = run_kernel(kernel(R"(
    setp.ne.u32 %p0, %t, 0; @%p0 bra DONE;
    ld.global.v4.u32 {%r0, _, %r1, %r2}, [%A]; ld.global.v2.u64 {%l0, %l1}, [%A+16];
    st.global.v4.u32 [%B], {%r2, %r1, %r0, 7}; st.global.v2.u64 [%B+16], {%l1, %l0};
    ld.global.v4.u8 {%h0, %h1, %h2, %h3}, [%A+4]; cvt.u32.u16 %y, %h0;
    DONE:)"), {1, 2, 3, 4, 5, 6, 7, 8}, 1);
  CHECK(got == std::vector<u32>{2, 3, 1, 7, 7, 8, 5, 6});  // %y is stored last, over the first word
}

TEST_CASE("ptx: every space, by its own address and by a generic one") {
  auto const in = iota(32, 100);
  CHECK(run_kernel(kernel(R"(
    .shared .align 8 .b8 s[128]; .local .align 4 .b8 own[8];
    mov.u32 %r0, s; mad.lo.u32 %r0, %t, 4, %r0; st.shared.u32 [%r0], %x;
    cvt.u64.u32 %l0, %r0; cvta.shared.u64 %l0, %l0; ld.u32 %r1, [%l0];
    mov.u64 %l1, own; st.local.u32 [%l1+4], %r1; cvta.local.u64 %l2, %l1; ld.u32 %r2, [%l2+4];
    cvta.to.local.u64 %l3, %l2; ld.local.u32 %r3, [%l3+4]; add.u32 %y, %r2, %r3;)"), in)[5] == 210);
  CHECK(run_kernel(kernel(R"(
    ld.const.u32 %r0, [table+4]; mov.u64 %l0, table; ld.const.u32 %r1, [%l0+8]; add.u32 %y, %r0, %r1;
    ld.global.u32 %r2, [count]; add.u32 %y, %y, %r2; ld.global.u64 %l1, [where]; ld.global.u32 %r3, [%l1];
    add.u32 %y, %y, %r3;)",
    ".const .align 4 .u32 table[3] = {5, 60, 700}; .global .u32 count = 8000;\n"
    ".global .align 8 .u64 where = generic(table);"), in)[0] == 8765);
  CHECK(run_kernel(kernel("mov.b64 %l0, a; ld.param.u64 %l1, [%l0+8]; setp.eq.u64 %p0, %l1, %B; selp.u32 %y, 1, 2, %p0;"),
                   in)[0] == 1);
  CHECK(run_kernel(kernel(R"(
    mov.u32 %r0, dyn; mad.lo.u32 %r1, %t, 4, %r0; st.shared.u32 [%r1], %x; ld.shared.u32 %y, [%r1];
    mov.u32 %r2, %dynamic_smem_size; add.u32 %y, %y, %r2;)", ".extern .shared .align 16 .b8 dyn[];"),
    in, 32, 128)[3] == 103 + 128);
}

TEST_CASE("ptx: accesses out of bounds say where they are") {
  auto const fault = [](std::string const& body, u32 dynamic = 0, std::string const& before = "") {
    return fault_of([&] { run_kernel(kernel(body, before), iota(32), 32, dynamic); });
  };
  using Catch::Contains;
  CHECK_THAT(fault("ld.global.u32 %y, [%a0+4];"),
             Contains("out of bounds: global read of 4 bytes by lane 31: 0 bytes past an allocation of 128") &&
                 Contains("at 'ld.global.u32 %y, [%a0+4]'") && Contains("in k, block 0,0,0, warp 0"));
  CHECK_THAT(fault("st.global.u32 [%A+-4], %t;"), Contains("global write of 4 bytes by lane 0: 4 bytes before"));
  CHECK_THAT(fault("ld.global.u32 %y, [%A+2];"), Contains("misaligned global read"));
  CHECK_THAT(fault("ld.global.v2.u32 {%y, %r0}, [%A+4];"), Contains("misaligned global read of 8 bytes"));
  CHECK_THAT(fault("mov.u64 %l0, 0; ld.global.u32 %y, [%l0];"), Contains("a null pointer"));
  CHECK_THAT(fault("mov.u64 %l0, 4096; ld.u32 %y, [%l0];"), Contains("no allocation"));
  CHECK_THAT(fault("st.const.u32 [c], %t;", 0, ".const .u32 c = 1;"), Contains("constant memory"));
  CHECK_THAT(fault(".shared .b8 s[64]; mov.u32 %r0, s; ld.shared.u32 %y, [%r0+64];"),
             Contains("shared memory read out of bounds: 4 bytes at 64 of 64"));
  CHECK_THAT(fault(".shared .align 4 .b8 s[64]; st.shared.u32 [s+2], %t;"), Contains("misaligned shared memory write"));
  CHECK_THAT(fault(".local .b8 own[8]; mov.u64 %l0, own; st.local.u32 [%l0+8], %t;"), Contains("out of bounds: local write"));
  CHECK_THAT(fault("mov.b64 %l0, a; ld.param.u32 %y, [%l0+16];"), Contains("parameter read"));
  CHECK_THAT(fault("mov.u32 %r0, dyn; ld.shared.u32 %y, [%r0+32];", 32, ".extern .shared .align 16 .b8 dyn[];"),
             Contains("of 32"));
}

TEST_CASE("ptx: of a load that nvcc widened only the bytes it wants are checked") {
  auto const run = [](std::string const& pragma, std::string const& load) {
    return fault_of([&] {
      // 12 bytes of shared memory written, 8 read by others; 19 words in global memory.
      auto const got = run_kernel(kernel(".shared .align 16 .b8 s[12]; .reg .b32 %q<4>; setp.lt.u32 %p0, %t, 2; mov.u32 %r0, s;"
                                         "mad.lo.u32 %r1, %t, 4, %r0; @%p0 st.shared.u32 [%r1+4], %x; bar.sync 0; .pragma \"" +
                                         pragma + "\";" + load + " mov.u32 %y, %q1;"), iota(19, 5), 19);
      if (got[7] != 5 && got[7] != 22) throw Fault("read " + std::to_string(got[7]));
    });
  };
  std::string const shared = "ld.shared.v4.u32 {%q0, %q1, %q2, %q3}, [%r0];",
                    global = "ld.global.v4.u32 {%q1, %q0, %q2, %q3}, [%A+64];";
  CHECK(run("used_bytes_mask 0xff0", shared) == "no fault");
  CHECK_THAT(run("used_bytes_mask 0xfff", shared), Catch::Contains("before it was written"));
  CHECK_THAT(run("used_bytes_mask 0xfff0", shared), Catch::Contains("out of bounds: 12 bytes at 4 of 12"));
  CHECK_THAT(run("nounroll", shared), Catch::Contains("out of bounds: 16 bytes at 0 of 12"));
  CHECK(run("used_bytes_mask 4095", global + "mov.u32 %q1, 5;") == "no fault");
  CHECK(run("used_bytes_mask 4095", "ld.global.v4.u32 {%q0, %q1, %q2, %q3}, [%A+64];") == "no fault");
  CHECK_THAT(run("used_bytes_mask 4095", "ld.global.v4.u32 {%q0, %q1, %q2, %q3}, [%A+80];"), Catch::Contains("past an allocation"));
}

TEST_CASE("ptx: memory that was freed stays out of reach, and no address is used twice") {
  Session session(kernel("mov.u32 %y, %x;"));
  u64 const a = session.put(iota(32)), b = session.put(iota(32));
  CHECK(session.memory().release(a));
  CHECK_FALSE(session.memory().release(a));
  CHECK(session.put(iota(32)) != a);
  CHECK_THAT(fault_of([&] { session.launch("k", {1}, {32}, {a, b}); }), Catch::Contains("memory that was freed"));
}

TEST_CASE("ptx: registers begin as rubbish") {
  CHECK(run_kernel(kernel("mov.u32 %y, %r17;"), {0}, 1)[0] == 0xdeadbeef);
}
