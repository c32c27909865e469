// Caches on CUDA whose neighbouring layers store rows as one direction and two lengths, beside those of the CPU.

#include <string>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/quant/fp8.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

// The first layer shares nothing, the other two are a pair.
const CacheShape pair_of{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
const CacheShape halves{.layers = 2, .q_heads = 7, .kv_heads = 1, .head_dim = 80, .value_dim = 48, .page_slots = 5};

}  // namespace

// Directions are sums in another order than the CPU's; in 16 bits one may be rounded to the other side, and so may a length.

TEST_CASE("cuda cache method: minicache", "[ways]") {
  const merge::MiniCache some{.start = 0.4f, .part = 0.2f, .recent = 4};
  live_as("minicache(start=40%, part=20%, recent=4)", pair_of, 2e-6f, 2e-5f, {}, some);
  live_as("sink_window(recent=24, sinks=3) + minicache(start=40%, part=20%, recent=4)", pair_of, 2e-6f, 2e-5f, {}, evict::SinkWindow{.recent = 24, .sinks = 3}, some);
  live_as("h2o(heavy=20, recent=8) + minicache(start=0%, apart=range, part=30%)", halves, 2e-3f, 2e-3f, {}, heavy,
          merge::MiniCache{.start = 0.0f, .apart = prim::Apart::range, .part = 0.3f});
}

TEST_CASE("cuda cache of pairs: pages that would not become smaller stay as they are") {
  live_as("minicache(start=40%, part=90%)", pair_of, 2e-6f, 2e-5f, {}, merge::MiniCache{.start = 0.4f, .part = 0.9f});
}

TEST_CASE("cuda cache of pairs: directions are counted once, rows that stay are no one's but a layer's") {
  Pair pair(recipe(merge::MiniCache{.start = 0.4f, .part = 0.2f}), "minicache(start=40%, part=20%)", pair_of, {});
  pair.allow(2e-6f);
  pair.forward(20, prim::AttendMath::f32, 2e-5f);
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  // Of two pages of 16 rows four stay, in either layer: keys and values of two heads.
  const std::size_t row = 64 * sizeof(float), directions = 16 * row, lengths = 16 * sizeof(float), heads = 2 * (sizeof(prim::PairedHead));
  CHECK(report->across_rows == 2 * 2 * 2 * (16 - 4));
  CHECK(report->coded_bytes >= 4 * (directions + 2 * (lengths + heads + 4 * row)));
  CHECK(report->coded_bytes <= 4 * (directions + 2 * (lengths + heads + 4 * (row + 4))));
  pair.compare_reports();
}

TEST_CASE("cuda cache of pairs: pages of more slots than a word has bits") {
  const CacheShape long_pages{.layers = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32, .page_slots = 128};
  Pair pair(recipe(merge::MiniCache{.start = 0.0f, .part = 0.1f}), "minicache(start=0%, part=10%)", long_pages, {});
  pair.allow(2e-6f);
  pair.forward(140, prim::AttendMath::f32, 2e-5f);
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->across_rows == 2 * 2 * (128 - 13));
  pair.exchange();
  pair.truncate(100);
  pair.remove(40, 90);
  pair.forward(3, prim::AttendMath::f32, 2e-5f);
  pair.exchange();
  pair.compare_reports();
}

TEST_CASE("cuda cache of pairs: refused memory loses nothing") {
  const CacheShape two{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  constexpr index_t tokens = 14, all = 2 * tokens;
  test::Device device;
  std::mt19937 random(5);
  const std::vector<float> rows = normal_numbers(2 * all * 16, random);
  test::OnDevice<float> x(device, rows), out(device, std::vector<float>(at(2 * all * 16)));
  const auto part = [&](index_t first, index_t n) { return TensorView<const float, 3>{x.data() + first * 16, {2, n, 16}, {all * 16, 16, 1}}; };
  int some = 0, none = 0;
  for (int k = 0; k < 40; ++k) {
    test::RefusingMemory memory(1 << 20);
    {
      auto made = make_cache<Cuda>(two, recipe(merge::MiniCache{.start = 0.0f, .part = 0.2f}), memory);
      REQUIRE(made);
      auto& c = *made;
      Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(all, tokens));
      const auto shared = [&] {
        const auto report = c.report(ctx);
        REQUIRE(report);
        return report->across_rows;
      };
      // The rows of both layers are the same: their direction is each row's own.
      for (index_t layer = 0; layer < 2; ++layer) {
        REQUIRE(c.append(ctx, layer, part(0, tokens), part(0, tokens)) == Status::ok);
        memory.left = layer == 0 ? 1 << 20 : k;
        REQUIRE(c.step(ctx, layer) == Status::ok);
      }
      const index_t before = shared();
      some += before > 0 && before < 2 * 2 * 2 * 9, none += before == 0;
      memory.left = 1 << 20;
      for (int again = 0; again < 2; ++again) {
        test::OnDevice<float> keys(device, std::vector<float>(at(tokens * 16))), values(device, std::vector<float>(at(tokens * 16)));
        for (index_t layer = 0; layer < 2; ++layer) {
          REQUIRE(c.read(ctx, layer, 1, 0, dense_view(keys.data(), tokens, 16), dense_view(values.data(), tokens, 16)) == Status::ok);
          const std::vector<float> got = keys.read();
          for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - rows[at(all * 16) + i]) <= 2e-6f);
          REQUIRE(c.append(ctx, layer, part(tokens, 2), part(tokens, 2)) == Status::ok);
          REQUIRE(c.step(ctx, layer) == Status::ok);
        }
        REQUIRE(shared() > 0);
      }
      device.wait();
    }
    REQUIRE(memory.out == 0);
  }
  CHECK(some > 0);
  CHECK(none > 0);
}

TEST_CASE("cuda cache of pairs: what is not there is refused") {
  const auto status = [&](const auto&... stages) { return make_cache<Cuda>(pair_of, recipe(stages...)).status(); };
  CHECK(status(merge::MiniCache{.start = 0.4f}, quant::Fp8{}) == Status::not_supported);  // directions that become codes
  CHECK(status(merge::MiniCache{.start = 1.0f}) == Status::invalid_argument);
}
