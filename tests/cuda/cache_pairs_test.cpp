// Caches on CUDA whose neighbouring layers store rows as one direction and two lengths, beside those of the CPU.

#include <cmath>
#include <string>
#include <vector>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/quant/fp8.hpp>

#include "cache_coordinates.hpp"
#include "cache_refused.hpp"

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
  // The rows of both layers are the same: their direction is each row's own.
  share_less(recipe(merge::MiniCache{.start = 0.0f, .part = 0.2f}), 2 * 2 * 2 * 9, [](auto& s, index_t) {
    s.memory.left = 1 << 20;
    for (int again = 0; again < 2; ++again) {
      for (index_t layer = 0; layer < 2; ++layer) {
        const std::vector<float> got = s.keys(layer);
        for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - s.keys_given()[i]) <= 2e-6f);
        REQUIRE(s.forward(layer, s.tokens, 2) == Status::ok);
      }
      REQUIRE(s.shared() > 0);
    }
  });
}

TEST_CASE("cuda cache of pairs: what is not there is refused") {
  const auto status = [&](const auto&... stages) { return make_cache<Cuda>(pair_of, recipe(stages...)).status(); };
  CHECK(status(merge::MiniCache{.start = 0.4f}, quant::Fp8{}) == Status::not_supported);  // directions that become codes
  CHECK(status(merge::MiniCache{.start = 1.0f}) == Status::invalid_argument);
}
