#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

struct Case {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "magicpig");
  std::vector<float> planes = test::floats(oracle["planes"]);
  HashPlanes view{planes.data(), 6, 2, 4};
  retrieve::MagicPig stage{.hash_planes = view, .sinks = 2, .local = 2, .dense_every = 0};
};

}  // namespace

TEST_CASE("magicpig: chances of the table", "[retrieve][magicpig]") {
  const Case c;
  for (const auto& row : c.oracle["prob_table"])
    REQUIRE(retrieve::Sampled::chance(row["cos"].get<double>(), row["K"].get<index_t>(), row["L"].get<index_t>()) ==
            Approx(row["w"].get<double>()).margin(1e-9));
}

TEST_CASE("magicpig: centre, words, collisions, weights and the output of the worked case", "[retrieve][magicpig]") {
  const Case c;
  test::RetrieveRig<retrieve::MagicPig> rig(c.oracle["K"], c.oracle["V"], 1, 0.0f, c.stage);
  const auto& index = rig.rig.cache.layers()[0].index[0];
  for (std::size_t d = 0; d < 4; ++d) REQUIRE(index.found[static_cast<index_t>(d)] == Approx(c.oracle["centre"][d].get<float>()).margin(1e-6));
  const std::vector<float> q = test::floats(c.oracle["q"]);
  const auto p = c.stage.pipeline();
  const index_t slots[] = {12};
  retrieve::ReadView<Cpu> view;
  view.shape = rig.shape, view.state = &index, view.slots = view.known = slots, view.queries = q.data();
  float words[6], scores[12];
  p.summary.prepare<Cpu>(view, 0, q.data(), words);
  for (std::size_t t = 0; t < 6; ++t)
    REQUIRE(words[t] == static_cast<float>(c.oracle["q_codes"][t][0].get<int>() + 2 * c.oracle["q_codes"][t][1].get<int>()));
  p.summary.score<Cpu>(view, 0, 0, 12, {words, 1, 6}, {scores, 1, 12});
  for (std::size_t i = 0; i < 12; ++i) REQUIRE(scores[i] == c.oracle["collision_counts"][i].get<float>());

  const auto seen = rig.attend(q);
  std::vector<int> want{0, 1};
  for (const auto& i : c.oracle["sampled"]) want.push_back(i.get<int>());
  want.push_back(10), want.push_back(11);
  REQUIRE(seen.slots[0] == want);
  for (std::size_t d = 0; d < 2; ++d) REQUIRE(seen.out[d] == Approx(c.oracle["out"][d].get<float>()).margin(1e-5));
  // The weights that made it: corrected logits of the case, up to what centring adds to all.
  double sum = 0;
  for (const auto& l : c.oracle["corrected_logits"]) sum += std::exp(l.get<double>());
  for (const auto& l : c.oracle["static_logits_centred"]) sum += std::exp(l.get<double>());
  double shift = 0;
  for (std::size_t d = 0; d < 4; ++d) shift += 0.5 * static_cast<double>(q[d]) * c.oracle["centre"][d].get<double>();
  REQUIRE(seen.lse[0] == Approx(std::log(sum) + shift).margin(1e-5));
}

TEST_CASE("magicpig: planes drawn from a seed sample by their chance", "[retrieve][magicpig]") {
  constexpr index_t tables = 400, bits = 4, dim = 16;
  std::vector<float> planes(static_cast<std::size_t>(tables * bits * dim));
  retrieve::fill_planes(7, planes.data(), static_cast<index_t>(planes.size()));
  double mean = 0, square = 0;
  for (const float x : planes) mean += static_cast<double>(x), square += static_cast<double>(x) * static_cast<double>(x);
  REQUIRE(std::abs(mean) / static_cast<double>(planes.size()) < 0.02);
  REQUIRE(square / static_cast<double>(planes.size()) == Approx(1.0).epsilon(0.03));
  // Vectors at 60 degrees agree on a plane two times in three.
  std::vector<float> a(dim, 0.0f), b(dim, 0.0f);
  a[0] = 1.0f, b[0] = 0.5f, b[1] = std::sqrt(0.75f);
  index_t same = 0;
  for (index_t i = 0; i < tables * bits; ++i) {
    const float* plane = planes.data() + i * dim;
    float x = 0, y = 0;
    for (std::size_t d = 0; d < 16; ++d) x += a[d] * plane[d], y += b[d] * plane[d];
    same += (x > 0) == (y > 0);
  }
  REQUIRE(static_cast<double>(same) / static_cast<double>(tables * bits) == Approx(2.0 / 3).margin(0.04));
}

TEST_CASE("magicpig: every field changes what is read, and what does not fit is refused", "[retrieve][magicpig]") {
  const Case c;
  const auto read = [&](auto change) {
    retrieve::MagicPig s = c.stage;
    change(s);
    test::RetrieveRig<retrieve::MagicPig> rig(c.oracle["K"], c.oracle["V"], 1, 0.0f, s);
    return rig.attend(test::floats(c.oracle["q"])).slots;
  };
  const auto usual = read([](auto&) {});
  REQUIRE(read([](auto& s) { s.sinks = 3; }) != usual);
  REQUIRE(read([](auto& s) { s.local = 4; }) != usual);
  REQUIRE(read([](auto& s) { s.hash_planes.tables = 3; }) != usual);
  REQUIRE(read([](auto& s) { s.dense_every = 16; }) != usual);
  const auto status = [&](auto change) {
    retrieve::MagicPig s = c.stage;
    change(s);
    return make_cache<Cpu>(CacheShape{.head_dim = 4}, recipe(s)).status();
  };
  REQUIRE(status([](auto&) {}) == Status::ok);
  REQUIRE(status([](auto& s) { s.hash_planes = {}; }) == Status::missing_input);
  REQUIRE(status([](auto& s) { s.hash_planes.dim = 8; }) == Status::shape_mismatch);
  REQUIRE(status([](auto& s) { s.hash_planes.bits = 17; }) == Status::invalid_argument);
  REQUIRE(status([](auto& s) { s.dense_every = -1; }) == Status::invalid_argument);
}

TEST_CASE("magicpig: every sixteenth layer reads all, as the paper's models do", "[retrieve][magicpig]") {
  const auto dense = [](index_t every) {
    const auto p = retrieve::MagicPig{.dense_every = every}.pipeline();
    std::vector<index_t> all;
    for (index_t layer = 0; layer < 80; ++layer)
      if (p.reads_all(layer)) all.push_back(layer);
    return all;
  };
  REQUIRE(dense(retrieve::MagicPig{}.dense_every) == std::vector<index_t>{0, 16, 32, 48, 64});
  REQUIRE(dense(40) == std::vector<index_t>{0, 40});
  REQUIRE(dense(0).empty());
}
