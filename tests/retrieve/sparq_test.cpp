#include <limits>

#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

/// Keys of every head alike.
struct OneList final : SlotRows<Cpu> {
  std::vector<std::vector<float>> rows;
  index_t dim() const noexcept override { return static_cast<index_t>(rows[0].size()); }
  void read(index_t, index_t first, prim::RowBlock<float> out) const noexcept override {
    for (index_t i = 0; i < out.rows; ++i) std::copy_n(rows[static_cast<std::size_t>(first + i)].data(), dim(), out.data + i * out.step);
  }
};

}  // namespace

TEST_CASE("sparq: channels, temperature, approximate attention and the output of the worked case", "[retrieve][sparq]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "sparq");
  const std::vector<float> q = test::floats(oracle["q"]);
  float top[5];
  retrieve::TopChannels{2}.of(q.data(), 4, top);
  for (std::size_t d = 0; d < 4; ++d) REQUIRE((top[d] != 0.0f) == (oracle["top_dims"][0] == d || oracle["top_dims"][1] == d));
  REQUIRE(top[4] == Approx(oracle["temperature"].get<float>()));

  test::RetrieveRig<retrieve::SparQ> rig(oracle["K"], oracle["V"], 1, 0.0f, {.channels = 2, .tokens = 3});
  const auto& cache = rig.rig.cache;
  const index_t slots[] = {10}, prompt[] = {10};
  retrieve::ReadView<Cpu> view;
  view.shape = rig.shape, view.state = &cache.layers()[0].index[0], view.slots = view.known = slots, view.prompt = prompt, view.queries = q.data();
  std::vector<float> scores(10);
  retrieve::ChannelPages{2}.score<Cpu>(view, 0, 0, 10, {top, 1, 5}, {scores.data(), 1, 10});
  const index_t offset[] = {0, 10};
  Context<Cpu> ctx;
  REQUIRE(prim::SoftmaxRows<Cpu>::run(ctx, 1.0f, {scores.data(), offset, 1}) == Status::ok);
  for (std::size_t i = 0; i < 10; ++i) REQUIRE(scores[i] == Approx(oracle["s_hat"][i].get<float>()).margin(1e-6));
  double alpha = 0;
  for (const auto& i : oracle["topk"]) alpha += static_cast<double>(scores[i.get<std::size_t>()]);
  REQUIRE(alpha == Approx(oracle["alpha"].get<double>()).margin(1e-6));
  float mean[2];
  retrieve::ChannelPages{2}.mean_value<Cpu>(view, 0, mean);
  for (std::size_t d = 0; d < 2; ++d) REQUIRE(mean[d] == Approx(oracle["v_mean"][d].get<float>()).margin(1e-6));

  const auto seen = rig.attend(q);
  REQUIRE(seen.slots[0] == oracle["topk"].get<std::vector<int>>());
  for (std::size_t d = 0; d < 2; ++d) REQUIRE(seen.out[d] == Approx(oracle["out"][d].get<float>()).margin(1e-6));
  REQUIRE(seen.reads.index_bytes == 10 * 2 * 4);

  // With two local tokens forced the third place goes to the best of the others.
  test::RetrieveRig<retrieve::SparQ> forced(oracle["K"], oracle["V"], 1, 0.0f, {.channels = 2, .tokens = 3, .local = 2});
  REQUIRE(forced.attend(q).slots[0] == oracle["topk_with_local2"].get<std::vector<int>>());
  const auto& d = oracle["defaults"];
  const index_t n = d["S"].get<index_t>(), dim = d["D"].get<index_t>(), r = d["rank"].get<index_t>(), k = d["k"].get<index_t>();
  REQUIRE(retrieve::SparQ{}.channels == r);
  const index_t many[] = {n};
  view.slots = many;
  REQUIRE(retrieve::SparQ{}.pipeline().select.budget(view, 0) == k);
  // Channels of all keys, rows of the chosen, the new key and value, and the mean read and written.
  REQUIRE(n * r + 2 * k * dim + 4 * dim == d["elements_sparq"].get<index_t>());
  REQUIRE(2 * n * dim + 2 * dim == d["elements_dense"].get<index_t>());
}

TEST_CASE("sparq: pending tokens are read and counted, pages of channels go on", "[retrieve][sparq]") {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  const auto rows = [&](std::size_t n, std::size_t dim) {
    nlohmann::json j;
    for (std::size_t i = 0; i < n; ++i) {
      j.push_back(nlohmann::json::array());
      for (std::size_t d = 0; d < dim; ++d) j.back().push_back(normal(random));
    }
    return j;
  };
  const nlohmann::json k = rows(150, 4), v = rows(150, 2);
  const std::vector<float> q{0.5f, -1.0f, 0.25f, 2.0f};
  // All but the newest token through a prompt, that one pending: the same approximate attention as in one go.
  nlohmann::json k0(k.begin(), k.end() - 1), v0(v.begin(), v.end() - 1);
  test::RetrieveRig<retrieve::SparQ> rig(k0, v0, 1, 0.0f, {.channels = 4, .tokens = 20});
  const std::vector<float> nk = test::floats(k[149]), nv = test::floats(v[149]);
  REQUIRE(rig.rig.cache.append(rig.rig.ctx, 0, dense_view(nk.data(), 1, 1, 4), dense_view(nv.data(), 1, 1, 2)) == Status::ok);
  const auto seen = rig.attend(q);
  REQUIRE(seen.slots[0].size() == 21);
  // With every channel the approximation is exact at temperature 2 = sqrt(4).
  std::vector<double> w;
  double all = 0, read = 0, y[2] = {}, mean[2] = {};
  for (std::size_t i = 0; i < 150; ++i) {
    double dot = 0;
    for (std::size_t d = 0; d < 4; ++d) dot += static_cast<double>(q[d]) * k[i][d].get<double>();
    w.push_back(std::exp(dot / 2));
    all += w.back();
    for (std::size_t d = 0; d < 2; ++d) mean[d] += v[i][d].get<double>() / 150;
  }
  for (const int i : seen.slots[0]) {
    read += w[static_cast<std::size_t>(i)];
    for (std::size_t d = 0; d < 2; ++d) y[d] += w[static_cast<std::size_t>(i)] * v[static_cast<std::size_t>(i)][d].get<double>();
  }
  for (std::size_t d = 0; d < 2; ++d)
    REQUIRE(seen.out[d] == Approx(read / all * y[d] / read + (1 - read / all) * mean[d]).margin(1e-5));
}

TEST_CASE("sparq: every field changes what is read", "[retrieve][sparq]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "sparq");
  const auto read = [&](retrieve::SparQ s) {
    test::RetrieveRig<retrieve::SparQ> rig(oracle["K"], oracle["V"], 1, 0.0f, s);
    return rig.attend(test::floats(oracle["q"]));
  };
  REQUIRE(read({.channels = 1, .tokens = 3}).slots != read({.channels = 2, .tokens = 3}).slots);
  REQUIRE(read({.channels = 2, .tokens = 4}).slots != read({.channels = 2, .tokens = 3}).slots);
  REQUIRE(read({.channels = 2, .share = 0.5}).slots != read({.channels = 2, .share = 0.2}).slots);
}

TEST_CASE("sparq: slots that no index knows weigh what they weigh, alone and far above all others", "[retrieve][sparq]") {
  OneList keys;
  keys.rows = {{0, 0}, {0, 0}, {2, 0}, {6, 0}, {-4, 0}};
  const float q[] = {1, 0, 1, 0};
  retrieve::ReadView<Cpu> view;
  const index_t slots[] = {3, 5}, offset[] = {0, 0, 2};
  view.shape = {.q_heads = 2, .kv_heads = 2, .head_dim = 2}, view.queries = q, view.slots = slots, view.keys = &keys;
  const auto shares = [&](std::vector<float> scores) {
    std::vector<std::int32_t> units(2);
    std::vector<index_t> count(2);
    std::vector<float> share(2, -1.0f);
    std::vector<std::byte> work(4096);
    Scratch scratch(work);
    Context<Cpu> ctx;
    const retrieve::UnitLists lists{{units.data(), offset, 2}, count.data(), nullptr, share.data()};
    REQUIRE(retrieve::TopWithShare{.slots = 1, .channels = 2}.run(ctx, view, {scores.data(), offset, 2}, lists, scratch) == Status::ok);
    REQUIRE((count[0] == 0 && count[1] == 1 && units[0] == 1));
    return share;
  };
  // Two channels make the temperature sqrt(2).
  const double root = std::sqrt(2.0), fresh = std::exp(2 / root) + std::exp(6 / root) + std::exp(-4 / root);
  const auto usual = shares({0.5f, 2.0f});
  REQUIRE(usual[0] == 1.0f);  // a head without candidates reads all
  REQUIRE(usual[1] == Approx((std::exp(2.0) + fresh) / (std::exp(0.5) + std::exp(2.0) + fresh)).epsilon(1e-6));
  keys.rows[3][0] = 5000.0f;
  REQUIRE(shares({0.5f, 2.0f})[1] == 1.0f);
  keys.rows[3][0] = std::numeric_limits<float>::quiet_NaN();  // weighs nothing, as where it is scored
  const double rest = fresh - std::exp(6 / root);
  REQUIRE(shares({0.5f, 2.0f})[1] == Approx((std::exp(2.0) + rest) / (std::exp(0.5) + std::exp(2.0) + rest)).epsilon(1e-6));
  keys.rows[3][0] = -5000.0f;
  REQUIRE(shares({800.0f, 801.0f})[1] == Approx(1 / (1 + std::exp(-1.0))).epsilon(1e-6));
}
