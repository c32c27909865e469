// Caches on CUDA whose keys are coded behind factors of channels that the first rows say.

#include <string>

#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/smooth_attention.hpp>

#include <support/model_facts.hpp>

#include "cache_live.hpp"

using namespace kvcondense;
using namespace cuda_cache;

// Factors of rows that another map makes nobody finds.
static_assert(!prim::table_serves(prim::Transformed<prim::Hadamard, prim::Transformed<prim::ChannelScale, prim::GroupInt<4>>>{}));

TEST_CASE("cuda cache codec: smooth_attention") {
  stays(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 32, .residual_window = 3}}, "smooth_attention(int4(group=32, residual=3))", small);
  // Until a head has that many, all of its keys stay exact, also where they leave.
  leaves(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16}, .least = 60}, "smooth_attention(int4(group=16), least=60)", odd);
  stays(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16}, .alpha = 0.8f, .least = 44}, "smooth_attention(int4(group=16), alpha=0.8, least=44)", odd);
  leaves(quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 16, .sinks = 2}, .least = 9}, "smooth_attention(int4(group=16, sinks=2), least=9)", common);
  // Methods that look at rows see them as they were before.
  Pair norms(recipe(evict::Knorm{.tokens = 30, .recent = 6}, quant::SmoothAttention<quant::GroupInt<4>>{}), "knorm(tokens=30, recent=6) + smooth_attention(int4())", wide_halves);
  lives(norms);
  const quant::SmoothAttention<quant::GroupInt<4>> along{.base = {.key_axis = prim::GroupAxis::channel, .group_size = 16}};
  CHECK(make_cache<Cuda>(small, recipe(along)).status() == Status::not_supported);
  const test::RandomModel model(small);
  CHECK(make_cache<Cuda>(small, recipe(lowrank::Pca{.bases = model.facts().bases}, quant::SmoothAttention<quant::GroupInt<4>>{})).status() == Status::not_supported);
}
