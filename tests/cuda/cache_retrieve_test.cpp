// Retrieval stages in a cache on CUDA beside the same on the CPU: the same choice, the same attention, the same counts.

#include <map>
#include <set>
#include <string>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/registry.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/kinetics.hpp>
#include <kvcondense/retrieve/loki.hpp>
#include <kvcondense/retrieve/lserve.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/rocketkv.hpp>
#include <kvcondense/retrieve/shadow_select.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

constexpr retrieve::Quest quest{.page = 4, .tokens = 24, .dense_layers = 1};
const std::string quest_text = cuda_cache::setting("quest");

/// A recipe that needs nothing of a model.
template <class... Stages>
auto of(const Stages&... stages) {
  return [=](const any::ModelFacts&) { return recipe(stages...); };
}

/// A prompt in chunks, tokens one by one, drafts; between steps one more query; tokens that are taken back, in part and to the last.
template <class Make>
void parity(Make&& make, const std::string& text, const CacheShape& shape, bool moves = false) {
  INFO(text << ", head_dim " << shape.head_dim);
  ::test::Device device;
  cuda_cache::Model model(device, shape);
  Pair pair(make(model.on_device()), text, shape, model.on_host());
  pair.look();  // of an empty cache
  for (int i = 0; i < 3; ++i) pair.forward(1), pair.look();  // fewer slots than are chosen
  pair.forward(20, prim::AttendMath::f32, pair.near, Phase::prefill_chunk);
  pair.look();
  pair.forward(29, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  pair.look();
  for (int i = 0; i < 4; ++i) pair.forward(1), pair.look();
  pair.forward(3);  // several tokens that choose
  pair.look();
  pair.exchange();  // the index is made anew from a file
  pair.look();
  if (!moves) pair.truncate(41), pair.look(), pair.forward(2), pair.look();
  pair.remove(7, 13);
  pair.look();
  for (int i = 0; i < 3; ++i) pair.forward(1);
  auto fork = pair.fork();
  fork.forward(2), fork.look(), pair.forward(1);
  CHECK(pair.look() < shape.layers * pair.on_host().total_slots(0) * shape.q_heads / shape.kv_heads);
  pair.compare_reports();
  CHECK(pair.on_device().report(pair.device())->index_bytes > 0);
}

}  // namespace

#define KVCONDENSE_CUDA_RETRIEVES(word, ...)                                                                                                    \
  TEST_CASE("cuda cache retrieves: " word) {                                                                                                     \
    parity([&]([[maybe_unused]] const any::ModelFacts& facts) { return recipe(__VA_ARGS__); }, cuda_cache::setting(word), cuda_cache::shape_of(word)); \
  }                                                                                                                                             \
  TEST_CASE("cuda cache retrieves in every shape: " word, "[.][sweep]") {                                                                       \
    for (const CacheShape& shape : cuda_cache::shapes())                                                                                        \
      parity([&]([[maybe_unused]] const any::ModelFacts& facts) { return recipe(__VA_ARGS__); }, cuda_cache::setting(word), shape);            \
  }

KVCONDENSE_CUDA_RETRIEVES("quest", quest)
KVCONDENSE_CUDA_RETRIEVES("kinetics", retrieve::Kinetics{.block = 4, .blocks = 3, .sinks = 2, .local = 6, .dense_layers = 0})
KVCONDENSE_CUDA_RETRIEVES("lserve", retrieve::LServe{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max})
KVCONDENSE_CUDA_RETRIEVES("loki", retrieve::Loki{.key_axes = facts.key_axes, .columns = 6, .share = 0.3})
KVCONDENSE_CUDA_RETRIEVES("shadow_select", retrieve::ShadowSelect{.chunk = 4, .tokens = 12, .outliers = 2, .local_chunks = 1})
KVCONDENSE_CUDA_RETRIEVES("rocketkv", retrieve::RocketKV{.page = 4, .tokens = 16, .channels = 6})

TEST_CASE("cuda cache retrieves: quest in every group and head_dim") {
  for (const CacheShape& shape : cuda_cache::shapes()) parity(of(quest), quest_text, shape);
}

TEST_CASE("cuda cache retrieves: behind a method that evicts, the index follows the slots") {
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "h2o(heavy=20, recent=20) + quest(page=4, tokens=12, dense_layers=0)", cuda_cache::shapes()[1], true);
  parity(of(evict::SinkWindow{.recent = 30, .sinks = 3}, retrieve::Kinetics{.block = 4, .blocks = 2, .sinks = 2, .local = 6, .dense_layers = 0}),
         "sink_window(recent=30, sinks=3) + kinetics(block=4, blocks=2, sinks=2, local=6, dense_layers=0)", cuda_cache::shapes()[0], true);
}
TEST_CASE("cuda cache retrieves: beside codes, the index is of what is stored") {
  parity(of(quant::GroupInt<8>{.group_size = 16, .residual_window = 6}, quest), "group_int(bits=8, group_size=16, residual_window=6) + " + quest_text, cuda_cache::shapes()[0]);
  parity(of(quant::Kivi<4>{.group_size = 16, .residual_window = 16}, quest), "kivi(bits=4, group_size=16, residual_window=16) + " + quest_text, cuda_cache::shapes()[2]);
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, quant::Kivi<4>{.group_size = 16, .residual_window = 16}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "h2o(heavy=20, recent=20) + kivi(bits=4, group_size=16, residual_window=16) + quest(page=4, tokens=12, dense_layers=0)", cuda_cache::shapes()[0], true);
}

TEST_CASE("cuda cache retrieves: tensor cores read what was chosen") {
  Pair pair(recipe(quant::GroupInt<4>{.group_size = 16, .residual_window = 6}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
            "group_int(bits=4, group_size=16, residual_window=6) + quest(page=4, tokens=12, dense_layers=0)",
            CacheShape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16});
  pair.forward(45);
  for (int i = 0; i < 4; ++i) pair.forward(1, prim::AttendMath::halves, 4e-3f);
  pair.look();
}

TEST_CASE("cuda cache retrieves: nobody waits for a choice") {
  Pair pair(recipe(retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}), "quest(page=4, tokens=12, dense_layers=0)",
            CacheShape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 64});
  pair.forward(50);
  for (int i = 0; i < 6; ++i) pair.forward(1);  // the index grows
  pair.burst(8);                                // pages, tables and rows have room
  CHECK(pair.waits() == 0);
}

TEST_CASE("cuda cache retrieves: a call that is refused changes nothing") {
  ::test::RefusingMemory memory(1 << 20);
  ::test::Device device;
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::mt19937 random(3);
  const index_t n = 24;
  ::test::OnDevice<float> q(device, cuda_cache::normal_numbers(4 * n * 16, random)), kv(device, cuda_cache::normal_numbers(2 * n * 16, random));
  const auto r = recipe(retrieve::Quest{.page = 4, .tokens = 8, .dense_layers = 0});
  {
    auto refused = make_cache<Cuda>(shape, r, memory);
    auto plain = make_cache<Cuda>(shape, r);
    REQUIRE(refused);
    REQUIRE(plain);
    const auto step = [&](auto& c, Context<Cuda>& ctx, index_t at, index_t tokens, ::test::OnDevice<float>& out) {
      const auto rows = [&](::test::OnDevice<float>& x, index_t heads) {
        return TensorView<const float, 3>{x.data() + at * 16, {heads, tokens, 16}, {n * 16, 16, 1}};
      };
      return c.forward(ctx, 0, rows(q, 4), rows(kv, 2), rows(kv, 2), dense_view(out.data(), 4, tokens, 16));
    };
    for (index_t at = 0; at < n; ++at) {
      ::test::OnDevice<float> a(device, std::vector<float>(64)), b(device, std::vector<float>(64));
      for (int left = 0;; ++left) {  // every request for memory is refused once
        Context<Cuda> ctx = device.with_workspace(refused->workspace_bytes(at + 1, 1));
        memory.left = left;
        const Status s = step(*refused, ctx, at, 1, a);
        memory.left = 1 << 20;
        if (s == Status::ok) break;
        REQUIRE(s == Status::out_of_memory);
        REQUIRE(refused->length() == at);
        REQUIRE(left < 100);
      }
      Context<Cuda> ctx = device.with_workspace(plain->workspace_bytes(at + 1, 1));
      if (at > 12) {
        Context<Cuda> small = device.context().with_workspace(ctx.workspace().first(64));
        REQUIRE(step(*plain, small, at, 1, b) == Status::workspace_too_small);
        REQUIRE(plain->length() == at);
      }
      REQUIRE(step(*plain, ctx, at, 1, b) == Status::ok);
      REQUIRE(a.read() == b.read());
    }
    REQUIRE(refused->reset(device) == Status::ok);
    CHECK(refused->report(device)->index_bytes == 0);
  }
  CHECK(memory.out == 0);
}

TEST_CASE("cuda cache: every retrieval method is tried, or it is said what lacks") {
  const std::map<std::string, std::string> lacking{
      {"read_all", "nothing: it is the recipe without a retrieval stage"},
      {"infllm", "raw keys; attention that a summary is told of"},
      {"rekv", "raw keys; units that are held from call to call"},
      {"a2ats", "raw keys; choices of query heads that are united"},
      {"triforce", "units in the order of their scores"},
      {"landmark", "biases that attention reads by list"},
      {"sparq", "output that is mixed with the mean of all values"},
      {"infinigen", "what a prompt teaches; a selector that counts over rows"},
      {"pqcache", "what a prompt teaches"},
      {"squeezed", "what a prompt teaches"},
      {"magicpig", "biases that attention reads by list"},
      {"retrieval_attention", "a graph of keys"},
  };
  std::set<std::string> tried;
  for (const auto& test : Catch::getRegistryHub().getTestCaseRegistry().getAllTests()) tried.insert(test.name);
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::retrieve) continue;
    const std::string word(e->word);
    INFO(word);
    CHECK((tried.count("cuda cache retrieves: " + word) == 1) != (lacking.count(word) == 1));
  }
}
