// Tokens that join the newest slot of their head, beside keys that turn by their slot and beside slots that are chosen.

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/retrieve/quest.hpp>

#include "cache_joins.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: tokens join slots whose keys turn by where they stand") {
  joins(recipe(evict::H2O{.heavy = 8, .recent = 8}, some, position::Rerotate{}), "h2o(heavy=8, recent=8) + dmc(window=4, init=0.3) + rerotate", shapes()[1], 6e-5f);
}

TEST_CASE("cuda cache: tokens join slots of which some are chosen") {
  joins(recipe(some, retrieve::Quest{.page = 4, .tokens = 8, .dense_layers = 0}), "keep_all + dmc(window=4, init=0.3) + quest(page=4, tokens=8, dense_layers=0)", shapes()[0]);
}
