#include <cstring>

#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("shadow_select: landmarks, outliers and chunks of the worked case", "[retrieve][shadow_select]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "shadowkv");
  const retrieve::ShadowSelect stage{.chunk = 4, .tokens = 8, .outliers = 1, .local_chunks = 1};
  test::RetrieveRig<retrieve::ShadowSelect> rig(oracle["K"], oracle["V"], 2, 0.0f, stage);
  const auto seen = rig.attend(test::floats(oracle["Q"]));
  const auto& index = rig.rig.cache.layers()[0].index[0];
  std::vector<float> landmarks(20), spread(5);
  std::memcpy(landmarks.data(), index.plane[0].data(), 80);
  std::memcpy(spread.data(), index.plane[1].data(), 20);
  const auto want = test::floats(oracle["landmarks"]);
  for (std::size_t i = 0; i < 20; ++i) REQUIRE(landmarks[i] == Approx(want[i]).margin(1e-6));
  for (std::size_t i = 0; i < 5; ++i) REQUIRE(spread[i] == Approx(oracle["min_cos"][i].get<float>()).margin(1e-6));
  for (std::size_t h = 0; h < 2; ++h) {
    REQUIRE(seen.slots[h] == oracle["kept_tokens"].get<std::vector<int>>());
    for (std::size_t d = 0; d < 2; ++d) REQUIRE(seen.out[2 * h + d] == Approx(oracle["out"][h][d].get<float>()).margin(1e-6));
  }
  // What is generated is read, and is no candidate.
  const std::vector<float> x(8, 0.5f);
  for (int i = 0; i < 9; ++i) rig.forward({0.5f, 0.5f, 0.5f, 0.5f}, {1.0f, 1.0f}, x, 1);
  const auto later = rig.attend(x);
  REQUIRE(later.reads.units_scored == 2 * 5);
  for (int s = 20; s < 35; ++s) REQUIRE(std::count(later.slots[0].begin(), later.slots[0].end(), s) == 1);
}

TEST_CASE("shadow_select: bytes of the worked case", "[retrieve][shadow_select]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "shadowkv")["bytes_example"];
  const CacheShape shape{.head_dim = oracle["d"].get<int>()};
  const std::size_t chunks = oracle["T"].get<std::size_t>() / 8 * oracle["Hkv"].get<std::size_t>();
  REQUIRE(chunks * retrieve::MeanKey{8}.plane_bytes(shape, 0) == oracle["landmarks"].get<std::size_t>());
}

TEST_CASE("shadow_select: every field changes what is read", "[retrieve][shadow_select]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "shadowkv");
  const auto read = [&](retrieve::ShadowSelect stage) {
    test::RetrieveRig<retrieve::ShadowSelect> rig(oracle["K"], oracle["V"], 2, 0.0f, stage);
    return rig.attend(test::floats(oracle["Q"])).slots;
  };
  const auto base = read({.chunk = 4, .tokens = 8, .outliers = 1, .local_chunks = 1});
  REQUIRE(read({.chunk = 2, .tokens = 8, .outliers = 1, .local_chunks = 1}) != base);
  REQUIRE(read({.chunk = 4, .tokens = 4, .outliers = 1, .local_chunks = 1}) != base);
  REQUIRE(read({.chunk = 4, .tokens = 8, .outliers = 2, .local_chunks = 1}) != base);
  REQUIRE(read({.chunk = 4, .tokens = 8, .outliers = 1, .local_chunks = 3}) != base);
}
