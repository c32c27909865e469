#include <kvcondense/merge/pipeline.hpp>

#include <bit>
#include <random>

#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/kvmerger.hpp>
#include <kvcondense/merge/lookm.hpp>
#include <kvcondense/prim/attend.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

double dot(const Floats& a, const Floats& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += static_cast<double>(a[d]) * b[d];
  return sum;
}

/// Everything folds into the first slot, by plain means.
auto mean_of_all(index_t dim, merge::Mass mass, merge::Place place = merge::Place::as_cached) {
  return merge_driver(one_head(dim), merge::LookM{.kernel = merge::LookM::Kernel::average, .mass = mass, .place = place});
}

}  // namespace

TEST_CASE("merge pipeline: the oracle of attention that sags, and what each mass gives back", "[merge][pipeline]") {
  const auto o = merging_oracle("attention_sag");
  const auto& want = o["expected"];
  const auto q = o["inputs"]["q"].get<Floats>();
  const auto k = rows_of(o["inputs"]["K"]);
  const double scale = 1.0 / std::sqrt(2.0);
  for (const merge::Mass mass : {merge::Mass::none, merge::Mass::log_count, merge::Mass::exact}) {
    auto d = mean_of_all(2, mass);
    d.fill(0, k, k);
    d.head[0].kept = {0};
    d.inputs.queries = dense_view(q.data(), 1, 1, 2);
    REQUIRE(d.step() == Status::ok);
    const float bias = d.traits.bias < 0 ? 0.0f : d.head[0].lane[at(d.traits.bias)][0];
    const double logit = dot(q, d.head[0].key[0]) * scale + bias;
    if (mass == merge::Mass::none) REQUIRE(logit == Approx(want["log_mass_mean_no_bias"].get<double>()).epsilon(1e-6));
    if (mass == merge::Mass::log_count) REQUIRE(logit == Approx(want["log_mass_mean_log_count"].get<double>()).epsilon(1e-6));
    if (mass == merge::Mass::exact) {
      REQUIRE(logit == Approx(want["log_mass_exact"].get<double>()).epsilon(1e-6));
      REQUIRE(bias == Approx(want["exact_bias"].get<double>()).epsilon(1e-6));
    }
  }
}

TEST_CASE("merge pipeline: an exact bias of a group is the mean over its heads, and of one head exact twice over", "[merge][pipeline]") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const index_t group : {1, 4}) {
    const CacheShape shape{.q_heads = group, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
    auto d = merge_driver(shape, merge::LookM{.mass = merge::Mass::exact});
    Floats q(at(group * 8));
    for (float& x : q) x = normal(random);
    FloatRows k(9, Floats(8));
    for (auto& row : k)
      for (float& x : row) x = normal(random);
    d.fill(0, k, k);
    d.inputs.queries = dense_view(q.data(), group, 1, 8);
    const auto mass = [&](const FloatRows& rows, const Floats* bias, index_t g) {
      const Floats own(q.begin() + g * 8, q.begin() + (g + 1) * 8);
      double sum = 0;
      for (std::size_t j = 0; j < rows.size(); ++j) sum += std::exp(dot(own, rows[j]) / std::sqrt(8.0) + (bias ? (*bias)[j] : 0.0f));
      return std::log(sum);
    };
    // First a few fold, each slot as heavy as its members for the mean query, then all into one: mass is what it was, twice.
    d.head[0].kept = {0, 3, 4};
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].folded == 6);
    const Ints kept{0, 3, 4};
    for (std::size_t j = 0; j < kept.size(); ++j) {
      FloatRows members;
      for (std::size_t i = 0; i < k.size(); ++i)
        if (d.head[0].to[i] == static_cast<std::int32_t>(kept[j])) members.push_back(k[i]);
      double mean = 0;
      for (index_t g = 0; g < group; ++g) mean += (mass(members, nullptr, g) - mass({d.head[0].key[j]}, nullptr, g)) / static_cast<double>(group);
      REQUIRE(d.head[0].lane[at(d.traits.bias)][j] == Approx(mean).margin(1e-5));
    }
    d.head[0].kept = {1};
    REQUIRE(d.step() == Status::ok);
    double error = 0;
    for (index_t g = 0; g < group; ++g) error += mass(d.head[0].key, &d.head[0].lane[at(d.traits.bias)], g) - mass(k, nullptr, g);
    if (group == 1) REQUIRE(error == Approx(0).margin(1e-5));  // of several heads each has its own
  }
}

TEST_CASE("merge pipeline: turned keys of one content are summed without loss, and the newest position is taken over",
          "[merge][pipeline]") {
  const index_t dim = 16;
  const auto angles = prim::rope_angles({}, dim);
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  Floats raw(at(dim));
  for (float& x : raw) x = normal(random);
  const auto turned = [&](index_t position) {
    Floats row = raw;
    float cos_sin[16];
    prim::rope_cos_sin(*angles, position, cos_sin, cos_sin + 8);
    prim::rotate_row(row.data(), row.data(), cos_sin, cos_sin + 8, 8, angles->pairing);
    return row;
  };
  const Ints positions{3, 40, 41, 700, 70000000};
  for (const merge::Place place : {merge::Place::as_cached, merge::Place::pivot, merge::Place::latest}) {
    auto d = mean_of_all(dim, merge::Mass::none, place);
    FloatRows k;
    for (const index_t p : positions) k.push_back(turned(p));
    d.fill(0, k, k);
    d.head[0].position = positions;
    d.head[0].kept = {1};
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].folded == 4);
    const double length = std::sqrt(dot(d.head[0].key[0], d.head[0].key[0])), full = std::sqrt(dot(raw, raw));
    if (place == merge::Place::as_cached) {
      REQUIRE(length < 0.95 * full);
      continue;
    }
    REQUIRE(length == Approx(full).epsilon(1e-5));
    const index_t stands = place == merge::Place::pivot ? 40 : 70000000;
    REQUIRE(d.head[0].position == Ints{stands});
    require_rows(d.head[0].key, {turned(stands)}, 2e-5);
  }
}

TEST_CASE("merge pipeline: sizes count every token once, through any sequence of folds", "[merge][pipeline]") {
  std::mt19937 random(21);
  std::normal_distribution<float> normal;
  auto d = merge_driver({.q_heads = 3, .kv_heads = 3, .head_dim = 4, .dtype = DType::f32},
                        merge::LookM{.mass = merge::Mass::log_count});
  // Heads of no slot, one, and many.
  for (index_t h = 0; h < 3; ++h) {
    FloatRows k(at(h == 0 ? 0 : h == 1 ? 1 : 64), Floats(4));
    for (auto& row : k)
      for (float& x : row) x = normal(random);
    d.fill(h, k, k);
  }
  for (const index_t left : {40, 17, 3, 1}) {
    auto& x = d.head[2];
    x.kept.clear();
    for (index_t i = 0; i < left; ++i) x.kept.push_back(i * static_cast<index_t>(x.key.size()) / left);
    REQUIRE(d.step() == Status::ok);
    double tokens = 0;
    for (const float s : x.lane[at(d.traits.sizes)]) tokens += std::exp(s);
    REQUIRE(tokens == Approx(64).epsilon(1e-5));
    REQUIRE(d.head[1].lane[at(d.traits.sizes)] == Floats{0.0f});
  }
}

TEST_CASE("merge pipeline: one byte of scratch too few is refused", "[merge][pipeline]") {
  auto d = merge_driver(one_head(4), merge::KVMerger{.window = 1});
  const FloatRows k(8, Floats(4, 1.0f));
  d.fill(0, k, k);
  d.workspace_cut = 1;
  REQUIRE(d.step() == Status::workspace_too_small);
  d.workspace_cut = 0;
  REQUIRE(d.step() == Status::ok);
}

TEST_CASE("merge pipeline: traits say which lanes a stage has", "[merge][pipeline]") {
  const auto of = [](merge::Mass mass, merge::Place place) { return merge::D2O{.mass = mass, .place = place}.pipeline().traits(); };
  const auto none = of(merge::Mass::none, merge::Place::as_cached);
  REQUIRE((none.active && none.lanes == 0 && none.bias < 0 && none.sizes < 0 && none.place < 0 && none.state == 2));
  const auto counted = of(merge::Mass::log_count, merge::Place::pivot);
  REQUIRE((counted.lanes == 2 && counted.bias == 0 && counted.sizes == 0 && counted.place == 1));
  const auto exact = of(merge::Mass::exact, merge::Place::as_cached);
  REQUIRE((exact.lanes == 1 && exact.bias == 0 && exact.sizes < 0 && exact.inputs.has(Input::queries)));
  const auto scaled = of(merge::Mass::value_scale, merge::Place::latest);
  REQUIRE((scaled.lanes == 2 && scaled.value_scale == 0 && scaled.place == 1 && scaled.bias < 0));
  const auto sum = merge::KVMerger{}.pipeline().traits();
  REQUIRE((sum.shrinks && sum.lanes == 3 && sum.sizes == 1 && sum.inputs.has(Input::attention)));
  REQUIRE_FALSE(none.shrinks);
}
