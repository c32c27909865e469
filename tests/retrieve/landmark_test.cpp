#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

/// Keys of one number whose logits against a query of 1 are given; values that show the weights.
struct Case {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "landmark");
  nlohmann::json keys, values;

  Case() {
    const auto n = oracle["logits"].size();
    for (std::size_t i = 0; i < n; ++i) {
      keys.push_back({oracle["logits"][i]});
      values.push_back(std::vector<float>(n, 0.0f));
      values.back()[i] = 1.0f;
    }
  }
  std::vector<float> weights(index_t blocks) const {
    test::RetrieveRig<retrieve::Landmark> rig(keys, values, 1, 1.0f, {.tokens = 3, .blocks = blocks});
    return rig.attend({1.0f}).out;
  }
};

}  // namespace

TEST_CASE("landmark: grouped weights of the worked case", "[retrieve][landmark]") {
  const Case c;
  const auto check = [&](const std::vector<float>& got, const char* key) {
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(c.oracle[key][i].get<float>()).margin(1e-6));
  };
  const std::vector<float> logits = test::floats(c.oracle["logits"]);
  std::vector<float> weights(logits.size());
  retrieve::landmark_weights(logits, 3, [](index_t) { return true; }, weights.data());
  check(weights, "weights_all_blocks");
  const auto best = c.oracle["selected_block"].get<index_t>();
  retrieve::landmark_weights(logits, 3, [&](index_t b) { return b == best; }, weights.data());
  check(weights, "weights_top1_block");
  // The same through a cache: both blocks, and the better one alone.
  check(c.weights(2), "weights_all_blocks");
  check(c.weights(1), "weights_top1_block");
  test::RetrieveRig<retrieve::Landmark> rig(c.keys, c.values, 1, 1.0f, {.tokens = 3, .blocks = 1});
  REQUIRE(rig.attend({1.0f}).slots[0] == std::vector<int>{0, 1, 2, 8, 9});
}

TEST_CASE("landmark: fields, and a sequence that ends with a landmark", "[retrieve][landmark]") {
  Case c;
  const auto read = [&](retrieve::Landmark s) {
    test::RetrieveRig<retrieve::Landmark> rig(c.keys, c.values, 1, 1.0f, s);
    return rig.attend({1.0f}).slots;
  };
  REQUIRE(read({.tokens = 3, .blocks = 1}) != read({.tokens = 4, .blocks = 1}));
  REQUIRE(read({.tokens = 3, .blocks = 1}) != read({.tokens = 3, .blocks = 2}));
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::Landmark{.tokens = 0})).status() == Status::invalid_argument);
  c.keys.erase(c.keys.begin() + 8, c.keys.end()), c.values.erase(c.values.begin() + 8, c.values.end());
  test::RetrieveRig<retrieve::Landmark> rig(c.keys, c.values, 1, 1.0f, {.tokens = 3, .blocks = 2});
  const auto seen = rig.attend({1.0f});
  REQUIRE(seen.slots[0] == std::vector<int>{0, 1, 2, 4, 5, 6});
  double sum = 0;
  for (const float w : seen.out) sum += static_cast<double>(w);
  REQUIRE(sum == Approx(1.0));
}
