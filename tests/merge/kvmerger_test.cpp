#include <kvcondense/merge/blocks/sets.hpp>
#include <kvcondense/merge/kvmerger.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("kvmerger: the oracle's sets, pivots and sums, with both widths", "[merge][kvmerger]") {
  const auto o = merging_oracle("kvmerger");
  for (const bool fixed : {false, true}) {
    auto d = merge_driver(one_head(2), merge::KVMerger{.sigma = fixed ? 5.0f : 0.0f, .heavy = 0.0, .recent = 0.0, .window = 1,
                                                       .sinks = 1, .mass = merge::Mass::value_scale,
                                                       .place = merge::Place::as_cached});
    d.fill(0, rows_of(o["inputs"]["K"]), rows_of(o["inputs"]["V"]));
    d.head[0].lane[0] = o["inputs"]["aggregated_attention"].get<Floats>();
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].stay == Ints{0, 1, 5, 7});
    REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 1, 1, 5, 5, 5, 5, 7});
    std::size_t i = 0;
    for (const auto& want : o["expected"][fixed ? "merged_sigma_fixed_5" : "merged_sigma_mean_distance"]) {
      REQUIRE(d.head[0].token[i] == want["pivot"].get<index_t>());
      require_rows({d.head[0].key[i], d.head[0].value[i]}, {want["k"].get<Floats>(), want["v_normalised"].get<Floats>()}, 2e-6);
      const float scale = d.head[0].lane[at(d.traits.value_scale)][i];
      REQUIRE(scale == static_cast<float>(want["set"].size()));
      const auto whole = want["v_scaled_by_set_size"].get<Floats>();
      for (std::size_t c = 0; c < 2; ++c) REQUIRE(scale * d.head[0].value[i][c] == Approx(whole[c]).margin(1e-5));
      ++i;
    }
  }
}

TEST_CASE("kvmerger: a part to keep makes as many sets, by joining what is most alike", "[merge][kvmerger]") {
  const auto o = merging_oracle("kvmerger");
  const auto cosine = o["expected"]["adjacent_cosine"].get<std::vector<double>>();
  for (index_t sets = 1; sets <= 6; ++sets) {
    auto d = merge_driver(one_head(2), merge::KVMerger{.keep = static_cast<double>(sets) / 6.0, .heavy = 0.0, .recent = 0.0,
                                                       .window = 1, .sinks = 1, .place = merge::Place::as_cached});
    d.fill(0, rows_of(o["inputs"]["K"]), rows_of(o["inputs"]["V"]));
    REQUIRE(d.step() == Status::ok);
    REQUIRE(static_cast<index_t>(d.head[0].stay.size()) == sets + 2);
    // The links that hold are the strongest of the five inside.
    std::vector<double> inside(cosine.begin() + 1, cosine.begin() + 6), held;
    for (std::size_t j = 1; j < 6; ++j)
      if (d.head[0].to[j] == d.head[0].to[j + 1]) held.push_back(cosine[j]);
    std::sort(inside.rbegin(), inside.rend()), std::sort(held.rbegin(), held.rend());
    inside.resize(held.size());
    REQUIRE(held == inside);
    REQUIRE(static_cast<index_t>(held.size()) == 6 - sets);
    double tokens = 0;
    for (const float size : d.head[0].lane[at(d.traits.sizes)]) tokens += std::exp(size);
    REQUIRE(tokens == Approx(8));
  }
}

TEST_CASE("kvmerger: heavy and newest tokens stay alone, and nothing is looked at twice", "[merge][kvmerger]") {
  auto d = merge_driver(one_head(2), merge::KVMerger{.heavy = 0.25, .recent = 0.5, .window = 4, .sinks = 2, .place = merge::Place::as_cached});
  const FloatRows alike(20, {1.0f, 0.0f});
  d.fill(0, alike, alike);
  d.head[0].lane[0] = Floats(20, 0.0f);
  d.head[0].lane[0][5] = 2.0f, d.head[0].lane[0][8] = 1.0f;
  REQUIRE(d.step() == Status::ok);
  // Of tokens 2 to 9 the two heaviest stand alone.
  REQUIRE(d.head[0].token == Ints{0, 1, 2, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19});
  d.phase = Phase::decode;
  const auto state = d.head[0].state;
  d.seen = 21;  // next: tokens 10 to 16, as soon as four are older than the newest four
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token == Ints{0, 1, 2, 5, 6, 8, 9, 10, 11, 17, 18, 19});  // 10 is the heaviest: of equal ones the first
  REQUIRE(d.head[0].state != state);
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token.size() == 12);
}

TEST_CASE("kvmerger: keys turn to the place of the slot they fold into", "[merge][kvmerger]") {
  const auto o = merging_oracle("rope_merge_position");
  const auto post = rows_of(o["expected"]["K_post"]);
  const auto weight = o["inputs"]["weights"].get<Floats>();
  // Two keys as the oracle's, and weights as it wants them, through the sum alone.
  for (const merge::Place place : {merge::Place::as_cached, merge::Place::pivot}) {
    auto p = merge::KVMerger{.heavy = 0.0, .recent = 0.0, .window = 1, .sinks = 0, .mass = merge::Mass::none, .place = place}.pipeline();
    const merge::Pipeline own{p.source, merge::Pairs{.tokens = 1, .slack = 0, .sinks = 0, .recent = 0}, p.threshold,
                              merge::Weighted{merge::MergeKernel::score, merge::MergeNormaliser::sum}, p.target, p.split,
                              p.mass, p.position, p.rope};
    MergeDriver<decltype(own)> d(one_head(4), own);
    d.fill(0, {post[1], post[0]}, {post[1], post[0]});
    d.head[0].position = {9, 7};
    d.head[0].lane[0] = {weight[1], weight[0]};
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].stay == Ints{1});
    require_rows(d.head[0].key, {o["expected"][place == merge::Place::pivot ? "merged_at_pivot" : "merged_post_rope"].get<Floats>()});
  }
}

TEST_CASE("kvmerger: fields out of range are refused", "[merge][kvmerger]") {
  const CacheShape s = one_head(8);
  for (const merge::KVMerger& m : {merge::KVMerger{.least = 1.5f}, merge::KVMerger{.keep = -0.1}, merge::KVMerger{.sigma = -1.0f},
                                  merge::KVMerger{.heavy = 1.1}, merge::KVMerger{.recent = NAN}, merge::KVMerger{.window = 0},
                                  merge::KVMerger{.sinks = -1}, merge::KVMerger{.rope = {.base = 0.5}}})
    REQUIRE(m.validate(s) == Status::invalid_argument);
  REQUIRE(merge::KVMerger{.place = merge::Place::as_cached, .rope = {.base = 0.5}}.validate(s) == Status::ok);
}

TEST_CASE("kvmerger: tokens that come where a truncation took some are looked at", "[merge][kvmerger]") {
  auto d = merge_driver(one_head(2), merge::KVMerger{.heavy = 0.0, .recent = 0.5, .window = 4, .sinks = 0, .place = merge::Place::as_cached});
  const auto alike = [&](std::size_t n) {
    const FloatRows rows(n, {1.0f, 0.0f});
    d.fill(0, rows, rows);
    d.seen = static_cast<index_t>(n);
  };
  alike(40);
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token.size() == 21);  // next: token 20
  d.phase = Phase::decode;
  d.truncate(6);
  alike(7);
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token.size() == 7);
  alike(13);  // next: token 6, and only three are older than the newest four
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token.size() == 13);
  alike(14);
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token.size() == 11);
  for (std::size_t j = 6; j < 10; ++j) REQUIRE(d.head[0].to[j] == d.head[0].to[6]);
  REQUIRE(d.head[0].to[5] == 5);
}

TEST_CASE("kvmerger: a prompt after a truncation folds as the first one did, whole and in chunks", "[merge][kvmerger]") {
  const CacheShape s{.q_heads = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32};
  auto cache = make_cache<Cpu>(s, recipe(merge::KVMerger{.heavy = 0.0, .recent = 0.0, .window = 4, .sinks = 0}));
  REQUIRE(cache);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(256, 128)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  const auto prompt = [&](index_t n, Phase phase = Phase::prefill_end) {
    const Floats rows(at(8 * n), 1.0f);
    Floats out(at(8 * n));
    const auto view = dense_view(rows.data(), 1, n, 8);
    REQUIRE(cache->forward(ctx, 0, view, view, view, dense_view(out.data(), 1, n, 8), {}, phase) == Status::ok);
  };
  prompt(60);
  const index_t usual = cache->slots(0, 0);
  REQUIRE(usual < 60);
  REQUIRE(cache->truncate(0) == Status::ok);
  prompt(60);
  REQUIRE(cache->slots(0, 0) == usual);
  REQUIRE(cache->truncate(0) == Status::ok);
  prompt(20, Phase::prefill_chunk);
  prompt(20, Phase::prefill_chunk);
  prompt(20);
  REQUIRE(cache->slots(0, 0) == usual);
}
