#pragma once

#include <kvcondense/cpu.hpp>

namespace kvcondense::test {

/// Calls use(method) with a small setting of every retrieval method: thirty-some slots of a hundred are read.
template <class Use>
void for_retrieval_methods(Use&& use) {
  using namespace retrieve;
  use(Quest{.page = 4, .tokens = 24, .dense_layers = 0});
  use(Quest{.page = 4, .tokens = 24, .dense_layers = 0, .heads = Heads::group_sum, .keep_last = false});
  use(LServe{.page = 8, .part = 4, .tokens = 24, .interval = 3});
  use(Kinetics{.block = 4, .blocks = 4, .sinks = 2, .local = 6, .dense_layers = 0});
  use(TriForce{.chunk = 4, .tokens = 28});
  use(ShadowSelect{.chunk = 4, .tokens = 12, .outliers = 2, .local_chunks = 1});
}

/// The same with room for every slot.
template <class Use>
void for_generous_methods(Use&& use) {
  using namespace retrieve;
  use(Quest{.page = 4, .tokens = 1000, .dense_layers = 0});
  use(LServe{.page = 8, .part = 4, .tokens = 1000});
  use(Kinetics{.block = 4, .blocks = 1000, .dense_layers = 0});
  use(TriForce{.chunk = 4, .tokens = 1000});
  use(ShadowSelect{.chunk = 4, .tokens = 1000});
}

}  // namespace kvcondense::test
