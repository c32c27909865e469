#include <random>

#include <catch2/catch.hpp>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <support/stream.hpp>

using namespace kvcondense;

namespace {

/// 120 tokens with prompts that end, removed ranges and whatever the policy evicts: after each, every
/// query must see every key at the distance that the position stage promises.
template <class Position, class Evict>
void holds(const Position& position, const Evict& evict, std::uint32_t seed) {
  test::Stream<Position, Evict> s(position, 120, evict);
  std::mt19937 random(seed);
  constexpr bool rotated = !Position::raw_keys || Position::rotated_input;
  for (index_t t = 0; t < s.tokens; ++t) {
    const auto got = s.forward(t, rotated ? s.rotated_q : s.raw_q, rotated ? s.rotated_k : s.raw_k,
                               random() % 16 == 0 ? Phase::prefill_end : Phase::automatic);
    if constexpr (Position::raw_keys)
      s.require_attention(got, t, [](index_t, index_t slot) { return slot; }, s.slots_seen() - 1);
    else
      s.require_attention(got, t, [](index_t token, index_t) { return token; }, t);
    if (random() % 10 == 0) {
      const index_t first = static_cast<index_t>(random()) % (t + 1);
      s.remove(first, std::min(t + 1, first + 5));
    }
  }
  REQUIRE(s.cache.slots(0, 0) < s.tokens);
}

template <class Position>
void holds_after_any(const Position& position) {
  const std::uint32_t seed = GENERATE(1u, 2u, 3u);
  holds(position, evict::SlidingWindow{.window = 20}, seed);
  holds(position, evict::SinkWindow{.recent = 15, .sinks = 3}, seed);
  holds(position, evict::H2O{.heavy = 12, .recent = 8}, seed);
  holds(position, evict::Tova{.tokens = 20}, seed);
  holds(position, evict::SnapKV{.tokens = 20, .window = 4, .kernel = 3}, seed);
  holds(position, evict::Knorm{.tokens = 20, .recent = 4}, seed);
}

constexpr position::RopeConfig ropes[] = {
    {},
    {.pairing = position::RopePairing::interleaved, .rotary_dim = 16},
    {.base = 500000.0, .scaling = position::RopeScaling::llama3, .factor = 8.0, .original_length = 64},
};

}  // namespace

TEST_CASE("absolute: relative positions hold after any eviction", "[position][absolute]") {
  for (const auto& rope : ropes) holds_after_any(position::Absolute{.rope = rope});
}

TEST_CASE("reindex: relative positions hold after any eviction", "[position][reindex]") {
  for (const auto& rope : ropes) holds_after_any(position::Reindex{.rope = rope});
}

TEST_CASE("rerotate: relative positions hold after any eviction", "[position][rerotate]") {
  for (const auto& rope : ropes) holds_after_any(position::Rerotate{.rope = rope});
}
