#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/slot_runs.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::retrieve {

/// Says which keys each query of a prompt sees, for engines whose prefill skips the others.
///
/// Idea     attention of a prompt is sparse in a few shapes: the first tokens, the newest, whole columns, whole diagonals.
/// Source   Jiang et al., MInference, NeurIPS 2024, arXiv:2407.02490; Lai et al., FlexPrefill, ICLR 2025; as SCBench compares
///          them.
/// Needs    for columns and diagonals the prompt's newest queries and all its keys (`prim::VerticalSlash`), then
///          `best_with_forced`. No cache: its `attend` sees every token of a prompt.
/// Shapes   one mask per head; query i of n sees keys j <= i. Lists ascend.
/// Cost     `sees` looks up two lists; `runs` writes at most columns + offsets + 2 runs.
/// Numbers  a_shape: j < sinks or i - j < local. tri_shape: the same, and the last `last` queries see all. vertical_slash: j is
///          one of `columns`, or i - j one of `offsets`.
/// Errors   none.
struct PrefillMask {
  static constexpr Descriptor about{"prefill_mask", Stage::retrieve, "arXiv:2407.02490"};
  enum class Shape : std::uint8_t { a_shape, tri_shape, vertical_slash };

  Shape shape = Shape::a_shape;
  index_t sinks = 128;
  index_t local = 3968;
  index_t last = 100;
  std::span<const std::int32_t> columns{};
  std::span<const std::int32_t> offsets{};

  bool sees(index_t query, index_t key, index_t n) const {
    if (key < 0 || key > query || query >= n) return false;
    if (shape == Shape::vertical_slash)
      return std::binary_search(columns.begin(), columns.end(), key) || std::binary_search(offsets.begin(), offsets.end(), query - key);
    if (shape == Shape::tri_shape && query >= n - last) return true;
    return key < sinks || query - key < local;
  }

  /// The keys that a query sees as ascending runs; returns how many were written.
  index_t runs(index_t query, index_t n, SlotRun* out) const {
    index_t count = 0;
    const auto add = [&](index_t first, index_t end) {
      if (first >= end) return;
      if (count > 0 && out[count - 1].last >= first) out[count - 1].last = std::max(out[count - 1].last, static_cast<std::int32_t>(end));
      else out[count++] = {static_cast<std::int32_t>(first), static_cast<std::int32_t>(end)};
    };
    const index_t end = query + 1;
    if (query < 0 || query >= n) return 0;
    if (shape != Shape::vertical_slash) {
      if (shape == Shape::tri_shape && query >= n - last) return add(0, end), count;
      add(0, std::min(sinks, end));
      add(std::max<index_t>(0, end - std::max<index_t>(local, 0)), end);
      return count;
    }
    auto column = columns.begin();
    auto offset = offsets.end();  // the largest offset is the first key
    while (column != columns.end() || offset != offsets.begin()) {
      const index_t a = column == columns.end() ? end : *column;
      const index_t b = offset == offsets.begin() ? end : query - *(offset - 1);
      const index_t key = std::min(a, b);
      if (key >= end) break;
      if (key >= 0) add(key, key + 1);
      if (column != columns.end() && a == key) ++column;
      if (offset != offsets.begin() && b == key) --offset;
    }
    return count;
  }
};

/// The `most` best places of a row, the first `forced` among them in any case; ascending. Returns how many. Ties keep the place
/// in front; NaN ranks last.
inline index_t best_with_forced(std::span<const float> scores, index_t forced, index_t most, std::int32_t* out) {
  const auto n = static_cast<index_t>(scores.size());
  most = std::clamp<index_t>(most, 0, n), forced = std::clamp<index_t>(forced, 0, most);
  prim::RowCutoff cut{};
  const index_t k = most - forced;
  if (k > 0)
    cut = prim::find_cutoff(k, [&](auto&& use) {
      for (index_t i = forced; i < n; ++i) use(prim::rank_bits(scores[static_cast<std::size_t>(i)]));
    });
  index_t count = 0;
  for (index_t i = 0; i < n; ++i) {
    const std::uint32_t key = prim::rank_bits(scores[static_cast<std::size_t>(i)]);
    if (i < forced || (k > 0 && (key > cut.bits || (key == cut.bits && cut.ties-- > 0)))) out[count++] = static_cast<std::int32_t>(i);
  }
  return count;
}

/// The square root of the Jensen-Shannon divergence (natural logarithm) of two distributions of n numbers: FlexPrefill's
/// measure of how well pooled blocks predict true ones.
inline double root_jensen_shannon(const float* p, const float* q, index_t n) {
  double sum = 0.0;
  for (index_t i = 0; i < n; ++i) {
    const double a = static_cast<double>(p[i]), b = static_cast<double>(q[i]), m = (a + b) / 2;
    if (a > 0.0) sum += a * std::log(a / m) / 2;
    if (b > 0.0) sum += b * std::log(b / m) / 2;
  }
  return std::sqrt(std::max(sum, 0.0));
}

/// The fewest places whose scores, taken from the largest down, hold the part `gamma` of their sum; ascending. Returns how
/// many; `order` is scratch for as many numbers as scores.
inline index_t covering_places(std::span<const float> scores, double gamma, std::int32_t* order, std::int32_t* out) {
  const auto n = static_cast<index_t>(scores.size());
  double sum = 0.0, held = 0.0;
  for (index_t i = 0; i < n; ++i) order[i] = static_cast<std::int32_t>(i), sum += static_cast<double>(scores[static_cast<std::size_t>(i)]);
  std::stable_sort(order, order + n, [&](auto a, auto b) {
    return prim::rank_bits(scores[static_cast<std::size_t>(a)]) > prim::rank_bits(scores[static_cast<std::size_t>(b)]);
  });
  index_t count = 0;
  while (count < n && held < gamma * sum - 1e-9 * sum) held += static_cast<double>(scores[static_cast<std::size_t>(order[count++])]);
  std::copy_n(order, count, out);
  std::sort(out, out + count);
  return count;
}

}  // namespace kvcondense::retrieve
