#include <bitstream/streams.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("symbol_table: starts of the released code, oracle I1", "[bitstream][symbol_table]") {
  const auto oracle = load_oracle("quantization.json", "I1_cachegen_lmcache_codec");
  for (const auto& channel : oracle.at("channels")) {
    const Table t(channel.at("counts").get<std::vector<std::uint32_t>>(), 16);
    const auto cdf = channel.at("cdf_u16").get<std::vector<std::uint32_t>>();
    for (std::size_t s = 0; s < t.starts.size(); ++s) REQUIRE(t.starts[s] == cdf[s]);
    REQUIRE(cdf.back() == 65535);  // the released table ends there; the last symbol, at 65536
    REQUIRE(t.view().end(7) == 65536);
  }
}

TEST_CASE("symbol_table: every symbol is at least one wide and owns what find says", "[bitstream][symbol_table]") {
  const int bits = GENERATE(9, 12, 16);
  const int n = GENERATE(1, 2, 3, 12, 31, 32, 255, 256);
  const int kind = GENERATE(0, 1, 2, 3, 4);
  std::vector<std::uint32_t> counts(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < counts.size(); ++i)
    counts[i] = kind == 0   ? 0
                : kind == 1 ? 1
                : kind == 2 ? (i == 0 ? 0xffffffffu : 0)
                : kind == 3 ? (i + 1 == counts.size() ? 0xffffffffu : 1)
                            : static_cast<std::uint32_t>(random_uniform(9, i) * 1e9f);
  const Table t(counts, bits);
  const bitstream::SymbolTable v = t.view();
  REQUIRE(check_table(v) == Status::ok);
  int s = 0;
  for (std::uint32_t at = 0; at < std::uint32_t{1} << bits; ++at) {
    if (at == v.end(s)) ++s;
    if (v.find(at) != s) FAIL("find(" << at << ") is " << v.find(at) << ", not " << s);
  }
  REQUIRE(s == n - 1);
}

TEST_CASE("symbol_table: of 16 bits where nothing else is said", "[bitstream][symbol_table]") {
  const std::uint16_t starts[] = {0, 40000};
  const bitstream::SymbolTable t{starts, 2};
  REQUIRE(t.end(1) == 65536);
  REQUIRE((t.find(39999) == 0 && t.find(65535) == 1));
}

TEST_CASE("symbol_table: what is no table is refused", "[bitstream][symbol_table]") {
  std::vector<std::uint32_t> counts(257, 1);
  std::vector<std::uint16_t> starts(257);
  const std::span all(counts);
  const std::span to(starts);
  REQUIRE(bitstream::make_table(all, 16, to) == Status::invalid_argument);
  REQUIRE(bitstream::make_table(all.first(0), 16, to.first(0)) == Status::invalid_argument);
  REQUIRE(bitstream::make_table(all.first(4), 8, to.first(4)) == Status::invalid_argument);
  REQUIRE(bitstream::make_table(all.first(4), 17, to.first(4)) == Status::invalid_argument);
  REQUIRE(bitstream::make_table(all.first(4), 16, to.first(5)) == Status::shape_mismatch);

  const auto check = [](std::vector<std::uint16_t> t, int bits) {
    return bitstream::check_table({t.data(), static_cast<int>(t.size()), bits});
  };
  REQUIRE(check({0, 1, 2}, 16) == Status::ok);
  REQUIRE(check({0, 4095}, 12) == Status::ok);
  REQUIRE(check({0, 4096}, 12) == Status::corrupt_data);
  REQUIRE(check({1, 2}, 16) == Status::corrupt_data);
  REQUIRE(check({0, 5, 5}, 16) == Status::corrupt_data);
  REQUIRE(check({0, 5, 4}, 16) == Status::corrupt_data);
  REQUIRE(bitstream::check_table({nullptr, 0, 16}) == Status::corrupt_data);
}
