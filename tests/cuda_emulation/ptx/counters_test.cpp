// Sectors and bank conflicts, counted by hand.

#include "kernel_text.hpp"

using namespace ptx;
using namespace ptx::test;

namespace {

Counters count(std::string const& body, Session** kept = nullptr) {
  auto* const session = new Session(kernel(body));
  u64 const a = session->put(iota(2048)), b = session->put(iota(2048));
  Counters const c = session->launch("k", {1}, {32}, {a, b}, 0, true);
  if (kept)
    *kept = session;
  else
    delete session;
  return c;
}
// Beyond the load of %x and the store of %y, both of 4 sectors.
u64 sectors(std::string const& body) { return count(body).global_sectors - 8; }

}  // namespace

TEST_CASE("ptx: sectors of a global request") {
  CHECK(count("").global_requests == 2);
  CHECK(count("").global_bytes == 256);
  CHECK(sectors("") == 0);
  CHECK(sectors("mad.wide.u32 %l0, %t, 8, %A; ld.global.u64 %l1, [%l0];") == 8);
  CHECK(sectors("mad.wide.u32 %l0, %t, 16, %A; ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%l0];") == 16);
  CHECK(sectors("mad.wide.u32 %l0, %t, 32, %A; ld.global.u32 %r1, [%l0];") == 32);
  CHECK(sectors("ld.global.u32 %r1, [%A];") == 1);
  CHECK(sectors("ld.global.u8 %r1, [%A+33];") == 1);
  CHECK(sectors("setp.lt.u32 %p0, %t, 9; @%p0 ld.global.u32 %r1, [%a0];") == 2);
}

TEST_CASE("ptx: waves of shared memory") {
  auto const waves = [](std::string const& stride, std::string const& type) {
    Counters const c = count(".shared .align 16 .b8 s[8192]; mov.u32 %r0, s; mad.lo.u32 %r1, %t, " + stride +
                             ", %r0; st.shared" + type + " [%r1], " +
                             (type == ".v4.u32" ? "{%t, %t, %t, %t}" : type == ".u64" ? "%l5" : "%t") + ";");
    return std::pair{c.shared_waves, c.shared_ideal_waves};
  };
  using P = std::pair<u64, u64>;
  CHECK(waves("4", ".u32") == P{1, 1});
  CHECK(waves("8", ".u32") == P{2, 1});
  CHECK(waves("128", ".u32") == P{32, 1});
  CHECK(waves("132", ".u32") == P{1, 1});
  CHECK(waves("8", ".u64") == P{2, 2});
  CHECK(waves("16", ".v4.u32") == P{4, 4});
  CHECK(waves("64", ".v4.u32") == P{16, 4});
  CHECK(waves("1", ".u8") == P{1, 1});
  // All lanes read one word: no conflict.
  CHECK(count(".shared .u32 s; setp.eq.u32 %p0, %t, 0; @%p0 st.shared.u32 [s], 1; bar.sync 0; ld.shared.u32 %y, [s];").shared_waves == 2);
}

TEST_CASE("ptx: opcodes are counted, conflicts named") {
  Session* session = nullptr;
  Counters const c = count(".shared .align 16 .b8 s[4096]; mov.u32 %r0, s; mad.lo.u32 %r1, %t, 128, %r0; st.shared.u32 [%r1], %t;", &session);
  auto const opcodes = opcode_counts({&session->module()});
  auto const of = [&](std::string const& name) {
    for (auto const& o : opcodes)
      if (o.opcode == name) return o.executed;
    return u64{0};
  };
  CHECK(of("mov.u32") == 3);
  CHECK(of("st.shared.u32") == 1);
  CHECK(of("ret") == 1);
  u64 sum = 0;
  for (auto const& o : opcodes) sum += o.executed;
  CHECK(sum == c.warp_instructions);
  auto const conflicts = conflict_counts({&session->module()});
  REQUIRE(conflicts.size() == 1);
  CHECK(conflicts[0].where == "k: st.shared.u32 [%r1], %t");
  CHECK(conflicts[0].waves == 32);
  CHECK(conflicts[0].ideal_waves == 1);
  delete session;
}
