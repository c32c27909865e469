#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("kinetics: the blocks of the worked case", "[retrieve][kinetics]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "kinetics");
  const retrieve::Kinetics stage{.block = oracle["block"].get<int>(),
                                 .blocks = oracle["topk_blocks"].get<int>(),
                                 .sinks = oracle["sink"].get<int>(),
                                 .local = oracle["local"].get<int>(),
                                 .dense_layers = 0};
  test::RetrieveRig<retrieve::Kinetics> rig(oracle["K"], oracle["K"], 2, 0.0f, stage);
  const auto seen = rig.attend(test::floats(oracle["Q"]));
  for (const auto& slots : seen.slots) REQUIRE(slots == oracle["kept_tokens"].get<std::vector<int>>());
  REQUIRE(seen.reads.units_scored == 3);  // one query for the group
  const auto sinks = oracle["sink"].get<std::size_t>(), block = oracle["block"].get<std::size_t>();
  for (std::size_t b = 0; b < 3; ++b) {  // scores are means of logits
    double sum = 0;
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t i = 0; i < block; ++i) sum += oracle["logits"][h][sinks + b * block + i].get<double>();
    REQUIRE(sum / 2 / static_cast<double>(block) == Approx(oracle["block_scores"][b].get<double>()));
  }
}

TEST_CASE("kinetics: every field changes what is read", "[retrieve][kinetics]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "kinetics");
  const auto read = [&](retrieve::Kinetics stage) {
    test::RetrieveRig<retrieve::Kinetics> rig(oracle["K"], oracle["K"], 2, 0.0f, stage);
    return rig.attend(test::floats(oracle["Q"])).slots;
  };
  const retrieve::Kinetics base{.block = 4, .blocks = 1, .sinks = 2, .local = 3, .dense_layers = 0};
  const auto other = [&](auto change) {
    retrieve::Kinetics k = base;
    change(k);
    return read(k);
  };
  REQUIRE(other([](auto& k) { k.block = 2; }) != read(base));
  REQUIRE(other([](auto& k) { k.blocks = 2; }) != read(base));
  REQUIRE(other([](auto& k) { k.sinks = 5; }) != read(base));
  REQUIRE(other([](auto& k) { k.local = 7; }) != read(base));
  REQUIRE(other([](auto& k) { k.dense_layers = 1; }) != read(base));
}
