#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Unsigned numbers in the order of the scores: NaN is 0, -inf comes next, -0 equals +0.
KVCONDENSE_HD inline std::uint32_t rank_bits(float score) {
  const auto b = detail::bit_cast<std::uint32_t>(score + 0.0f);
  if ((b & 0x7fffffffu) > 0x7f800000u) return 0;
  return (b & 0x80000000u) != 0 ? ~b : b | 0x80000000u;
}

/// Where the winners of a row end: all keys above `bits`, and the first `ties` keys equal to it. find_cutoff gives
/// the bits of the worst winner, so at least one tie.
struct RowCutoff {
  std::uint32_t bits = 0xffffffffu;
  index_t ties = 0;
};

/// The cutoff of the k largest keys, 1 <= k <= number of keys, on the host. each(use) calls use(key) for
/// all keys. Counting from the top bits down: three passes whatever the data, no memory beyond the
/// counters.
template <class Each>
RowCutoff find_cutoff(index_t k, Each&& each) {
  struct Digit {
    int shift;
    std::uint32_t most;
  };
  std::uint32_t known = 0, mask = 0;
  for (const Digit digit : {Digit{21, 2047}, Digit{10, 2047}, Digit{0, 1023}}) {
    index_t keys[2048] = {};
    each([&](std::uint32_t key) {
      if ((key & mask) == known) ++keys[(key >> digit.shift) & digit.most];
    });
    std::uint32_t d = digit.most;
    for (; keys[d] < k; --d) k -= keys[d];
    known |= d << digit.shift;
    mask |= digit.most << digit.shift;
  }
  return {known, k};
}

/// The same where `n` keys are known to be there. When few of them lose, as in a full cache, those are found in one
/// pass without counting.
template <class Each>
RowCutoff find_cutoff(index_t k, index_t n, Each&& each) {
  constexpr index_t few = 32;
  const index_t lose = n - k;
  if (lose < 1 || lose > few) return find_cutoff(k, each);
  std::uint32_t lowest[few] = {};  // ascending
  index_t filled = 0;
  each([&](std::uint32_t key) {
    if (filled == lose && key >= lowest[lose - 1]) return;
    index_t i = filled < lose ? filled++ : lose - 1;
    for (; i > 0 && lowest[i - 1] > key; --i) lowest[i] = lowest[i - 1];
    lowest[i] = key;
  });
  // The worst that stays is a tie with the best that goes, or the least key above it.
  const std::uint32_t cut = lowest[lose - 1];
  std::uint32_t above = 0xffffffffu;
  index_t equal = 0, least = 0, lost = 0;
  each([&](std::uint32_t key) {
    equal += key == cut;
    if (key <= cut || key > above) return;
    least = key == above ? least + 1 : 1;
    above = key;
  });
  for (index_t i = 0; i < lose; ++i) lost += lowest[i] == cut;
  return equal > lost ? RowCutoff{cut, equal - lost} : RowCutoff{above, least};
}

}  // namespace kvcondense::prim
