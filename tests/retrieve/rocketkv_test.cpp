#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("rocketkv: page logits, softmax, means and pages of the worked case", "[retrieve][rocketkv]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "rocketkv_hsa");
  const std::vector<float> q = test::floats(oracle["Q"]);
  // The newest page would be kept: one more key behind the sixteen of the case.
  nlohmann::json keys = oracle["K"];
  keys.push_back({0.0, 0.0, 0.0, 0.0});
  test::RetrieveRig<retrieve::RocketKV> rig(keys, keys, 2, 0.5f, {.page = 4, .tokens = 8, .channels = 2});
  const auto p = rig.rig.cache.retrieval();
  retrieve::ReadView<Cpu> view;
  view.shape = rig.shape, view.state = &rig.rig.cache.layers()[0].index[0], view.queries = q.data();
  std::vector<float> prepared(16), logits(8);
  for (index_t h = 0; h < 2; ++h) p.query.run<Cpu>(view, 0, 0, h, prepared.data() + 8 * h);
  p.summary.score<Cpu>(view, 0, 0, 4, {prepared.data(), 2, 8}, {logits.data(), 2, 4});
  for (std::size_t i = 0; i < 8; ++i) REQUIRE(logits[i] == Approx(oracle["page_logits"][i / 4][i % 4].get<float>()).margin(1e-6));
  const index_t offset[] = {0, 4, 8};
  Context<Cpu> ctx;
  REQUIRE(p.scorer.run(ctx, view, {logits.data(), offset, 2}) == Status::ok);
  for (std::size_t i = 0; i < 8; ++i) REQUIRE(logits[i] == Approx(oracle["softmax"][i / 4][i % 4].get<float>()).margin(1e-6));
  std::vector<float> mean(4);
  REQUIRE(p.reduce.run(ctx, view, RaggedView<const float>{logits.data(), offset, 2}, RaggedView<float>{mean.data(), offset, 1}) == Status::ok);
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(mean[i] == Approx(oracle["group_mean"][i].get<float>()).margin(1e-6));
  auto want = test::slots_of_pages(oracle["top2_pages"], 4, 16);
  want.push_back(16);
  for (const auto& slots : rig.attend(q).slots) REQUIRE(slots == want);
}

TEST_CASE("rocketkv: every field changes what is read", "[retrieve][rocketkv]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "rocketkv_hsa");
  const auto read = [&](retrieve::RocketKV s) {
    test::RetrieveRig<retrieve::RocketKV> rig(oracle["K"], oracle["K"], 2, 0.5f, s);
    return rig.attend(test::floats(oracle["Q"])).slots;
  };
  const auto usual = read({.page = 2, .tokens = 4, .channels = 1});
  REQUIRE(read({.page = 1, .tokens = 4, .channels = 1}) != usual);
  REQUIRE(read({.page = 2, .tokens = 6, .channels = 1}) != usual);
  REQUIRE(read({.page = 1, .tokens = 4, .channels = 2}) != read({.page = 1, .tokens = 4, .channels = 1}));
}
