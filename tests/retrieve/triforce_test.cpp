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
