#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("lserve: scores and pages of the worked case", "[retrieve][lserve]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "lserve");
  const retrieve::LServe stage{.page = 8, .part = 4, .tokens = 24};
  test::RetrieveRig<retrieve::LServe> rig(oracle["K"], oracle["K"], 2, 0.5f, stage);
  const std::vector<float> q = test::floats(oracle["Q"]);
  const auto seen = rig.attend(q);
  for (std::size_t h = 0; h < 2; ++h) REQUIRE(seen.slots[h] == test::slots_of_pages(oracle["selected_physical_pages"][h], 8, 26));
  REQUIRE(seen.reads.index_bytes == 6 * 2 * 4 * 4);  // three pages of two parts

  // Scores of parts and of whole pages, by the block itself.
  const auto scores = [&](index_t part) {
    const retrieve::MinMax summary{part};
    retrieve::UnitState state(heap_memory());
    const std::vector<float> k = test::floats(oracle["K"]);
    const DenseRows rows(dense_view(k.data(), 1, 26, 4));
    const CacheShape shape = rig.shape;
    const index_t parts = (26 + part - 1) / part;
    for (auto& p : state.plane) REQUIRE(p.resize(parts * 16) == Status::ok);
    summary.build<Cpu>({&shape, {}, 26, &rows, &rows}, 0, 0, parts, state);
    retrieve::ReadView<Cpu> view;
    view.shape = shape, view.state = &state;
    std::vector<float> prepared(16), out(static_cast<std::size_t>(2 * parts));
    for (index_t h = 0; h < 2; ++h) summary.prepare<Cpu>(view, 0, q.data() + 4 * h, prepared.data() + 8 * h);
    summary.score<Cpu>(view, 0, 0, parts, {prepared.data(), 2, 8}, {out.data(), 2, parts});
    return out;
  };
  REQUIRE(scores(4) == test::floats(oracle["logical_scores"]));
  REQUIRE(scores(8) == test::floats(oracle["one_level_scores"]));
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t p = 0; p < 4; ++p) {
      float best = -1e9f;
      for (std::size_t i = 2 * p; i < std::min<std::size_t>(7, 2 * p + 2); ++i) best = std::max(best, scores(4)[7 * h + i]);
      REQUIRE(best == oracle["physical_scores"][h][p].get<float>());
      REQUIRE(best <= oracle["one_level_scores"][h][p].get<float>());
    }
}

TEST_CASE("lserve: ring, page counts and bytes of the worked case", "[retrieve][lserve]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "lserve");
  const auto& ring = oracle["streaming_ring"];
  for (std::size_t i = 0; i < ring["logical_to_ring_slot"].size(); ++i)
    REQUIRE(retrieve::LServe::ring_slot(static_cast<index_t>(i), ring["sink_blocks"].get<int>(), ring["local_blocks"].get<int>()) ==
            ring["logical_to_ring_slot"][i].get<int>());
  const auto pages = [](index_t tokens, index_t there) { return std::min(there, retrieve::LServe{.tokens = tokens}.pages()); };
  REQUIRE(pages(4096, 200) == oracle["page_count_rule"]["budget4096_pages200"].get<int>());
  REQUIRE(pages(64, 200) == oracle["page_count_rule"]["budget64_pages200"].get<int>());
  REQUIRE(pages(4096, 2) == oracle["page_count_rule"]["budget4096_pages2"].get<int>());
  const CacheShape shape{.head_dim = 128};
  const auto bytes = retrieve::LServe{}.pipeline().index_row_bytes(shape);
  REQUIRE(4 * bytes == oracle["metadata_bytes"]["bytes_per_physical_page_per_kv_head"].get<std::size_t>());
  for (std::size_t i = 0; i < oracle["reuse"]["steps"].size(); ++i)
    REQUIRE(retrieve::EveryTokens{4}.due(oracle["reuse"]["steps"][i].get<int>() + 1, 1) == oracle["reuse"]["selector_runs"][i].get<bool>());
}

TEST_CASE("lserve: between two choices the units are read again, and what came since is never missed", "[retrieve][lserve]") {
  // Pages of 8, a choice every 3 tokens: the case in which the original's lists go stale.
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto numbers = [&](std::size_t n) {
    std::vector<float> x(n);
    for (float& e : x) e = normal(random);
    return x;
  };
  const auto rows = [&](std::size_t n) {
    nlohmann::json j;
    for (std::size_t i = 0; i < n; ++i) j.push_back(numbers(4));
    return j;
  };
  const auto stale = test::load_oracle("retrieval_reuse_storage.json", "lserve")["stale_reuse"];
  REQUIRE(stale["page"].get<int>() == 8);
  REQUIRE(stale["interval"].get<int>() == 3);
  const retrieve::LServe stage{.page = 8, .part = 4, .tokens = 24, .interval = 3};
  test::RetrieveRig<retrieve::LServe> rig(rows(24), rows(24), 2, 0.5f, stage);
  const auto& held = rig.rig.cache.layers()[0].held;
  REQUIRE_FALSE(held.valid());  // a prompt chooses nothing
  index_t chosen = 0;
  std::vector<index_t> would_be_stale;
  for (const index_t step : stale["timesteps"].get<std::vector<index_t>>()) {
    if (step % 3 != 0 && step / 8 > (chosen - 1) / 8) would_be_stale.push_back(step);  // a page that the last choice did not know
    const std::vector<float> q = numbers(8);
    const auto k = numbers(4), v = numbers(4);
    Context<Cpu>& ctx = rig.rig.ctx;
    auto& cache = rig.rig.cache;
    REQUIRE(cache.append(ctx, 0, dense_view(k.data(), 1, 1, 4), dense_view(v.data(), 1, 1, 4)) == Status::ok);
    const auto seen = rig.attend(q);
    const bool due = step % 3 == 0;
    REQUIRE((seen.reads.units_scored > 0) == due);
    for (const auto& slots : seen.slots) {
      REQUIRE(slots.back() == step);
      REQUIRE(std::count_if(slots.begin(), slots.end(), [&](int s) { return s >= step / 8 * 8; }) == step % 8 + 1);
      REQUIRE(std::is_sorted(slots.begin(), slots.end()));
      REQUIRE(static_cast<index_t>(slots.size()) <= 24 + 8);
    }
    REQUIRE(cache.step(ctx, 0, StepInputs{.queries = dense_view(q.data(), 2, 1, 4)}) == Status::ok);
    REQUIRE(held.valid());
    if (due) chosen = step + 1;
    REQUIRE(held.made == chosen);
  }
  REQUIRE(would_be_stale == stale["stale_newest_page"].get<std::vector<index_t>>());
  // Drafts that are taken back leave the choice; a rollback behind it lets it go.
  auto& cache = rig.rig.cache;
  const auto k = numbers(4);
  REQUIRE(cache.append(rig.rig.ctx, 0, dense_view(k.data(), 1, 1, 4), dense_view(k.data(), 1, 1, 4)) == Status::ok);
  REQUIRE(cache.truncate(42) == Status::ok);
  REQUIRE(held.made == chosen);
  REQUIRE(cache.truncate(chosen - 1) == Status::ok);
  REQUIRE_FALSE(held.valid());
}

TEST_CASE("lserve: a step without queries is refused", "[retrieve][lserve]") {
  const CacheShape shape{.head_dim = 4, .dtype = DType::f32};
  test::CacheRig<RecipeOf<retrieve::LServe>> rig(shape, recipe(retrieve::LServe{}), 64, 4);
  const std::vector<float> x(4, 1.0f);
  REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(x.data(), 1, 1, 4), dense_view(x.data(), 1, 1, 4)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{}) == Status::missing_input);
  REQUIRE(std::string(rig.cache.missing(0, StepInputs{})) == "queries");
  REQUIRE(rig.cache.pending() == 1);
}
