#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

struct Case {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "a2ats");
  std::vector<float> codes = test::floats(oracle["codebook_key_space"]);
  std::vector<float> metric = test::floats(oracle["cholesky_lower"]);
  const float* code_rows = codes.data();
  const float* metric_rows = metric.data();
  retrieve::A2ats stage{.key_codes = {&code_rows, 1, 3, 4},
                        .key_metric = {&metric_rows, 1, 4, 4},
                        .share = 3.0 / 14,
                        .sinks = oracle["sinks"].get<int>(),
                        .local = oracle["local"].get<int>(),
                        .distance = oracle["const_distance"].get<int>()};
};

}  // namespace

TEST_CASE("a2ats: metric, codes, look-ups and the union of the worked case", "[retrieve][a2ats]") {
  Case c;
  std::vector<float> l(16);
  const std::vector<float> calibration = test::floats(c.oracle["Q_calibration_rotated"]);
  retrieve::vq_metric(calibration.data(), static_cast<index_t>(calibration.size()) / 4, 4, l.data());
  for (std::size_t i = 0; i < 16; ++i) REQUIRE(l[i] == Approx(c.metric[i]).margin(1e-5));

  // Raw keys and queries: the cache turns them by their slots.
  test::RetrieveRig<retrieve::A2ats, position::Reindex> rig(c.oracle["K_unrotated"], c.oracle["K_unrotated"], 2, 0.5f, c.stage, position::Reindex{});
  const auto& index = rig.rig.cache.layers()[0].index[0];
  for (index_t i = 0; i < 14; ++i) REQUIRE(std::to_integer<int>(index.plane[0][2 * i]) == c.oracle["codes"][static_cast<std::size_t>(i)].get<int>());

  const std::vector<float> q = test::floats(c.oracle["Q_unrotated"]);
  const auto rope = prim::RopeTable::make({}, 4, heap_memory());
  retrieve::ReadView<Cpu> view;
  view.shape = rig.shape, view.queries = q.data(), view.rope = &*rope;
  const auto p = c.stage.pipeline();
  for (index_t h = 0; h < 2; ++h) {
    float turned[4], table[3];
    p.query.run<Cpu>(view, 0, 0, h, turned);
    p.summary.prepare<Cpu>(view, 0, turned, table);
    for (std::size_t i = 0; i < 3; ++i) REQUIRE(table[i] == Approx(c.oracle["lookup"][static_cast<std::size_t>(h)][i].get<float>()).margin(1e-5));
  }
  const auto seen = rig.attend(q);
  for (const auto& slots : seen.slots) REQUIRE(slots == c.oracle["union_with_fixed"].get<std::vector<int>>());
  // Attention itself is exact: logits of RoPE.
  for (std::size_t h = 0; h < 2; ++h) {
    double sum = 0;
    for (const int s : seen.slots[h]) sum += std::exp(0.5 * c.oracle["exact_rope_logits"][h][static_cast<std::size_t>(s)].get<double>());
    REQUIRE(seen.lse[h] == Approx(std::log(sum)).margin(1e-5));
  }
}

TEST_CASE("a2ats: the far logit is that of a constant distance", "[retrieve][a2ats]") {
  Case c;
  const auto rope = prim::RopeTable::make({}, 4, heap_memory());
  const std::vector<float> k = test::floats(c.oracle["K_unrotated"]), q = test::floats(c.oracle["Q_unrotated"]);
  retrieve::ReadView<Cpu> view;
  view.shape = {.q_heads = 2, .head_dim = 4}, view.queries = q.data(), view.rope = &*rope;
  for (index_t h = 0; h < 2; ++h) {
    float turned[4];
    retrieve::FarQuery{6}.run<Cpu>(view, 0, 0, h, turned);
    for (std::size_t j = 0; j < 10; ++j) {  // beyond the window of 4
      double dot = 0;
      for (std::size_t d = 0; d < 4; ++d) dot += static_cast<double>(turned[d]) * static_cast<double>(k[4 * j + d]);
      REQUIRE(dot == Approx(c.oracle["wrope_logits"][static_cast<std::size_t>(h)][j].get<double>()).margin(1e-5));
    }
  }
}

TEST_CASE("a2ats: every field changes what is read, and what does not fit is refused", "[retrieve][a2ats]") {
  Case c;
  const std::vector<float> q = test::floats(c.oracle["Q_unrotated"]);
  const auto read = [&](auto change) {
    retrieve::A2ats stage = c.stage;
    change(stage);
    test::RetrieveRig<retrieve::A2ats, position::Reindex> rig(c.oracle["K_unrotated"], c.oracle["K_unrotated"], 2, 0.5f, stage, position::Reindex{});
    return rig.attend(q).slots;
  };
  const auto usual = read([](auto&) {});
  REQUIRE(read([](auto& s) { s.share = 0.5; }) != usual);
  REQUIRE(read([](auto& s) { s.sinks = 3; }) != usual);
  REQUIRE(read([](auto& s) { s.local = 6; }) != usual);
  REQUIRE(read([](auto& s) { s.distance = 3; }) != usual);
  const float zeros[16] = {};
  const float* rows = zeros;
  REQUIRE(read([&](auto& s) { s.key_metric.data = &rows; }) != usual);

  const CacheShape shape{.q_heads = 2, .head_dim = 4};
  const auto status = [&](auto change, const auto& position) {
    retrieve::A2ats stage = c.stage;
    change(stage);
    return make_cache<Cpu>(shape, recipe(stage, position)).status();
  };
  REQUIRE(status([](auto&) {}, position::Rerotate{}) == Status::ok);
  REQUIRE(status([](auto& s) { s.key_codes = {}; }, position::Reindex{}) == Status::missing_input);
  REQUIRE(status([](auto& s) { s.key_codes.columns = 8; }, position::Reindex{}) == Status::shape_mismatch);
  REQUIRE(status([](auto& s) { s.key_metric.rows = 8; }, position::Reindex{}) == Status::shape_mismatch);
  REQUIRE(status([](auto& s) { s.share = 2.0; }, position::Reindex{}) == Status::invalid_argument);
}
