#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/quant/mikv.hpp>

#include <quant/mixed_rows.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

/// Tokens of one layer, one key channel strong, through a cache, one by one after a prompt; the values it holds, and the mass each token drew.
template <class R>
struct Run {
  CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  std::vector<float> given, held;
  double key_error = 0;
  std::vector<std::vector<double>> mass{std::vector<double>(96), std::vector<double>(96)};
  index_t coded = 0, slots = 0;

  explicit Run(const R& r) {
    test::CacheRig rig(shape, r, 110, 64);
    std::mt19937 random(8);
    given.resize(2 * 96 * 64), held = given;
    std::vector<float> keys(given.size());
    index_t at = 0;
    for (const index_t n : {64, 1, 1, 30}) {
      test::Tokens t(shape, n, random);
      for (index_t i = 0; i < 2 * n; ++i) t.k[static_cast<std::size_t>(i * 64 + 9)] *= 15.0f;
      REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
      std::vector<float> out(static_cast<std::size_t>(4 * n * 64)), drew(static_cast<std::size_t>(rig.cache.total_slots(0)));
      AttendOutputs measure;
      measure.mass = rig.cache.ragged(0, drew.data());
      REQUIRE(rig.cache.attend(rig.ctx, 0, t.queries(shape), dense_view(out.data(), 4, n, 64), measure) == Status::ok);
      for (index_t h = 0; h < 2; ++h)
        for (index_t s = 0; s < rig.cache.slots(0, h); ++s)
          mass[static_cast<std::size_t>(h)][static_cast<std::size_t>(rig.cache.token(0, h, s))] += static_cast<double>(measure.mass.row(h)[s]);
      REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.attention = {measure.mass, rig.cache.mass_rows(n)}, .queries = t.queries(shape)}) == Status::ok);
      for (index_t h = 0; h < 2; ++h)
        for (index_t i = 0; i < n; ++i)
          for (index_t d = 0; d < 64; ++d) given[static_cast<std::size_t>((h * 96 + at + i) * 64 + d)] = t.values(shape)(h, i, d);
      for (index_t h = 0; h < 2; ++h)
        for (index_t i = 0; i < n; ++i)
          for (index_t d = 0; d < 64; ++d) keys[static_cast<std::size_t>((h * 96 + at + i) * 64 + d)] = t.keys(shape)(h, i, d);
      at += n;
    }
    coded = rig.cache.layers()[0].heads[0].values.coded().live();
    slots = rig.cache.slots(0, 0);
    std::vector<float> k(static_cast<std::size_t>(slots * 64)), v = k;
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(rig.cache.read(0, h, 0, test::view2(k.data(), slots, 64), test::view2(v.data(), slots, 64)) == Status::ok);
      for (index_t s = 0; s < slots; ++s)
        for (index_t d = 0; d < 64; ++d)
          key_error += std::pow(static_cast<double>(k[static_cast<std::size_t>(s * 64 + d)] -
                                                    keys[static_cast<std::size_t>((h * 96 + rig.cache.token(0, h, s)) * 64 + d)]), 2);
      for (index_t s = 0; s < slots; ++s)
        std::copy_n(v.data() + s * 64, 64, held.data() + (h * 96 + rig.cache.token(0, h, s)) * 64);
    }
  }
  double error(index_t h, index_t token) const {
    double sum = 0;
    for (index_t d = 0; d < 64; ++d) {
      const auto i = static_cast<std::size_t>((h * 96 + token) * 64 + d);
      sum += std::pow(static_cast<double>(given[i] - held[i]), 2);
    }
    return sum;
  }
};

}  // namespace

TEST_CASE("mikv: in every block the tokens that drew most attention are stored better, and none leaves", "[quant][mikv][cache]") {
  const Run run(recipe(quant::MiKV<>{.important = 0.25, .block = 32}));
  REQUIRE(run.slots == 96);
  REQUIRE(run.coded == 96);
  // The first two blocks were coded when the prompt ended: before the later rows drew anything.
  const Run exact(recipe(quant::MiKV<>{.important = 0.25, .block = 128}));
  REQUIRE(exact.coded == 0);
  for (index_t h = 0; h < 2; ++h)
    for (index_t b = 0; b < 3; ++b) {
      std::vector<double> errors;
      for (index_t i = b * 32; i < b * 32 + 32; ++i) errors.push_back(run.error(h, i));
      std::sort(errors.begin(), errors.end());
      REQUIRE(errors[7] < errors[8] / 20);  // eight of thirty-two
    }
  // The last block's judges are all rows so far.
  for (index_t h = 0; h < 2; ++h) {
    double least = 1e9, most = 0;
    for (index_t i = 64; i < 96; ++i) {
      const double drew = run.mass[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)];
      if (run.error(h, i) < 0.01) least = std::min(least, drew);
      else most = std::max(most, drew);
    }
    REQUIRE(least >= most);
  }
}

TEST_CASE("mikv: more bits, more important tokens and other blocks change what is stored", "[quant][mikv][cache]") {
  const auto total = [](const auto& r) {
    const Run run(r);
    double sum = 0;
    for (index_t h = 0; h < 2; ++h)
      for (index_t i = 0; i < 96; ++i) sum += run.error(h, i);
    return sum;
  };
  const double usual = total(recipe(quant::MiKV<>{.important = 0.25, .block = 32}));
  REQUIRE(total(recipe(quant::MiKV<8, 3>{.important = 0.25, .block = 32})) < usual);
  REQUIRE(total(recipe(quant::MiKV<4, 2>{.important = 0.25, .block = 32})) > usual);
  REQUIRE(total(recipe(quant::MiKV<>{.important = 0.5, .block = 32})) < usual);
  REQUIRE(total(recipe(quant::MiKV<>{.important = 0.25, .block = 32, .keep_window = 20})) < usual);
  REQUIRE(total(recipe(quant::MiKV<>{.important = 0.25, .block = 32, .sinks = 4})) < usual);
  REQUIRE(total(recipe(quant::MiKV<>{.important = 0.25, .block = 16})) != usual);
}

TEST_CASE("mikv: the policy that judges has fields of its own", "[quant][mikv][cache]") {
  using Mi = quant::MiKV<8, 2, evict::SnapKV>;
  const auto held = [](index_t window, index_t kernel) {
    return Run(recipe(Mi{.important = 0.25, .block = 32, .policy = {.tokens = 64, .window = window, .kernel = kernel}})).held;
  };
  const auto usual = held(8, 5);
  REQUIRE(usual == held(8, 5));
  REQUIRE(usual != held(2, 5));
}

TEST_CASE("mikv: the balancer takes the edge off a strong key channel", "[quant][mikv][cache]") {
  const Run with(recipe(quant::MiKV<>{.important = 0.25, .block = 32}));
  const Run without(recipe(quant::MiKV<>{.important = 0.25, .block = 32, .balance = false}));
  REQUIRE(with.key_error < without.key_error / 2);
}

TEST_CASE("mikv: a channel that is small in one query by chance does not get a wide step", "[quant][mikv][cache]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  const auto worst = [&](index_t least) {
    test::CacheRig rig(shape, recipe(quant::MiKV<>{.important = 0.25, .block = 8, .least = least}), 64, 64);
    std::mt19937 random(8);
    std::vector<float> given;
    for (int i = 0; i < 40; ++i) {  // token by token from the first: all that a step brings is one query a head
      test::Tokens t(shape, 1, random);
      for (index_t h = 0; h < 2; ++h) t.q[static_cast<std::size_t>(h * 64 + 5)] = 1e-4f;
      for (index_t d = 0; d < 64; ++d) given.push_back(t.keys(shape)(1, 0, d));
      std::vector<float> out(128);
      REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 2, 1, 64)) == Status::ok);
    }
    std::vector<float> k(40 * 64), v = k;
    REQUIRE(rig.cache.read(0, 1, 0, test::view2(k.data(), 40, 64), test::view2(v.data(), 40, 64)) == Status::ok);
    float most = 0.0f;
    for (std::size_t i = 5; i < k.size(); i += 64) most = std::max(most, std::fabs(k[i] - given[i]));
    return most;
  };
  REQUIRE(worst(0) > 20.0f);
  REQUIRE(worst(32) < 3.0f);
}

TEST_CASE("mikv: beside an eviction stage it judges by the same rows, or is refused", "[quant][mikv][cache]") {
  const Run both(recipe(evict::H2O{.heavy = 40, .recent = 8}, quant::MiKV<>{.important = 0.25, .block = 8}));
  REQUIRE(both.slots == 48);
  REQUIRE(both.coded > 30);
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  REQUIRE(make_cache<Cpu>(shape, recipe(evict::Tova{}, quant::MiKV<>{})).status() == Status::incompatible);
  using Mi = quant::MiKV<>;
  REQUIRE(Mi{}.validate(shape) == Status::ok);
  for (const Mi& bad : {Mi{.important = 0.0}, Mi{.important = 1.0}, Mi{.block = 24}, Mi{.block = 512}, Mi{.keep_window = -1}, Mi{.sinks = -1}, Mi{.least = -1}})
    REQUIRE(bad.validate(shape) == Status::invalid_argument);
}
