#pragma once

#include <bit>
#include <cstdint>

#include <kvcondense/backend/cpu/simd/rank_ops.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>

namespace kvcondense::prim::cpu {
namespace portable {

inline RowCutoff cutoff(const float* scores, index_t n, index_t k) {
  return find_cutoff(k, n, [&](auto&& use) {
    for (index_t i = 0; i < n; ++i) use(rank_bits(scores[i]));
  });
}

inline index_t pick(const float* scores, index_t n, std::int32_t first, RowCutoff cut, std::int32_t* out, index_t& nan) {
  std::int32_t* at = out;
  for (index_t i = 0; i < n; ++i) {
    const std::uint32_t key = rank_bits(scores[i]);
    nan += key == 0;
    const bool stays = key > cut.bits || (key == cut.bits && cut.ties-- > 0);
    *at = first + static_cast<std::int32_t>(i);  // there is room: `at` is never ahead of i
    at += stays;
  }
  return at - out;
}

/// In blocks, so that most scores are only compared: without branches, as compilers like it.
inline void lowest(const float* scores, index_t n, index_t first, bool backward, Lowest& found) {
  constexpr index_t block = 64;
  const index_t blocks = (n + block - 1) / block;
  for (index_t b = 0; b < blocks; ++b) {
    const index_t at = (backward ? blocks - 1 - b : b) * block, m = n - at < block ? n - at : block;
    std::uint32_t least = 0xffffffffu;
    for (index_t i = 0; i < m; ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(scores[at + i] + 0.0f);
      const std::uint32_t sign = 0u - (bits >> 31), number = 0u - static_cast<std::uint32_t>((bits & 0x7fffffffu) <= 0x7f800000u);
      const std::uint32_t key = (bits ^ (sign | 0x80000000u)) & number;
      least = key < least ? key : least;
    }
    if (least >= found.bar()) continue;
    for (index_t j = 0; j < m; ++j) {
      const index_t i = at + (backward ? m - 1 - j : j);
      const std::uint32_t key = rank_bits(scores[i]);
      if (key < found.bar()) found.take(key, first + i);
    }
  }
}

inline constexpr RankOps rank_ops{cutoff, pick, lowest};

}  // namespace portable
}  // namespace kvcondense::prim::cpu

#if KVCONDENSE_X86_TARGETS
#include <kvcondense/backend/cpu/simd/avx512.hpp>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,popcnt"))), apply_to = function)
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,popcnt")
#endif

namespace kvcondense::prim::cpu::avx512 {

/// Keys that are candidates for the cutoff, and how many more there are.
struct Candidates {
  static constexpr index_t room = 4096;

  alignas(64) std::uint32_t key[room + 16];
  index_t inside = 0;  ///< of all scores; the first `room` of them are here
  index_t above = 0;

  index_t here() const { return inside < room ? inside : room; }
};

/// `rank_bits` of sixteen scores; `numbers`: those that are not NaN.
[[gnu::always_inline]] inline __m512i rank_keys(__m512 scores, __mmask16& numbers) {
  const __m512i b = _mm512_castps_si512(_mm512_add_ps(scores, _mm512_setzero_ps()));
  const __m512i sign = _mm512_srai_epi32(b, 31), top = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  numbers = _mm512_cmp_ps_mask(scores, scores, _CMP_ORD_Q);
  return _mm512_maskz_xor_epi32(numbers, b, _mm512_or_si512(sign, top));
}
[[gnu::always_inline]] inline __m512i rank_keys(__m512 scores) {
  __mmask16 numbers;
  return rank_keys(scores, numbers);
}
[[gnu::always_inline]] inline __m512i all_bits(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }

/// Keeps keys in [low, high].
inline void gather(const float* scores, index_t n, std::uint32_t low, std::uint32_t high, Candidates& c) {
  const __m512i l = all_bits(low), h = all_bits(high);
  index_t inside = 0, above = 0;  // no store of a key can change these
  const auto take = [&](const float* from, __mmask16 valid) __attribute__((always_inline)) {
    const __m512i keys = rank_keys(_mm512_maskz_loadu_ps(valid, from));
    const __mmask16 over = _mm512_mask_cmpgt_epu32_mask(valid, keys, h);
    const auto in = static_cast<__mmask16>(_mm512_mask_cmpge_epu32_mask(valid, keys, l) & ~over);
    above += __builtin_popcount(over);
    if (inside < Candidates::room) _mm512_storeu_si512(c.key + inside, _mm512_maskz_compress_epi32(in, keys));
    inside += __builtin_popcount(in);
  };
  index_t i = 0;
  for (; i + 16 <= n; i += 16) take(scores + i, 0xffff);
  if (i < n) take(scores + i, first_lanes(n - i));
  c.inside = inside, c.above = above;
}

inline index_t at_least(const std::uint32_t* keys, index_t n, std::uint32_t least) {
  const __m512i l = all_bits(least), one = all_bits(1);
  __m512i count = _mm512_setzero_si512(), count2 = count;
  index_t i = 0;
  for (; i + 32 <= n; i += 32) {
    count = _mm512_mask_add_epi32(count, _mm512_cmpge_epu32_mask(_mm512_loadu_si512(keys + i), l), count, one);
    count2 = _mm512_mask_add_epi32(count2, _mm512_cmpge_epu32_mask(_mm512_loadu_si512(keys + i + 16), l), count2, one);
  }
  for (; i < n; i += 16) {
    const __mmask16 valid = n - i >= 16 ? __mmask16{0xffff} : first_lanes(n - i);
    count = _mm512_mask_add_epi32(count, _mm512_mask_cmpge_epu32_mask(valid, _mm512_loadu_si512(keys + i), l), count, one);
  }
  return _mm512_reduce_add_epi32(_mm512_add_epi32(count, count2));
}

/// The smallest key that is not below `least`.
inline std::uint32_t smallest_from(const std::uint32_t* keys, index_t n, std::uint32_t least) {
  const __m512i l = all_bits(least);
  __m512i found = all_bits(0xffffffffu);
  for (index_t i = 0; i < n; i += 16) {
    const __mmask16 valid = n - i >= 16 ? __mmask16{0xffff} : first_lanes(n - i);
    const __m512i k = _mm512_loadu_si512(keys + i);
    found = _mm512_mask_min_epu32(found, _mm512_mask_cmpge_epu32_mask(valid, k, l), found, k);
  }
  return _mm512_reduce_min_epu32(found);
}

/// The `rank`-th largest of n keys in [low, high], by halving until no other key is as near.
inline std::uint32_t nth_largest(const std::uint32_t* keys, index_t n, index_t rank, std::uint32_t low, std::uint32_t high) {
  while (low < high) {
    const std::uint32_t middle = high - (high - low) / 2;
    const index_t count = at_least(keys, n, middle);
    if (count == rank) return smallest_from(keys, n, middle);
    if (count > rank) low = middle;
    else high = middle - 1;
  }
  return low;
}

/// Narrows [low, high] to where the rank-th of `inside` keys should be, if `n` keys are a fair sample of them.
inline void narrow_to(const std::uint32_t* keys, index_t n, index_t rank, index_t inside, std::uint32_t& low, std::uint32_t& high) {
  const double part = static_cast<double>(rank) / static_cast<double>(inside), middle = part * static_cast<double>(n);
  const double off = 4.0 * __builtin_sqrt(static_cast<double>(n) * part * (1.0 - part)) + 2.0;
  const std::uint32_t l = low, h = high;
  if (const auto r = static_cast<index_t>(middle + off); r < n) low = nth_largest(keys, n, r, l, h);
  if (const auto r = static_cast<index_t>(middle - off); r > 0) high = nth_largest(keys, n, r, l, h);
}

inline RowCutoff cutoff(const float* scores, index_t n, index_t k) {
  Candidates c;
  std::uint32_t low = 0, high = 0xffffffffu;
  if (n > Candidates::room) {
    constexpr index_t sample = 1024;
    float some[sample];
    for (index_t i = 0, step = n / sample; i < sample; ++i) some[i] = scores[i * step];
    gather(some, sample, low, high, c);
    narrow_to(c.key, sample, k, n, low, high);
  }
  for (int pass = 0; pass < 8; ++pass) {
    gather(scores, n, low, high, c);
    const index_t rank = k - c.above;
    if (rank < 1 || rank > c.inside) break;
    if (low == high) return {low, rank};
    if (c.inside <= Candidates::room) {
      const std::uint32_t bits = nth_largest(c.key, c.inside, rank, low, high);
      return {bits, rank - (bits == 0xffffffffu ? 0 : at_least(c.key, c.inside, bits + 1))};
    }
    narrow_to(c.key, c.here(), rank, c.inside, low, high);
  }
  return portable::cutoff(scores, n, k);  // the samples were not fair
}

inline index_t pick(const float* scores, index_t n, std::int32_t first, RowCutoff cut, std::int32_t* out, index_t& nan) {
  std::int32_t* at = out;
  const __m512i bits = all_bits(cut.bits);
  __m512i place = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  index_t i = 0, bad = 0;
  for (; i + 16 <= n; i += 16, place = _mm512_add_epi32(place, _mm512_set1_epi32(16))) {
    __mmask16 numbers;
    const __m512i keys = rank_keys(_mm512_loadu_ps(scores + i), numbers);
    unsigned stays = _mm512_cmpgt_epu32_mask(keys, bits);
    for (unsigned even = _mm512_cmpeq_epu32_mask(keys, bits); even != 0 && cut.ties > 0; even &= even - 1, --cut.ties) stays |= even & (0u - even);
    bad += 16 - __builtin_popcount(numbers);
    _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(static_cast<__mmask16>(stays), place));  // `at` is never ahead of i
    at += __builtin_popcount(stays);
  }
  nan += bad;
  return at - out + portable::pick(scores + i, n - i, first + static_cast<std::int32_t>(i), cut, at, nan);
}

inline void lowest(const float* scores, index_t n, index_t first, bool backward, Lowest& found) {
  constexpr index_t block = 64;
  const index_t whole = n - n % block;
  const auto rest = [&] { portable::lowest(scores + whole, n - whole, first + whole, backward, found); };
  if (backward) rest();
  __m512i bar = all_bits(found.bar());
  for (index_t b = 0; b < whole; b += block) {
    const index_t at = backward ? whole - block - b : b;
    const float* s = scores + at;
    const __m512i keys[] = {rank_keys(_mm512_loadu_ps(s)), rank_keys(_mm512_loadu_ps(s + 16)), rank_keys(_mm512_loadu_ps(s + 32)),
                            rank_keys(_mm512_loadu_ps(s + 48))};
    if (_mm512_cmplt_epu32_mask(_mm512_min_epu32(_mm512_min_epu32(keys[0], keys[1]), _mm512_min_epu32(keys[2], keys[3])), bar) == 0) continue;
    alignas(64) std::uint32_t key[block];
    std::uint64_t below = 0;
    for (int v = 0; v < 4; ++v) {
      _mm512_store_si512(key + 16 * v, keys[v]);
      below |= static_cast<std::uint64_t>(_mm512_cmplt_epu32_mask(keys[v], bar)) << (16 * v);
    }
    while (below != 0) {
      const int i = backward ? 63 - std::countl_zero(below) : std::countr_zero(below);
      below &= ~(std::uint64_t{1} << i);
      if (key[i] < found.bar()) found.take(key[i], first + at + i);
    }
    bar = all_bits(found.bar());
  }
  if (!backward) rest();
}

inline constexpr RankOps rank_ops{cutoff, pick, lowest};

}  // namespace kvcondense::prim::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
