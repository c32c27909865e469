#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

/// A cache of a recipe's text.
struct Planted {
  CacheShape shape;
  any::AnyCache cache;
  Workspace work{};

  Planted(const std::string& text, const CacheShape& s, index_t slots, const any::ModelFacts& facts = {}) : shape(s), cache(made(text, s, facts)) {
    REQUIRE(work.reserve(cache.workspace_bytes(slots + 1, slots)) == Status::ok);
  }
  static any::AnyCache made(const std::string& text, const CacheShape& s, const any::ModelFacts& facts) {
    const any::ParseResult recipe = any::parse(text, facts);
    INFO(text);
    REQUIRE(recipe);
    auto cache = any::make(*recipe, s, any::on<Cpu>);
    REQUIRE(cache);
    return *std::move(cache);
  }
  void prompt(const std::vector<float>& k, const std::vector<float>& v, const std::vector<float>& q, index_t n) {
    Context<Cpu> ctx(work.bytes());
    const auto queries = dense_view(q.data(), shape.q_heads, n, shape.head_dim);
    REQUIRE(cache.append(ctx, 0, dense_view(k.data(), shape.kv_heads, n, shape.head_dim), dense_view(v.data(), shape.kv_heads, n, shape.values())) == Status::ok);
    REQUIRE(cache.step(ctx, 0, StepInputs{.queries = queries}, Phase::prefill_end) == Status::ok);
  }
};

/// What attention gives a key whose logit is `s` among n - 1 others, and the sum of the others' weights before division.
std::pair<double, double> share_of_needle(index_t n, double s, double sigma, unsigned seed) {
  const CacheShape shape{.head_dim = 8, .dtype = DType::f32, .softmax_scale = 1.0f};
  Planted p("keep_all", shape, n);
  std::mt19937 random(seed);
  std::normal_distribution<float> noise(0.0f, static_cast<float>(sigma));
  std::vector<float> k(static_cast<std::size_t>(8 * n)), v(k.size()), q(8), out(8);
  for (index_t i = 0; sigma > 0 && i < n; ++i) k[static_cast<std::size_t>(8 * i)] = noise(random);
  const auto at = static_cast<std::size_t>(8 * (n / 3));
  k[at] = static_cast<float>(s), v[at] = 1.0f, q[0] = 1.0f;
  Context<Cpu> ctx(p.work.bytes());
  float lse = 0.0f;
  REQUIRE(p.cache.append(ctx, 0, dense_view(k.data(), 1, n, 8), dense_view(v.data(), 1, n, 8)) == Status::ok);
  REQUIRE(p.cache.attend(ctx, 0, dense_view(q.data(), 1, 1, 8), dense_view(out.data(), 1, 1, 8), {.lse = dense_view(&lse, 1, 1)}) == Status::ok);
  return {out[0], std::exp(static_cast<double>(lse)) - std::exp(s)};
}

}  // namespace

TEST_CASE("planted needle: attention gives it what the worked numbers say", "[retrieve][by_text]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "planted_needle");
  for (const char* list : {"zero_noise", "logit_needed"})
    for (const auto& row : o[list]) {
      CAPTURE(row.dump());
      REQUIRE(share_of_needle(row["n"], row["s"], 0.0, 1).first == Approx(row["p"].get<double>()).epsilon(2e-5));
    }
  const auto& noisy = o["gaussian_noise_effective"];
  double share = 0, sum = 0;
  for (unsigned seed = 1; seed <= 16; ++seed) {
    const auto [p, others] = share_of_needle(noisy["n"], 10.0, noisy["sigma"], seed);
    share += p / 16, sum += others / 16;
  }
  REQUIRE(share == Approx(noisy["p_s10"].get<double>()).margin(0.003));
  REQUIRE(sum == Approx(noisy["expected_sum"].get<double>()).epsilon(0.04));  // an expectation
}

TEST_CASE("planted needle: a stage that reads a tenth finds it at every depth", "[retrieve][by_text]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "ruler");
  const auto depths = o["depths40"].get<std::vector<index_t>>();
  const auto place = [](index_t slots, index_t depth) { return std::min(slots - 1, slots * depth / 100); };
  for (std::size_t i = 0; i < o["insert_index_example"]["idx"].size(); ++i)
    REQUIRE(place(o["insert_index_example"]["n_sentences"], depths[i]) == o["insert_index_example"]["idx"][i].get<index_t>());

  constexpr index_t n = 1000, dim = 32;
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = dim};
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const auto numbers = [&](index_t count) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& e : x) e = normal(random);
    return x;
  };
  auto k = numbers(2 * n * dim), v = numbers(2 * n * dim), prompt = numbers(4 * n * dim);
  // A needle of its own direction at each depth, and the queries that ask for it; the prompt has asked for them before.
  std::vector<std::vector<float>> asks;
  for (std::size_t i = 0; i < depths.size(); ++i) {
    std::vector<float> q(static_cast<std::size_t>(4 * dim));
    for (index_t h = 0; h < 2; ++h) {
      const auto direction = numbers(dim);
      const index_t slot = place(n, depths[i]);
      for (index_t d = 0; d < dim; ++d) {
        const float x = direction[static_cast<std::size_t>(d)];
        k[static_cast<std::size_t>((h * n + slot) * dim + d)] = 3.0f * x;
        for (index_t g = 0; g < 2; ++g) {
          q[static_cast<std::size_t>(((2 * h + g) * dim) + d)] = (g == 0 ? 1.0f : 0.5f) * x;
          prompt[static_cast<std::size_t>(((2 * h + g) * n + n - 60 + static_cast<index_t>(i)) * dim + d)] = x;
        }
      }
    }
    asks.push_back(std::move(q));
  }
  for (const std::string recipe : {"quest(page=8, tokens=96, dense_layers=0)", "quest(page=8, tokens=96, dense_layers=0, heads=group_sum)",
                                   "lserve(page=16, part=8, tokens=96, interval=1)", "kinetics(block=8, blocks=8, sinks=4, local=28, dense_layers=0)",
                                   "rocketkv(page=8, tokens=96, channels=16)", "sparq(channels=16, tokens=96)",
                                   "pqcache(keep=10%, sinks=4)", "shadow_select(chunk=8, tokens=64, outliers=2, local_chunks=2)",
                                   "retrieval_attention(tokens=40, sinks=4, local=48)", "quest(page=8, tokens=96, dense_layers=0) + kivi4"}) {
    CAPTURE(recipe);
    Planted p(recipe, shape, n);
    p.prompt(k, v, prompt, n);
    double read = 0;
    index_t found = 0, missed = -1;
    for (std::size_t i = 0; i < asks.size(); ++i) {
      Context<Cpu> ctx(p.work.bytes());
      std::vector<float> out(static_cast<std::size_t>(4 * dim));
      std::vector<SlotRun> runs(static_cast<std::size_t>(4 * (n + 1)));
      index_t count[4];
      REQUIRE(p.cache.attend(ctx, 0, dense_view(asks[i].data(), 4, 1, dim), dense_view(out.data(), 4, 1, dim), {.runs = {runs.data(), n + 1, count}}) == Status::ok);
      for (index_t h = 0; h < 4; ++h) {
        bool has = false;
        for (index_t r = 0; r < count[h]; ++r) {
          const SlotRun run = runs[static_cast<std::size_t>(h * (n + 1) + r)];
          has = has || (run.first <= place(n, depths[i]) && place(n, depths[i]) < run.last);
          read += static_cast<double>(run.size()) / (40.0 * 4 * n);
        }
        found += has;
        if (!has) missed = depths[i];
      }
    }
    CAPTURE(read, missed);
    REQUIRE(read < 0.15);
    REQUIRE(found == 160);
  }
  // A window does not.
  Planted window("sink_window(sinks=4, recent=96)", shape, n);
  window.prompt(k, v, prompt, n);
  REQUIRE(window.cache.slots(0, 0) == 100);
  index_t there = 0;
  for (const index_t depth : depths)
    for (index_t s = 0; s < 100; ++s) there += window.cache.token(0, 0, s) == place(n, depth);
  REQUIRE(there < 8);
}

TEST_CASE("retrieval: with room for every slot methods with arrays of a model are full attention too", "[retrieve][by_text]") {
  constexpr index_t n = 150, dim = 16;
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32};
  std::mt19937 random(9);
  const auto numbers = [&](index_t count) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& e : x) e = std::normal_distribution<float>()(random);
    return x;
  };
  const auto axes = numbers(2 * dim * dim), codes = numbers(2 * 7 * dim), planes = numbers(400 * dim);
  const float *axes_rows = axes.data(), *code_rows = codes.data();
  any::ModelFacts facts;
  facts.key_axes = facts.query_axes = {&axes_rows, 1, 2 * dim, dim};
  facts.key_codes = {&code_rows, 1, 2 * 7, dim};
  facts.hash_planes = {planes.data(), 400, 1, dim};
  const auto k = numbers(2 * n * dim), v = numbers(2 * n * dim), prompt = numbers(4 * n * dim), q = numbers(4 * dim);
  const auto run = [&](const std::string& text) {
    Planted p(text, shape, n, facts);
    p.prompt(k, v, prompt, n);
    Context<Cpu> ctx(p.work.bytes());
    std::vector<float> out(static_cast<std::size_t>(4 * dim));
    REQUIRE(p.cache.attend(ctx, 0, dense_view(q.data(), 4, 1, dim), dense_view(out.data(), 4, 1, dim)) == Status::ok);
    return out;
  };
  const struct {
    const char *text, *full;
    double apart;
  } cases[] = {{"loki(columns=3, share=100%)", "keep_all", 0},
               {"infinigen(part=25%, alpha=1000000, share=100%, dense_layers=0)", "keep_all", 2e-6},
               {"a2ats(share=100%) + rerotate", "rerotate", 2e-6},
               {"rekv(frame=8, frames=1000, init=4) + rerotate", "rerotate", 2e-6},
               {"infllm(block=8, blocks=1000, init=4, local=200) + rerotate", "rerotate", 2e-6},
               {"alisa_window(ratio=100%)", "keep_all", 0},
               {"squeezed(threshold=1e-30, observe=10)", "keep_all", 2e-6},
               // Each slot meets the query in two of 400 tables of one plane, and weighs log(1 + 1e-4) less than those that are kept.
               {"magicpig(sinks=4, local=20, dense_every=0)", "keep_all", 3e-4}};
  for (const auto& c : cases) {
    CAPTURE(c.text);
    const auto got = run(c.text), want = run(c.full);
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(want[i]).margin(c.apart));
    if (c.apart == 0) REQUIRE(got == want);
  }
  // Half of it is not.
  REQUIRE(run("loki(columns=3, share=50%)") != run("keep_all"));
}
