#include <evict/properties.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Slots that each layer keeps of a prompt.
template <class P>
Ints per_layer(const P& policy, index_t layers, index_t tokens) {
  Ints kept;
  for (index_t l = 0; l < layers; ++l) {
    auto d = drive({.layers = layers}, policy);
    d.layer = l;
    REQUIRE(d.step(tokens, Phase::prefill_end, [](index_t h, index_t t) { return number(1, h, t); }) == Status::ok);
    kept.push_back(static_cast<index_t>(d.held[0].size()));
  }
  return kept;
}

index_t sum(const Ints& x) {
  index_t s = 0;
  for (const index_t i : x) s += i;
  return s;
}

}  // namespace

TEST_CASE("pyramid: whole steps equal the authors' code", "[budget][pyramid]") {
  const auto cases = eviction_oracle("pyramidkv")["factory"];
  for (const auto& c : cases) {
    const auto& p = c["params"];
    const budget::Pyramid policy{evict::SnapKV{.tokens = p["max_capacity"], .window = p["window"], .kernel = 3},
                                 p["beta"].get<double>(), evict::PyramidForm::integer_step};
    const index_t layers = p["layers"], tokens = p["q_len"];
    CAPTURE(tokens, layers);
    Ints want = c["total_with_window"].get<Ints>();
    REQUIRE(per_layer(policy, layers, tokens) == want);

    // Ours: the same ends, and the total that was asked for.
    auto exact = policy;
    exact.form = evict::PyramidForm::exact;
    const Ints ours = per_layer(exact, layers, tokens);
    REQUIRE(ours.front() == want.front());
    const index_t mean = std::min(p["max_capacity"].get<index_t>(), tokens);
    REQUIRE(sum(ours) == layers * mean);
    if (layers == 32) REQUIRE(sum(want) - 32 * 32 == 64816);
  }
}

TEST_CASE("pyramid: real steps equal kvpress", "[budget][pyramid]") {
  const auto cases = eviction_oracle("pyramidkv")["kvpress"];
  for (const auto& c : cases) {
    const auto& p = c["params"];
    const budget::Pyramid policy{budget::Ratio{evict::SnapKV{.window = p["window"], .kernel = 5}, 1.0 - p["compression_ratio"].get<double>()},
                                 p["beta"].get<double>(), evict::PyramidForm::ratio};
    REQUIRE(per_layer(policy, p["layers"], p["q_len"]) == c["n_kept"].get<Ints>());
  }
}

TEST_CASE("pyramid: totals are exact, layers never rise and never exceed what exists", "[budget][pyramid]") {
  for (const double beta : {1.0, 1.5, 4.0, 20.0, 1e6})
    for (index_t layers = 1; layers < 40; ++layers)
      for (const index_t mean : {3, 10, 37, 128})
        for (const index_t window : {0, 2, 9})
          for (const index_t tokens : {1, 9, 20, 77, 300, 5000}) {
            const evict::PyramidShare<evict::Absolute> share{{}, beta};
            index_t total = 0, last = tokens + mean;
            for (index_t l = 0; l < layers; ++l) {
              const index_t b = share.of(mean, window, tokens, l, layers);
              REQUIRE(b <= last);
              REQUIRE(b >= 0);
              if (b > tokens) REQUIRE(b == mean);  // a budget beyond what exists is only the mean itself
              total += last = b;
            }
            REQUIRE(total == layers * mean);
          }
}

TEST_CASE("pyramid: a head keeps its layer's share through decoding", "[budget][pyramid]") {
  const budget::Pyramid policy{evict::H2O{.heavy = 8, .recent = 2}, 4.0};
  for (index_t l = 0; l < 4; ++l) {
    auto d = drive({.layers = 4}, policy);
    d.layer = l;
    const PerToken mass = [](index_t h, index_t t) { return number(1, h, t); };
    REQUIRE(d.step(40, Phase::prefill_end, mass) == Status::ok);
    const std::size_t kept = d.held[0].size();
    for (int i = 0; i < 9; ++i) REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
    REQUIRE(d.held[0].size() == kept);
  }
}

TEST_CASE("pyramid: keeps its promises", "[budget][pyramid]") {
  check_promises(budget::Pyramid{evict::SnapKV{.tokens = 24, .window = 8}, 5.0},
                 budget::Pyramid{evict::SnapKV{.tokens = 400, .window = 8}, 5.0});
}

TEST_CASE("pyramid: a beta below one is refused", "[budget][pyramid]") {
  for (const double beta : {0.0, 0.99, -3.0, std::nan(""), 1e9})
    REQUIRE(budget::Pyramid{evict::SnapKV{}, beta}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Pyramid{evict::SnapKV{}, 1.0}.validate({}) == Status::ok);
  REQUIRE(budget::Pyramid{evict::SnapKV{.kernel = 2}, 4.0}.validate({}) == Status::invalid_argument);
}
