#include <catch2/catch.hpp>

#include <kvcondense/position/absolute.hpp>
#include <support/stream.hpp>

using namespace kvcondense;

TEST_CASE("absolute: keys are attended as they were appended, gaps and all", "[position][absolute]") {
  static_assert(!position::Absolute::raw_keys);
  test::Stream stream(position::Absolute{}, 40);
  for (index_t t = 0; t < stream.tokens; ++t) {
    const auto got = stream.forward(t, stream.rotated_q, stream.rotated_k);
    stream.require_attention(got, t, [&](index_t token, index_t) { return token; }, t);
  }
}

TEST_CASE("absolute: any shape is fine, its rope is not read", "[position][absolute]") {
  REQUIRE(position::Absolute{.rope = {.base = -1.0}}.validate(CacheShape{.head_dim = 7}) == Status::ok);
}
