#include <algorithm>
#include <cmath>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/prefixkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using evict::PrefixKV;

const PerToken mass = [](index_t h, index_t t) { return number(1, h, t); };

/// The authors' rule for one new token, on a list.
void one_token(Ints& slots, index_t token, index_t seen, double part, index_t distance) {
  slots.push_back(token);
  const auto n = static_cast<double>(slots.size());
  const auto forget = static_cast<index_t>(std::trunc(n - static_cast<double>(seen) * (1.0 - part) + 1e-6 * static_cast<double>(seen)));
  if (forget <= 0) return;
  const index_t kept = static_cast<index_t>(slots.size()) - forget;
  const index_t slot = kept - distance >= 1 ? kept - distance : kept / 2;
  slots.erase(slots.begin() + std::clamp<index_t>(slot, 1, static_cast<index_t>(slots.size()) - 2));  // ours: both ends stay
}

}  // namespace

TEST_CASE("prefixkv: a prompt loses the oracle's tokens in each layer, the least attended", "[evict][prefixkv]") {
  const auto oracle = eviction_oracle("prefixkv");
  const auto forget = oracle["forget"].get<Ints>();
  std::vector<float> evicted;
  for (const index_t f : forget) evicted.push_back(static_cast<float>(f) / 10.0f);
  const index_t group = GENERATE(1, 2, 7);
  for (index_t l = 0; l < 3; ++l) {
    auto d = drive({.layers = 3, .q_heads = 2 * group, .kv_heads = 2}, PrefixKV{.evicted = {evicted.data(), 3}});
    d.layer = l;
    REQUIRE(d.step(4, Phase::prefill_chunk, mass) == Status::ok);  // sums of both chunks count
    REQUIRE(d.step(6, Phase::prefill_end, mass) == Status::ok);
    Ints middle(8);
    std::iota(middle.begin(), middle.end(), 1);
    const auto score = [&](index_t t) { return (t < 4 ? 2.0 : 1.0) * (mass(0, t) + mass(1, t)); };
    std::sort(middle.begin(), middle.end(), [&](index_t a, index_t b) { return score(a) > score(b); });
    middle.resize(at(8 - forget[at(l)]));
    middle.push_back(0), middle.push_back(9);
    std::sort(middle.begin(), middle.end());
    REQUIRE(d.held == Rows{middle, middle});
  }
}

TEST_CASE("prefixkv: the slot that leaves for a new token is the oracle's", "[evict][prefixkv]") {
  const auto rule = eviction_oracle("prefixkv")["decode_rule"];
  const float half = 0.5f;
  const auto leaves = [&](index_t distance) {
    auto d = drive({}, PrefixKV{.distance = distance, .evicted = {&half, 1}});
    d.seen = 13;  // 14 with the new one: 7 may stay
    for (index_t i = 0; i < rule["seq_len"].get<index_t>() - 1; ++i) d.held[0].push_back(i), d.lane[0][0].push_back(0.0f);
    const Ints before = with_new(d.held, 13, 1)[0];
    REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
    REQUIRE(d.held[0].size() + 1 == before.size());
    for (std::size_t i = 0; i < before.size(); ++i)
      if (i == d.held[0].size() || d.held[0][i] != before[i]) return static_cast<index_t>(i);
    return index_t{-1};
  };
  REQUIRE(leaves(3) == rule["slot_if_distance_minus3"].get<index_t>());
  REQUIRE(leaves(-rule["distance"].get<index_t>()) == 7 / 2);
  REQUIRE(leaves(6) == 1);
  REQUIRE(leaves(0) == 7);
}

TEST_CASE("prefixkv: decoding follows the authors' rule token by token", "[evict][prefixkv]") {
  const float part = GENERATE(0.0f, 0.1f, 0.3f, 0.5f, 0.8f, 0.97f);
  const index_t distance = GENERATE(0, 3, 25);
  CAPTURE(part, distance);
  auto d = drive({}, PrefixKV{.distance = distance, .evicted = {&part, 1}});
  REQUIRE(d.step(60, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(static_cast<double>(d.held[0].size()) == std::max(2.0, 60.0 - std::nearbyint(static_cast<double>(part) * 60.0)));
  Ints want = d.held[0];
  for (index_t t = 60; t < 200; ++t) {
    one_token(want, t, t + 1, static_cast<double>(part), distance);
    REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
    REQUIRE(d.held[0].front() == 0);
    REQUIRE(d.held[0].back() == t);
    REQUIRE(d.held[0] == want);
  }
}

TEST_CASE("prefixkv: a step of several tokens drops as many, neighbours", "[evict][prefixkv]") {
  const float part = 0.5f;
  auto d = drive({}, PrefixKV{.distance = 10, .evicted = {&part, 1}});
  REQUIRE(d.step(60, Phase::prefill_end, mass) == Status::ok);
  const Ints before = with_new(d.held, 60, 4)[0];
  REQUIRE(d.step(4, Phase::decode, mass) == Status::ok);
  Ints want = before;
  want.erase(want.begin() + 22, want.begin() + 24);
  REQUIRE(d.held[0] == want);
}

TEST_CASE("prefixkv: another prompt loses its own part, not twice that of the first", "[evict][prefixkv]") {
  const float part = 0.25f;
  auto d = drive({}, PrefixKV{.evicted = {&part, 1}});
  REQUIRE(d.step(40, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.held[0].size() == 30);
  REQUIRE(d.step(40, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.held[0].size() == 60);
}

TEST_CASE("prefixkv: keeps the promises of a pipeline", "[evict][prefixkv]") {
  const std::vector<float> most(4, 0.92f), none(4, 0.0f);
  check_promises(PrefixKV{.evicted = {most.data(), 4}}, PrefixKV{.evicted = {none.data(), 4}});
}

TEST_CASE("prefixkv: heads of different lengths, and a table of another model, are refused", "[evict][prefixkv]") {
  float part[] = {0.5f, 0.5f};
  const PrefixKV p{.evicted = {part, 2}};
  auto d = drive({.layers = 2, .q_heads = 2, .kv_heads = 2}, p);
  REQUIRE(d.step(8, Phase::prefill_end, mass) == Status::ok);
  d.held[1].pop_back(), d.lane[0][1].pop_back();
  REQUIRE(d.step(1, Phase::decode, mass) == Status::not_supported);

  REQUIRE(p.validate({.layers = 2}) == Status::ok);
  REQUIRE(p.validate({.layers = 3}) == Status::shape_mismatch);
  REQUIRE(PrefixKV{}.validate({.layers = 2}) == Status::missing_input);
  REQUIRE(std::string(PrefixKV{}.missing()) == "evicted");
  REQUIRE(p.missing() == nullptr);
  REQUIRE(PrefixKV{.sinks = -1, .evicted = {part, 2}}.validate({.layers = 2}) == Status::invalid_argument);
  REQUIRE(PrefixKV{.recent = 0, .evicted = {part, 2}}.validate({.layers = 2}) == Status::invalid_argument);
  REQUIRE(PrefixKV{.distance = -1, .evicted = {part, 2}}.validate({.layers = 2}) == Status::invalid_argument);
  part[1] = 1.5f;
  REQUIRE(p.validate({.layers = 2}) == Status::invalid_argument);
}
