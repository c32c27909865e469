#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/vertical_slash.hpp>
#include <kvcondense/retrieve/prefill_mask.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using retrieve::PrefillMask;

namespace {

/// Keys seen per query; `runs` must say the same as `sees`.
std::vector<int> row_counts(const PrefillMask& mask, index_t n) {
  std::vector<int> counts;
  std::vector<SlotRun> runs(static_cast<std::size_t>(n) + 2);
  for (index_t i = 0; i < n; ++i) {
    std::vector<int> listed, seen;
    const index_t count = mask.runs(i, n, runs.data());
    for (index_t r = 0; r < count; ++r) {
      const SlotRun& run = runs[static_cast<std::size_t>(r)];
      if (r > 0) REQUIRE(run.first > runs[static_cast<std::size_t>(r - 1)].last);
      for (int j = run.first; j < run.last; ++j) listed.push_back(j);
    }
    for (index_t j = 0; j < n; ++j)
      if (mask.sees(i, j, n)) seen.push_back(static_cast<int>(j));
    REQUIRE(listed == seen);
    counts.push_back(static_cast<int>(seen.size()));
  }
  return counts;
}
int total(const std::vector<int>& counts) {
  int sum = 0;
  for (const int c : counts) sum += c;
  return sum;
}

}  // namespace

TEST_CASE("prefill mask: A-shape, tri-shape and vertical-slash of the worked case", "[retrieve][prefill_mask]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "prefill_masks");
  const index_t n = oracle["n"].get<index_t>(), last = oracle["last_q"].get<index_t>();
  PrefillMask mask{.sinks = oracle["sink"].get<index_t>(), .local = oracle["local"].get<index_t>(), .last = last};
  REQUIRE(row_counts(mask, n) == oracle["a_shape_row_counts"].get<std::vector<int>>());
  REQUIRE(total(row_counts(mask, n)) == oracle["a_shape_total"].get<int>());
  mask.shape = PrefillMask::Shape::tri_shape;
  REQUIRE(total(row_counts(mask, n)) == oracle["tri_shape_total"].get<int>());
  mask.last = n;
  REQUIRE(total(row_counts(mask, n)) == oracle["causal_total"].get<int>());

  const std::vector<float> q = test::floats(oracle["Q"]), k = test::floats(oracle["K"]);
  std::vector<float> vertical(12), slash(12);
  Context<Cpu> ctx;
  REQUIRE(prim::VerticalSlash<Cpu>::run(ctx, dense_view(q.data() + 4 * (n - last), 1, last, 4), dense_view(k.data(), 1, n, 4), 0.5f,
                                        dense_view(vertical.data(), 1, n), dense_view(slash.data(), 1, n)) == Status::ok);
  for (std::size_t i = 0; i < 12; ++i) {
    REQUIRE(vertical[i] == Approx(oracle["vertical_scores"][i].get<float>()).margin(1e-6));
    REQUIRE(slash[i] == Approx(oracle["slash_scores_by_offset"][i].get<float>()).margin(1e-6));
  }
  std::vector<std::int32_t> columns(12), offsets(12);
  const auto pick = [&](const std::vector<float>& scores, const char* forced, const char* want, std::vector<std::int32_t>& out) {
    const auto most = static_cast<index_t>(oracle[want].size());
    out.resize(static_cast<std::size_t>(retrieve::best_with_forced(scores, oracle[forced].get<index_t>(), most, out.data())));
    REQUIRE(out == oracle[want].get<std::vector<std::int32_t>>());
  };
  pick(vertical, "force_first_vertical", "vertical_topk", columns);
  pick(slash, "force_first_slash", "slash_topk_offsets", offsets);
  mask = {.shape = PrefillMask::Shape::vertical_slash, .columns = columns, .offsets = offsets};
  REQUIRE(row_counts(mask, n) == oracle["mask_row_counts"].get<std::vector<int>>());
  REQUIRE(total(row_counts(mask, n)) == oracle["mask_total"].get<int>());
}

TEST_CASE("prefill mask: FlexPrefill's measure and its blocks", "[retrieve][prefill_mask]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "flexprefill");
  const auto distance = [&](const char* q) {
    return retrieve::root_jensen_shannon(test::floats(oracle["p"]).data(), test::floats(oracle[q]).data(), 4);
  };
  REQUIRE(distance("q_close") == Approx(oracle["sqrt_jsd_close"].get<double>()).margin(1e-6));
  REQUIRE(distance("q_far") == Approx(oracle["sqrt_jsd_far"].get<double>()).margin(1e-6));
  REQUIRE(distance("p") == 0.0);
  const double tau = oracle["tau"].get<double>();
  REQUIRE((distance("q_close") < tau) == oracle["query_aware"][0].get<bool>());
  REQUIRE((distance("q_far") < tau) == oracle["query_aware"][1].get<bool>());
  const std::vector<float> scores = test::floats(oracle["coverage_scores"]);
  std::vector<std::int32_t> order(5), out(5);
  out.resize(static_cast<std::size_t>(retrieve::covering_places(scores, oracle["gamma"].get<double>(), order.data(), out.data())));
  REQUIRE(out == oracle["selected"].get<std::vector<std::int32_t>>());
  out.resize(5);
  REQUIRE(retrieve::covering_places(scores, 1.0, order.data(), out.data()) == 5);
  REQUIRE(retrieve::covering_places({}, 0.9, order.data(), out.data()) == 0);
}

TEST_CASE("prefill mask: edges", "[retrieve][prefill_mask]") {
  std::vector<std::int32_t> out(4);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scores{nan, 2.0f, 2.0f, 1.0f};
  out.resize(static_cast<std::size_t>(retrieve::best_with_forced(scores, 0, 1, out.data())));
  REQUIRE(out == std::vector<std::int32_t>{1});  // ties keep the place in front
  out.resize(4);
  REQUIRE(retrieve::best_with_forced(scores, 0, 9, out.data()) == 4);
  REQUIRE(retrieve::best_with_forced(scores, 3, 2, out.data()) == 2);
  REQUIRE(retrieve::best_with_forced({}, 1, 2, out.data()) == 0);
  const PrefillMask none{.sinks = 0, .local = 0};
  REQUIRE_FALSE(none.sees(3, 3, 4));
  REQUIRE_FALSE(PrefillMask{}.sees(3, 4, 5));
  SlotRun runs[4];
  REQUIRE(PrefillMask{}.runs(7, 5, runs) == 0);
  REQUIRE(PrefillMask{}.runs(0, 1, runs) == 1);
}
