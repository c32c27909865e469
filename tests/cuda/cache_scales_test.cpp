// Caches on CUDA whose keys are coded behind factors of channels that the first rows say.

#include <string>

#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/smooth_attention.hpp>

#include <support/model_facts.hpp>

#include "cache_live.hpp"

using namespace kvcondense;
using namespace cuda_cache;

// Factors of rows that another map makes nobody finds.
static_assert(!prim::table_serves(prim::Transformed<prim::Hadamard, prim::Transformed<prim::ChannelScale, prim::GroupInt<4>>>{}));
// Nor are rows read that are mapped once more behind them.
static_assert(detail::cuda_codec<prim::Transformed<prim::ChannelScale, prim::GroupInt<4>>>);
static_assert(!detail::cuda_codec<prim::Transformed<prim::ChannelScale, prim::Transformed<prim::Hadamard, prim::GroupInt<4>>>>);

TEST_CASE("cuda cache codec: smooth_attention") {
  stays(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 32, .residual_window = 3}}, "smooth_attention(int4(group=32, residual=3))", small);
  // Found in the step that lets slots leave, from just those that stay.
  leaves(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16}, .least = 28}, "smooth_attention(int4(group=16), least=28)", odd);
  stays(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16}, .alpha = 0.8f, .least = 44}, "smooth_attention(int4(group=16), alpha=0.8, least=44)", odd);
  leaves(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16, .sinks = 2}, .least = 9}, "smooth_attention(int4(group=16, sinks=2), least=9)", common);
  // Methods that look at rows see them as they were before.
  Pair norms(recipe(evict::Knorm{.tokens = 30, .recent = 6}, quant::SmoothAttention<quant::GroupInt<4>>{}), "knorm(tokens=30, recent=6) + smooth_attention(int4())", wide_halves);
  lives(norms);
  const test::RandomModel model(small);
  CHECK(make_cache<Cuda>(small, recipe(lowrank::Pca{.bases = model.facts().bases}, quant::SmoothAttention<quant::GroupInt<4>>{})).status() == Status::not_supported);
}

TEST_CASE("cuda cache codec: smooth_attention, keys that wait where slots leave") {
  // A window and rows to find factors from are more than the budget: all keys stay exact, more of them than the window or those rows alone.
  const quant::SmoothAttention<quant::GroupInt<4>> few{.base = {.residual_window = 20}, .least = 32};
  Pair pair(recipe(evict::H2O{.heavy = 30, .recent = 18}, few), "h2o(heavy=30, recent=18) + smooth_attention(int4(residual=20), least=32)", small);
  pair.forward(60);
  for (int i = 0; i < 3; ++i) pair.forward(1);
  pair.exchange();
  pair.forward(20);
  pair.forward(1);
  // As many as it can be: a slot more, and they were found.
  const quant::SmoothAttention<quant::GroupInt<4>> most{.base = {.residual_window = 20}, .least = 29};
  Pair full(recipe(evict::H2O{.heavy = 30, .recent = 18}, most), "h2o(heavy=30, recent=18) + smooth_attention(int4(residual=20), least=29)", small);
  lives(full);
  full.forward(60);
  full.forward(1);
}

TEST_CASE("cuda cache codec: smooth_attention over codes of groups of slots that share more than scales") {
  const quant::SmoothAttention<quant::Kitty> strong{.base = {.page = 8, .boost = 0.25f, .buffer = 8}, .least = 20};
  leaves(strong, "smooth_attention(kitty(page=8, boost=25%, buffer=8), least=20)", odd);
}

TEST_CASE("cuda cache codec: smooth_attention over codes of groups of slots") {
  const quant::SmoothAttention<quant::Kivi<4>> along{.base = {.group_size = 8, .residual_window = 8}, .least = 20};
  leaves(along, "smooth_attention(kivi4(group=8, residual=8), least=20)", odd);
}

TEST_CASE("cuda cache codec: smooth_attention, a file behind the step that found factors") {
  const quant::SmoothAttention<quant::GroupInt<4>> quant{.base = {.group_size = 16}, .least = 24};
  Pair pair(recipe(heavy, quant), std::string(heavy_text) + "smooth_attention(int4(group=16), least=24)", small);
  pair.forward(40);
  pair.exchange();
  pair.forward(3);
  pair.exchange();
}
