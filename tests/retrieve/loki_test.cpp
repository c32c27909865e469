#include <Eigen/Eigenvalues>

#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

/// Principal directions of calibration keys, best first, [dim, dim] row-major.
std::vector<float> directions(const nlohmann::json& keys, std::vector<double>& values) {
  const auto dim = static_cast<Eigen::Index>(keys[0].size()), n = static_cast<Eigen::Index>(keys.size());
  Eigen::MatrixXd x(n, dim);
  for (Eigen::Index i = 0; i < n; ++i)
    for (Eigen::Index d = 0; d < dim; ++d) x(i, d) = keys[static_cast<std::size_t>(i)][static_cast<std::size_t>(d)].get<double>();
  const Eigen::MatrixXd centred = x.rowwise() - x.colwise().mean();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(centred.transpose() * centred);
  std::vector<float> e;
  for (Eigen::Index a = 0; a < dim; ++a)
    for (Eigen::Index c = dim - 1; c >= 0; --c) e.push_back(static_cast<float>(solver.eigenvectors()(a, c)));
  for (Eigen::Index c = dim - 1; c >= 0; --c) values.push_back(solver.eigenvalues()(c));
  return e;
}

}  // namespace

TEST_CASE("loki: approximate logits, tokens and the output of the worked case", "[retrieve][loki]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "loki");
  std::vector<double> values;
  const std::vector<float> e = directions(oracle["K_calibration"], values);
  const double scale = oracle["eigenvalues_desc"][0].get<double>() / values[0];  // of a sum or of a mean
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(values[i] * scale == Approx(oracle["eigenvalues_desc"][i].get<double>()).epsilon(1e-6));
  const float* rows = e.data();
  const auto n = oracle["K"].size();
  const retrieve::Loki stage{.key_axes = {&rows, 1, 4, 4},
                             .columns = oracle["d_f"].get<int>(),
                             .share = oracle["k_f"].get<double>() / static_cast<double>(n)};
  test::RetrieveRig<retrieve::Loki> rig(oracle["K"], oracle["V"], 1, 0.0f, stage);
  const std::vector<float> q = test::floats(oracle["q"]);
  const auto p = stage.pipeline();
  retrieve::ReadView<Cpu> view;
  view.shape = rig.shape, view.state = &rig.rig.cache.layers()[0].index[0];
  float prepared[2], scores[10];
  p.summary.prepare<Cpu>(view, 0, q.data(), prepared);
  p.summary.score<Cpu>(view, 0, 0, 10, {prepared, 1, 2}, {scores, 1, 10});
  for (std::size_t i = 0; i < n; ++i) REQUIRE(scores[i] / 2 == Approx(oracle["approx_logits"][i].get<float>()).margin(1e-5));
  const auto seen = rig.attend(q);
  REQUIRE(seen.slots[0] == oracle["topk"].get<std::vector<int>>());
  for (std::size_t d = 0; d < 2; ++d) REQUIRE(seen.out[d] == Approx(oracle["out"][d].get<float>()).margin(1e-5));
}

TEST_CASE("loki: every field changes what is read, and what does not fit is refused", "[retrieve][loki]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "loki");
  std::vector<double> values;
  const std::vector<float> e = directions(oracle["K_calibration"], values);
  const float* rows = e.data();
  const auto read = [&](retrieve::Loki s) {
    test::RetrieveRig<retrieve::Loki> rig(oracle["K"], oracle["V"], 1, 0.0f, s);
    return rig.attend(test::floats(oracle["q"])).slots;
  };
  const LayerMatrices axes{&rows, 1, 4, 4};
  const auto usual = read({.key_axes = axes, .columns = 2, .share = 0.4});
  REQUIRE(read({.key_axes = axes, .columns = 4, .share = 0.4}) != usual);
  REQUIRE(read({.key_axes = axes, .columns = 2, .share = 0.2}) != usual);
  const CacheShape shape{.head_dim = 4};
  const auto status = [&](retrieve::Loki s) { return make_cache<Cpu>(shape, recipe(s)).status(); };
  REQUIRE(status({}) == Status::missing_input);
  REQUIRE(status({.key_axes = {&rows, 1, 8, 4}}) == Status::shape_mismatch);
  REQUIRE(status({.key_axes = {&rows, 2, 4, 4}}) == Status::shape_mismatch);
  REQUIRE(status({.key_axes = axes, .columns = 0}) == Status::invalid_argument);
  REQUIRE(status({.key_axes = axes, .share = -0.1}) == Status::invalid_argument);
}
