#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/finch.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::Finch;

namespace {

/// What FINCH keeps of one head that holds all tokens so far, of whose prompt the last `rows` are the question; in double.
template <class D>
Ints plain(const D& d, index_t h, index_t rows, index_t budget) {
  const index_t n = d.seen, group = d.shape.group(), dim = d.shape.head_dim;
  std::vector<double> score(at(n), 0.0);
  for (index_t g = 0; g < group; ++g)
    for (index_t r = n - rows; r < n; ++r) {
      std::vector<double> p;
      double sum = 0;
      for (index_t j = 0; j <= r; ++j) {
        double logit = 0;
        for (index_t c = 0; c < dim; ++c) logit += static_cast<double>(d.query(h * group + g, r, c)) * static_cast<double>(d.key(h, j, c));
        p.push_back(std::exp(logit / std::sqrt(static_cast<double>(dim))));
        sum += p.back();
      }
      for (index_t j = 0; j <= r; ++j) score[at(j)] += p[at(j)] / sum * static_cast<double>(r);
    }
  Ints order(at(n - rows)), kept;
  std::iota(order.begin(), order.end(), index_t{0});
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score[at(a)] > score[at(b)]; });
  kept.assign(order.begin(), order.begin() + std::max<index_t>(0, budget - rows));
  for (index_t j = n - rows; j < n; ++j) kept.push_back(j);
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace

TEST_CASE("finch: later rows of a question count more, by the tokens before them", "[evict][finch]") {
  // Keys and queries are 0, log 2 and 1 with signs, so that shares are simple.
  const float ln2 = std::log(2.0f), keys[] = {ln2, -ln2, 0.0f, 0.0f};
  auto d = drive({.head_dim = 1}, Finch{.keep = 0.75, .window = 2});
  d.key = [&](index_t, index_t t, index_t) { return keys[t]; };
  d.query = [](index_t, index_t t, index_t) { return t == 2 ? 1.0f : -1.0f; };
  // Row 2: 2, 1/2, 1 of 3.5. Row 3: 1/2, 2, 1, 1 of 4.5. Unweighed token 0 would win: 0.571 + 0.111 against 0.143 + 0.444.
  // By 2 and 3 tokens before them: 1.143 + 0.333 = 1.476 against 0.286 + 1.333 = 1.619.
  REQUIRE(d.step(4, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{1, 2, 3});
}

TEST_CASE("finch: kept sets are those of the plain formula, in every group, size of a head and window", "[evict][finch]") {
  const index_t group = GENERATE(1, 3, 7), dim = GENERATE(3, 64, 80), window = GENERATE(1, 6, 9);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim};
  auto d = drive_noise(shape, Finch{.keep = 0.5, .window = window});
  REQUIRE(d.step(33, Phase::prefill_chunk) == Status::ok);
  REQUIRE_FALSE(d.fired);
  auto whole = d;  // before anything left
  whole.seen += 7;
  REQUIRE(d.step(7, Phase::prefill_end) == Status::ok);
  for (index_t h = 0; h < 2; ++h) REQUIRE(d.held[at(h)] == plain(whole, h, window, 20));
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE(d.held[0].size() == 21);  // generated tokens stay
}

TEST_CASE("finch: without a window the question is the step that ends the prompt", "[evict][finch]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 8};
  auto said = drive_noise(shape, Finch{.keep = 0.4, .window = 5}), found = drive_noise(shape, Finch{.keep = 0.4, .window = 0});
  REQUIRE(said.pipeline.queries().count == 5);
  REQUIRE(found.pipeline.queries().rows == AttentionNeed::Rows::all);
  REQUIRE(said.step(40, Phase::prefill_chunk) == Status::ok);
  REQUIRE(found.step(40, Phase::prefill_chunk) == Status::ok);
  REQUIRE(said.step(5, Phase::prefill_end) == Status::ok);
  REQUIRE(found.step(5, Phase::prefill_end) == Status::ok);
  REQUIRE(found.held == said.held);
  REQUIRE(found.held[0].size() == 18);
  auto all = drive_noise(shape, Finch{.keep = 0.4, .window = 0});
  REQUIRE(all.step(12, Phase::prefill_end) == Status::ok);
  REQUIRE(all.held[0].size() == 12);  // nothing but a question
}

TEST_CASE("finch: a question longer than the prompt, one token, none, and NaN do no harm", "[evict][finch]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 4};
  auto longer = drive_noise(shape, Finch{.keep = 0.1, .window = 50});
  REQUIRE(longer.step(9, Phase::prefill_end) == Status::ok);
  REQUIRE(longer.held[0].size() == 9);
  auto one = drive_noise(shape, Finch{.keep = 0.1, .window = 1});
  REQUIRE(one.step(0, Phase::prefill_end) == Status::ok);
  REQUIRE(one.step(1, Phase::prefill_end) == Status::ok);
  REQUIRE(one.held[0] == Ints{0});
  auto tight = drive_noise(shape, Finch{.keep = 0.1, .window = 4});  // a budget of two beside a question of four
  REQUIRE(tight.step(20, Phase::prefill_end) == Status::ok);
  REQUIRE(tight.held[0] == Ints{16, 17, 18, 19});
  auto bad = drive_noise(shape, Finch{.keep = 0.5, .window = 4});
  bad.key = [good = bad.key](index_t h, index_t t, index_t c) { return t == 3 ? std::nanf("") : good(h, t, c); };
  REQUIRE(bad.step(20, Phase::prefill_end) == Status::ok);
  REQUIRE(bad.held[0].size() == 10);
  auto none = drive(shape, Finch{});
  REQUIRE(none.step(40, Phase::prefill_end) == Status::missing_input);
}

TEST_CASE("finch: keeps the promises of a pipeline", "[evict][finch]") {
  check_promises(Finch{.keep = 0.08, .window = 4}, Finch{.keep = 1.0, .window = 4});
  check_promises(Finch{.keep = 0.08, .window = 0}, Finch{.keep = 1.0, .window = 0}, {.all_workspace = false});
}

TEST_CASE("finch: parts and windows out of range are refused", "[evict][finch]") {
  REQUIRE(Finch{}.validate({}) == Status::ok);
  REQUIRE(Finch{.window = 0}.validate({}) == Status::ok);
  REQUIRE(Finch{.window = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(Finch{.keep = 0.0}.validate({}) == Status::invalid_argument);
  REQUIRE(Finch{.keep = 1.5}.validate({}) == Status::invalid_argument);
  REQUIRE(Finch{.keep = std::nan("")}.validate({}) == Status::invalid_argument);
}
