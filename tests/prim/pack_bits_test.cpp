#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/pack_bits.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

using Codes = std::vector<std::uint8_t>;

template <class P>
std::vector<std::byte> packed(const P& packing, const Codes& codes) {
  Context<Cpu> ctx;
  std::vector<std::byte> bytes(static_cast<std::size_t>(packing.bytes(static_cast<index_t>(codes.size()))));
  REQUIRE(PackBits<Cpu>::pack(ctx, packing, codes, bytes) == Status::ok);
  return bytes;
}

/// "0x.." texts of `size` bytes each, as little-endian bytes.
std::vector<std::byte> bytes_of(const nlohmann::json& words, int size) {
  std::vector<std::byte> out;
  for (const auto& w : words) {
    const unsigned long long v = std::stoull(w.get<std::string>(), nullptr, 16);
    for (int i = 0; i < size; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
  }
  return out;
}

/// Every code in every place of two runs, with all other codes at their least and at their greatest.
template <class P>
void require_every_code_survives(const P& packing) {
  Context<Cpu> ctx;
  const index_t n = 2 * packing.run_length();
  const auto size = static_cast<std::size_t>(n);
  test::Guarded<std::byte> bytes(static_cast<std::size_t>(packing.bytes(n)));
  test::Guarded<std::uint8_t> back(size);
  for (std::size_t place = 0; place < size; ++place)
    for (std::uint32_t code = 0; code < P::levels; ++code)
      for (const std::uint32_t other : {0u, P::levels - 1u}) {
        Codes codes(size, static_cast<std::uint8_t>(other));
        codes[place] = static_cast<std::uint8_t>(code);
        REQUIRE(PackBits<Cpu>::pack(ctx, packing, codes, {bytes.data(), bytes.size()}) == Status::ok);
        REQUIRE(PackBits<Cpu>::unpack(ctx, packing, {bytes.data(), bytes.size()}, {back.data(), size}) == Status::ok);
        bool same = std::memcmp(back.data(), codes.data(), size) == 0;
        for (std::size_t i = 0; i < size; ++i) same = same && packing.get(bytes.data(), static_cast<index_t>(i)) == codes[i];
        REQUIRE(same);
        packing.set(bytes.data(), static_cast<index_t>(place), other);
        for (std::size_t i = 0; i < size; ++i) same = same && packing.get(bytes.data(), static_cast<index_t>(i)) == other;
        REQUIRE(same);
      }
  REQUIRE(bytes.ok());
  REQUIRE(back.ok());
}

}  // namespace

TEMPLATE_TEST_CASE("pack_bits: every code survives in every place", "[prim][pack_bits]", DenseLe<1>, DenseLe<2>,
                   DenseLe<3>, DenseLe<4>, DenseLe<5>, DenseLe<6>, DenseLe<7>, DenseLe<8>, Lsb32<1>, Lsb32<2>, Lsb32<3>,
                   Lsb32<4>, Lsb32<8>, Lsb16<1>, Lsb16<2>, Lsb16<4>, Lsb16<5>, Lsb16<8>, NibEvenLow, NibEvenHigh,
                   SplitHalf, SplitHalfHigh, SplitQuarter, Msb8, Trit5, Qh5, BitPlanes<1>, BitPlanes<3>, BitPlanes<4>) {
  require_every_code_survives(TestType{});
}

TEST_CASE("pack_bits: split runs of every length keep every code", "[prim][pack_bits]") {
  for (const index_t run : {2, 4, 16, 32, 80, 128}) require_every_code_survives(SplitHalf{run});
  for (const index_t run : {2, 32, 96}) require_every_code_survives(SplitHalfHigh{run});
  for (const index_t run : {4, 16, 128}) require_every_code_survives(SplitQuarter{run});
}

TEMPLATE_TEST_CASE_SIG("pack_bits: the quick dense path equals the plain one at every length", "[prim][pack_bits]",
                       ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  Context<Cpu> ctx;
  const DenseLe<Bits> packing;
  for (index_t n = 0; n <= 300; ++n) {
    const auto size = static_cast<std::size_t>(n);
    Codes codes(size);
    for (std::size_t i = 0; i < size; ++i)
      codes[i] = static_cast<std::uint8_t>(random_bits(static_cast<std::uint64_t>(n), i) % packing.levels);
    test::Guarded<std::byte> quick(static_cast<std::size_t>(packing.bytes(n)), std::byte{0xff});
    std::vector<std::byte> plain(quick.size());
    REQUIRE(PackBits<Cpu>::pack(ctx, packing, codes, {quick.data(), quick.size()}) == Status::ok);
    for (index_t i = 0; i < n; ++i) packing.set(plain.data(), i, codes[static_cast<std::size_t>(i)]);
    REQUIRE(std::equal(plain.begin(), plain.end(), quick.begin()));
    test::Guarded<std::uint8_t> back(size);
    REQUIRE(PackBits<Cpu>::unpack(ctx, packing, {quick.data(), quick.size()}, {back.data(), size}) == Status::ok);
    REQUIRE(std::equal(codes.begin(), codes.end(), back.begin()));
    REQUIRE(quick.ok());
    REQUIRE(back.ok());
  }
}

TEST_CASE("pack_bits: bytes of the worked cases", "[prim][pack_bits][oracle]") {
  const auto o = test::load_oracle("quantization.json", "B_packers");
  const Codes two = o.at("codes2"), three = o.at("codes3"), four = o.at("codes4");
  REQUIRE(packed(Lsb32<2>{}, two) == bytes_of(o.at("u32_lsb_first_2bit"), 4));
  REQUIRE(packed(Lsb32<4>{}, four) == bytes_of(o.at("u32_lsb_first_4bit"), 4));
  REQUIRE(packed(Msb8{}, two) == bytes_of(o.at("bytes_msb_first_2bit_skvq"), 1));
  REQUIRE(packed(NibEvenHigh{}, four) == bytes_of(o.at("bytes_even_high_nibble_flexgen"), 1));
  REQUIRE(packed(SplitHalf{32}, four) == bytes_of(o.at("bytes_split_half_4bit_gear_zipcache"), 1));
  REQUIRE(packed(SplitQuarter{32}, two) == bytes_of(o.at("bytes_split_quarter_2bit_zipcache"), 1));
  REQUIRE(packed(DenseLe<3>{}, three) == bytes_of(o.at("u32x3_3bit_kvquant"), 4));

  Codes low, high;  // Kitty's planes: two dense streams of two bits
  for (int i = 0; i < 16; ++i) {
    low.push_back(four[static_cast<std::size_t>(i)] & 3);
    high.push_back(four[static_cast<std::size_t>(i)] >> 2);
  }
  const auto& planes = o.at("kitty_planes_from_codes4_first16");
  REQUIRE(packed(DenseLe<2>{}, low) == bytes_of(planes.at("low_plane_bytes"), 1));
  REQUIRE(packed(DenseLe<2>{}, high) == bytes_of(planes.at("high_plane_bytes"), 1));

  const Codes trits = o.at("ternary_codes");
  const std::vector<int> sums = o.at("ternary_5_per_byte");
  const auto bytes = packed(Trit5{}, trits);
  for (std::size_t i = 0; i < sums.size(); ++i) REQUIRE(static_cast<int>(bytes[i]) == sums[i]);

  const auto kv4 = test::load_oracle("quantization.json", "A4_qserve_kv4").at("example");
  REQUIRE(packed(NibEvenLow{}, kv4.at("codes").get<Codes>()) == bytes_of(kv4.at("packed_bytes"), 1));
  const auto flexgen = test::load_oracle("quantization.json", "X_flexgen");
  REQUIRE(packed(NibEvenHigh{}, flexgen.at("codes").get<Codes>()) == bytes_of(flexgen.at("bytes_even_index_high_nibble"), 1));
}

TEST_CASE("pack_bits: wrong sizes, runs and codes are refused and nothing is written", "[prim][pack_bits]") {
  Context<Cpu> ctx;
  Codes codes(32, 3);
  std::vector<std::byte> bytes(16, std::byte{7});
  const auto untouched = bytes;
  REQUIRE(PackBits<Cpu>::pack(ctx, DenseLe<3>{}, codes, bytes) == Status::shape_mismatch);
  REQUIRE(PackBits<Cpu>::unpack(ctx, DenseLe<3>{}, bytes, codes) == Status::shape_mismatch);
  REQUIRE(PackBits<Cpu>::pack(ctx, SplitHalf{3}, codes, bytes) == Status::invalid_argument);
  REQUIRE(PackBits<Cpu>::pack(ctx, SplitHalf{0}, codes, bytes) == Status::invalid_argument);
  codes[31] = 16;
  REQUIRE(PackBits<Cpu>::pack(ctx, DenseLe<4>{}, codes, bytes) == Status::invalid_argument);
  REQUIRE(bytes == untouched);
}
