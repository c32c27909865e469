#include <catch2/catch.hpp>

#include <kvcondense/quant/cachegen.hpp>

using namespace kvcondense;
using quant::CacheGen;

TEST_CASE("cachegen: bins of the released levels", "[quant][cachegen]") {
  const auto keys = [](const CacheGen& c, index_t layer, index_t layers) { return c.bins(true, layer, layers); };
  const auto values = [](const CacheGen& c, index_t layer, index_t layers) { return c.bins(false, layer, layers); };
  const CacheGen plain, one = CacheGen::level(1), two = CacheGen::level(2), three = CacheGen::level(3);
  for (index_t l = 0; l < 32; ++l) {
    REQUIRE(keys(plain, l, 32) == (l < 10 ? 32 : 16));
    REQUIRE(values(plain, l, 32) == (l < 2 ? 32 : 16));
    REQUIRE(keys(one, l, 32) == (l < 20 ? 16 : 12));
    REQUIRE(values(one, l, 32) == (l < 2 ? 16 : 12));
    REQUIRE(keys(two, l, 32) == (l < 10 ? 32 : 16));
    REQUIRE(values(two, l, 32) == (l < 2 ? 32 : 16));
    REQUIRE(keys(three, l, 32) == 32);
    REQUIRE(values(three, l, 32) == 32);
  }
  // Other depths: the same parts of them.
  for (index_t l = 0; l < 4; ++l) {
    REQUIRE(keys(plain, l, 4) == (l < 2 ? 32 : 16));
    REQUIRE(values(plain, l, 4) == (l < 1 ? 32 : 16));
  }
  REQUIRE(keys(plain, 0, 1) == 32);
  for (index_t l = 0; l < 6; ++l) REQUIRE(plain.widths.at(l, 6) == (l < 2 ? 0.5f : l < 4 ? 1.0f : 1.5f));
}

TEST_CASE("cachegen: fields out of range are refused", "[quant][cachegen]") {
  for (int n = 1; n <= CacheGen::levels; ++n) REQUIRE(CacheGen::level(n).validate() == Status::ok);
  const auto refused = [](auto&& change) {
    CacheGen c;
    change(c);
    return c.validate() == Status::invalid_argument;
  };
  REQUIRE(refused([](CacheGen& c) { c.key_bins.first = 2; }));
  REQUIRE(refused([](CacheGen& c) { c.key_bins.second = 13; }));
  REQUIRE(refused([](CacheGen& c) { c.value_bins.third = 258; }));
  REQUIRE(refused([](CacheGen& c) { c.value_bins.of = 0; }));
  REQUIRE(refused([](CacheGen& c) { c.key_bins.second_end = 33; }));
  REQUIRE(refused([](CacheGen& c) { c.key_bins.first_end = 21; }));
  REQUIRE(refused([](CacheGen& c) { c.widths.second = 0.0f; }));
  REQUIRE(refused([](CacheGen& c) { c.widths.third = 1e6f; }));
  REQUIRE(refused([](CacheGen& c) { c.widths.second_end = -1; }));
  REQUIRE(refused([](CacheGen& c) { c.group = 1; }));
  REQUIRE(refused([](CacheGen& c) { c.sub_chunk = 0; }));
  REQUIRE(refused([](CacheGen& c) { c.sub_chunk = 4097; }));
  REQUIRE(refused([](CacheGen& c) { c.chunk = 0; }));
  REQUIRE(refused([](CacheGen& c) { c.scales = DType::bf16; }));
  REQUIRE(!refused([](CacheGen& c) { c.scales = DType::f32; }));
}
