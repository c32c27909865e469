// Branches, calls, barriers of the block. The scheduler does what these move.

#include "machine.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

void nothing(Warp&, Instruction const&, Mask) {}
void trap(Warp&, Instruction const&, Mask) { throw Fault("the kernel trapped"); }

}  // namespace

void define_flow(Opcodes& all) {
  all.add("bra{,.uni}", "*", nullptr, Flow::branch);
  all.add("brx.idx{,.uni}", "r*", nullptr, Flow::branch_table);
  all.add("call{,.uni}", "*", nullptr, Flow::call);
  all.add("ret{,.uni}", "", nullptr, Flow::ret);
  all.add("exit", "", nullptr, Flow::exit);
  all.add("trap", "", trap);
  auto const barrier = [&](std::string pattern, std::string operands) {
    all.add(std::move(pattern), std::move(operands), nullptr, Flow::block_barrier, Together::warp);
  };
  for (std::string const threads : {"i", "ii"}) {  // an identifier, and how many threads
    barrier("{bar.sync,barrier{,.cta}.sync.aligned}", threads);
    barrier("{bar.red.{and,or}.pred,barrier{,.cta}.red.{and,or}.aligned.pred}", "p=" + threads + "p");
    barrier("{bar.red.popc.u32,barrier{,.cta}.red.popc.aligned.u32}", "r=" + threads + "p");
  }
  // Blocks run one after another and warps in turns: memory is always in order.
  all.add("{membar.{cta,gl,sys},fence{.sc,.acq_rel}.{cta,gpu,sys}}", "", nothing);
  all.add("nanosleep.u32", "r", nothing);
}

}  // namespace ptx
