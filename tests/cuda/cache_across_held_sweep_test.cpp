// Units that are read for many steps, and slots whose draws are watched, where layers store rows together.

#include <random>

#include <kvcondense/lowrank/xkv.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/retrieve/infllm.hpp>
#include <kvcondense/retrieve/lserve.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: units that are read for many steps, of rows that layers store together", "[.][sweep]") {
  const CacheShape three{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  const retrieve::LServe held{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max};
  live_as("xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2) + " + setting("lserve"), three, 2e-5f, 3e-5f, {},
          lowrank::XKv{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2}, held);
  live_as("minicache(start=40%, part=20%, recent=4) + " + setting("lserve"), three, 2e-6f, 2e-5f, {}, merge::MiniCache{.start = 0.4f, .part = 0.2f, .recent = 4}, held);
}

TEST_CASE("cuda cache: what slots draw stays theirs where layers store rows together", "[.][sweep]") {
  const CacheShape three{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  live_as("xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2) + reindex + " + setting("infllm"), three, 2e-5f, 6e-5f, {},
          lowrank::XKv{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2}, position::Reindex{},
          retrieve::InfLlm{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20});
}

TEST_CASE("cuda cache: layers that have stored rows together want no memory for units that nobody chose", "[.][sweep]") {
  const CacheShape two{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32, .page_slots = 8};
  const auto method = recipe(lowrank::XKv{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2},
                             retrieve::LServe{.page = 8, .part = 4, .tokens = 24, .interval = 3});
  constexpr index_t prompt = 39, length = prompt + 4;  // the first token behind it fills a page, and chooses
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(4 * length * 32, random)), out(device, std::vector<float>(4 * length * 32));
  bool refused = true;
  for (int left = 0; refused; ++left) {
    CAPTURE(left);
    test::RefusingMemory memory(1 << 20);
    auto c = make_cache<Cuda>(two, method, memory);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(length, prompt));
    const auto feed = [&](index_t layer, index_t n) {
      const index_t first = c->length(layer);
      const auto rows = [&](index_t heads) { return TensorView<const float, 3>{x.data() + first * 32, {heads, n, 32}, {length * 32, 32, 1}}; };
      return c->forward(ctx, layer, rows(4), rows(2), rows(2), dense_view(out.data(), 4, n, 32));
    };
    for (index_t layer = 0; layer < 2; ++layer) REQUIRE(feed(layer, prompt) == Status::ok);
    const index_t shared = c->report(device)->across_rows;
    REQUIRE(feed(0, 1) == Status::ok);
    memory.left = left;
    const Status s = feed(1, 1);
    refused = memory.left < 0;
    memory.left = 1 << 20;
    if (s != Status::ok) {
      REQUIRE((refused && s == Status::out_of_memory));
      REQUIRE(c->length(1) == prompt);  // nothing of it is there
      REQUIRE(feed(1, 1) == Status::ok);
    }
    for (index_t layer = 0; layer < 2; ++layer) REQUIRE(feed(layer, 1) == Status::ok);  // and shares what was refused to the step before
    CHECK(c->report(device)->across_rows > shared);
  }
}
