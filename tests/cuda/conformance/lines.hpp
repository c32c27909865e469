#pragma once

// What each wrapper is given, and which bits of its results are hashed: those that every device
// must agree on.

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>

namespace conformance {

using Words = std::vector<std::uint32_t>;
namespace numbers = kvcondense::detail;

/// SplitMix64: the same bits wherever the program is compiled.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint32_t bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<std::uint32_t>((z ^ z >> 31) >> 32);
  }
  int within(int low, int high) {
    return low + static_cast<int>(bits() % static_cast<std::uint32_t>(high - low + 1));
  }

 private:
  std::uint64_t state_;
};

inline std::uint32_t bits_of_number(float x) { return numbers::bit_cast<std::uint32_t>(x); }
inline float number_of_bits(std::uint32_t x) { return numbers::bit_cast<float>(x); }
inline std::uint32_t two(std::uint32_t low, std::uint32_t high) {
  return (low & 0xffffu) | high << 16;
}

/// Both zeros, subnormals, the neighbours of normal numbers and of infinity, infinities, quiet and
/// signalling NaNs with payloads.
inline constexpr std::array<std::uint32_t, 20> half_edges{
    0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x3c00, 0xbc00,
    0x3c01, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7d01, 0xffff, 0x3555};
/// Of float32, with where halves begin, end, and become subnormal, and ties between halves.
inline constexpr std::array<std::uint32_t, 26> float_edges{
    0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x33000000, 0x33000001,
    0x33800000, 0xb3c00000, 0x38000000, 0x387fc000, 0x387fe000, 0x38800000, 0x3f800000,
    0xbf801000, 0x3f803000, 0x477fe000, 0x477fefff, 0x477ff000, 0xc7800000, 0x7f7fffff,
    0x7f800000, 0xff800000, 0x7f800001, 0xffc12345, 0x7fffffff};
inline constexpr std::array<std::uint32_t, 9> word_edges{0,           0xffffffffu, 1,
                                                         0x80000000u, 0x7fffffffu, 0x000f000fu,
                                                         0x00f000f0u, 0x64006400u, 0x0000ffffu};

/// Every tuple of `size` edges.
template <std::size_t N>
Words tuples(const std::array<std::uint32_t, N>& edges, int size) {
  std::size_t count = 1;
  for (int i = 0; i < size; ++i) count *= N;
  Words all;
  for (std::size_t t = 0; t < count; ++t)
    for (std::size_t rest = t, i = 0; i < static_cast<std::size_t>(size); ++i, rest /= N)
      all.push_back(edges[rest % N]);
  return all;
}
/// A half above another: tuples forwards below, backwards above.
inline Words above_each_other(const Words& halves, int size) {
  const std::size_t tuple = static_cast<std::size_t>(size), count = halves.size() / tuple;
  Words pairs;
  for (std::size_t t = 0; t < count; ++t)
    for (std::size_t i = 0; i < tuple; ++i)
      pairs.push_back(two(halves[t * tuple + i], halves[(count - 1 - t) * tuple + i]));
  return pairs;
}
inline Words random_words(Random& random, int count) {
  Words w;
  for (int i = 0; i < count; ++i) w.push_back(random.bits());
  return w;
}
inline void append(Words& to, const Words& more) { to.insert(to.end(), more.begin(), more.end()); }

/// Sums a * b + c that lie a hair beside a tie of halves, less than a float32 tells from it:
/// rounding twice is found here. a and b are integers whose product is one beside a multiple of
/// 2^14.
inline Words beside_ties(Random& random) {
  Words halves;
  for (std::uint32_t m = 3; m < 2048; m += 2)
    for (std::uint32_t n = 3; n < 2048; n += 2)
      if (const std::uint32_t low = m * n % 16384; low == 1 || low == 16383) {
        const std::uint32_t sign = random.bits() & 0x8000u;
        halves.push_back(numbers::half_bits(static_cast<float>(m) * 0x1p-12f) ^
                         (random.bits() & 0x8000u));
        halves.push_back(numbers::half_bits(static_cast<float>(n) * 0x1p-13f));
        halves.push_back((0x3c00u + random.bits() % 0x300u) | sign);
      }
  return halves;
}

// Which bits are hashed. No NaN is like another: sign and payload of one that comes of arithmetic
// are the device's.

inline Words raw(const Words&, const Words& got) { return got; }
inline Words halves_but_nan(const Words&, const Words& got) {
  Words w = got;
  for (std::uint32_t& x : w)
    for (const std::uint32_t shift : {0u, 16u})
      if ((x >> shift & 0x7fffu) > 0x7c00u) x |= 0xffffu << shift;
  return w;
}
inline Words floats_but_nan(const Words&, const Words& got) {
  Words w = got;
  for (std::uint32_t& x : w) x = (x & 0x7fffffffu) > 0x7f800000u ? 0xffffffffu : x;
  return w;
}
/// Nor is the sign of a sum that is zero said of tensor cores.
inline Words sums(const Words& given, const Words& got) {
  Words w = floats_but_nan(given, got);
  for (std::uint32_t& x : w) x = x == 0x80000000u ? 0 : x;
  return w;
}

/// Whether 2^x is right to 2 units in the last place, and 0 where it is below 2^-126:
/// approximations differ from chip to chip.
inline Words powers_within(const Words& given, const Words& got) {
  Words w;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(number_of_bits(given[i]))),
                 is = static_cast<double>(number_of_bits(got[i]));
    const double most = exact * 0x1p-22;
    w.push_back(std::fabs(is - exact) <= most || (is == 0 && exact - most < 0x1p-126));
  }
  return w;
}

/// The m16n8k16 product as PTX lays it out, in double: of element (row, column) its sum and the sum
/// of sizes.
struct Sum {
  double value = 0, size = 0;
};
inline Sum product_of(const std::uint32_t* warp, int lane_words, int row, int column,
                      int accumulator_lane, int accumulator) {
  const auto half_of = [&](int lane, int word, int element) {
    return static_cast<double>(numbers::half_value(
        static_cast<std::uint16_t>(warp[lane * lane_words + word] >> (16 * element))));
  };
  const double first =
      static_cast<double>(number_of_bits(warp[accumulator_lane * lane_words + 6 + accumulator]));
  Sum s{first, std::fabs(first)};
  for (int k = 0; k < 16; ++k) {
    const int quad = k % 8 / 2;  // four lanes share a row of A, four a column of B
    const double term = half_of(row % 8 * 4 + quad, row / 8 + k / 8 * 2, k % 2) *
                        half_of(column * 4 + quad, 4 + k / 8, k % 2);
    s.value += term, s.size += std::fabs(term);
  }
  return s;
}
/// Whether sums are right to 2^-17 of the sum of their terms' sizes: 17 terms, each cut at 2^-22 of
/// the largest, in any order. Sums of halves are not.
inline Words sums_within(const Words& given, const Words& got) {
  Words w;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const int lane = static_cast<int>(i / 4 % 32), d = static_cast<int>(i % 4);
    const Sum s = product_of(given.data() + i / 128 * 320, 10, lane / 4 + d / 2 * 8,
                             lane % 4 * 2 + d % 2, lane, d);
    w.push_back(std::fabs(static_cast<double>(number_of_bits(got[i])) - s.value) <=
                0x1p-17 * s.size);
  }
  return w;
}

// What is given.

inline Words for_prmt() {
  Random random(1);
  Words w;
  for (std::uint32_t selector = 0; selector < 16; ++selector)
    for (int byte = 0; byte < 4; ++byte)
      append(w, {0x80ff7f01u, 0x00fe8040u,
                 (random.bits() & 0xffffu & ~(15u << (4 * byte))) | selector << (4 * byte)});
  append(w, random_words(random, 3 * 2001));
  return w;
}
inline Words for_and_or() {
  Random random(2);
  Words w = tuples(word_edges, 3);
  append(w, random_words(random, 3 * 500));
  return w;
}
inline Words for_pack() {
  Random random(3);
  Words w = tuples(float_edges, 2);
  append(w, random_words(random, 2 * 500));
  for (int i = 0; i < 2000; ++i) {  // halves, the middles between two, and a bit beside these
    const std::uint32_t half = random.bits() & 0xffffu;
    const std::uint32_t middle =
        bits_of_number(numbers::half_value(static_cast<std::uint16_t>(half))) | 0x1000u;
    append(w, {middle, middle + static_cast<std::uint32_t>(random.within(-1, 1))});
  }
  return w;
}
inline Words for_fma() {
  Random random(4);
  Words w = above_each_other(tuples(half_edges, 3), 3);
  append(w, above_each_other(beside_ties(random), 3));
  append(w, random_words(random, 3 * 2001));
  return w;
}
inline Words for_mul() {
  Random random(5);
  Words w = above_each_other(tuples(half_edges, 2), 2);
  append(w, random_words(random, 2 * 2001));
  for (int i = 0; i < 2000; ++i)  // products about the smallest normal half
    append(w, {(random.bits() & 0x83ff83ffu) | 0x10001000u,
               (random.bits() & 0x87ff87ffu) | 0x28002800u});
  return w;
}
/// Where all must agree: both zeros and subnormals are 0, what is too large or small, NaN.
inline Words for_exact_powers() {
  Random random(6);
  Words w{0,           0x80000000u, 1,           0x80000001u, 0x007fffffu, 0x807fffffu,
          0x7f800000u, 0xff800000u, 0x7fc00000u, 0xff800001u, 0x7fffffffu};
  for (int i = 0; i < 300; ++i) w.push_back(random.bits() & 0x807fffffu);  // subnormal
  for (const float x : {128.0f, 128.5f, 1e10f, -127.0f, -126.5f, -140.0f, -149.0f, -150.0f, -1e10f})
    w.push_back(bits_of_number(x));
  for (int i = 0; i < 300; ++i)
    w.push_back(bits_of_number(-127.0f - 0x1p-16f * static_cast<float>(random.within(0, 1 << 21))));
  return w;
}
inline Words for_powers() {
  Random random(7);
  Words w;
  for (int i = -126; i < 128; ++i) w.push_back(bits_of_number(static_cast<float>(i)));
  for (int i = 0; i < 3000; ++i)
    w.push_back(
        bits_of_number(0x1p-16f * static_cast<float>(random.within(-127 << 16, (128 << 16) - 1))));
  for (int i = 0; i < 1001; ++i) {
    const std::uint32_t bits = random.bits() & 0x807fffffu;
    w.push_back(bits | static_cast<std::uint32_t>(random.within(60, 129)) << 23);
  }
  return w;
}

inline std::uint32_t two_of(float low, float high) {
  return two(numbers::half_bits(low), numbers::half_bits(high));
}
/// Integers times `a` and `c`: every sum of them is exact, in any order and however a device cuts
/// it.
inline Words for_integers(std::uint64_t seed, float a, float c, int warps) {
  Random random(seed);
  const auto one = [&](int most) { return static_cast<float>(random.within(-most, most)); };
  const auto pair = [&](int most, float times) {
    const float low = one(most), high = one(most);
    return two_of(times * low, times * high);
  };
  Words w;
  for (int lane = 0; lane < 32 * warps; ++lane) {
    for (int i = 0; i < 4; ++i) w.push_back(pair(60, a));
    for (int i = 0; i < 2; ++i) w.push_back(pair(8, 1));
    for (int i = 0; i < 4; ++i) w.push_back(bits_of_number(c * one(2000)));
  }
  return w;
}
/// Some of them infinite or NaN.
inline Words for_infinities() {
  Words w = for_integers(10, 1, 1, 16);
  Random random(11);
  for (std::size_t warp = 0; warp < 16; ++warp)
    for (int i = 0; i < 4; ++i) {
      const std::size_t at = warp * 320 + static_cast<std::size_t>(random.within(0, 31)) * 10,
                        word = static_cast<std::size_t>(random.within(0, 9));
      constexpr std::uint32_t halves[] = {0x7c00, 0xfc00, 0x7e00, 0xfd01},
                              floats[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xff812345};
      const int which = random.within(0, 3);
      w[at + word] = word < 6 ? two(w[at + word], halves[which]) : floats[which];
    }
  return w;
}
/// Numbers of many sizes.
inline Words for_sums() {
  Random random(12);
  const auto one = [&] {
    const int integer = random.within(-2047, 2047);
    return std::ldexp(static_cast<float>(integer), random.within(-18, -9));
  };
  Words w;
  for (int lane = 0; lane < 32 * 32; ++lane) {
    for (int i = 0; i < 6; ++i) {
      const float low = one(), high = one();
      w.push_back(two_of(low, high));
    }
    for (int i = 0; i < 4; ++i) w.push_back(bits_of_number(one()));
  }
  return w;
}
/// Rows of eight words, see copied_grains. `some`: every third has a 0 in front.
inline Words for_copies(bool some) {
  Random random(some ? 13 : 14);
  Words w = random_words(random, 8 * 250);
  for (std::size_t i = 0; i < w.size(); i += 8) w[i] = some && i / 8 % 3 == 1 ? 0 : 0xffffffffu;
  return w;
}
inline Words for_words(std::uint64_t seed, int count) {
  Random random(seed);
  return random_words(random, count);
}

}  // namespace conformance
