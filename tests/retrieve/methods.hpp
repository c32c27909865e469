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
  use(PqCache{.bits = 3, .iterations = 3, .keep = 0.3, .sinks = 2});
  use(Squeezed{.clusters = 0.2, .coarse = 0.1, .observe = 6, .iterations = 3});
  use(SparQ{.channels = 3, .tokens = 16});
  use(RocketKV{.page = 4, .tokens = 16, .channels = 4});
  use(Landmark{.tokens = 4, .blocks = 3});
  use(RetrievalAttention{.tokens = 12, .sinks = 2, .local = 6, .degree = 4, .beam = 16, .hubs = 3, .hub_keys = 2});
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
  use(PqCache{.bits = 3, .keep = 1.0, .recent = 0.0});
  use(SparQ{.share = 1.0});
  use(RocketKV{.page = 4, .tokens = 1000});
  use(RetrievalAttention{.tokens = 1000});
}

}  // namespace kvcondense::test
