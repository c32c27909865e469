// Units that later calls go on reading, where slots leave in between.

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/retrieve/lserve.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache retrieves: units that are read for many steps, behind eviction") {
  const retrieve::LServe method{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max};
  parity(of(evict::H2O{.heavy = 25, .recent = 16}, method), "h2o(heavy=25, recent=16) + " + setting("lserve"), shapes()[1], true);
}
