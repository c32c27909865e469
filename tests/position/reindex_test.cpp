#include <catch2/catch.hpp>

#include <kvcondense/position/reindex.hpp>
#include <support/oracle.hpp>
#include <support/stream.hpp>

using namespace kvcondense;

TEST_CASE("reindex: slots are positions, whatever left before them", "[position][reindex]") {
  static_assert(position::Reindex::raw_keys && !position::Reindex::rotated_input);
  const auto pairing = GENERATE(position::RopePairing::half_split, position::RopePairing::interleaved);
  const index_t rotary = GENERATE(0, 16);
  test::Stream stream(position::Reindex{.rope = {.pairing = pairing, .rotary_dim = rotary}}, 60);
  for (index_t t = 0; t < stream.tokens; ++t) {
    const auto got = stream.forward(t, stream.raw_q, stream.raw_k);
    stream.require_attention(got, t, [](index_t, index_t slot) { return slot; }, stream.slots_seen() - 1);
  }
}

TEST_CASE("reindex: text, cache and query positions follow the worked stream", "[position][reindex][oracle]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "streaming_positions");
  test::Stream stream(position::Reindex{}, 10, o.at("sink").get<index_t>(), o.at("recent").get<index_t>());
  for (const auto& step : o.at("steps")) {
    stream.forward(step.at("step").get<index_t>(), stream.raw_q, stream.raw_k);
    REQUIRE(stream.kept() == step.at("kept_text_positions").get<std::vector<index_t>>());
    REQUIRE(stream.cache.slots(0, 0) == step.at("query_position").get<index_t>() + 1);
  }
}

TEST_CASE("reindex: the attention factor of a scaling goes into the softmax scale", "[position][reindex]") {
  const position::RopeConfig yarn{.scaling = position::RopeScaling::yarn, .factor = 4.0, .original_length = 64};
  test::Stream stream(position::Reindex{.rope = yarn}, 12);
  const double factor = 0.1 * std::log(4.0) + 1.0;
  for (index_t t = 0; t < stream.tokens; ++t) {
    const auto got = stream.forward(t, stream.raw_q, stream.raw_k);
    stream.require_attention(got, t, [](index_t, index_t slot) { return slot; }, stream.slots_seen() - 1, factor * factor);
  }
}

TEST_CASE("reindex: a rope that does not fit the head is refused", "[position][reindex]") {
  REQUIRE(position::Reindex{}.validate(CacheShape{.head_dim = 64}) == Status::ok);
  REQUIRE(position::Reindex{}.validate(CacheShape{.head_dim = 7}) == Status::invalid_argument);
  REQUIRE(position::Reindex{.rope = {.rotary_dim = 128}}.validate(CacheShape{.head_dim = 64}) == Status::invalid_argument);
}
