// RetrievalAttention in a cache on CUDA: a graph of keys, and walks over it.

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/retrieval_attention.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;
using cuda_cache::parity;

namespace {

constexpr retrieve::RetrievalAttention method{.tokens = 12, .sinks = 2, .local = 6, .degree = 4, .beam = 16, .hubs = 3, .hub_keys = 2};
const std::string text = cuda_cache::setting("retrieval_attention");

}  // namespace

KVCONDENSE_CUDA_RETRIEVES("retrieval_attention", method)

TEST_CASE("cuda cache retrieves: walks over a graph that a prompt begins, in every group and head_dim") {
  for (CacheShape shape : cuda_cache::shapes()) {
    shape.layers = 1;
    Pair pair(recipe(method), text, shape);
    pair.forward(60), pair.look();
    pair.forward(1), pair.look();
    pair.forward(3), pair.look();
    pair.exchange(), pair.look();
    pair.truncate(50), pair.look();  // links to slots that are gone
    pair.forward(5), pair.look();
    pair.remove(30, 34), pair.look();
    auto fork = pair.fork();
    fork.forward(1), fork.look();
    pair.forward(1), pair.look();
  }
}
TEST_CASE("cuda cache retrieves: a graph whose first slots leave is made anew") {
  Pair pair(recipe(evict::SinkWindow{.recent = 30, .sinks = 3}, method), "sink_window(recent=30, sinks=3) + " + text,
            CacheShape{.q_heads = 3, .kv_heads = 1, .head_dim = 16, .page_slots = 4});
  pair.forward(31), pair.look();
  for (int i = 0; i < 4; ++i) pair.forward(1), pair.look();
  CHECK(pair.on_host().total_slots(0) == 33);
}
TEST_CASE("cuda cache retrieves: a graph of keys that become codes") {
  parity(of(quant::GroupInt<2>{.group_size = 16, .residual_window = 6}, method), "group_int(bits=2, group_size=16, residual_window=6) + " + text, cuda_cache::shapes()[0], false, 4e-4f);
}
TEST_CASE("cuda cache retrieves: a beam and hubs as large as they may be") {
  Pair pair(recipe(retrieve::RetrievalAttention{.tokens = 40, .sinks = 2, .local = 6, .degree = 64, .beam = 256, .hubs = 20, .hub_keys = 256}),
            "retrieval_attention(tokens=40, sinks=2, local=6, degree=64, beam=256, hubs=20, hub_keys=256)", CacheShape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .page_slots = 16});
  pair.forward(270), pair.look();
  pair.forward(1), pair.look();
}
