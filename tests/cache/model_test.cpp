#include <support/cache_model.hpp>

using namespace kvcondense;

TEST_CASE("cache: any sequence of calls equals a naive cache that stores everything", "[cache][model]") {
  const std::uint32_t seed = GENERATE(1u, 2u, 3u);
  const index_t group = GENERATE(1, 3, 7);
  const index_t dim = GENERATE(64, 80);
  const CacheShape shape{.layers = 2, .q_heads = 2 * group, .kv_heads = 2, .head_dim = dim,
                         .value_dim = seed == 2 ? 48 : 0, .dtype = seed == 3 ? DType::bf16 : DType::f16,
                         .page_slots = seed == 1 ? 16 : 64};
  test::exercise(shape, recipe(), seed * 100 + static_cast<std::uint32_t>(group), 25, seed == 3 ? 0.02 : 0.0025);
}
