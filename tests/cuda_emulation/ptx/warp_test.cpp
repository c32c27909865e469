// What lanes do together, and where they must not be apart.

#include "kernel_text.hpp"

using namespace ptx;
using namespace ptx::test;
using Catch::Contains;

TEST_CASE("ptx: shuffles in segments, with the predicate of being inside") {
  // As the definition of shfl has it: segment mask and clamp in c.
  for (std::string const mode : {"up", "down", "bfly", "idx"})
    for (u32 width : {32U, 16U, 8U, 4U})
      for (u32 by = 0; by < 32; by += 3) {
        u32 const c = (32 - width) << 8 | (mode == "up" ? 0 : 31);
        auto const got = run_kernel(kernel("shfl.sync." + mode + ".b32 %r0|%p0, %x, " + std::to_string(by) + ", " +
                                           std::to_string(c) + ", 0xffffffff; selp.u32 %r1, 1000, 0, %p0; add.u32 %y, %r0, %r1;"),
                                    iota(32, 100));
        for (u32 lane = 0; lane < 32; ++lane) {
          int const first = static_cast<int>(lane / width * width), last = first + static_cast<int>(width) - 1;
          int const l = static_cast<int>(lane), b = static_cast<int>(by);
          int const from = mode == "up"     ? l - b
                           : mode == "down" ? l + b
                           : mode == "bfly" ? l ^ b
                                            : first + b % static_cast<int>(width);
          // A butterfly may reach a lower segment; only what lies above the last lane is outside.
          bool const inside = mode == "up" ? from >= first : from <= last;
          INFO(mode << " width " << width << " by " << by << " lane " << lane);
          CHECK(got[lane] == (inside ? 1100 + static_cast<u32>(from) : 100 + lane));
        }
      }
}

TEST_CASE("ptx: votes, matches and reductions") {
  std::vector<u32> in(32);
  for (u32 i = 0; i < 32; ++i) in[i] = i * i % 7;
  auto const run = [&](std::string const& body) { return run_kernel(kernel("setp.gt.u32 %p0, %x, 2;" + body), in); };
  u32 votes = 0;
  for (u32 i = 0; i < 32; ++i) votes |= u32{in[i] > 2} << i;
  CHECK(run("vote.sync.ballot.b32 %y, %p0, 0xffffffff;") == std::vector<u32>(32, votes));
  CHECK(run("vote.ballot.sync.b32 %y, !%p0, 0xffffffff;") == std::vector<u32>(32, ~votes));
  CHECK(run("vote.sync.any.pred %p1, %p0, 0xffffffff; selp.u32 %y, 1, 0, %p1;")[0] == 1);
  CHECK(run("vote.sync.all.pred %p1, %p0, 0xffffffff; selp.u32 %y, 1, 0, %p1;")[0] == 0);
  CHECK(run("vote.sync.uni.pred %p1, %p0, 0xffffffff; selp.u32 %y, 1, 0, %p1;")[0] == 0);
  CHECK(run("setp.ge.u32 %p2, %x, 0; vote.sync.uni.pred %p1, !%p2, 0xffffffff; selp.u32 %y, 1, 0, %p1;")[0] == 1);
  auto const matched = run("match.any.sync.b32 %y, %x, 0xffffffff;");
  for (u32 l = 0; l < 32; ++l) {
    u32 want = 0;
    for (u32 k = 0; k < 32; ++k) want |= u32{in[k] == in[l]} << k;
    CHECK(matched[l] == want);
  }
  CHECK(run("match.all.sync.b32 %y|%p1, %x, 0xffffffff;")[0] == 0);
  CHECK(run("cvt.u64.u32 %l0, 7; match.all.sync.b64 %y|%p1, %l0, 0xffffffff; @!%p1 mov.u32 %y, 3;")[9] == 0xffffffff);
  u32 sum = 0, all_and = ~0U, all_or = 0, all_xor = 0;
  for (u32 x : in) sum += x, all_and &= x, all_or |= x, all_xor ^= x;
  CHECK(run("redux.sync.add.u32 %y, %x, 0xffffffff;")[7] == sum);
  CHECK(run("redux.sync.add.s32 %y, %x, 0xffffffff;")[7] == sum);
  CHECK(run("redux.sync.and.b32 %y, %x, 0xffffffff;")[7] == all_and);
  CHECK(run("redux.sync.or.b32 %y, %x, 0xffffffff;")[7] == all_or);
  CHECK(run("redux.sync.xor.b32 %y, %x, 0xffffffff;")[7] == all_xor);
  CHECK(run("redux.sync.max.u32 %y, %x, 0xffffffff;")[7] == 4);
  CHECK(run("sub.s32 %r0, %x, 3; redux.sync.min.s32 %y, %r0, 0xffffffff;")[7] == static_cast<u32>(-3));
  CHECK(run("sub.s32 %r0, %x, 3; redux.sync.max.s32 %y, %r0, 0xffffffff;")[7] == 1);
  CHECK(run("sub.s32 %r0, %x, 3; redux.sync.min.u32 %y, %r0, 0xffffffff;")[7] == 1);
}

TEST_CASE("ptx: lanes that parted meet again") {
  auto const got = run_kernel(kernel(R"(
    and.b32 %r0, %t, 3; mov.u32 %y, 0;
    LOOP: setp.eq.u32 %p0, %r0, 0; @%p0 bra OUT;
    add.u32 %y, %y, 10; sub.u32 %r0, %r0, 1; bra LOOP;
    OUT: activemask.b32 %r1; popc.b32 %r1, %r1; add.u32 %y, %y, %r1;)"), iota(32));
  for (u32 t = 0; t < 32; ++t) CHECK(got[t] == t % 4 * 10 + 32);
}

TEST_CASE("ptx: operations of a part of the lanes, by their own masks") {
  // Even and odd lanes reduce at the same instruction, each with its mask.
  auto const got = run_kernel(kernel(R"(
    and.b32 %r0, %t, 1; setp.ne.u32 %p0, %r0, 0; selp.u32 %r1, 0xaaaaaaaa, 0x55555555, %p0;
    redux.sync.add.u32 %y, %x, %r1;)"), iota(32));
  for (u32 t = 0; t < 32; ++t) CHECK(got[t] == (t % 2 ? 256U : 240U));
  // Lanes that come by another way, later, are waited for.
  auto const late = run_kernel(kernel(R"(
    setp.lt.u32 %p0, %t, 16; @%p0 bra MEET; bra FAR;
    MEET: redux.sync.add.u32 %y, %x, 0xffffffff; bra END;
    FAR: add.u32 %x, %x, 100; bra MEET;
    END:)"), iota(32));
  CHECK(late == std::vector<u32>(32, 31 * 16 + 1600));
  // Lanes that have exited are not waited for.
  auto const fewer = run_kernel(kernel(R"(
    setp.ge.u32 %p0, %t, 8; @%p0 exit; redux.sync.add.u32 %y, %x, 0xffffffff;)"), iota(32));
  CHECK(fewer[3] == 28);
}

TEST_CASE("ptx: lanes that never come are a fault") {
  auto const fault = [](std::string const& body, u32 threads = 32) {
    return fault_of([&] { run_kernel(kernel(body), iota(64), threads); });
  };
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 5; @%p0 bar.warp.sync 0xffffffff; @!%p0 bar.warp.sync 0xffffffff;"),
             Contains("warp operation reached by lanes 0-4 of 0-31; lane 5 waits at"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 5; @%p0 shfl.sync.idx.b32 %y, %x, 0, 31, 0xffffffff; bar.warp.sync 0xffffffff;"),
             Contains("lanes 0-4 of 0-31; lane 5 waits at 'bar.warp.sync") && Contains("at '@%p0 shfl.sync"));
  CHECK_THAT(fault("setp.ge.u32 %p0, %t, 5; @%p0 bra END; redux.sync.add.u32 %y, %x, 0xffffffff; END:"),
             Contains("lane 5 exits while others wait for it: warp operation reached by lanes 0-4 of 0-31 at 'redux"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 5; @%p0 bar.sync 0;"), Contains("lane 5 exits while others wait for it: block barrier"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 5; @%p0 shfl.sync.idx.b32 %y, %x, 0, 31, 0x7;"),
             Contains("mask names only lanes 0-2"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 5; @%p0 shfl.sync.idx.b32 %y, %x, 9, 31, 0x1f;"),
             Contains("shuffle: lane 0 reads lane 9, which does not take part"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 40; @%p0 bar.sync 0; @!%p0 bar.sync 0;", 64),
             Contains("block barrier reached by lanes 0-7 of 0-31; lane 8 waits at '@!%p0 bar.sync 0'"));
  CHECK_THAT(fault("setp.lt.u32 %p0, %t, 32; @%p0 bar.sync 0; @!%p0 bar.sync 0;", 64),
             Contains("block barrier: warp 0 waits at '@%p0 bar.sync 0' and warp 1 at another"));
  CHECK_THAT(fault("bar.sync 0, 32;", 64), Contains("part of the block"));
}

TEST_CASE("ptx: a warp that waits for another lets it run") {
  // Warp 0 spins on shared memory until warp 1 has written it.
  auto const got = run_kernel(kernel(R"(
    .shared .u32 flag; setp.ge.u32 %p0, %t, 32; setp.eq.u32 %p2, %t, 0; @%p2 st.volatile.shared.u32 [flag], 0;
    bar.sync 0; setp.eq.u32 %p3, %t, 32; @%p3 st.volatile.shared.u32 [flag], 5; @%p0 bra END;
    SPIN: ld.volatile.shared.u32 %y, [flag]; setp.ne.u32 %p1, %y, 5; @%p1 bra SPIN;
    END:)"), iota(64), 64);
  CHECK(got[0] == 5);
}
