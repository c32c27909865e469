#include <cmath>
#include <vector>

#include <support/cache_model.hpp>
#include <support/oracle.hpp>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;

namespace {

/// The shared fixture of the eviction oracles: 8 prompt tokens, then 4 decoded ones, 4 query heads on 2.
struct Fixture {
  CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32};
  nlohmann::json data = test::load_oracle("eviction.json", "fixture_FX1");
  std::vector<float> q = test::floats(data.at("Q")), k = test::floats(data.at("K")), v = test::floats(data.at("V"));

  TensorView<const float, 3> part(const std::vector<float>& x, index_t heads, index_t first, index_t n) const {
    auto view = dense_view(x.data(), heads, 12, 4);
    view.data += first * 4;
    view.extent[1] = n;
    return view;
  }
};

template <class R>
struct Run : Fixture {
  Cache<Cpu, R> cache;
  Workspace work;
  Context<Cpu> ctx;
  std::vector<float> out;

  explicit Run(const R& r) {
    auto made = make_cache<Cpu>(shape, r);
    REQUIRE(made.status() == Status::ok);
    cache = std::move(*made);
    REQUIRE(work.reserve(cache.workspace_bytes(32, 16)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }
  /// Tokens [first, first + n) of the fixture, as one forward pass.
  void forward(index_t first, index_t n) {
    out.assign(static_cast<std::size_t>(4 * n * 4), 0.0f);
    REQUIRE(cache.forward(ctx, 0, part(q, 4, first, n), part(k, 2, first, n), part(v, 2, first, n),
                          dense_view(out.data(), 4, n, 4)) == Status::ok);
  }
  std::vector<index_t> kept(index_t head) const {
    std::vector<index_t> tokens;
    for (index_t i = 0; i < cache.slots(0, head); ++i) tokens.push_back(cache.token(0, head, i));
    return tokens;
  }
};
template <class R>
Run(const R&) -> Run<R>;

using Tokens = std::vector<index_t>;

}  // namespace

TEST_CASE("h2o: the cache keeps what the worked example keeps, prompt and decode", "[cache][h2o][oracle]") {
  const auto oracle = test::load_oracle("eviction.json", "h2o");
  Run run(recipe(evict::H2O{.heavy = 2, .recent = 3}));
  run.forward(0, 8);
  for (index_t h = 0; h < 2; ++h) REQUIRE(run.kept(h) == Tokens{0, 1, 5, 6, 7});
  for (const auto& step : oracle.at("steps")) {
    run.forward(step.at("token").get<index_t>(), 1);
    for (index_t h = 0; h < 2; ++h) {
      const auto& want = step.at("heads").at(static_cast<std::size_t>(h));
      REQUIRE(run.kept(h) == want.at("kept").get<Tokens>());
      // The accumulated scores travel with their slots.
      const auto visible = want.at("visible").get<Tokens>();
      for (index_t i = 0; i < run.cache.slots(0, h); ++i) {
        const auto at = std::find(visible.begin(), visible.end(), run.cache.token(0, h, i)) - visible.begin();
        REQUIRE(run.cache.layers()[0].heads[h].lane[0][i] ==
                Approx(want.at("scores").at(static_cast<std::size_t>(at)).get<double>()).margin(2e-5));
      }
    }
  }
}

TEST_CASE("lse: a row of attention comes again from its logits and its lse, as in the worked example", "[cache][attend][oracle]") {
  const auto oracle = test::load_oracle("eviction.json", "lse_recompute");
  const auto want_lse = test::floats(oracle.at("lse_row7")), want = test::floats(oracle.at("row7"));
  Run run(recipe(evict::H2O{.heavy = 8, .recent = 8}));
  run.forward(0, 7);
  REQUIRE(run.cache.append(run.ctx, 0, run.part(run.k, 2, 7, 1), run.part(run.v, 2, 7, 1)) == Status::ok);
  std::vector<float> lse(4), out(16);
  AttendOutputs measure;
  measure.lse = TensorView<float, 2>{lse.data(), {4, 1}, {1, 1}};
  REQUIRE(run.cache.attend(run.ctx, 0, run.part(run.q, 4, 7, 1), dense_view(out.data(), 4, 1, 4), measure) == Status::ok);
  const float scale = run.data.at("scale").get<float>();
  for (std::size_t h = 0; h < 4; ++h) {
    REQUIRE(lse[h] == Approx(want_lse[h]).margin(2e-6));
    for (std::size_t j = 0; j < 8; ++j) {
      float dot = 0;
      for (std::size_t d = 0; d < 4; ++d) dot += run.q[(h * 12 + 7) * 4 + d] * run.k[(h / 2 * 12 + j) * 4 + d];
      REQUIRE(std::exp(scale * dot - lse[h]) == Approx(want[h * 8 + j]).margin(2e-6));
    }
  }
}

TEST_CASE("tova: the cache keeps what the worked example keeps, the newest token may leave", "[cache][tova][oracle]") {
  const auto oracle = test::load_oracle("eviction.json", "tova");
  Run run(recipe(evict::Tova{.tokens = 5}));
  run.forward(0, 8);
  for (index_t h = 0; h < 2; ++h) REQUIRE(run.kept(h) == oracle.at("prefill_kept").get<Tokens>());
  for (const auto& step : oracle.at("steps")) {
    run.forward(step.at("token").get<index_t>(), 1);
    for (index_t h = 0; h < 2; ++h) REQUIRE(run.kept(h) == step.at("kept").get<Tokens>());
  }
}

TEST_CASE("snapkv: the cache keeps what the worked example keeps, then only grows", "[cache][snapkv][oracle]") {
  const auto want = test::load_oracle("eviction.json", "snapkv").at("avg_pool").at("per_kv_head_group_mean").at("kept");
  Run run(recipe(evict::SnapKV{.tokens = 5, .window = 2, .kernel = 3, .pool = prim::Pool::average}));
  run.forward(0, 8);
  for (std::size_t h = 0; h < 2; ++h) REQUIRE(run.kept(static_cast<index_t>(h)) == want.at(h).get<Tokens>());
  run.forward(8, 1), run.forward(9, 1);
  REQUIRE(run.cache.slots(0, 0) == 7);
}

TEST_CASE("knorm: the cache keeps what the worked example keeps", "[cache][knorm][oracle]") {
  const auto want = test::load_oracle("eviction.json", "knorm").at("kept");
  Run run(recipe(evict::Knorm{.tokens = 4, .recent = 0}));
  run.forward(0, 8);
  for (std::size_t h = 0; h < 2; ++h) REQUIRE(run.kept(static_cast<index_t>(h)) == want.at(h).get<Tokens>());
}

TEST_CASE("sink_window: token by token the cache follows the worked trace", "[cache][sink_window][oracle]") {
  Run run(recipe(evict::SinkWindow{.recent = 3, .sinks = 2}, position::Reindex{}));
  const auto oracle = test::load_oracle("eviction.json", "streaming_llm");
  for (const auto& step : oracle.at("trace")) {
    run.forward(step.at("token").get<index_t>(), 1);
    for (index_t h = 0; h < 2; ++h) REQUIRE(run.kept(h) == step.at("cache_after").get<Tokens>());
  }
}

TEST_CASE("positions: attention after eviction is the worked example's, slot order or original", "[cache][position][oracle]") {
  const auto oracle = test::load_oracle("eviction.json", "streaming_attention");
  const auto feed = [](auto& run) {
    for (index_t t = 0; t < 9; ++t) run.forward(t, 1);
    return run.out;
  };
  SECTION("reindex: raw keys and queries, turned by slot") {
    Run run(recipe(evict::SinkWindow{.recent = 3, .sinks = 2}, position::Reindex{}));
    const auto out = feed(run), want = test::floats(oracle.at("in_cache").at("out"));
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(out[i] == Approx(want[i]).margin(2e-5));
  }
  SECTION("absolute and rerotate: the engine turns keys and queries by their positions") {
    const auto turned = [](auto& run) {
      const auto angles = prim::rope_angles({}, 4);
      REQUIRE(angles.has_value());
      for (auto* x : {&run.q, &run.k})
        for (std::size_t row = 0; row < x->size() / 4; ++row) {
          float cos_sin[4];
          prim::rope_cos_sin(*angles, static_cast<index_t>(row % 12), cos_sin, cos_sin + 2);
          prim::rotate_row(x->data() + row * 4, x->data() + row * 4, cos_sin, cos_sin + 2, 2, prim::RopePairing::half_split);
        }
    };
    Run absolute(recipe(evict::SinkWindow{.recent = 3, .sinks = 2}));
    turned(absolute);
    const auto out = feed(absolute), want = test::floats(oracle.at("absolute").at("out"));
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(out[i] == Approx(want[i]).margin(2e-5));
    Run rerotate(recipe(evict::SinkWindow{.recent = 3, .sinks = 2}, position::Rerotate{}));
    turned(rerotate);
    const auto again = feed(rerotate), slots = test::floats(oracle.at("in_cache").at("out"));
    for (std::size_t i = 0; i < slots.size(); ++i) REQUIRE(again[i] == Approx(slots[i]).margin(2e-5));
  }
}

TEST_CASE("cache: attention over the compacted slots is the worked example's", "[cache][attend][oracle]") {
  const auto oracle = test::load_oracle("eviction.json", "block_subset_attention");
  Run run(recipe());
  run.forward(0, 8);
  REQUIRE(run.cache.remove(run.ctx, 2, 6) == Status::ok);
  std::vector<float> lse(4);
  REQUIRE(run.cache.append(run.ctx, 0, run.part(run.k, 2, 8, 1), run.part(run.v, 2, 8, 1)) == Status::ok);
  run.out.assign(16, 0.0f);
  REQUIRE(run.cache.attend(run.ctx, 0, run.part(run.q, 4, 8, 1), dense_view(run.out.data(), 4, 1, 4),
                           {{}, dense_view(lse.data(), 4, 1)}) == Status::ok);
  REQUIRE(run.kept(0) == Tokens{0, 1, 6, 7, 8});
  const auto want = test::floats(oracle.at("out")), want_lse = test::floats(oracle.at("lse"));
  for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(run.out[i] == Approx(want[i]).margin(1e-5));
  for (std::size_t h = 0; h < 4; ++h) REQUIRE(lse[h] == Approx(want_lse[h]).margin(1e-5));
}

TEST_CASE("kivi: attention over codes and window is the worked example's", "[cache][kivi][oracle]") {
  const auto oracle = test::load_oracle("quantization.json", "C_kivi_attention");
  const CacheShape shape{.head_dim = 16, .dtype = DType::f32};  // its numbers are no halves
  auto cache = make_cache<Cpu>(shape, recipe(quant::Kivi<2>{.group_size = 16, .residual_window = 16}));
  REQUIRE(cache.has_value());
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(64, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  const auto k = test::floats(oracle.at("K")), v = test::floats(oracle.at("V")), q = test::floats(oracle.at("q"));
  REQUIRE(cache->append(ctx, 0, dense_view(k.data(), 1, 35, 16), dense_view(v.data(), 1, 35, 16)) == Status::ok);
  REQUIRE(cache->step(ctx, 0) == Status::ok);
  const auto& head = cache->layers()[0].heads[0];
  REQUIRE(head.keys.coded().live() == oracle.at("K_quant_len").get<index_t>());
  REQUIRE(head.values.coded().live() == oracle.at("V_quant_len").get<index_t>());
  std::vector<float> out(16);
  REQUIRE(cache->attend(ctx, 0, dense_view(q.data(), 1, 1, 16), dense_view(out.data(), 1, 1, 16)) == Status::ok);
  const auto want = test::floats(oracle.at("output"));
  for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(out[i] == Approx(want[i]).margin(2e-5));
}
