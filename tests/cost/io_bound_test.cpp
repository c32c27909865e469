#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/cost/io_bound.hpp>
#include <limits>
#include <support/oracle.hpp>

using namespace kvcondense;
using cost::IoBound;
using test::near;

TEST_CASE("io bound: the worked rows", "[cost][io_bound]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "io_bound");
  REQUIRE(oracle.at("rows").size() == 5);
  for (const auto& row : oracle.at("rows")) {
    const IoBound b{row.at("N").get<double>(), row.at("d").get<double>(), row.at("M").get<double>()};
    REQUIRE(b.validate() == Status::ok);
    CHECK(b.large() == (row.at("regime") == "large"));
    CHECK(b.large_memory() == near(row.at("large_formula")));
    CHECK(b.small_memory() == near(row.at("small_formula")));
    CHECK(b.numbers() == near(row.at("bound")));
  }
  const auto& d = oracle.at("decode_bytes_lower");
  CHECK(cost::decode_bytes_least(d.at("n").get<double>(), d.at("Hkv").get<index_t>(), d.at("d").get<index_t>()) ==
        near(d.at("bytes")));
  CHECK(cost::decode_bytes_least(1000, 8, 128, 0.5) == cost::decode_bytes_least(250, 8, 128));
}

TEST_CASE("io bound: never below reading everything once, and both formulas meet", "[cost][io_bound]") {
  CHECK(IoBound{1024, 64, 1e9}.numbers() == 1024 * 64);
  const IoBound meeting{4096, 128, 128 * 128};
  CHECK(meeting.large_memory() == meeting.small_memory());
  for (const IoBound bad : {IoBound{0, 64, 64}, IoBound{64, -1, 64},
                            IoBound{64, 64, std::numeric_limits<double>::quiet_NaN()}})
    CHECK(bad.validate() == Status::invalid_argument);
}
