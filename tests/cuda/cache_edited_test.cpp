// An edited text: what stays goes from one cache into another, keys turned to their new positions, on either side.

#include <vector>

#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/reuse/pie.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

/// Edits a text of 30 tokens, computes what is new and goes on.
template <class R>
void edits(const R& recipe, std::string_view text, const CacheShape& shape, const prim::RopeConfig& rope, float within) {
  INFO(text << ", heads of " << shape.head_dim);
  const std::vector<reuse::TextEdit> plan{{2, 4, 3}, {9, 9, 1}, {20, 26, 0}};
  reuse::Pie pie;
  REQUIRE(pie.plan(plan, 30) == Status::ok);
  Pair before(recipe, text, shape);
  before.allow(within);
  before.forward(30);
  Pair after = before.fork();  // on the same stream
  after.truncate(0);
  std::size_t fresh = 0;
  for (const reuse::KeptRun& run : pie.kept()) {
    for (; fresh < pie.fresh().size() && pie.fresh()[fresh].begin < run.begin + run.shift; ++fresh)
      if (const index_t n = pie.fresh()[fresh].end - pie.fresh()[fresh].begin; n > 0) after.append(n);
    std::vector<std::byte> scratch(after.on_host().workspace_bytes(64, 32) + Scratch::align);
    Context<Cpu> cpu(scratch);
    REQUIRE(reuse::Pie::copy(cpu, rope, before.on_host(), after.on_host(), run) == Status::ok);
    Context<Cuda> ctx = after.device().with_workspace(after.on_device().workspace_bytes(64, 32));
    REQUIRE(reuse::Pie::copy(ctx, rope, before.on_device(), after.on_device(), run) == Status::ok);
    after.compare();
  }
  REQUIRE(after.on_device().length() == pie.new_tokens());
  REQUIRE(after.on_device().next_position() == pie.new_tokens());
  after.forward(1);
  before.forward(1);  // which nobody changed
}

}  // namespace

TEST_CASE("cuda cache: what an edit keeps comes from another cache, turned") {
  const prim::RopeConfig rope{.base = 5e5, .scaling = prim::RopeScaling::linear, .factor = 2.0};
  edits(recipe(), "exact", {.layers = 2, .q_heads = 3, .kv_heads = 3, .head_dim = 64, .dtype = DType::f32, .page_slots = 8}, rope, 2e-6f);
  edits(recipe(), "exact", {.q_heads = 3, .kv_heads = 1, .head_dim = 80, .value_dim = 48, .dtype = DType::f32, .page_slots = 16}, {.rotary_dim = 32}, 2e-6f);
  edits(recipe(), "exact", {.q_heads = 8, .kv_heads = 2, .head_dim = 128, .page_slots = 16}, {.pairing = prim::RopePairing::interleaved}, 4e-3f);  // halves, rounded again
  edits(recipe(), "exact", {.q_heads = 7, .kv_heads = 1, .head_dim = 256, .dtype = DType::f32, .page_slots = 64}, rope, 2e-6f);
}

TEST_CASE("cuda cache: what an edit cannot keep is refused, and memory that is") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  Pair before(recipe(), "exact", shape);
  before.forward(9);
  Pair after = before.fork();
  after.truncate(0);
  Context<Cuda> ctx = after.device().with_workspace(after.on_device().workspace_bytes(16, 16));
  const auto copy = [&](const prim::RopeConfig& rope, const reuse::KeptRun& run, MemoryResource<Cuda>& memory) {
    return reuse::Pie::copy(ctx, rope, before.on_device(), after.on_device(), run, memory);
  };
  CHECK(copy({.scaling = prim::RopeScaling::dynamic_ntk, .factor = 2.0}, {0, 3, 1}, cuda::device_memory()) == Status::not_supported);
  CHECK(copy({}, {4, 10, 1}, cuda::device_memory()) == Status::out_of_range);
  test::RefusingMemory none(0), one(1);
  CHECK(copy({}, {0, 3, 1}, none) == Status::out_of_memory);
  after.compare();
  CHECK(after.on_device().length() == 0);
  REQUIRE(copy({}, {0, 3, 1}, one) == Status::ok);
  CHECK(one.out == 0);
  CHECK(after.on_device().length() == 3);
}
