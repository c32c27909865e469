// Attention over chosen slots in a cache on CUDA: on tensor cores, without waits, refused. Methods: cache_retrieve_test.cpp.

#include <random>
#include <vector>

#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/rocketkv.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

TEST_CASE("cuda cache retrieves: tensor cores read what was chosen") {
  Pair pair(recipe(quant::GroupInt<4>{.group_size = 16, .residual_window = 6}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}),
            "group_int(bits=4, group_size=16, residual_window=6) + quest(page=4, tokens=12, dense_layers=0)",
            CacheShape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16});
  pair.forward(45);
  for (int i = 0; i < 4; ++i) pair.forward(1, prim::AttendMath::halves, 4e-3f);
  pair.look();
}

TEST_CASE("cuda cache retrieves: nobody waits for a choice") {
  Pair pair(recipe(retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0}), "quest(page=4, tokens=12, dense_layers=0)",
            CacheShape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 64});
  pair.forward(50);
  for (int i = 0; i < 6; ++i) pair.forward(1);  // the index grows
  pair.burst(8);                                // pages, tables and rows have room
  CHECK(pair.waits() == 0);
}

TEST_CASE("cuda cache retrieves: a call that is refused changes nothing") {
  test::RefusingMemory memory(1 << 20);
  test::Device device;
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::mt19937 random(3);
  const index_t n = 24;
  test::OnDevice<float> q(device, cuda_cache::normal_numbers(4 * n * 16, random)), kv(device, cuda_cache::normal_numbers(2 * n * 16, random));
  const auto r = recipe(retrieve::Quest{.page = 4, .tokens = 8, .dense_layers = 0});
  {
    auto refused = make_cache<Cuda>(shape, r, memory);
    auto plain = make_cache<Cuda>(shape, r);
    REQUIRE(refused);
    REQUIRE(plain);
    const auto step = [&](auto& c, Context<Cuda>& ctx, index_t at, index_t tokens, test::OnDevice<float>& out) {
      const auto rows = [&](test::OnDevice<float>& x, index_t heads) {
        return TensorView<const float, 3>{x.data() + at * 16, {heads, tokens, 16}, {n * 16, 16, 1}};
      };
      return c.forward(ctx, 0, rows(q, 4), rows(kv, 2), rows(kv, 2), dense_view(out.data(), 4, tokens, 16));
    };
    for (index_t at = 0; at < n; ++at) {
      test::OnDevice<float> a(device, std::vector<float>(64)), b(device, std::vector<float>(64));
      for (int left = 0;; ++left) {  // every request for memory is refused once
        Context<Cuda> ctx = device.with_workspace(refused->workspace_bytes(at + 1, 1));
        memory.left = left;
        const Status s = step(*refused, ctx, at, 1, a);
        memory.left = 1 << 20;
        if (s == Status::ok) break;
        REQUIRE(s == Status::out_of_memory);
        REQUIRE(refused->length() == at);
        REQUIRE(left < 100);
      }
      Context<Cuda> ctx = device.with_workspace(plain->workspace_bytes(at + 1, 1));
      if (at > 12) {
        Context<Cuda> small = device.context().with_workspace(ctx.workspace().first(64));
        REQUIRE(step(*plain, small, at, 1, b) == Status::workspace_too_small);
        REQUIRE(plain->length() == at);
      }
      REQUIRE(step(*plain, ctx, at, 1, b) == Status::ok);
      REQUIRE(a.read() == b.read());
    }
    REQUIRE(refused->reset(device) == Status::ok);
    CHECK(refused->report(device)->index_bytes == 0);
  }
  CHECK(memory.out == 0);
}

TEST_CASE("cuda cache retrieves: channels of a group choose") {
  Pair pair(recipe(retrieve::RocketKV{.page = 4, .tokens = 16, .channels = 6}), "rocketkv(page=4, tokens=16, channels=6)",
            CacheShape{.q_heads = 6, .kv_heads = 2, .head_dim = 80, .value_dim = 48, .page_slots = 5});
  pair.forward(41);
  for (int i = 0; i < 3; ++i) pair.forward(1), pair.look();
}
