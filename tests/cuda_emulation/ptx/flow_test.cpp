// Branches, tables, calls, barriers of the block.

#include "kernel_text.hpp"

using namespace ptx;
using namespace ptx::test;
using Catch::Contains;

namespace {

// int twice(int x), long add(long, int), a struct of three words by value, fib.
std::string const functions = R"(
.func (.param .b32 ret) fib(.param .b32 n) {
  .reg .pred %p<2>; .reg .b32 %r<8>;
  ld.param.u32 %r1, [n]; setp.lt.s32 %p1, %r1, 2; @%p1 bra DONE;
  sub.s32 %r2, %r1, 1;
  { .param .b32 param0; st.param.b32 [param0+0], %r2; .param .b32 retval0;
    call.uni (retval0), fib, (param0); ld.param.b32 %r3, [retval0+0]; }
  sub.s32 %r4, %r1, 2;
  { .param .b32 param0; st.param.b32 [param0+0], %r4; .param .b32 retval0;
    call.uni (retval0), fib, (param0); ld.param.b32 %r5, [retval0+0]; }
  add.s32 %r1, %r3, %r5;
  DONE: st.param.b32 [ret+0], %r1; ret;
}
.func (.param .align 4 .b8 ret[12]) turn(.param .align 4 .b8 v[12], .param .b64 scale) {
  .reg .b32 %r<8>; .reg .b64 %l<3>; .local .align 4 .b8 own[12]; .reg .b64 %q;
  ld.param.u64 %l0, [scale]; cvt.u32.u64 %r6, %l0;
  ld.param.u32 %r0, [v]; ld.param.u32 %r1, [v+4]; ld.param.u32 %r2, [v+8];
  mov.u64 %q, own; st.local.u32 [%q], %r1; st.local.u32 [%q+4], %r2; st.local.u32 [%q+8], %r0;
  ld.local.u32 %r3, [%q]; mul.lo.u32 %r3, %r3, %r6; st.param.b32 [ret], %r3;
  ld.local.u32 %r4, [%q+4]; st.param.b32 [ret+4], %r4; ld.local.u32 %r5, [%q+8]; st.param.b32 [ret+8], %r5;
  ret;
}
.func total(.param .b64 to, .param .b32 value) {
  .reg .b32 %r<5>; .reg .b64 %l<2>; .reg .pred %p; .shared .align 4 .b8 s[128];
  ld.param.u64 %l0, [to]; ld.param.u32 %r0, [value];
  mov.u32 %r1, %tid.x; mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 4, %r2; st.shared.u32 [%r3], %r0;
  bar.warp.sync 0xffffffff; xor.b32 %r1, %r1, 31; mad.lo.u32 %r3, %r1, 4, %r2; ld.shared.u32 %r4, [%r3];
  bar.warp.sync 0xffffffff; st.global.u32 [%l0], %r4; ret;
}
)";

}  // namespace

TEST_CASE("ptx: a predicate is set to a constant, or to another one") {
  auto const got = run_kernel(kernel("mov.pred %p0, 0; setp.lt.u32 %p1, %t, 3; @%p1 mov.pred %p0, 1; mov.pred %p2, %p0; selp.u32 %y, 7, 9, %p2;"), iota(32));
  for (std::size_t i = 0; i < 32; ++i) CHECK(got[i] == (i < 3 ? 7u : 9u));
}

TEST_CASE("ptx: functions, recursive and with parameters by value") {
  auto const fib = run_kernel(kernel(R"({ .param .b32 param0; st.param.b32 [param0], %t; .param .b32 retval0;
    call.uni (retval0), fib, (param0); ld.param.b32 %y, [retval0]; })", functions), iota(16), 16);
  u32 a = 0, b = 1;
  for (u32 t = 0; t < 16; ++t) {
    CHECK(fib[t] == a);
    a = std::exchange(b, a + b);
  }
  auto const turned = run_kernel(kernel(R"({
    .param .align 4 .b8 param0[12]; st.param.b32 [param0], 7; st.param.b32 [param0+4], %x; st.param.b32 [param0+8], 1000;
    .param .b64 param1; mov.u64 %l0, 3; st.param.b64 [param1], %l0; .param .align 4 .b8 retval0[12];
    call.uni (retval0), turn, (param0, param1);
    ld.param.b32 %r0, [retval0]; ld.param.b32 %r1, [retval0+4]; ld.param.b32 %r2, [retval0+8]; }
    add.u32 %y, %r0, %r1; add.u32 %y, %y, %r2;)", functions), iota(32));
  for (u32 t = 0; t < 32; ++t) CHECK(turned[t] == 3 * t + 1007);
}

TEST_CASE("ptx: lanes that call from different places meet inside the function") {
  std::string const call = "{ .param .b64 param0; st.param.b64 [param0], %b0; .param .b32 param1; st.param.b32 [param1], %x;"
                           "call.uni total, (param0, param1); }";
  auto const got = run_kernel(kernel("setp.lt.u32 %p0, %t, 16; @%p0 bra LOW; add.u32 %x, %x, 100;" + call +
                                     "bra END; LOW: " + call + "END: ld.global.u32 %y, [%b0];", functions), iota(32));
  for (u32 t = 0; t < 32; ++t) CHECK(got[t] == 31 - t + (t < 16 ? 100 : 0));
}

TEST_CASE("ptx: a table of branches") {
  auto const text = kernel(R"(
    and.b32 %r0, %t, 3; T: .branchtargets A0, A1, A2, A0; brx.idx %r0, T;
    A0: mov.u32 %y, 10; bra.uni END; A1: mov.u32 %y, 11; bra.uni END; A2: mov.u32 %y, 12; END:)");
  auto const got = run_kernel(text, iota(32));
  for (u32 t = 0; t < 32; ++t) CHECK(got[t] == (t % 4 == 3 ? 10 : 10 + t % 4));
  CHECK_THAT(fault_of([] {
    run_kernel(kernel("T: .branchtargets A, A; brx.idx %x, T; A:"), iota(32));
  }), Contains("beyond its table"));
}

TEST_CASE("ptx: barriers that count and vote over the block") {
  std::vector<u32> in(96, 1);
  in[70] = 0;
  auto const run = [&](std::string const& body) { return run_kernel(kernel("setp.ne.u32 %p0, %x, 0;" + body), in, 96); };
  CHECK(run("bar.red.popc.u32 %y, 0, %p0;")[5] == 95);
  CHECK(run("bar.red.and.pred %p1, 0, %p0; selp.u32 %y, 1, 0, %p1;")[5] == 0);
  CHECK(run("bar.red.or.pred %p1, 0, %p0; selp.u32 %y, 1, 0, %p1;")[5] == 1);
  CHECK(run("bar.red.or.pred %p1, 0, !%p0; selp.u32 %y, 1, 0, %p1;")[70] == 1);
  CHECK(run("setp.gt.u32 %p2, %x, 5; bar.red.or.pred %p1, 0, %p2; selp.u32 %y, 1, 0, %p1;")[5] == 0);
  CHECK(run("barrier.sync.aligned 0; mov.u32 %y, 4; bar.sync 1, 96;")[95] == 4);
}

TEST_CASE("ptx: blocks and threads in three dimensions") {
  std::string const text = R"(.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out) {
.reg .b32 %r<20>; .reg .b64 %l<3>;
mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ctaid.z; mov.u32 %r3, %nctaid.x; mov.u32 %r4, %nctaid.y;
mad.lo.u32 %r5, %r2, %r4, %r1; mad.lo.u32 %r5, %r5, %r3, %r0;
mov.u32 %r6, %tid.x; mov.u32 %r7, %tid.y; mov.u32 %r8, %tid.z; mov.u32 %r9, %ntid.x; mov.u32 %r10, %ntid.y; mov.u32 %r11, %ntid.z;
mad.lo.u32 %r12, %r8, %r10, %r7; mad.lo.u32 %r12, %r12, %r9, %r6;
mul.lo.u32 %r13, %r9, %r10; mul.lo.u32 %r13, %r13, %r11; mad.lo.u32 %r14, %r5, %r13, %r12;
ld.param.u64 %l0, [out]; mad.wide.u32 %l1, %r14, 4, %l0; mov.u32 %r15, %warpid; mov.u32 %r16, %laneid;
mad.lo.u32 %r15, %r15, 32, %r16; st.global.u32 [%l1], %r15; ret; })";
  Session session(text);
  u32 const blocks = 2 * 3 * 4, threads = 5 * 4 * 3;
  u64 const out = session.put(std::vector<u32>(blocks * threads, 7777));
  session.launch("k", {2, 3, 4}, {5, 4, 3}, {out});
  auto const got = session.get<u32>(out, blocks * threads);
  for (u32 i = 0; i < got.size(); ++i) CHECK(got[i] == i % threads);
}

TEST_CASE("ptx: a block that never ends is a fault, and so is a trap") {
  Session session(kernel("L: bra L;"));
  u64 const a = session.put(iota(32));
  Launch launch;
  launch.kernel = session.module().find("k");
  launch.block = {32};
  launch.params.resize(16);
  std::memcpy(launch.params.data(), &a, 8), std::memcpy(launch.params.data() + 8, &a, 8);
  launch.block_limit = 1000;
  CHECK_THAT(fault_of([&] { run(session.module(), launch, session.memory(), false); }), Contains("does not end"));
  CHECK_THAT(fault_of([] { run_kernel(kernel("trap;"), iota(32)); }), Contains("the kernel trapped"));
  CHECK_THAT(fault_of([] { run_kernel(kernel("call.uni __assertfail, ();", ".extern .func __assertfail();"), iota(32)); }),
             Contains("an assertion of the kernel failed"));
  CHECK_THAT(fault_of([] {
    run_kernel(kernel("{ .param .b64 param0; st.param.b64 [param0], %b0; .param .b32 param1; call.uni forever, (param0); }",
                      ".func forever(.param .b64 x) { .param .b64 param0; call.uni forever, (param0); ret; }"), iota(32));
  }), Contains("nested more than 1024 deep"));
}
