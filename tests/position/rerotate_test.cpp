#include <catch2/catch.hpp>

#include <kvcondense/position/rerotate.hpp>
#include <support/stream.hpp>

using namespace kvcondense;

TEST_CASE("rerotate: keys and queries that come rotated are moved to their slots", "[position][rerotate]") {
  static_assert(position::Rerotate::raw_keys && position::Rerotate::rotated_input);
  const auto pairing = GENERATE(position::RopePairing::half_split, position::RopePairing::interleaved);
  test::Stream stream(position::Rerotate{.rope = {.pairing = pairing}}, 60);
  for (index_t t = 0; t < stream.tokens; ++t) {
    const auto got = stream.forward(t, stream.rotated_q, stream.rotated_k);
    stream.require_attention(got, t, [](index_t, index_t slot) { return slot; }, stream.slots_seen() - 1);
  }
}

TEST_CASE("rerotate: an engine's attention factor is kept and not applied again", "[position][rerotate]") {
  const position::RopeConfig yarn{.scaling = position::RopeScaling::yarn, .factor = 4.0, .original_length = 64};
  test::Stream stream(position::Rerotate{.rope = yarn}, 12);
  const float factor = static_cast<float>(0.1 * std::log(4.0) + 1.0);
  for (auto* x : {&stream.rotated_q, &stream.rotated_k})
    for (float& v : *x) v *= factor;
  for (index_t t = 0; t < stream.tokens; ++t) {
    const auto got = stream.forward(t, stream.rotated_q, stream.rotated_k);
    stream.require_attention(got, t, [](index_t, index_t slot) { return slot; }, stream.slots_seen() - 1,
                             static_cast<double>(factor) * static_cast<double>(factor));
  }
}

TEST_CASE("rerotate: rotations that one rotation cannot undo are refused", "[position][rerotate]") {
  const position::RopeConfig ntk{.scaling = position::RopeScaling::dynamic_ntk, .factor = 2.0};
  REQUIRE(position::Rerotate{.rope = ntk}.validate(CacheShape{}) == Status::not_supported);
  REQUIRE(position::Rerotate{}.validate(CacheShape{}) == Status::ok);
  REQUIRE(position::Rerotate{}.validate(CacheShape{.head_dim = 9}) == Status::invalid_argument);
}
