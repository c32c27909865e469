#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("retrieval_attention: slots, parts and output of the worked case", "[retrieve][retrieval_attention]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "retrieval_attention");
  const retrieve::RetrievalAttention stage{.tokens = 3, .sinks = 2, .local = 3, .degree = 16, .beam = 64, .hubs = 2, .hub_keys = 2};
  test::RetrieveRig<retrieve::RetrievalAttention> rig(oracle["K"], oracle["V"], 1, 0.0f, stage);
  const std::vector<float> q = test::floats(oracle["q"]);
  const auto seen = rig.attend(q);
  std::vector<int> want = oracle["static"].get<std::vector<int>>();
  for (const auto& i : oracle["retrieved"]) want.push_back(i.get<int>());
  std::sort(want.begin(), want.end());
  REQUIRE(seen.slots[0] == want);
  REQUIRE(seen.lse[0] == Approx(oracle["lse"].get<float>()).margin(1e-6));
  for (std::size_t d = 0; d < 2; ++d) REQUIRE(seen.out[d] == Approx(oracle["out"][d].get<float>()).margin(1e-6));
  // The two parts joined by their log-sum-exp are the same.
  const double a = oracle["lse_static"].get<double>(), b = oracle["lse_retrieved"].get<double>();
  const double w = 1 / (1 + std::exp(b - a));
  for (std::size_t d = 0; d < 2; ++d)
    REQUIRE(static_cast<double>(seen.out[d]) ==
            Approx(w * oracle["out_static"][d].get<double>() + (1 - w) * oracle["out_retrieved"][d].get<double>()).margin(1e-6));

  const auto& example = oracle["projection_example"];
  std::vector<std::int32_t> knn, pairs(2 * 6 + 2), flat;
  for (const auto& row : example["query_to_key_knn"])
    for (const auto& i : row) knn.push_back(i.get<std::int32_t>());
  pairs.resize(static_cast<std::size_t>(2 * retrieve::star_edges(knn.data(), 3, 3, pairs.data())));
  for (const auto& e : example["pivot_star_edges"]) flat.push_back(e[0].get<std::int32_t>()), flat.push_back(e[1].get<std::int32_t>());
  REQUIRE(pairs == flat);
}

TEST_CASE("retrieval_attention: most of the best keys after looking at few", "[retrieve][retrieval_attention]") {
  // Keys in clusters of many sizes; queries elsewhere, but turned towards some of them.
  constexpr index_t n = 4000, dim = 16, k = 50;
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> centres(60, std::vector<float>(dim));
  for (auto& c : centres)
    for (float& x : c) x = 1.5f * normal(random);
  std::vector<float> keys, queries;
  for (index_t i = 0; i < n; ++i)
    for (std::size_t d = 0; d < dim; ++d) keys.push_back(centres[static_cast<std::size_t>(i * 7 % 60)][d] + 0.7f * normal(random));
  const auto query = [&] {
    std::vector<float> q(dim);
    const auto& c = centres[random() % 60];
    for (std::size_t d = 0; d < dim; ++d) q[d] = 0.4f * c[d] + 1.0f + 0.5f * normal(random);
    return q;
  };
  std::vector<std::vector<float>> prompt;
  for (index_t i = 0; i < n; ++i) prompt.push_back(query());
  for (const auto& q : prompt) queries.insert(queries.end(), q.begin(), q.end());

  const CacheShape shape{.head_dim = dim, .dtype = DType::f32};
  test::CacheRig<RecipeOf<retrieve::RetrievalAttention>> rig(shape, recipe(retrieve::RetrievalAttention{.tokens = k, .sinks = 4, .local = 16}), 4100, 4000);
  REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(static_cast<const float*>(keys.data()), 1, n, dim), dense_view(static_cast<const float*>(keys.data()), 1, n, dim)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = dense_view(static_cast<const float*>(queries.data()), 1, n, dim)}, Phase::prefill_end) == Status::ok);
  double hit = 0, seen = 0;
  constexpr int asked = 40;
  for (int i = 0; i < asked; ++i) {
    const std::vector<float> q = query();
    std::vector<std::pair<double, int>> order;
    for (int j = 4; j < n - 16; ++j) {
      double dot = 0;
      for (std::size_t d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(keys[static_cast<std::size_t>(j) * dim + d]);
      order.emplace_back(-dot, j);
    }
    std::partial_sort(order.begin(), order.begin() + k, order.end());
    ReadCounts reads;
    std::vector<float> out(dim);
    std::vector<SlotRun> runs(4000);
    index_t count = 0;
    REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 1, 1, dim), dense_view(out.data(), 1, 1, dim),
                             {.reads = &reads, .runs = {runs.data(), 4000, &count}}) == Status::ok);
    for (int j = 0; j < k; ++j)
      for (index_t r = 0; r < count; ++r)
        hit += order[static_cast<std::size_t>(j)].second >= runs[static_cast<std::size_t>(r)].first &&
               order[static_cast<std::size_t>(j)].second < runs[static_cast<std::size_t>(r)].last;
    REQUIRE(reads.slots_read == k + 20);
    seen += static_cast<double>(reads.units_scored);
  }
  const double recall = hit / (asked * k), visited = seen / asked / n;
  WARN("recall of the best " << k << " of " << n << " keys " << recall << " after visiting " << visited << " of them");
  REQUIRE(recall > 0.9);
  REQUIRE(visited < 0.4);
}

TEST_CASE("retrieval_attention: every field changes what is read", "[retrieve][retrieval_attention]") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  nlohmann::json keys, values;
  for (int i = 0; i < 300; ++i) {
    keys.push_back({normal(random), normal(random), normal(random), normal(random), normal(random), normal(random)});
    values.push_back({normal(random)});
  }
  const auto read = [&](auto change) {
    retrieve::RetrievalAttention s{.tokens = 12, .sinks = 2, .local = 4, .degree = 2, .beam = 14, .hubs = 3, .hub_keys = 2};
    change(s);
    test::RetrieveRig<retrieve::RetrievalAttention> rig(keys, values, 1, 1.0f, s);
    std::vector<std::vector<int>> all;
    for (const float x : {1.0f, -0.5f, 0.25f}) all.push_back(rig.attend({x, 1.0f, -1.0f, 0.5f, -x, 0.75f}).slots[0]);
    return all;
  };
  const auto usual = read([](auto&) {});
  REQUIRE(read([](auto& s) { s.tokens = 8; }) != usual);
  REQUIRE(read([](auto& s) { s.sinks = 5; }) != usual);
  REQUIRE(read([](auto& s) { s.local = 9; }) != usual);
  REQUIRE(read([](auto& s) { s.degree = 8; }) != usual);
  REQUIRE(read([](auto& s) { s.beam = 60; }) != usual);
  REQUIRE(read([](auto& s) { s.hubs = 40; }) != usual);
  REQUIRE(read([](auto& s) { s.hub_keys = 20; }) != usual);
}
