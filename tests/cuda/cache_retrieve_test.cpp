// Retrieval stages in a cache on CUDA beside the same on the CPU: the same choice, the same attention, the same counts.

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include <kvcondense/budget/ada.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/tome.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/commvq.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/turboquant.hpp>
#include <kvcondense/retrieve/kinetics.hpp>
#include <kvcondense/retrieve/loki.hpp>
#include <kvcondense/retrieve/lserve.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/rocketkv.hpp>
#include <kvcondense/retrieve/shadow_select.hpp>
#include <support/model_facts.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;
using cuda_cache::parity;

namespace {

constexpr retrieve::Quest quest{.page = 4, .tokens = 24, .dense_layers = 1};
const std::string quest_text = cuda_cache::setting("quest");

}  // namespace

KVCONDENSE_CUDA_RETRIEVES("quest", quest)
KVCONDENSE_CUDA_RETRIEVES("kinetics", retrieve::Kinetics{.block = 4, .blocks = 3, .sinks = 2, .local = 6, .dense_layers = 0})
KVCONDENSE_CUDA_RETRIEVES("lserve", retrieve::LServe{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max})
KVCONDENSE_CUDA_RETRIEVES("loki", retrieve::Loki{.key_axes = facts.key_axes, .columns = 6, .share = 0.3})
KVCONDENSE_CUDA_RETRIEVES("shadow_select", retrieve::ShadowSelect{.chunk = 4, .tokens = 12, .outliers = 2, .local_chunks = 1})
KVCONDENSE_CUDA_RETRIEVES("rocketkv", retrieve::RocketKV{.page = 4, .tokens = 16, .channels = 6})

TEST_CASE("cuda cache retrieves: quest in every group and head_dim", "[ways]") {
  for (const CacheShape& shape : cuda_cache::shapes()) parity(of(quest), quest_text, shape);
}

TEST_CASE("cuda cache retrieves: a last page that is not full, which may be chosen") {
  parity(of(retrieve::Quest{.page = 4, .tokens = 24, .dense_layers = 0, .keep_last = false}), "quest(page=4, tokens=24, dense_layers=0, keep_last=false)",
         cuda_cache::shapes()[0]);
}

TEST_CASE("cuda cache retrieves: behind a method that evicts, the index follows the slots") {
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "h2o(heavy=20, recent=20) + quest(page=4, tokens=12, dense_layers=0)", cuda_cache::shapes()[1], true);
  parity(of(evict::SinkWindow{.recent = 30, .sinks = 3}, retrieve::Kinetics{.block = 4, .blocks = 2, .sinks = 2, .local = 6, .dense_layers = 0}),
         "sink_window(recent=30, sinks=3) + kinetics(block=4, blocks=2, sinks=2, local=6, dense_layers=0)", cuda_cache::shapes()[0], true);
}
TEST_CASE("cuda cache retrieves: what chosen slots drew decides who leaves, of every group") {
  for (const std::size_t i : {0u, 2u})
    parity(of(evict::H2O{.heavy = 20, .recent = 20}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
           "h2o(heavy=20, recent=20) + quest(page=4, tokens=12, dense_layers=0)", cuda_cache::shapes()[i], true);
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, retrieve::Kinetics{.block = 4, .blocks = 2, .sinks = 2, .local = 6, .dense_layers = 0}),
         "h2o(heavy=20, recent=20) + kinetics(block=4, blocks=2, sinks=2, local=6, dense_layers=0)", cuda_cache::shapes()[2], true);
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, retrieve::RocketKV{.page = 4, .tokens = 12, .channels = 6}),
         "h2o(heavy=20, recent=20) + rocketkv(page=4, tokens=12, channels=6)", cuda_cache::shapes()[1], true);
}
TEST_CASE("cuda cache retrieves: heads of different lengths, and keys into which others fold") {
  parity(of(budget::Ada{cuda_cache::inner, 0.2}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "ada(h2o(heavy=20, recent=20), floor=20%) + quest(page=4, tokens=12, dense_layers=0)", cuda_cache::shapes()[0], true);
  parity(of(cuda_cache::inner, merge::D2O{}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "h2o(heavy=20, recent=20) + d2o + quest(page=4, tokens=12, dense_layers=0)",
         {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8}, true, 1e-4f, 2e-5f);
}
TEST_CASE("cuda cache retrieves: more query heads than are scored together, more intervals than threads, hundreds of slots") {
  const CacheShape shape{.q_heads = 16, .kv_heads = 1, .head_dim = 96, .page_slots = 64};
  test::Device device;
  const cuda_cache::Model model(device, shape);
  Pair pair(recipe(retrieve::Loki{.key_axes = model.on_device().key_axes, .columns = 16, .share = 0.5}), "loki(columns=16, share=50%)", shape, model.on_host());
  pair.fill(600);
  const ReadCounts reads = pair.look();
  CHECK(reads.slots_read >= 16 * 300);
  CHECK(reads.slots_read < 16 * 310);
  pair.forward(1);
}
TEST_CASE("cuda cache retrieves: beside codes, the index is of what is stored") {
  // Of two bits, so that a row of what was stored before would choose otherwise.
  parity(of(quant::GroupInt<2>{.group_size = 16, .residual_window = 6}, quest), "group_int(bits=2, group_size=16, residual_window=6) + " + quest_text, cuda_cache::shapes()[0], false, 4e-4f);
  parity(of(quant::Kivi<4>{.group_size = 16, .residual_window = 16}, quest), "kivi(bits=4, group_size=16, residual_window=16) + " + quest_text, cuda_cache::shapes()[2]);
  parity(of(evict::H2O{.heavy = 20, .recent = 20}, quant::Kivi<2>{.group_size = 16, .residual_window = 16}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "h2o(heavy=20, recent=20) + kivi(bits=2, group_size=16, residual_window=16) + quest(page=4, tokens=12, dense_layers=0)", cuda_cache::shapes()[0], true, 4e-4f);
}

TEST_CASE("cuda cache retrieves: beside codecs whose heads have tables of their own, a selection for each query head of them, and mapped rows") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  const kvcondense::test::RandomModel model(shape);
  quant::CommVq vq{.base = 16, .beam = 3, .residual_window = 2};
  vq.key_books = model.facts().key_books, vq.value_books = model.facts().value_books;
  const std::string text = "commvq(base=16, beam=3, residual=2) + quest(page=4, tokens=12, dense_layers=0)";
  Pair pair(recipe(vq, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}), text, shape, model.facts());
  for (const index_t n : {40, 1, 1, 1, 3}) pair.forward(n), pair.look();
  pair.exchange();
  pair.forward(1), pair.look();
  parity(of(quant::TurboQuant{.sinks = 2}, retrieve::Quest{.page = 4, .tokens = 24, .dense_layers = 0, .heads = retrieve::Heads::group_max}),
         "turboquant(sinks=2) + quest(page=4, tokens=24, dense_layers=0, heads=group_max)", shape, false, 1e-4f);
}

TEST_CASE("cuda cache retrieves: not beside what a list of chosen slots has no part of") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  const auto status = [&](const auto& r) { return make_cache<Cuda>(shape, r).status(); };
  const evict::SinkWindow ends{.recent = 30, .sinks = 3};
  CHECK(status(recipe(ends, merge::D2O{}, quest)) == Status::ok);
  CHECK(status(recipe(ends, merge::D2O{.mass = merge::Mass::log_count}, quest)) == Status::ok);
  CHECK(status(recipe(evict::Compensate{ends}, quest)) == Status::not_supported);
  CHECK(status(recipe(ends, position::Reindex{}, quest)) == Status::not_supported);
}

TEST_CASE("cuda cache retrieves: what folds is known anew") {
  parity(of(merge::ToMe{.tokens = 30, .slack = 4, .sinks = 2, .recent = 6, .mass = merge::Mass::none}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
         "keep_all + tome(tokens=30, slack=4, sinks=2, recent=6, mass=none) + quest(page=4, tokens=12, dense_layers=0)",
         {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8}, true, 1e-4f, 2e-5f);
}

TEST_CASE("cuda cache: every retrieval method is tried, or it is said what lacks") {
  const std::map<std::string, std::string> lacking{
      {"read_all", "nothing: it is the recipe without a retrieval stage"},
  };
  cuda_cache::every_word_is_tried({Stage::retrieve}, "cuda cache retrieves: ", lacking);
}
