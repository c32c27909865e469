#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/lowrank/fit/principal.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/eigen_json.hpp>
#include <support/oracle.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;
namespace fit = lowrank::fit;

namespace {

/// A cache of one head that stores float32, and what a query reads from it.
template <class R>
struct OneHead {
  CacheShape shape;
  test::CacheRig<R> rig;
  OneHead(index_t dim, index_t value_dim, const R& recipe)
      : shape{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = dim, .value_dim = value_dim, .dtype = DType::f32},
        rig(shape, recipe, 64, 16) {}

  void put(const std::vector<float>& k, const std::vector<float>& v) {
    const index_t n = static_cast<index_t>(k.size()) / shape.head_dim;
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(k.data(), 1, n, shape.head_dim), dense_view(v.data(), 1, n, shape.values())) ==
            Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  }
  std::vector<float> ask(const std::vector<float>& q) {
    std::vector<float> out(static_cast<std::size_t>(shape.values()));
    REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 1, 1, shape.head_dim), dense_view(out.data(), 1, 1, shape.values())) ==
            Status::ok);
    return out;
  }
};

/// Rows of the unit matrix: a weighted sum of them is the weights.
std::vector<float> unit_rows(index_t n) {
  std::vector<float> rows(static_cast<std::size_t>(n * n), 0.0f);
  for (index_t i = 0; i < n; ++i) rows[static_cast<std::size_t>(i * n + i)] = 1.0f;
  return rows;
}

void close(const std::vector<float>& got, const nlohmann::json& want, double margin) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(static_cast<double>(got[i]) == Approx(want[i].get<double>()).margin(margin));
}

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("pca: any calls, centred or not, orthonormal or not, with and without codes behind it", "[lowrank][pca]") {
  std::uint32_t seed = 1;
  for (const bool mean : {false, true})
    for (const bool pair : {false, true}) {
      const test::RandomBases keys(2, 2, 32, ++seed, mean, pair), values(2, 2, 32, ++seed, mean, pair);
      const NamedBases list[] = {{"pca", keys.view(), values.view()}};
      for (const double keep : {0.25, 0.75, 1.0}) {
        lowrank::Pca pca{.keep = keep, .value_keep = 0.5, .window = 5, .bases = {list, 1}};
        test::exercise(shape, recipe(pca), ++seed, 20, keep == 1.0 ? 8.0 : 12.0);
        test::exercise(shape, recipe(evict::H2O{.heavy = 20, .recent = 20}, pca, quant::Kivi<4>{.group_size = 8, .residual_window = 16}),
                       ++seed, 20, 20.0);
        test::exercise(shape, recipe(pca, quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 8}}), ++seed, 20, 20.0);
      }
    }
}


TEST_CASE("pca: attention among coordinates gives what a worked case says, centred and not", "[lowrank][pca]") {
  const auto oracle = test::load_oracle("lowrank.json", "pca_attention");
  const auto& want = oracle["expected"];
  const auto k = test::floats(oracle["inputs"]["K"]), v = test::floats(oracle["inputs"]["V"]), q = test::floats(oracle["inputs"]["q"]);
  const auto mean_k = test::floats(want["mean_K"]), mean_v = test::floats(want["mean_V"]), p = test::floats(want["P_centred"]);
  const fit::Directions values = [&] {
    fit::Moments m(3);
    m.add(test::matrix(oracle["inputs"]["V"]));
    return *fit::principal(m, true);
  }();
  std::vector<float> pv;
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 3; ++j) pv.push_back(static_cast<float>(values.columns(i, j)));
  const NamedBases list[] = {{"pca",
                              {.encode = p.data(), .mean = mean_k.data(), .layers = 1, .groups = 1, .dim = 3, .columns = 3},
                              {.encode = pv.data(), .mean = mean_v.data(), .layers = 1, .groups = 1, .dim = 3, .columns = 3}}};
  lowrank::Pca pca{.keep = 2.0 / 3, .value_keep = 2.0 / 3, .tile = 1, .window = 0, .bases = {list, 1}};
  OneHead both(3, 3, recipe(pca));
  both.put(k, v);
  close(both.ask(q), want["out"], 1e-6);
  const auto& head = both.rig.cache.layers()[0].heads[0];
  REQUIRE((head.keys.coded().live() == 5 && head.keys.coded().dim() == 2));
  std::vector<float> read(15), rest(15);
  REQUIRE(both.rig.cache.read(0, 0, 0, dense_view(read.data(), 5, 3), dense_view(rest.data(), 5, 3)) == Status::ok);
  close(read, nlohmann::json(test::floats(want["K_reconstructed"])), 1e-6);

  pca.values = false;
  OneHead probs(3, 5, recipe(pca));
  probs.put(k, unit_rows(5));
  close(probs.ask(q), want["probs"], 1e-6);

  const fit::Directions plain = [&] {
    fit::Moments m(3);
    m.add(test::matrix(oracle["inputs"]["K"]));
    return *fit::principal(m, false);
  }();
  std::vector<float> pk;
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 3; ++j) pk.push_back(static_cast<float>(plain.columns(i, j)));
  const NamedBases uncentred[] = {{"pca", {.encode = pk.data(), .layers = 1, .groups = 1, .dim = 3, .columns = 3}, {}}};
  pca.bases = {uncentred, 1};
  OneHead other(3, 5, recipe(pca));
  other.put(k, unit_rows(5));
  const auto got = other.ask(q);
  double sum = 0;
  for (const auto& l : want["logits_uncentred"]) sum += std::exp(l.get<double>());
  for (std::size_t i = 0; i < 5; ++i)
    REQUIRE(static_cast<double>(got[i]) == Approx(std::exp(want["logits_uncentred"][i].get<double>()) / sum).margin(1e-6));
}

TEST_CASE("pca: scores of centred slots beside exact ones", "[lowrank][pca]") {
  const auto oracle = test::load_oracle("lowrank.json", "bibranch_mean_term");
  const auto& want = oracle["expected"];
  const auto p = test::floats(want["P"]), mean = test::floats(want["mean"]);
  const NamedBases list[] = {{"pca", {.encode = p.data(), .mean = mean.data(), .layers = 1, .groups = 1, .dim = 3, .columns = 1}, {}}};
  const lowrank::Pca pca{.keep = 0.34, .tile = 1, .window = 2, .values = false, .bases = {list, 1}};
  OneHead head(3, 5, recipe(pca));
  head.put(test::floats(oracle["inputs"]["K"]), unit_rows(5));
  REQUIRE(head.rig.cache.layers()[0].heads[0].keys.window().live() == 2);
  close(head.ask(test::floats(oracle["inputs"]["q"])), want["probs"], 1e-6);
}

TEST_CASE("pca: full rank is exact attention, and fewer columns lose more", "[lowrank][pca]") {
  const test::RandomBases keys(1, 2, 64, 1, true), values(1, 2, 64, 2, true);
  const NamedBases list[] = {{"pca", keys.view(), values.view()}};
  CacheShape s{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  std::mt19937 random(3);
  const test::Tokens t(s, 60, random), q(s, 1, random);
  const auto answer = [&](const auto& r) {
    test::CacheRig rig(s, r, 64, 64);
    std::vector<float> out(256);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    REQUIRE(rig.cache.attend(rig.ctx, 0, q.queries(s), dense_view(out.data(), 4, 1, 64)) == Status::ok);
    return out;
  };
  const auto exact = answer(recipe());
  double last = 1e9;
  for (const double keep : {0.125, 0.25, 0.5, 0.75, 0.875, 1.0}) {
    const auto got = answer(recipe(lowrank::Pca{.keep = keep, .value_keep = keep, .window = 4, .bases = {list, 1}}));
    double error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) error += std::pow(static_cast<double>(got[i] - exact[i]), 2);
    REQUIRE(error < last);
    last = error;
  }
  REQUIRE(std::sqrt(last / 256) < 1e-5);
}

TEST_CASE("pca: ranks by part, energy, running sum and table", "[lowrank][pca]") {
  const test::RandomBases keys(2, 2, 32, 1, false);
  const HeadBases b = keys.view();
  using lowrank::RankRule;
  const auto rank = [&](RankRule rule, double keep, index_t tile, HeadIndex at = {}) {
    return lowrank::BasisRule{rule, keep, tile}.rank(b, at);
  };
  REQUIRE(rank(RankRule::part, 0.5, 8) == 16);
  REQUIRE(rank(RankRule::part, 0.4, 8) == 8);
  REQUIRE(rank(RankRule::part, 0.4, 1) == 12);
  REQUIRE(rank(RankRule::part, 0.01, 8) == 8);
  REQUIRE(rank(RankRule::part, 1.0, 24) == 24);
  REQUIRE(rank(RankRule::energy, 1.0, 24) == 32);
  double all = 0;
  for (int i = 1; i <= 32; ++i) all += 1.0 / i;
  REQUIRE(rank(RankRule::energy, 1.4999 / all, 1) == 2);
  REQUIRE(rank(RankRule::energy, 1.5001 / all, 1) == 3);
  REQUIRE(rank(RankRule::spread, 0.9, 1) < rank(RankRule::spread, 0.95, 1));
  REQUIRE(rank(RankRule::table, 0.9, 8, {0, 1}) == 16);
  REQUIRE(rank(RankRule::table, 0.9, 8, {1, 0}) == 24);
  for (const RankRule rule : {RankRule::part, RankRule::energy, RankRule::spread, RankRule::table})
    REQUIRE(rank(rule, 0.9, std::numeric_limits<index_t>::max()) == 32);  // all columns
}

TEST_CASE("pca: bases of another model, of other keys, or none", "[lowrank][pca]") {
  const test::RandomBases keys(2, 2, 32, 1, false), values(2, 2, 32, 2, false), narrow(2, 2, 16, 3, false);
  const CacheShape s{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32};
  NamedBases list[] = {{"pca", keys.view(), values.view()}};
  lowrank::Pca pca{.bases = {list, 1}};
  const auto status = [&](const CacheShape& shape, auto... more) { return make_cache<Cpu>(shape, recipe(pca, more...)).status(); };
  REQUIRE(status(s) == Status::ok);
  REQUIRE(status({.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 32}) == Status::shape_mismatch);
  REQUIRE(status({.layers = 2, .q_heads = 6, .kv_heads = 3, .head_dim = 32}) == Status::shape_mismatch);
  REQUIRE(status({.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64}) == Status::shape_mismatch);
  REQUIRE(status(s, position::Rerotate{}) == Status::incompatible);
  list[0].keys = keys.view(KeyForm::raw);
  REQUIRE(status(s) == Status::incompatible);
  REQUIRE(status(s, position::Rerotate{}) == Status::ok);
  list[0].keys = narrow.view();
  REQUIRE(status(s) == Status::shape_mismatch);
  list[0].keys = {};
  REQUIRE(status(s) == Status::missing_input);
  pca.keys = false;
  REQUIRE(status(s) == Status::ok);
  pca.values = false;
  REQUIRE(status(s) == Status::invalid_argument);
  pca.keys = pca.values = true;
  list[0] = {"palu", keys.view(), values.view()};
  REQUIRE(status(s) == Status::missing_input);
  list[0] = {"pca", keys.view(), values.view()};
  pca.rule = lowrank::RankRule::energy, list[0].keys.energy = nullptr;
  REQUIRE(status(s) == Status::missing_input);
  pca.rule = lowrank::RankRule::table, list[0].values.ranks = nullptr;
  REQUIRE(status(s) == Status::missing_input);
  list[0] = {"pca", keys.view(), values.view()}, pca.rule = lowrank::RankRule::part;
  const float nan[32] = {std::nanf("")};
  list[0].keys.mean = nan, list[0].keys.layers = 1, list[0].keys.groups = 1;
  list[0].values.layers = 1, list[0].values.groups = 1;
  REQUIRE(status({.head_dim = 32}) == Status::invalid_argument);
  // A quantizer is asked about coordinates, not about rows.
  list[0] = {"pca", keys.view(), values.view()};
  pca.keep = 0.25;
  REQUIRE(status(s, quant::GroupInt<4>{.group_size = 16}) == Status::invalid_argument);
  REQUIRE(status(s, quant::GroupInt<4>{.group_size = 8}) == Status::ok);
}

TEST_CASE("pca: head sizes and group ratios", "[lowrank][pca]") {
  std::uint32_t seed = 50;
  for (const index_t dim : {1, 64, 80, 96, 112, 128, 256})
    for (const index_t ratio : {1, 7, 16}) {
      if (dim > 80 && ratio == 7) continue;
      const test::RandomBases keys(1, 2, dim, ++seed, true), values(1, 2, dim, ++seed, true);
      const NamedBases list[] = {{"pca", keys.view(), values.view()}};
      const CacheShape s{.layers = 1, .q_heads = 2 * ratio, .kv_heads = 2, .head_dim = dim};
      test::exercise(s, recipe(lowrank::Pca{.keep = 0.4, .window = 3, .bases = {list, 1}}), ++seed, 6, 12.0);
    }
}

TEST_CASE("pca: snapshots go on where they stopped, and only with the same basis", "[lowrank][pca]") {
  const test::RandomBases keys(2, 2, 32, 1, true), values(2, 2, 32, 2, true), others(2, 2, 32, 3, true);
  const NamedBases list[] = {{"pca", keys.view(), values.view()}}, other[] = {{"pca", keys.view(), others.view()}};
  const auto make = [&](const NamedBases* b) { return recipe(lowrank::Pca{.window = 4, .bases = {b, 1}}); };
  test::check_snapshot(shape, make(list), make(other));
}
