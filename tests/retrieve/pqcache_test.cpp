#include <retrieve/rig.hpp>

using namespace kvcondense;

TEST_CASE("pqcache: codes, tables, scores and tokens of the worked case", "[retrieve][pqcache]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "pqcache");
  const std::vector<float> k = test::floats(oracle["K"]), q = test::floats(oracle["Q"]);
  const CacheShape shape{.q_heads = 2, .head_dim = 4, .dtype = DType::f32, .softmax_scale = 0.5f};
  // Three centroids per part: the fourth lies where no key is.
  const retrieve::ProductCodes codes{.parts = 2, .bits = 2};
  retrieve::UnitState state(heap_memory());
  REQUIRE(state.found.reserve(16) == Status::ok);
  for (const auto& book : oracle["codebooks"]) {
    for (const float x : test::floats(book)) state.found.append_reserved(x);
    state.found.append_reserved(1e3f), state.found.append_reserved(1e3f);
  }
  REQUIRE(state.plane[0].resize(12 * 2) == Status::ok);
  const DenseRows rows(dense_view(k.data(), 1, 12, 4));
  codes.build<Cpu>({&shape, {}, 12, &rows, &rows}, 0, 0, 12, state);
  for (index_t i = 0; i < 24; ++i)
    REQUIRE(std::to_integer<int>(state.plane[0][i]) == oracle["codes"][static_cast<std::size_t>(i / 2)][static_cast<std::size_t>(i % 2)].get<int>());

  const index_t slots[] = {12}, prompt[] = {12};
  retrieve::ReadView<Cpu> view;
  view.shape = shape, view.state = &state, view.queries = q.data(), view.slots = view.known = slots, view.prompt = prompt;
  std::vector<float> tables(16), scores(24);
  for (index_t h = 0; h < 2; ++h) {
    codes.prepare<Cpu>(view, 0, q.data() + 4 * h, tables.data() + 8 * h);
    for (std::size_t p = 0; p < 2; ++p)
      for (std::size_t c = 0; c < 3; ++c)
        REQUIRE(tables[static_cast<std::size_t>(8 * h) + 4 * p + c] == oracle["lut"][static_cast<std::size_t>(h)][p][c].get<float>());
  }
  codes.score<Cpu>(view, 0, 0, 12, {tables.data(), 2, 8}, {scores.data(), 2, 12});
  REQUIRE(scores == test::floats(oracle["adc"]));

  // The stages behind: softmax over candidates, sum over the group, the best three.
  const index_t offset[] = {0, 12, 24};
  Context<Cpu> ctx;
  const RaggedView<float> both{scores.data(), offset, 2};
  REQUIRE(retrieve::SoftmaxScore{}.run(ctx, view, both) == Status::ok);
  for (std::size_t i = 0; i < 24; ++i) REQUIRE(scores[i] == Approx(test::floats(oracle["softmax"])[i]).margin(1e-6));
  std::vector<float> sum(12);
  REQUIRE(retrieve::ByHeads{retrieve::Heads::group_sum}.run(ctx, view, both, RaggedView<float>{sum.data(), offset, 1}) == Status::ok);
  for (std::size_t i = 0; i < 12; ++i) REQUIRE(sum[i] == Approx(test::floats(oracle["group_sum"])[i]).margin(1e-6));
  std::vector<std::int32_t> best(12);
  index_t count = 0;
  std::vector<std::byte> work(1024);
  Scratch scratch(work);
  const retrieve::UnitLists lists{{best.data(), offset, 1}, &count};
  REQUIRE(retrieve::TopShare{{.share = 0.25}}.run(ctx, view, RaggedView<const float>{sum.data(), offset, 1}, lists, scratch) == Status::ok);
  best.resize(static_cast<std::size_t>(count));
  REQUIRE(best == oracle["topk3"].get<std::vector<std::int32_t>>());
}

TEST_CASE("pqcache: budget and bytes of the worked case", "[retrieve][pqcache]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "pqcache");
  const index_t slots[] = {oracle["budget_example"]["n"].get<index_t>()};
  retrieve::ReadView<Cpu> view;
  view.slots = slots;
  const auto p = retrieve::PqCache{}.pipeline();
  REQUIRE(p.keep.of(view, 0).prefix == oracle["budget_example"]["sink"].get<index_t>());
  REQUIRE(p.keep.of(view, 0).suffix == oracle["budget_example"]["recent"].get<index_t>());
  REQUIRE(p.select.budget(view, 0) == oracle["budget_example"]["topk"].get<index_t>());
  // Codes lie in whole bytes, between bits that are packed and 16-bit words.
  const auto& bytes = oracle["bytes_per_token_per_kv_head"];
  const retrieve::PqCache usual;
  REQUIRE(usual.bits == oracle["kmeans_bits"].get<index_t>());
  REQUIRE(usual.parts * usual.bits == bytes["codes_bits"].get<index_t>());
  const auto code = static_cast<index_t>(usual.pipeline().index_row_bytes({.head_dim = 128}));
  REQUIRE(2 * code == bytes["as_int16_pairs"].get<index_t>());
  REQUIRE(8 * code >= bytes["codes_bits"].get<index_t>());
  REQUIRE(p.summary.plane_bytes(CacheShape{}, 0) == 2);  // 12 bits in two bytes
}

TEST_CASE("pqcache: keys that are centroids are found again, and every field changes what is read", "[retrieve][pqcache]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "sparq");
  nlohmann::json keys, values;
  for (int i = 0; i < 6; ++i)
    for (std::size_t j = 0; j < oracle["K"].size(); ++j) {
      keys.push_back(oracle["K"][(j * 7 + static_cast<std::size_t>(i)) % 10]);
      keys.back()[0] = keys.back()[0].get<float>() + 0.01f * static_cast<float>(i * 10) + 0.003f * static_cast<float>(j);
      values.push_back(oracle["V"][j]);
    }
  const std::vector<float> q = test::floats(oracle["q"]);
  const auto read = [&](retrieve::PqCache stage) {
    test::RetrieveRig<retrieve::PqCache> rig(keys, values, 1, 0.0f, stage);
    return rig.attend(q).slots;
  };
  const retrieve::PqCache base{.bits = 3, .keep = 0.3, .recent = 0.4, .sinks = 4};
  const auto other = [&](auto change) {
    retrieve::PqCache s = base;
    change(s);
    return read(s);
  };
  const auto usual = read(base);
  REQUIRE(usual[0].size() == 4 + 6 + 10);  // int(56 * 0.12) + int(56 * 0.18)
  REQUIRE(other([](auto& s) { s.parts = 4; }) != usual);
  REQUIRE(other([](auto& s) { s.bits = 1; }) != usual);
  REQUIRE(other([](auto& s) { s.bits = 1, s.iterations = 1; }) != other([](auto& s) { s.bits = 1; }));
  REQUIRE(other([](auto& s) { s.keep = 0.4; }) != usual);
  REQUIRE(other([](auto& s) { s.recent = 0.6; }) != usual);
  REQUIRE(other([](auto& s) { s.sinks = 2; }) != usual);

  // With a code for every key the choice is that of exact logits.
  test::RetrieveRig<retrieve::PqCache> exact(keys, values, 1, 0.0f, {.parts = 1, .bits = 6, .keep = 0.2, .recent = 0.0, .sinks = 0});
  std::vector<std::pair<double, int>> order;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    double dot = 0;
    for (std::size_t d = 0; d < 4; ++d) dot += keys[i][d].get<double>() * static_cast<double>(q[d]);
    order.emplace_back(-dot, static_cast<int>(i));
  }
  std::sort(order.begin(), order.end());
  std::vector<int> best;
  for (std::size_t i = 0; i < 12; ++i) best.push_back(order[i].second);
  std::sort(best.begin(), best.end());
  REQUIRE(exact.attend(q).slots[0] == best);
}
