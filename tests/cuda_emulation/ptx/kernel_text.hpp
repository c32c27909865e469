#pragma once
// For tests: the frame around a few instructions, and a launch of one warp.

#include "instruction.hpp"

namespace ptx::test {

/// A kernel k(a, b) with registers of every kind: %t is the thread, %x the word at a[t] and %y
/// what b[t] gets. %A and %B are the parameters, %a0 and %b0 the thread's places in them.
inline std::string kernel(std::string const& body, std::string const& before = "") {
  return R"(.version 8.0
.target sm_80
.address_size 64
)" + before + R"(
.visible .entry k(.param .u64 a, .param .u64 b) {
.reg .pred %p<20>; .reg .b16 %h<20>; .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .b64 %l<20>;
.reg .b32 %t, %x, %y; .reg .b64 %A, %B, %a0, %b0;
mov.u32 %t, %tid.x; mov.u32 %y, 0;
ld.param.u64 %A, [a]; ld.param.u64 %B, [b];
mad.wide.u32 %a0, %t, 4, %A; mad.wide.u32 %b0, %t, 4, %B;
ld.global.u32 %x, [%a0];
)" + body + R"(
st.global.u32 [%b0], %y;
ret;
}
)";
}

/// Runs such a kernel over `in`; b's words.
inline std::vector<u32> run_kernel(std::string const& text, std::vector<u32> const& in, u32 threads = 32,
                                   u32 dynamic_shared = 0) {
  Session session(text);
  u64 const a = session.put(in), b = session.put(std::vector<u32>(in.size()));
  session.launch("k", {1}, {threads}, {a, b}, dynamic_shared);
  return session.get<u32>(b, in.size());
}
inline std::vector<u32> iota(u32 count, u32 from = 0) {
  std::vector<u32> out(count);
  for (u32 i = 0; i < count; ++i) out[i] = from + i;
  return out;
}

}  // namespace ptx::test
