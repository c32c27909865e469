#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>
#include <eval/error.hpp>
#include <eval/head_scores.hpp>
#include <eval/identify.hpp>
#include <support/oracle.hpp>

#include "dump_files.hpp"

using namespace eval;

namespace {

/// A recording of one layer whose query head h attends where `logit(h, t, j)` says: keys are unit vectors of
/// their tokens, queries hold the logits.
template <class Logit>
Recording scripted(index_t tokens, index_t q_heads, index_t kv_heads, Logit&& logit) {
  Recording r(CacheShape{.layers = 1, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = tokens});
  r.tokens = tokens;
  const double scale = std::sqrt(static_cast<double>(tokens));
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < q_heads; ++h)
      for (index_t j = 0; j < tokens; ++j) r.layers[0].q.push_back(j <= t ? static_cast<float>(scale * logit(h, t, j)) : 0.0f);
    for (index_t h = 0; h < kv_heads; ++h)
      for (index_t d = 0; d < tokens; ++d) {
        r.layers[0].k.push_back(d == t ? 1.0f : 0.0f);
        r.layers[0].v.push_back(d == t ? 1.0f : 0.0f);
      }
  }
  return r;
}

Options tiny() {
  Options o;
  o.model = KVCONDENSE_SOURCE_DIR "/examples/models/tinylm";
  o.context = 256;
  o.documents = 2;
  o.jobs = 1;
  o.quiet = true;
  o.identify = true;
  o.probe.segment = 40;
  o.probe.sinks = 2;
  o.probe.recent = 16;
  return o;
}

}  // namespace

TEST_CASE("identify: echo and induction equal the oracle's, a KV head has the largest of its group", "[eval][identify]") {
  const auto oracle = kvcondense::test::load_oracle("eviction.json", "razor");
  const index_t segment = oracle["params"]["segment"], tokens = segment * oracle["params"]["repeats"].get<index_t>();
  // Tokens are orthogonal, so logits are 2 where keys hold the query's own token (echo_like), or the one before
  // them does (induction_like), and 0 elsewhere.
  const auto logit = [&](index_t h, index_t t, index_t j) {
    const index_t apart = h == 0 ? j - t : j - 1 - t;
    return h < 2 && apart % segment == 0 ? 2.0 : 0.0;
  };
  const ProbeScores got = probe_scores(scripted(tokens, 3, 3, logit), 0, segment);
  const char* names[] = {"echo_like", "induction_like", "local_like"};
  for (std::size_t h = 0; h < 3; ++h) {
    REQUIRE(got.echo[h] == Approx(oracle["heads"][names[h]]["echo"].get<double>()).epsilon(1e-5));
    REQUIRE(got.induction[h] == Approx(oracle["heads"][names[h]]["induction"].get<double>()).epsilon(1e-5));
  }
  const ProbeScores group = probe_scores(scripted(tokens, 3, 1, logit), 0, segment);
  REQUIRE(group.echo[0] == Approx(got.echo[0]));
  REQUIRE(group.induction[0] == Approx(got.induction[1]));
}

TEST_CASE("identify: of the oracle's query heads the largest of each group counts", "[eval][identify]") {
  const auto oracle = kvcondense::test::load_oracle("eviction.json", "razor");
  const auto& group = oracle["head_selection"]["gqa_group_max_example"];
  const index_t segment = oracle["params"]["segment"], tokens = segment * oracle["params"]["repeats"].get<index_t>();
  // Every token that followed an earlier copy of the query's gets what the oracle says; the others share the rest.
  const auto logit = [&](index_t h, index_t t, index_t j) {
    const double p = group["per_query"][static_cast<std::size_t>(h)];
    const index_t copies = t / segment;
    const bool followed = j > 0 && (t - (j - 1)) % segment == 0 && j - 1 < t;
    return std::log(followed ? p : (1 - p * static_cast<double>(copies)) / static_cast<double>(t + 1 - copies));
  };
  const auto heads = static_cast<index_t>(group["per_query"].size());
  const ProbeScores got = probe_scores(scripted(tokens, heads, heads / group["group"].get<index_t>(), logit), 0, segment);
  REQUIRE(got.induction.size() == group["per_kv"].size());
  for (std::size_t g = 0; g < got.induction.size(); ++g) REQUIRE(got.induction[g] == Approx(group["per_kv"][g].get<double>()).epsilon(1e-5));
}

TEST_CASE("identify: column sums are what each token drew", "[eval][identify]") {
  const Recording r = scripted(6, 2, 1, [](index_t h, index_t t, index_t j) { return h == 0 ? 0.0 : static_cast<double>(j == 0) * static_cast<double>(t); });
  const auto sums = column_sums(r, 0);
  REQUIRE(sums.size() == 12);
  for (index_t j = 0; j < 6; ++j) {
    double want = 0;
    for (index_t t = j; t < 6; ++t) want += 1.0 / static_cast<double>(t + 1);
    REQUIRE(static_cast<double>(sums[static_cast<std::size_t>(j)]) == Approx(want).epsilon(1e-5));
  }
  REQUIRE(std::accumulate(sums.begin() + 6, sums.end(), 0.0) == Approx(6.0));
}

TEST_CASE("identify: gaps are what near tokens say less what all say, behind the output projection", "[eval][identify]") {
  // Head 0 is flat; head 1 looks only at the newest tokens and changes little.
  const Recording r = scripted(8, 2, 2, [](index_t h, index_t t, index_t j) { return h == 0 || t - j <= 1 ? 0.0 : -30.0; });
  std::vector<float> identity(16 * 16, 0.0f);
  for (std::size_t i = 0; i < 16; ++i) identity[i * 16 + i] = 1.0f;
  const engine::PackedMatrix output(identity, 16, 16);
  const auto products = gap_products(r, 0, {2, 7}, 1, 2, output);
  // Query 2 sees everything. Query 7 sees tokens 0, 5, 6, 7: 1/4 instead of 1/8 each, 0 for the four others.
  REQUIRE(products[0] == Approx(4 * (0.125 * 0.125) + 4 * (0.125 * 0.125)).epsilon(1e-5));
  REQUIRE(products[3] == Approx(0.0).margin(1e-9));
  REQUIRE(products[1] == Approx(0.0).margin(1e-9));
}

TEST_CASE("identify: the shipped model has a head that retrieves, and every table is there", "[eval][identify]") {
  const Identified a = identify_heads(tiny());
  const HeadsFile& h = a.heads;
  REQUIRE((h.layers == 4 && h.kv_heads == 2));
  for (const auto* table : {&h.gates, &h.induction, &h.echo, &h.shares}) {
    REQUIRE(table->size() == 8);
    for (const float x : *table) REQUIRE((x >= 0.0f && x <= 1.0f));
  }
  REQUIRE(std::accumulate(h.shares.begin(), h.shares.end(), 0.0) == Approx(1.0));
  REQUIRE((h.evicted.size() == 4 && h.variance.size() == 4));
  REQUIRE(std::accumulate(h.evicted.begin(), h.evicted.end(), 0.0) == Approx(4 * 0.5).margin(4.0 / 256));
  const auto most = [](const std::vector<float>& t) { return std::max_element(t.begin(), t.end()) - t.begin(); };
  REQUIRE(most(h.gates) == 6);      // layer 3, head 0
  REQUIRE(most(h.induction) == 6);  // found by another measure
  const HeadsFile back = parse_heads(heads_text(h, a.made), "f");
  REQUIRE(back.gates == h.gates);
  REQUIRE(a.made["sinks"] == 2);
  REQUIRE(a.text.find("induction") != std::string::npos);
}

TEST_CASE("identify: the same numbers on any number of threads, others with another setting", "[eval][identify]") {
  Options o = tiny();
  const HeadsFile one = identify_heads(o).heads;
  o.jobs = 3;
  const HeadsFile three = identify_heads(o).heads;
  REQUIRE(one.gates == three.gates);
  REQUIRE(one.induction == three.induction);
  REQUIRE(one.evicted == three.evicted);
  o.seed = 2;
  REQUIRE(identify_heads(o).heads.induction != one.induction);
  o.documents = 0, o.windows = 1;
  REQUIRE(identify_heads(o).heads.gates != one.gates);
  o = tiny(), o.probe.l1 = 10;
  REQUIRE(identify_heads(o).heads.gates != one.gates);
  o = tiny(), o.probe.recent = 40;
  REQUIRE(identify_heads(o).heads.gates != one.gates);
  o = tiny(), o.probe.evict = 0.25;
  REQUIRE(identify_heads(o).heads.evicted != one.evicted);
}

TEST_CASE("identify: what cannot be measured is refused", "[eval][identify]") {
  Options o = tiny();
  o.probe.segment = 600;
  REQUIRE_THROWS_WITH(identify_heads(o), Catch::Contains("--probe 600") && Catch::Contains("2048"));
  o = tiny(), o.probe.recent = 254;
  REQUIRE_THROWS_WITH(identify_heads(o), Catch::Contains("--sinks"));
  o = tiny(), o.model = "/nowhere";
  REQUIRE_THROWS_AS(identify_heads(o), Error);
}
