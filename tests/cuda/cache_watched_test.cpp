// A retrieval stage that steps tell what slots draw, in a cache of raw keys on CUDA beside the same on the CPU.

#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/retrieve/infllm.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using cuda_cache::parity;

namespace {

constexpr retrieve::InfLlm method{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20};

void of_raw_keys(const CacheShape& shape) {
  parity([](const any::ModelFacts&) { return recipe(position::Reindex{}, method); }, "reindex + " + cuda_cache::setting("infllm"), shape, false, 5e-5f);
}

}  // namespace

TEST_CASE("cuda cache retrieves: infllm") { of_raw_keys(cuda_cache::shape_of("infllm")); }
TEST_CASE("cuda cache retrieves in every shape: infllm", "[.][sweep]") {
  for (const CacheShape& shape : cuda_cache::shapes()) of_raw_keys(shape);
}
