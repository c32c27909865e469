// As cache_held_test.cpp, of other methods.

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/merge/dmc.hpp>
#include <kvcondense/merge/tome.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/retrieve/lserve.hpp>
#include <kvcondense/retrieve/rekv.hpp>
#include <kvcondense/retrieve/triforce.hpp>

#include "cache_joins.hpp"
#include "cache_retrieval.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache retrieves: other units that are read for many steps, where slots leave", "[.][sweep]") {
  const CacheShape& shape = shapes()[0];
  const evict::H2O policy{.heavy = 30, .recent = 20};
  parity(of(policy, retrieve::TriForce{.chunk = 4, .tokens = 28}), "h2o(heavy=30, recent=20) + " + setting("triforce"), shape, true);
  parity(of(evict::SinkWindow{.recent = 36, .sinks = 3}, position::Reindex{}, retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8}),
         "sink_window(recent=36, sinks=3) + reindex + " + setting("rekv"), shape, true, 5e-5f);
  const retrieve::LServe held{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max};
  parity(of(merge::ToMe{.tokens = 30, .slack = 4, .sinks = 2, .recent = 6, .mass = merge::Mass::none}, held),
         "keep_all + tome(tokens=30, slack=4, sinks=2, recent=6, mass=none) + " + setting("lserve"), shape, true, 1e-4f, 2e-3f);
  joins(recipe(some, held), "keep_all + dmc(window=4, init=0.3) + " + setting("lserve"), shape);
}
