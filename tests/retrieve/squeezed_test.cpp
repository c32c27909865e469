#include <retrieve/rig.hpp>

using namespace kvcondense;
using retrieve::FoundClusters;
using retrieve::KeyClusters;

namespace {

/// The worked case: clusters of 12 keys, their centroids begun at keys 0, 4 and 8.
struct Case {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "squeezed_attention");
  std::vector<float> k = test::floats(oracle["K"]);
  std::vector<float> numbers;
  FoundClusters found;

  explicit Case(index_t coarse) : numbers(static_cast<std::size_t>(FoundClusters::floats(3, coarse, 2))), found{numbers.data(), 3, coarse, 2} {
    found.thresholds()[2] = 3.0f, found.thresholds()[3] = static_cast<float>(coarse);
    // Lloyd from the case's first centroids, on directions.
    std::vector<float> unit = k;
    for (std::size_t i = 0; i < 12; ++i) KeyClusters::normalise(unit.data() + 2 * i, 2);
    for (std::size_t c = 0; c < 3; ++c)
      for (std::size_t d = 0; d < 2; ++d) found.directions()[2 * c + d] = unit[8 * c + d];
    for (int round = 0; round < 300; ++round) {
      std::vector<std::int32_t> labels(12);
      prim::KMeans<Cpu>::nearest({unit.data(), 12, 2}, 2, found.directions(), 3, labels.data());
      for (std::int32_t c = 0; c < 3; ++c) {
        double sum[2] = {}, n = 0;
        for (std::size_t i = 0; i < 12; ++i)
          if (labels[i] == c) sum[0] += static_cast<double>(unit[2 * i]), sum[1] += static_cast<double>(unit[2 * i + 1]), ++n;
        for (int d = 0; d < 2 && n > 0; ++d) found.directions()[2 * c + d] = static_cast<float>(sum[d] / n);
      }
    }
    KeyClusters::gather<Cpu>(found, 12, [&](index_t first, prim::RowBlock<float> out) { std::copy_n(k.data() + 2 * first, 2 * out.rows, out.data); });
  }
  std::vector<std::int32_t> labels() const {
    std::vector<std::int32_t> all(12);
    for (std::size_t i = 0; i < 12; ++i) {
      float unit[2] = {k[2 * i], k[2 * i + 1]};
      KeyClusters::normalise(unit, 2);
      prim::KMeans<Cpu>::nearest({unit, 1, 2}, 2, found.directions(), 3, &all[i]);
    }
    return all;
  }
  void calibrate(KeyClusters plan) {
    plan.observe = 3;
    const std::vector<float> q = test::floats(oracle["Q_observation"]);
    const retrieve::PromptQueries queries{dense_view(q.data(), 1, 3, 2)};
    std::vector<std::byte> work(4096);
    plan.calibrate(found, {.head_dim = 2, .softmax_scale = 1.0f / std::sqrt(2.0f)}, 0, queries, Scratch(work));
  }
  std::vector<float> online() const {
    std::vector<float> one(3), mean(3);
    const std::vector<float> q = test::floats(oracle["Q_input"]);
    for (std::size_t t = 0; t < 2; ++t) {
      found.score(q.data() + 2 * t, 1.0f / std::sqrt(2.0f), one.data());
      for (std::size_t c = 0; c < 3; ++c) mean[c] += one[c] / 2;
    }
    return mean;
  }
};

}  // namespace

TEST_CASE("squeezed: clusters, thresholds and scores of the worked case", "[retrieve][squeezed]") {
  Case c(0);
  REQUIRE(c.labels() == c.oracle["labels"].get<std::vector<std::int32_t>>());
  for (std::size_t i = 0; i < 3; ++i) {
    REQUIRE(c.found.counts()[i] == c.oracle["cluster_sizes"][i].get<float>());
    for (std::size_t d = 0; d < 2; ++d) REQUIRE(c.found.means()[2 * i + d] == Approx(c.oracle["centroids_unnormalised_mean"][i][d].get<float>()).margin(1e-6));
  }
  for (const auto& [rho, threshold] : c.oracle["thresholds_linear_quantile"].items()) {
    c.calibrate({.quantile = std::stod(rho)});
    REQUIRE(c.found.thresholds()[0] == Approx(threshold.get<float>()).margin(1e-6));
  }
  c.calibrate({.quantile = 0.5});
  const auto scores = c.online();
  std::vector<int> kept;
  for (std::size_t i = 0; i < 3; ++i) REQUIRE(scores[i] == Approx(c.oracle["online_cluster_scores"][i].get<float>()).margin(1e-6));
  for (std::size_t i = 0; i < 12; ++i)
    if (scores[static_cast<std::size_t>(c.labels()[i])] > c.found.thresholds()[0]) kept.push_back(static_cast<int>(i));
  REQUIRE(kept == c.oracle["kept_keys_T05"].get<std::vector<int>>());
  REQUIRE(KeyClusters{.part = 0.05}.clusters(c.oracle["cluster_count_example"]["prefix_len"].get<index_t>()) ==
          c.oracle["cluster_count_example"]["K"].get<index_t>());
  REQUIRE(retrieve::Squeezed{}.iterations == 300);
}

TEST_CASE("squeezed: two levels of the worked case", "[retrieve][squeezed]") {
  Case c(2);
  const auto& want = c.oracle["hierarchical"];
  for (std::size_t i = 0; i < 3; ++i) c.found.parent()[i] = want["fine_to_coarse"][i].get<float>();
  KeyClusters::coarse_means(c.found);
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(c.found.coarse_means()[i] == Approx(test::floats(want["coarse_centroids"])[i]).margin(1e-6));
  c.calibrate({.quantile = 0.5, .coarse_quantile = 0.57});
  REQUIRE(c.found.thresholds()[1] == Approx(want["T1_quantile057"].get<float>()).margin(1e-6));
  // The case takes the mean of coarse scores over both queries before it looks at survivors; here both are one query.
  const auto means = test::floats(want["online_coarse"]);
  REQUIRE((means[0] > c.found.thresholds()[1]) == want["coarse_kept"][0].get<bool>());
  REQUIRE((means[1] > c.found.thresholds()[1]) == want["coarse_kept"][1].get<bool>());
  c.found.thresholds()[1] = 0.0f;
  std::vector<float> one(3);
  const std::vector<float> q = test::floats(c.oracle["Q_input"]);
  std::vector<float> fine(3);
  for (std::size_t t = 0; t < 2; ++t) {
    // Counts of survivors only: a cluster without keys has no say.
    const float counts[] = {4.0f, 3.0f, 0.0f};
    FoundClusters::softmax(q.data() + 2 * t, c.found.means(), counts, 3, 2, 1.0f / std::sqrt(2.0f), one.data());
    for (std::size_t i = 0; i < 3; ++i) fine[i] += one[i] / 2;
  }
  for (std::size_t i = 0; i < 3; ++i) REQUIRE(fine[i] == Approx(want["online_fine_with_surviving_counts"][i].get<float>()).margin(1e-6));
  // The same through `score`, with the second coarse cluster under its threshold.
  float coarse[2];
  const float sizes[] = {7.0f, 5.0f};
  FoundClusters::softmax(q.data() + 2, c.found.coarse_means(), sizes, 2, 2, 1.0f / std::sqrt(2.0f), coarse);
  REQUIRE(coarse[0] > coarse[1]);
  c.found.thresholds()[1] = (coarse[0] + coarse[1]) / 2;
  c.found.score(q.data() + 2, 1.0f / std::sqrt(2.0f), one.data());
  REQUIRE(one[2] == 0.0f);
  REQUIRE(4 * one[0] + 3 * one[1] == Approx(1.0f));
}

TEST_CASE("squeezed: hostile numbers are no clusters", "[retrieve][squeezed]") {
  Case c(2);
  FoundClusters out;
  auto x = c.numbers;
  for (std::size_t i = 0; i < 3; ++i) c.found.parent()[i] = 0.0f;
  x = c.numbers;
  const auto size = static_cast<index_t>(x.size());
  REQUIRE(FoundClusters::read(x.data(), size, 2, out));
  x[x.size() - 2] = 4.0f;
  REQUIRE_FALSE(FoundClusters::read(x.data(), size, 2, out));
  x = c.numbers;
  x[x.size() - 5] = 7.0f;  // a parent that is not there
  REQUIRE_FALSE(FoundClusters::read(x.data(), size, 2, out));
  REQUIRE_FALSE(FoundClusters::read(x.data(), 3, 2, out));
  // Parts of clusters: the parent of the second is none of two coarse ones, though it is below 2.5.
  x = c.numbers;
  x[x.size() - 1] = 2.5f, x[x.size() - 5] = 2.2f;
  REQUIRE_FALSE(FoundClusters::read(x.data(), size, 2, out));
  x = c.numbers;
  x[x.size() - 2] = 3.5f;
  REQUIRE_FALSE(FoundClusters::read(x.data(), size, 2, out));
  x = c.numbers;
  x[x.size() - 5] = 0.5f;
  REQUIRE_FALSE(FoundClusters::read(x.data(), size, 2, out));
}

TEST_CASE("squeezed: every field changes what is read", "[retrieve][squeezed]") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  nlohmann::json keys, values;
  for (int i = 0; i < 80; ++i) {
    keys.push_back({normal(random), normal(random), normal(random), normal(random)});
    values.push_back({normal(random)});
  }
  const nlohmann::json last = nlohmann::json::array({{1.0, -1.0, 0.5, 0.25}});
  const std::vector<float> q{0.5f, 1.0f, -0.5f, 0.7f};
  const auto read = [&](auto change) {
    retrieve::Squeezed stage{.clusters = 0.2, .quantile = 0.5, .observe = 10};
    change(stage);
    test::RetrieveRig<retrieve::Squeezed> rig(keys, values, 1, 1.0f, stage, &last);
    return rig.attend(q).slots;
  };
  const auto usual = read([](auto&) {});
  REQUIRE(usual[0].size() > 10);
  REQUIRE(usual[0].size() < 80);
  REQUIRE(read([](auto& s) { s.clusters = 0.1; }) != usual);
  REQUIRE(read([](auto& s) { s.quantile = 0.9; }) != usual);
  REQUIRE(read([](auto& s) { s.threshold = 0.01; }) != usual);
  REQUIRE(read([](auto& s) { s.observe = 20; }) != usual);
  REQUIRE(read([](auto& s) { s.clusters = 0.1, s.iterations = 1; }) != read([](auto& s) { s.clusters = 0.1; }));
  const auto two = read([](auto& s) { s.coarse = 0.05, s.coarse_quantile = 1.0; });  // no coarse cluster passes
  REQUIRE(two != usual);
  REQUIRE(read([](auto& s) { s.coarse = 0.05, s.coarse_quantile = 0.1; }) != two);
}
