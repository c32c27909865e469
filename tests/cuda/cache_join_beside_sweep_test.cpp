// As cache_join_beside_test.cpp, of other methods.

#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/retrieve/infllm.hpp>

#include "cache_joins.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: tokens join slots whose keys turn, seen by columns of attention and in lists", "[.][sweep]") {
  joins(recipe(evict::SnapKV{.tokens = 14, .window = 6, .kernel = 3}, some, position::Reindex{}), "snapkv(tokens=14, window=6, kernel=3) + dmc(window=4, init=0.3) + reindex", shapes()[3], 6e-5f);
  joins(recipe(some, position::Reindex{}, retrieve::InfLlm{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20}),
        "keep_all + dmc(window=4, init=0.3) + reindex + " + setting("infllm"), shapes()[0], 6e-5f);
}
