#include <support/cache_model.hpp>

#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

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

TEST_CASE("cache: any sequence of calls on codes equals attention over what the codes say", "[cache][model][quant]") {
  const std::uint32_t seed = GENERATE(1u, 2u, 3u);
  const CacheShape shape{.layers = 1, .q_heads = 6, .kv_heads = 2, .head_dim = seed == 2 ? 80 : 64,
                         .page_slots = seed == 1 ? 16 : 64};
  // Normal numbers span about 9 sigma; a step is the range over the levels, and groups that lose
  // members may be coded a few times again.
  SECTION("kivi 2 bit") { test::exercise(shape, recipe(quant::Kivi<2>{.group_size = 16, .residual_window = 32}), seed, 40, 6.0); }
  SECTION("kivi 4 bit, sinks") {
    test::exercise(shape, recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32, .sinks = 4}), seed, 40, 1.5);
  }
  SECTION("8 bit per token") { test::exercise(shape, recipe(quant::GroupInt<8>{.group_size = 16}), seed, 40, 0.05); }
  SECTION("3 bit, everything at once") {
    test::exercise(shape, recipe(quant::GroupInt<3>{.group_size = 16, .residual_window = 10}), seed, 40, 2.0);
  }
}
