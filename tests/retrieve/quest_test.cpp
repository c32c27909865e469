#include <cstring>

#include <retrieve/rig.hpp>

using namespace kvcondense;
using test::RetrieveRig;

TEST_CASE("quest: pages, scores and outputs of the worked case", "[retrieve][quest]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "quest");
  const std::vector<float> q = test::floats(oracle["Q"]);
  const auto run = [&](retrieve::Quest quest) {
    quest.page = 4, quest.tokens = 12, quest.dense_layers = 0;
    RetrieveRig<retrieve::Quest> rig(oracle["K"], oracle["V"], 2, 0.5f, quest);
    return rig.attend(q);
  };
  const auto check = [&](const auto& seen, const nlohmann::json& pages, const nlohmann::json& out) {
    for (std::size_t h = 0; h < 2; ++h) {
      REQUIRE(seen.slots[h] == test::slots_of_pages(pages[h], 4, 18));
      for (std::size_t d = 0; d < 2; ++d) REQUIRE(seen.out[2 * h + d] == Approx(out[h][d].template get<float>()).margin(1e-6));
    }
  };
  const auto forced = run({});
  check(forced, oracle["last_page_forced"]["pages"], oracle["last_page_forced"]["out"]);
  for (std::size_t h = 0; h < 2; ++h) REQUIRE(forced.lse[h] == Approx(oracle["last_page_forced"]["lse"][h].get<float>()).margin(1e-6));
  REQUIRE(forced.reads.units_scored == 2 * 4);
  REQUIRE(forced.reads.slots_read == 10 + 10);
  REQUIRE(forced.reads.slots_touched == 14);
  REQUIRE(forced.reads.slot_bytes == 20 * (4 + 2) * 4);
  REQUIRE(forced.reads.index_bytes == 4 * 2 * 4 * 4);
  // The index, its scores, and what they bound.
  RetrieveRig<retrieve::Quest> rig(oracle["K"], oracle["V"], 2, 0.5f, {.page = 4, .tokens = 12, .dense_layers = 0});
  const auto& index = rig.rig.cache.layers()[0].index[0];
  const auto plane = [&](std::size_t which) {
    std::vector<float> rows(20);
    REQUIRE(index.plane[which].size() == 80);
    std::memcpy(rows.data(), index.plane[which].data(), 80);
    return rows;
  };
  REQUIRE(plane(0) == test::floats(oracle["page_max"]));
  REQUIRE(plane(1) == test::floats(oracle["page_min"]));
  retrieve::ReadView<Cpu> view;
  view.shape = rig.shape, view.state = &index;
  const retrieve::MinMax summary{4};
  const auto scores = [&](const std::vector<float>& query) {
    std::vector<float> prepared(8), out(5);
    summary.prepare<Cpu>(view, 0, query.data(), prepared.data());
    summary.score<Cpu>(view, 0, 0, 5, {prepared.data(), 1, 8}, {out.data(), 1, 5});
    return out;
  };
  for (std::size_t h = 0; h < 2; ++h) {
    const auto got = scores({q.begin() + static_cast<std::ptrdiff_t>(4 * h), q.begin() + static_cast<std::ptrdiff_t>(4 * h + 4)});
    REQUIRE(got == test::floats(oracle["scores"][h]));
    for (std::size_t p = 0; p < 5; ++p) REQUIRE(got[p] >= oracle["exact_page_max_dot"][h][p].get<float>());
  }
  // Scores of a sum of queries are not the sum of scores: no bound for either.
  REQUIRE(scores(test::floats(oracle["sum_query"])) == test::floats(oracle["score_of_sum_query"]));
  for (std::size_t p = 0; p < 5; ++p)
    REQUIRE(oracle["scores"][0][p].get<float>() + oracle["scores"][1][p].get<float>() == oracle["group_sum_scores"][p].get<float>());
  const auto free = run({.keep_last = false});
  check(free, oracle["last_page_is_candidate"]["pages"], oracle["last_page_is_candidate"]["out"]);
  const auto shared = run({.heads = retrieve::Heads::group_sum});
  for (std::size_t h = 0; h < 2; ++h) REQUIRE(shared.slots[h] == test::slots_of_pages(oracle["group_shared_pages_last_forced"], 4, 18));
}
