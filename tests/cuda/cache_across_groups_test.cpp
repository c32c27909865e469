// Rows that heads store jointly, whose sums become codes of groups of slots.

#include <random>
#include <string>
#include <vector>

#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

const std::string text = "sink_window(recent=20, sinks=3) + joint_heads(columns=24, value_columns=16, window=4) + kivi4(group=8, residual=8) + reindex";

constexpr quant::Kivi<4> kivi{.group_size = 8, .residual_window = 8};

lowrank::JointHeads joint(const RandomModel& model) { return {.columns = 24, .value_columns = 16, .window = 4, .bases = model.facts().bases}; }

}  // namespace

TEST_CASE("cuda cache: rows of several heads become codes of groups of slots") {
  const CacheShape pages{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 8};
  const RandomModel model(pages);
  live_as(text, pages, 1e-4f, 2e-4f, model.facts(), ends, joint(model), kivi, position::Reindex{});
}

TEST_CASE("cuda cache: rows of several heads in pages that have lanes in files") {
  const CacheShape pages{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const RandomModel model(pages);
  const lowrank::JointHeads stage{.columns = 32, .value_columns = 32, .window = 4, .bases = model.facts().bases};
  Pair pair(recipe(stage, kivi, position::Reindex{}), "joint_heads(columns=32, value_columns=32, window=4) + kivi4(group=8, residual=8) + reindex", pages, model.facts());
  pair.allow(1e-4f);
  CHECK(cache::laid_bytes(pair.on_device()) > 0);
  pair.forward(150, prim::AttendMath::f32, 1e-3f);
  pair.forward(1, prim::AttendMath::f32, 1e-3f);
  CHECK(pair.on_device().report(pair.device())->across_rows > 0);
  pair.exchange();
  pair.forward(3, prim::AttendMath::f32, 1e-3f);
}

#if defined(KVCONDENSE_CUDA_FIBERS)  // where a product is fused into a sum, others overflow
TEST_CASE("cuda cache: sums of infinities of both signs are coded as on the host") {
  const CacheShape pages{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  const RandomModel model(pages);
  Pair pair(recipe(ends, joint(model), kivi, position::Reindex{}), text, pages, model.facts());
  pair.allow(1e-4f);
  constexpr index_t tokens = 30;
  std::mt19937 random(5);
  std::vector<float> rows = normal_numbers(2 * tokens * 64, random);
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (i / 64 % tokens < 18) rows[i] = rows[i] < 0.0f ? -3e38f : 3e38f;  // what maps make of such is no float's
  const auto view = [&](const float* x) { return dense_view(x, 2, tokens, 64); };
  std::vector<std::byte> scratch(pair.on_host().workspace_bytes(128, 128));
  Context<Cpu> cpu(scratch);
  REQUIRE(pair.on_host().append(cpu, 0, view(rows.data()), view(rows.data())) == Status::ok);
  REQUIRE(pair.on_host().step(cpu, 0) == Status::ok);
  test::OnDevice<float> there(pair.device(), rows);
  Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(tokens, tokens));
  REQUIRE(pair.on_device().append(ctx, 0, view(there.data()), view(there.data())) == Status::ok);
  REQUIRE(pair.on_device().step(ctx, 0) == Status::ok);
  CHECK(pair.on_device().report(pair.device())->across_rows > 0);
  pair.compare();
}
#endif
