#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("triforce: chunks in the order of scores, and what new tokens take from them", "[retrieve][triforce]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "triforce");
  const nlohmann::json last = nlohmann::json::array({oracle["q_last_prompt"]});
  const retrieve::TriForce stage{.chunk = 2, .tokens = 8};
  test::RetrieveRig<retrieve::TriForce> rig(oracle["K"], oracle["K"], 1, 0.0f, stage, &last);
  const auto& held = rig.rig.cache.layers()[0].held;
  REQUIRE(held.valid());
  std::vector<int> order{0};
  for (index_t i = 0; i < held.units.size(); ++i) order.push_back(held.units[i]);
  REQUIRE(order == oracle["selected_chunks_rank_order"].get<std::vector<int>>());
  const auto same_slots = [&](const char* key) {
    auto want = oracle[key].get<std::vector<int>>();
    std::sort(want.begin(), want.end());
    REQUIRE(rig.attend(std::vector<float>(4, 0.25f)).slots[0] == want);
  };
  same_slots("buffer_tokens");
  const std::vector<float> x(4, 0.5f);
  for (int i = 1; i <= 3; ++i) {
    rig.forward(x, x, x, 1);
    if (i != 2) same_slots(i == 1 ? "buffer_after_1_generated" : "buffer_after_3_generated");
  }
  REQUIRE(held.made == 16);
  // More new tokens than there is room for: chunk 0 and they.
  for (int i = 0; i < 6; ++i) rig.forward(x, x, x, 1);
  REQUIRE(rig.attend(x).slots[0] == std::vector<int>{0, 1, 16, 17, 18, 19, 20, 21, 22, 23, 24});
  rig.rig.cache.choose_anew();
  REQUIRE_FALSE(held.valid());
  REQUIRE(rig.attend(x).reads.units_scored == 7);
  rig.forward(x, x, x, 1);
  REQUIRE(held.valid());
  REQUIRE(held.made == 26);
}

TEST_CASE("triforce: every field changes what is read", "[retrieve][triforce]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "triforce");
  const nlohmann::json last = nlohmann::json::array({oracle["q_last_prompt"]});
  const auto read = [&](retrieve::TriForce stage) {
    test::RetrieveRig<retrieve::TriForce> rig(oracle["K"], oracle["K"], 1, 0.0f, stage, &last);
    return rig.attend(std::vector<float>(4, 0.25f)).slots;
  };
  REQUIRE(read({.chunk = 2, .tokens = 8}) != read({.chunk = 4, .tokens = 8}));
  REQUIRE(read({.chunk = 2, .tokens = 8}) != read({.chunk = 2, .tokens = 6}));
}

TEST_CASE("triforce: drafts are kept by the rule of the worked case, and what comes out is the model's own law", "[retrieve][triforce]") {
  const auto all = test::load_oracle("retrieval_reuse_storage.json", "triforce");
  const auto& o = all["accept"];
  const std::vector<float> p = test::floats(o["p"]), q = test::floats(o["q"]);
  const retrieve::DraftRule rule{p, q};
  std::vector<float> rest(4);
  rule.residual(rest);
  for (std::size_t i = 0; i < 4; ++i) {
    REQUIRE(rule.chance(i) == Approx(o["accept_prob"][i].get<double>()).margin(1e-7));
    REQUIRE(rest[i] == Approx(o["residual"][i].get<double>()).margin(1e-6));
  }
  REQUIRE(rule.expected() == Approx(o["expected_acceptance"].get<double>()).margin(1e-6));
  REQUIRE(retrieve::tokens_per_round(0.8, 6) == Approx(all["expected_tokens_per_round"]["alpha0.8_gamma6"].get<double>()).epsilon(1e-12));
  REQUIRE(retrieve::tokens_per_round(1.0, 6) == 7.0);
  REQUIRE(retrieve::tokens_per_round(0.0, 6) == 1.0);

  // Drafts by their chances, over a grid of both uniform numbers.
  const auto law = [&](const std::vector<float>& model, const std::vector<float>& draft) {
    std::vector<double> seen(model.size());
    std::vector<float> scratch(model.size());
    constexpr int grid = 400;
    for (std::size_t t = 0; t < model.size(); ++t)
      for (int a = 0; a < grid; ++a)
        for (int b = 0; b < grid; ++b)
          seen[retrieve::DraftRule{model, draft}.next(t, (a + 0.5) / grid, (b + 0.5) / grid, scratch)] += static_cast<double>(draft[t]) / (grid * grid);
    return seen;
  };
  for (const std::vector<float>& draft : {q, p, {0.0f, 0.0f, 0.0f, 1.0f}, {0.97f, 0.01f, 0.01f, 0.01f}}) {
    const auto seen = law(p, draft);
    for (std::size_t i = 0; i < 4; ++i) REQUIRE(seen[i] == Approx(static_cast<double>(p[i])).margin(0.004));
  }
  // A draft that the model never gives is never kept.
  REQUIRE(law({0.0f, 1.0f}, {1.0f, 0.0f})[0] == 0.0);
}
