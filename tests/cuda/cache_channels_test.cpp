// SparQ in a cache on CUDA: keys channel by channel, and the mean of all values for what is not read.

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/sparq.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;
using cuda_cache::parity;

KVCONDENSE_CUDA_RETRIEVES("sparq", retrieve::SparQ{.channels = 5, .tokens = 20})

TEST_CASE("cuda cache retrieves: the newest are among the chosen, and a share of slots is") {
  parity(of(retrieve::SparQ{.channels = 9, .share = 0.3, .local = 6}), "sparq(channels=9, share=30%, local=6)", cuda_cache::shapes()[3]);
}
TEST_CASE("cuda cache retrieves: the mean of all values where slots leave") {
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, retrieve::SparQ{.channels = 5, .tokens = 12}), "h2o(heavy=20, recent=20) + sparq(channels=5, tokens=12)",
         cuda_cache::shapes()[1], true);
}
TEST_CASE("cuda cache retrieves: keys channel by channel and sums of values are of what is stored") {
  // Of two bits, and values that become codes where keys do not, or later.
  parity(of(quant::GroupInt<2>{.group_size = 16, .residual_window = 6}, retrieve::SparQ{.channels = 5, .tokens = 20}),
         "group_int(bits=2, group_size=16, residual_window=6) + sparq(channels=5, tokens=20)", cuda_cache::shapes()[0], false, 4e-4f);
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, quant::Kivi<2>{.group_size = 16, .residual_window = 16}, retrieve::SparQ{.channels = 5, .tokens = 12}),
         "h2o(heavy=20, recent=20) + kivi(bits=2, group_size=16, residual_window=16) + sparq(channels=5, tokens=12)", cuda_cache::shapes()[0], true, 4e-4f);
}
TEST_CASE("cuda cache retrieves: pages of channels that fill up, and more slots than threads") {
  Pair pair(recipe(retrieve::SparQ{.channels = 16, .share = 0.1}), "sparq(channels=16, share=10%)", CacheShape{.q_heads = 16, .kv_heads = 1, .head_dim = 96, .page_slots = 64});
  pair.fill(600);
  for (int i = 0; i < 3; ++i) pair.forward(1), pair.look();
  pair.truncate(575);
  pair.look();
  pair.fill(65);
  pair.look();
}
TEST_CASE("cuda cache retrieves: tensor cores read what was chosen beside the mean of all values") {
  Pair pair(recipe(quant::GroupInt<4>{.group_size = 16, .residual_window = 6}, retrieve::SparQ{.channels = 5, .tokens = 12}),
            "group_int(bits=4, group_size=16, residual_window=6) + sparq(channels=5, tokens=12)", CacheShape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16});
  pair.forward(45);
  for (int i = 0; i < 4; ++i) pair.forward(1, prim::AttendMath::halves, 4e-3f);
  pair.look();
}
