#include <cmath>

#include <evict/properties.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("exit_threshold: tokens are judged by the wrapped scores when they leave the window", "[evict][exit_threshold]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 2};
  auto d = drive(shape, evict::ExitThreshold<evict::Knorm>{.policy = {}, .least = -4.0f, .window = 3});
  d.key = [](index_t h, index_t t, index_t c) { return c == 0 ? static_cast<float>((t + h) % 8) : 0.0f; };
  for (int i = 0; i < 20; ++i) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    for (index_t h = 0; h < 2; ++h) {
      Ints want;
      for (index_t t = 0; t <= i; ++t)
        if (t > i - 3 || (t + h) % 8 <= 4) want.push_back(t);
      REQUIRE(d.held[at(h)] == want);
    }
  }
}

TEST_CASE("exit_threshold: a token that was judged is not judged again", "[evict][exit_threshold]") {
  // Attention to token 0 is there when it leaves the window and never again.
  auto d = drive({}, evict::ExitThreshold<evict::H2O>{.policy = {}, .least = 0.5f, .window = 2});
  for (index_t i = 0; i < 12; ++i)
    REQUIRE(d.step(1, Phase::decode, [&](index_t, index_t t) { return t == 0 ? 1.0 : 0.0; }) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 10, 11});
  REQUIRE(evict::ExitThreshold<evict::SinkWindow>{.policy = {}}.validate({}) == Status::incompatible);
  REQUIRE(evict::ExitThreshold<evict::H2O>{.policy = {}, .window = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::ExitThreshold<evict::H2O>{.policy = {}, .least = NAN}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::ExitThreshold<evict::H2O>{.policy = {.heavy = -1}}.validate({}) == Status::invalid_argument);
}
