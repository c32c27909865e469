#include <Eigen/SVD>

#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

struct Case {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "infinigen");
  std::vector<float> axes;  ///< [2 heads * 4, 4]: right singular vectors of the sample queries
  std::vector<float> sample;
  const float* rows;
  retrieve::InfiniGen stage;

  Case() {
    for (const auto& head : oracle["Q_sample"]) {
      Eigen::MatrixXd q(static_cast<Eigen::Index>(head.size()), 4);
      for (Eigen::Index i = 0; i < q.rows(); ++i)
        for (Eigen::Index d = 0; d < 4; ++d) q(i, d) = head[static_cast<std::size_t>(i)][static_cast<std::size_t>(d)].get<double>();
      const Eigen::JacobiSVD<Eigen::MatrixXd> svd(q, Eigen::ComputeThinU | Eigen::ComputeThinV);
      for (Eigen::Index a = 0; a < 4; ++a)
        for (Eigen::Index c = 0; c < 4; ++c) axes.push_back(static_cast<float>(svd.matrixV()(a, c)));
    }
    sample = test::floats(oracle["Q_sample"]);
    rows = axes.data();
    stage = {.query_axes = {&rows, 1, 8, 4}, .part = 0.5, .alpha = oracle["alpha"].get<double>(), .share = 1.0, .dense_layers = 0};
  }
  /// The cache of two heads after a prompt, its last six queries the sample.
  template <class Use>
  void with_cache(const retrieve::InfiniGen& s, Use&& use) const {
    const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32, .softmax_scale = 1.0f};
    test::CacheRig<RecipeOf<retrieve::InfiniGen>> rig(shape, recipe(s), 64, 16);
    const std::vector<float> k = test::floats(oracle["K"]);
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(k.data(), 2, 8, 4), dense_view(k.data(), 2, 8, 4)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = dense_view(sample.data(), 2, 6, 4)}, Phase::prefill_end) == Status::ok);
    use(rig);
  }
  std::vector<std::vector<int>> read(const retrieve::InfiniGen& s) const {
    std::vector<std::vector<int>> all;
    with_cache(s, [&](auto& rig) {
      const std::vector<float> q = test::floats(oracle["Q"]);
      std::vector<float> out(8);
      SlotRun runs[18];
      index_t count[2];
      REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 2, 1, 4), dense_view(out.data(), 2, 1, 4), {.runs = {runs, 9, count}}) == Status::ok);
      for (index_t h = 0; h < 2; ++h) {
        all.emplace_back();
        for (index_t i = 0; i < count[h]; ++i)
          for (int slot = runs[9 * h + i].first; slot < runs[9 * h + i].last; ++slot) all.back().push_back(slot);
      }
    });
    return all;
  }
};

}  // namespace

TEST_CASE("infinigen: columns, speculated scores, counts and tokens of the worked case", "[retrieve][infinigen]") {
  const Case c;
  c.with_cache(c.stage, [&](auto& rig) {
    const std::vector<float> q = test::floats(c.oracle["Q"]);
    retrieve::ReadView<Cpu> view;
    view.shape = rig.cache.shape(), view.state = &rig.cache.layers()[0].index[0];
    const auto p = c.stage.pipeline();
    std::vector<float> scores(16);
    double sum = 0;
    for (index_t h = 0; h < 2; ++h) {
      float prepared[2];
      p.summary.template prepare<Cpu>(view, h, q.data() + 4 * h, prepared);
      p.summary.template score<Cpu>(view, h, 0, 8, {prepared, 1, 2}, {scores.data() + 8 * h, 1, 8});
      double scaled = 0;
      for (std::size_t i = 0; i < 8; ++i) {
        const auto at = static_cast<std::size_t>(8 * h) + i;
        scaled = std::max(scaled, std::abs(static_cast<double>(scores[at]) - c.oracle["speculated_scores"][static_cast<std::size_t>(h)][i].template get<double>()));
      }
      REQUIRE(scaled < 1e-5);
      sum += c.oracle["counts_above"][static_cast<std::size_t>(h)].template get<double>();
    }
    REQUIRE(sum / 2 == c.oracle["mean_count"].template get<double>());
  });
  REQUIRE(c.read(c.stage) == c.oracle["selected"].get<std::vector<std::vector<int>>>());
}

TEST_CASE("infinigen: every field changes what is read, and what does not fit is refused", "[retrieve][infinigen]") {
  const Case c;
  const auto usual = c.read(c.stage);
  const auto other = [&](auto change) {
    retrieve::InfiniGen s = c.stage;
    change(s);
    return c.read(s);
  };
  REQUIRE(other([](auto& s) { s.part = 0.25; }) != usual);
  retrieve::InfiniGen fewer = c.stage, stricter = c.stage;  // columns of another number are no columns of a file
  fewer.part = 0.25, stricter.alpha = 0.3;
  REQUIRE(fewer.pipeline().fingerprint() != c.stage.pipeline().fingerprint());
  REQUIRE(stricter.pipeline().fingerprint() == c.stage.pipeline().fingerprint());
  REQUIRE(other([](auto& s) { s.alpha = 0.3; }) != usual);
  REQUIRE(other([](auto& s) { s.share = 0.5; }) != usual);
  REQUIRE(other([](auto& s) { s.dense_layers = 1; }) != usual);
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 4};
  const auto status = [&](auto change) {
    retrieve::InfiniGen s = c.stage;
    change(s);
    return make_cache<Cpu>(shape, recipe(s)).status();
  };
  REQUIRE(status([](auto&) {}) == Status::ok);
  REQUIRE(status([](auto& s) { s.query_axes = {}; }) == Status::missing_input);
  REQUIRE(status([](auto& s) { s.query_axes.rows = 4; }) == Status::shape_mismatch);
  REQUIRE(status([](auto& s) { s.part = 0.0; }) == Status::invalid_argument);
}

TEST_CASE("infinigen: a query head with long queries does not take all columns of its group", "[retrieve][infinigen]") {
  // Two query heads: the one's queries are 50 times as long and lie in channels 0 and 1, the other's lie in 2 and 3.
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 4, .dtype = DType::f32};
  const std::vector<float> axes{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, keys(32, 0.5f);
  const float* rows = axes.data();
  const retrieve::InfiniGen stage{.query_axes = {&rows, 1, 4, 4}, .part = 0.5, .dense_layers = 0};
  const auto columns = [&](float longer) {
    std::vector<float> q(2 * 8 * 4);
    for (std::size_t t = 0; t < 8; ++t) {
      q[4 * t] = 3 * longer, q[4 * t + 1] = longer;
      q[32 + 4 * t + 2] = 1, q[32 + 4 * t + 3] = 3;
    }
    test::CacheRig<RecipeOf<retrieve::InfiniGen>> rig(shape, recipe(stage), 64, 16);
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(keys.data(), 1, 8, 4), dense_view(keys.data(), 1, 8, 4)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = dense_view(q.data(), 2, 8, 4)}, Phase::prefill_end) == Status::ok);
    const auto& found = rig.cache.layers()[0].index[0].found;
    std::vector<float> list(found.begin(), found.end());
    std::sort(list.begin(), list.end());
    return list;
  };
  REQUIRE(columns(1.0f) == std::vector<float>{0, 3});
  REQUIRE(columns(50.0f) == std::vector<float>{0, 3});
  REQUIRE(columns(0.0f) == std::vector<float>{2, 3});  // a head without queries says nothing
}
