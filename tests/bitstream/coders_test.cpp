// What holds for both coders.

#include <bitstream/streams.hpp>
#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using bitstream::Rans;
using bitstream::RangeCoder;

TEMPLATE_TEST_CASE("coders: any symbols come back, no longer than their cross entropy and 5 bytes", "[bitstream]",
                   RangeCoder, Rans) {
  const std::size_t n = GENERATE(0u, 1u, 2u, 9u, 256u, 4001u);
  const int symbols = GENERATE(1, 2, 12, 32, 256);
  for (const double spread : {0.0, 0.3, 2.0, 1e6}) {
    const Symbols s = bell(n, symbols, spread, n + static_cast<std::size_t>(symbols));
    require_round_trip<TestType>(s, Table(count(s, symbols), TestType::table_bits).view());
    // Under a table that knows nothing of them, too.
    require_round_trip<TestType>(s, Table(std::vector<std::uint32_t>(static_cast<std::size_t>(symbols)), TestType::table_bits).view());
  }
}

TEMPLATE_TEST_CASE("coders: sequences that tables did not expect", "[bitstream]", RangeCoder, Rans) {
  const std::size_t n = GENERATE(1u, 7u, 256u, 4000u);
  const std::size_t likely = GENERATE(0u, 15u, 31u, 255u);
  std::vector<std::uint32_t> counts(256);
  counts[likely] = 1000000;
  const Table t(counts, TestType::table_bits);
  Symbols s(n, static_cast<std::uint8_t>(likely));
  require_round_trip<TestType>(s, t.view());
  for (const int rare : {0, 1, 128, 254, 255}) {
    s.assign(n, static_cast<std::uint8_t>(rare));  // each costs 12 or 16 bits
    require_round_trip<TestType>(s, t.view());
  }
  for (std::size_t i = 0; i < n; ++i) s[i] = static_cast<std::uint8_t>(i % 2 == 0 ? likely : i / 2);
  require_round_trip<TestType>(s, t.view());
}

// A symbol in the middle, again and again, is what puts off bits for longest.
TEMPLATE_TEST_CASE("coders: thousands of bits that are put off", "[bitstream]", RangeCoder, Rans) {
  for (const int last : {0, 1, 2}) {
    Symbols s(4000, 1);
    s.back() = static_cast<std::uint8_t>(last);
    require_round_trip<TestType>(s, Table({1000, 998, 1000}, TestType::table_bits).view());
    require_round_trip<TestType>(s, Table({100, 1, 100}, TestType::table_bits).view());
  }
}

TEST_CASE("coders: both give the same symbols", "[bitstream]") {
  const Symbols s = bell(1000, 31, 3.0, 5);
  const Table wide(count(s, 31), 16), narrow(count(s, 31), 12);
  Symbols a, b;
  REQUIRE(decode<RangeCoder>(encoded<RangeCoder>(s, wide.view()), wide.view(), s.size(), a) == Status::ok);
  REQUIRE(decode<Rans>(encoded<Rans>(s, narrow.view()), narrow.view(), s.size(), b) == Status::ok);
  REQUIRE(a == b);
  REQUIRE(a == s);
}

TEMPLATE_TEST_CASE("coders: cut, grown and flipped streams end, with symbols of the table", "[bitstream]", RangeCoder, Rans) {
  const Symbols s = bell(60, 11, 2.0, 3);
  const Table t(count(s, 11), TestType::table_bits);
  const Bytes good = encoded<TestType>(s, t.view());
  Symbols back;
  for (std::size_t n = 0; n < good.size(); ++n)
    REQUIRE(decode<TestType>(Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)), t.view(), s.size(), back) ==
            Status::corrupt_data);
  Bytes longer = good;
  longer.push_back({});
  REQUIRE(decode<TestType>(longer, t.view(), s.size(), back) == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int value = 0; value < 256; ++value) {
      Bytes bad = good;
      bad[i] = static_cast<std::byte>(value);
      const Status status = decode<TestType>(bad, t.view(), s.size(), back);  // itself requires what it must
      REQUIRE((status == Status::ok || status == Status::corrupt_data));
    }
}

TEMPLATE_TEST_CASE("coders: random bytes end, with symbols of the table", "[bitstream]", RangeCoder, Rans) {
  Symbols back;
  int accepted = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    const int symbols = 1 + static_cast<int>(random_uniform(seed, 0) * 256);
    std::vector<std::uint32_t> counts(static_cast<std::size_t>(symbols));
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] = static_cast<std::uint32_t>(1.0f / (1e-6f + random_uniform(seed, 7 + i)));
    const Table t(counts, TestType::table_bits);
    Bytes bytes(static_cast<std::size_t>(random_uniform(seed, 1) * 80));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random_uniform(seed, 300 + i) * 256);
    accepted += decode<TestType>(bytes, t.view(), static_cast<std::size_t>(random_uniform(seed, 2) * 300), back) == Status::ok;
  }
  REQUIRE(accepted < 100);
}

TEMPLATE_TEST_CASE("coders: too little room, wrong symbols and wrong tables are refused", "[bitstream]", RangeCoder, Rans) {
  const Symbols s = bell(60, 11, 2.0, 3);
  const Table t(count(s, 11), TestType::table_bits), other(count(s, 11), TestType::table_bits == 16 ? 12 : 16);
  const std::size_t need = encoded<TestType>(s, t.view()).size();
  std::size_t bytes = 0;
  for (std::size_t room = 0; room < need; ++room) {
    Guarded<std::byte> out(room);
    REQUIRE(TestType::encode(s, t.view(), {out.data(), room}, bytes) == Status::shape_mismatch);
    REQUIRE(out.ok());
  }
  Guarded<std::byte> out(TestType::most_bytes(s.size()));
  const std::span room{out.data(), out.size()};
  REQUIRE(TestType::encode(s, t.view(), room.first(need), bytes) == Status::ok);
  REQUIRE(TestType::encode(Symbols{11}, t.view(), room, bytes) == Status::invalid_argument);
  REQUIRE(TestType::encode(s, other.view(), room, bytes) == Status::invalid_argument);
  Symbols back;
  REQUIRE(decode<TestType>(Bytes(8), other.view(), 3, back) == Status::invalid_argument);
}
