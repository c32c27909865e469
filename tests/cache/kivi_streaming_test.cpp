#include <support/cache_model.hpp>
#include <support/oracle.hpp>

#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;

namespace {

template <class C>
void require_parts(const C& cache, const nlohmann::json& want) {
  const auto& head = cache.layers()[0].heads[0];
  REQUIRE(head.keys.coded().live() == want.at("K_quant").get<index_t>());
  REQUIRE(head.keys.window().live() == want.at("K_res").get<index_t>());
  REQUIRE(head.values.coded().live() == want.at("V_quant").get<index_t>());
  REQUIRE(head.values.window().live() == want.at("V_res").get<index_t>());
}

}  // namespace

TEST_CASE("kivi: coded and exact lengths follow the published trace", "[cache][kivi]") {
  const CacheShape shape{.head_dim = 8};
  for (const auto& trace : test::load_oracle("quantization.json", "D1_kivi_streaming")) {
    const index_t window = trace.at("R").get<index_t>();
    auto cache = make_cache<Cpu>(shape, recipe(quant::Kivi<2>{.group_size = window, .residual_window = window}));
    REQUIRE(cache.has_value());
    Workspace work;
    REQUIRE(work.reserve(cache->workspace_bytes(64, 16)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    std::mt19937 random(1);
    for (const auto& step : trace.at("trace")) {
      const index_t n = step.at("step") == 0 ? trace.at("prompt").get<index_t>() : 1;
      const test::Tokens t(shape, n, random);
      REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
      if (step.contains("attention_sees")) require_parts(*cache, step.at("attention_sees"));
      REQUIRE(cache->step(ctx, 0) == Status::ok);
      require_parts(*cache, step);
    }
  }
}

TEST_CASE("group_int: with whole windows lengths follow the trace of Hugging Face's quantized cache", "[cache][group_int]") {
  const CacheShape shape{.head_dim = 64};
  const auto trace = test::load_oracle("quantization.json", "D2_hf_quantized_layer_streaming").at("trace");
  auto cache = make_cache<Cpu>(shape, recipe(quant::GroupInt<4>{.group_size = 64, .residual_window = 4, .whole_window = true}));
  REQUIRE(cache.has_value());
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(64, 16)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(1);
  for (const auto& step : trace) {
    const index_t n = step.at("step") == 0 ? step.at("quant").get<index_t>() : 1;
    const test::Tokens t(shape, n, random);
    REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(cache->step(ctx, 0) == Status::ok);
    const auto& head = cache->layers()[0].heads[0];
    REQUIRE(head.keys.coded().live() == step.at("quant").get<index_t>());
    REQUIRE(head.keys.window().live() == step.at("res").get<index_t>());
    REQUIRE(head.values.coded().live() == step.at("quant").get<index_t>());
    REQUIRE(head.values.window().live() == step.at("res").get<index_t>());
  }
}

TEST_CASE("group_int: whole windows where all that was coded has left", "[cache][group_int]") {
  const CacheShape shape{.head_dim = 64};
  auto cache = make_cache<Cpu>(shape, recipe(evict::SlidingWindow{.window = 5}, quant::GroupInt<4>{.group_size = 64, .residual_window = 8, .whole_window = true}));
  REQUIRE(cache.has_value());
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(64, 16)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(1);
  std::vector<index_t> coded;
  for (int i = 0; i < 12; ++i) {
    const test::Tokens t(shape, i == 0 ? 5 : 1, random);
    REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(cache->step(ctx, 0) == Status::ok);
    REQUIRE(cache->slots(0, 0) == 5);
    coded.push_back(cache->layers()[0].heads[0].keys.coded().live());
  }
  // The window of five never fills; when the last coded slot leaves, what is there is coded.
  REQUIRE(coded == std::vector<index_t>{5, 4, 3, 2, 1, 5, 4, 3, 2, 1, 5, 4});
}

TEST_CASE("kivi: any chopping of the same tokens into appends stores the same numbers", "[cache][kivi]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 32};
  const index_t total = 300;
  std::mt19937 random(2);
  const test::Tokens all(shape, total, random);
  const auto stored = [&](index_t chunk) {
    auto cache = make_cache<Cpu>(shape, recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32, .sinks = 5}));
    REQUIRE(cache.has_value());
    Workspace work;
    REQUIRE(work.reserve(cache->workspace_bytes(total, total)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    for (index_t at = 0; at < total; at += chunk) {
      const index_t n = std::min(chunk, total - at);
      auto k = all.keys(shape), v = all.values(shape);
      k.data += at * k.stride[1], v.data += at * v.stride[1];
      k.extent[1] = v.extent[1] = n;
      REQUIRE(cache->append(ctx, 0, k, v) == Status::ok);
      REQUIRE(cache->step(ctx, 0) == Status::ok);
    }
    // A prompt longer than the window keeps its sinks exact.
    REQUIRE(cache->layers()[0].heads[1].keys.sinks().live() == 5);
    std::vector<float> out(static_cast<std::size_t>(2 * total * shape.head_dim));
    REQUIRE(cache->read(0, 1, 0, dense_view(out.data(), total, shape.head_dim),
                        dense_view(out.data() + total * shape.head_dim, total, shape.head_dim)) == Status::ok);
    return out;
  };
  const std::vector<float> once = stored(total);
  for (const index_t chunk : {1, 7, 32, 100}) REQUIRE(stored(chunk) == once);
}
