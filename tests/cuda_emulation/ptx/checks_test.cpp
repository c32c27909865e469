// Planted bugs of shared memory and asynchronous copies, each caught with its message; beside
// each the same kernel done right, which must pass.

#include "kernel_text.hpp"

using namespace ptx;
using namespace ptx::test;
using Catch::Contains;

namespace {

std::string run(std::string const& body, u32 threads = 64) {
  return fault_of([&] {
    run_kernel(kernel(R"(.shared .align 16 .b8 s[4096]; mov.u32 %r0, s; mad.lo.u32 %r1, %t, 4, %r0;
      xor.b32 %r2, %t, 1; mad.lo.u32 %r2, %r2, 4, %r0; xor.b32 %r3, %t, 32; mad.lo.u32 %r3, %r3, 4, %r0;
      mad.wide.u32 %l0, %t, 16, %A; mad.lo.u32 %r4, %t, 16, %r0; setp.eq.u32 %p9, %t, 0;)" + body), iota(1024), threads);
  });
}

}  // namespace

TEST_CASE("ptx: shared memory read before it was written") {
  CHECK_THAT(run("ld.shared.u32 %y, [%r1];"), Contains("shared memory read before it was written: lane 0 reads address 0"));
  CHECK_THAT(run("st.shared.u8 [%r1], %t; ld.shared.u32 %y, [%r1];"), Contains("before it was written") && Contains("address 1"));
  CHECK_THAT(run("atom.shared.add.u32 %y, [%r1], 1;"), Contains("before it was written"));
  CHECK(run("st.shared.u32 [%r1], %t; ld.shared.u32 %y, [%r1];") == "no fault");
  // A block finds nothing of the one before.
  Session session(kernel(".shared .u32 s; mov.u32 %r0, %ctaid.x; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [s], 1;"
                         "@!%p0 ld.shared.u32 %y, [s];"));
  u64 const a = session.put(iota(32));
  CHECK_THAT(fault_of([&] { session.launch("k", {2}, {1}, {a, a}); }), Contains("block 1,0,0"));
}

TEST_CASE("ptx: races between lanes of a warp") {
  CHECK_THAT(run("st.shared.u32 [%r1], %t; ld.shared.u32 %y, [%r2];"),
             Contains("race in shared memory: warp 0 lane 0 reads address 4, which warp 0 lane 1 wrote with no barrier"));
  CHECK(run("st.shared.u32 [%r1], %t; bar.warp.sync 0xffffffff; ld.shared.u32 %y, [%r2];") == "no fault");
  CHECK_THAT(run("st.shared.u32 [%r1], %t; bar.warp.sync 0xffffffff; ld.shared.u32 %y, [%r2]; st.shared.u32 [%r1], 1;"),
             Contains("writes address 0, which warp 0 lane 1 read"));
  CHECK(run("st.shared.u32 [%r1], %t; bar.warp.sync 0xffffffff; ld.shared.u32 %y, [%r2]; bar.warp.sync 0xffffffff;"
            "st.shared.u32 [%r1], 1;") == "no fault");
  CHECK_THAT(run("st.shared.u32 [%r0], %t;"), Contains("warp 0 lane 1 writes address 0, which warp 0 lane 0 wrote"));
  // Everybody reads, then the last reader alone would not do as a witness: lane 31 writes.
  CHECK_THAT(run("@%p9 st.shared.u32 [%r0], 1; bar.sync 0; ld.shared.u32 %y, [%r0]; setp.eq.u32 %p0, %t, 31; @%p0 st.shared.u32 [%r0], 2;", 32),
             Contains("warp 0 lane 31 writes address 0"));
  // Shuffles order no memory.
  CHECK_THAT(run("st.shared.u32 [%r1], %t; shfl.sync.bfly.b32 %r9, %t, 1, 31, 0xffffffff; ld.shared.u32 %y, [%r2];"),
             Contains("race in shared memory"));
}

TEST_CASE("ptx: races between warps") {
  CHECK_THAT(run("st.shared.u32 [%r1], %t; bar.warp.sync 0xffffffff; ld.shared.u32 %y, [%r3];"),
             Contains("before it was written"));
  std::string const reads_written = "race in shared memory: warp 1 lane 0 reads address 0, which warp 0 lane 0 wrote";
  CHECK_THAT(run("st.shared.u32 [%r1], %t; bar.sync 0; st.shared.u32 [%r1], 2; ld.shared.u32 %y, [%r3];"),
             Contains("warp 1 lane 0 writes address 128, which warp 0 lane 0 read"));
  CHECK(run("st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %y, [%r3];") == "no fault");
  CHECK_THAT(run("st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %y, [%r3]; st.shared.u32 [%r1], 3;"),
             Contains(reads_written));
  // A warp's own barrier does not hide what another warp did before it.
  CHECK_THAT(run("st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %y, [%r3]; bar.warp.sync 0xffffffff; st.shared.u32 [%r1], 3;"),
             Contains(reads_written));
  CHECK_THAT(run("st.shared.u32 [%r1], %t; bar.sync 0; ld.shared.u32 %y, [%r3]; setp.lt.u32 %p0, %t, 32; @%p0 bra END;"
                 "st.shared.u32 [%r1], 3; END:"), Contains("warp 1 lane 0 writes address 128, which warp 0 lane 0 read"));
  // Two warps read, warp 1 last; warp 1 writes: warp 0's reading still counts.
  CHECK_THAT(run("@%p9 st.shared.u32 [%r0], 1; bar.sync 0; ld.shared.u32 %y, [%r0]; bar.warp.sync 0xffffffff; setp.eq.u32 %p0, %t, 40;"
                 "@%p0 st.shared.u32 [%r0], 2;"), Contains("warp 1 lane 8 writes address 0"));
  CHECK(run("@%p9 st.shared.u32 [%r0], 1; bar.sync 0; ld.shared.u32 %y, [%r0]; bar.sync 0; setp.eq.u32 %p0, %t, 40;"
            "@%p0 st.shared.u32 [%r0], 2;") == "no fault");
}

TEST_CASE("ptx: atomics race with plain accesses only") {
  std::string const start = "@%p9 st.shared.u32 [%r0], 0; bar.sync 0;";
  CHECK(run(start + "atom.shared.add.u32 %y, [%r0], 1; atom.shared.add.u32 %y, [%r0], 1;") == "no fault");
  CHECK_THAT(run(start + "atom.shared.add.u32 %y, [%r0], 1; ld.shared.u32 %y, [%r0];"), Contains("race in shared memory"));
  CHECK(run(start + "atom.shared.add.u32 %y, [%r0], 1; bar.sync 0; ld.shared.u32 %y, [%r0];") == "no fault");
  CHECK(run(start + "atom.shared.add.u32 %y, [%r0], 1; ld.volatile.shared.u32 %y, [%r0];") == "no fault");
  CHECK_THAT(run(start + "ld.shared.u32 %y, [%r0]; atom.shared.add.u32 %y, [%r0], 1;"), Contains("race in shared memory"));
  CHECK_THAT(run(start + "setp.ge.u32 %p0, %t, 32; @%p0 bra A; ld.volatile.shared.u32 %y, [%r0]; bra E; A: st.shared.u32 [%r1+-128], 1; E:"),
             Contains("race in shared memory"));
}

TEST_CASE("ptx: asynchronous copies must be waited for") {
  std::string const copy = "cp.async.cg.shared.global [%r4], [%l0], 16;", commit = "cp.async.commit_group;",
                    read = "ld.shared.u32 %y, [%r4];", wait = "cp.async.wait_group 0;", drain = "cp.async.wait_all;";
  CHECK(run(copy + commit + wait + read) == "no fault");
  CHECK(run(copy + drain + read) == "no fault");
  CHECK_THAT(run(copy + commit + read + drain), Contains("shared memory touched while cp.async still copies to it: lane 0 reads address 0"));
  CHECK_THAT(run(copy + commit + "st.shared.u32 [%r4], 1;" + drain), Contains("cp.async still copies to it: lane 0 writes"));
  CHECK_THAT(run(copy + wait + read + drain), Contains("still copies"));  // never committed
  CHECK_THAT(run(copy + commit + copy + commit), Contains("still copies"));
  CHECK_THAT(run(copy + commit + "cp.async.wait_group 1;" + read + drain), Contains("still copies"));
  CHECK(run(copy + commit + commit + "cp.async.wait_group 1;" + read + drain) == "no fault");
  CHECK_THAT(run(copy + commit), Contains("lane 0 exits with cp.async copies in flight"));
  // What another lane copied needs a barrier after its wait.
  std::string const other = "xor.b32 %r9, %r4, 16; ld.shared.u32 %y, [%r9];";
  CHECK_THAT(run(copy + drain + other), Contains("race in shared memory"));
  CHECK(run(copy + drain + "bar.warp.sync 0xffffffff;" + other) == "no fault");
  // A buffer filled again before its readers are done.
  CHECK_THAT(run(copy + drain + "bar.warp.sync 0xffffffff;" + other + copy + drain), Contains("which warp 0 lane 1 read"));
}

TEST_CASE("ptx: asynchronous copies move the bytes they say") {
  auto const get = [](std::string const& body) {
    return run_kernel(kernel(".shared .align 16 .b8 s[512]; mov.u32 %r0, s; mad.lo.u32 %r4, %t, 16, %r0; mad.wide.u32 %l0, %t, 16, %A;" +
                             body + "cp.async.wait_all; ld.shared.u32 %y, [%r4+4];"), iota(128, 1), 32);
  };
  CHECK(get("cp.async.cg.shared.global [%r4], [%l0], 16;")[3] == 14);
  CHECK(get("cp.async.ca.shared.global [%r4+4], [%l0], 4;")[3] == 13);
  CHECK(get("cp.async.ca.shared.global [%r4], [%l0+8], 8;")[3] == 16);
  CHECK(get("cp.async.cg.shared.global.L2::128B [%r4], [%l0], 16, 8;")[3] == 14);
  CHECK(get("cp.async.cg.shared.global [%r4], [%l0], 16, 4;")[3] == 0);  // the rest is zero
  CHECK(get("mov.u32 %r8, 0; mov.u64 %l0, 0; cp.async.cg.shared.global [%r4], [%l0], 16, %r8;")[3] == 0);
  auto const fault = [&](std::string const& body) { return fault_of([&] { get(body); }); };
  CHECK_THAT(fault("cp.async.cg.shared.global [%r4], [%l0+8], 16;"), Contains("misaligned source of cp.async"));
  CHECK_THAT(fault("cp.async.cg.shared.global [%r4+8], [%l0], 16;"), Contains("misaligned shared memory write"));
  CHECK_THAT(fault("cp.async.cg.shared.global [%r4], [%l0+16], 16;"), Contains("source of cp.async of lane 31"));
  CHECK_THAT(fault("cp.async.cg.shared.global [%r4], [%l0], 8;"), Contains("cp.async of 8 bytes"));
  CHECK_THAT(fault("cp.async.ca.shared.global [%r4], [%l0], 8, 12;"), Contains("reads more than it copies"));
}
