#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Normal numbers for planes, from counter-based bits: the same on every machine.
inline void fill_planes(std::uint64_t seed, float* out, index_t n) {
  constexpr double two_pi = 6.283185307179586;
  for (index_t i = 0; i < n; ++i) {
    const double a = 1.0 - static_cast<double>(random_uniform(seed, static_cast<std::uint64_t>(2 * i)));
    const double b = static_cast<double>(random_uniform(seed, static_cast<std::uint64_t>(2 * i + 1)));
    out[i] = static_cast<float>(std::sqrt(-2.0 * std::log(a)) * std::cos(two_pi * b));
  }
}

/// Summary: on which sides of random planes a key lies, seen from the mean of the first prompt's keys; a word of `bits` sides
/// per table. A score is the number of tables in which query and key have the same word.
struct SignHashes {
  HashPlanes planes{};
  index_t sinks = 4;   ///< first keys that the mean leaves out
  index_t local = 64;  ///< newest ones

  constexpr bool slots_scored() const { return true; }
  constexpr index_t size() const { return 1; }
  std::size_t plane_bytes(const CacheShape&, int plane) const { return plane == 0 ? static_cast<std::size_t>(2 * planes.tables) : 0; }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const { return static_cast<std::size_t>(n) * plane_bytes(shape, 0); }
  constexpr index_t width(const CacheShape&) const { return planes.tables; }

  constexpr index_t found_floats(const CacheShape& shape, index_t) const { return shape.head_dim; }
  constexpr bool fits(const CacheShape& shape, index_t floats) const { return floats == shape.head_dim; }
  constexpr bool fit_queries() const { return false; }
  std::size_t fit_bytes(const CacheShape&, index_t) const { return 0; }
  template <Backend B>
  void fit(const HeadRows<B>& rows, const PromptQueries&, UnitState& state, const Scratch&) const {
    const index_t dim = rows.shape->head_dim, last = rows.slots - local;
    double mean[max_head_dim] = {};
    SlotCodes::each_tile(rows, std::min(sinks, last), last, [&](index_t, prim::RowBlock<const float> keys) {
      for (index_t i = 0; i < keys.rows; ++i)
        for (index_t d = 0; d < dim; ++d) mean[d] += static_cast<double>(keys.data[i * keys.step + d]);
    });
    const double n = static_cast<double>(std::max<index_t>(1, last - sinks));
    state.found.shrink(0);
    for (index_t d = 0; d < dim; ++d) state.found.append_reserved(static_cast<float>(mean[d] / n));
  }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    const index_t dim = rows.shape->head_dim;
    float centred[max_head_dim];
    SlotCodes::each_tile(rows, first, last, [&](index_t slot, prim::RowBlock<const float> keys) {
      for (index_t i = 0; i < keys.rows; ++i) {
        for (index_t d = 0; d < dim; ++d) centred[d] = keys.data[i * keys.step + d] - state.found[d];
        for (index_t t = 0; t < planes.tables; ++t) SlotCodes::put(state, slot + i, t, planes.tables, 2, word(centred, t));
      }
    });
  }
  template <Backend B>
  void prepare(const ReadView<B>&, index_t, const float* query, float* out) const {
    for (index_t t = 0; t < planes.tables; ++t) out[t] = static_cast<float>(word(query, t));
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> words,
             prim::RowBlock<float> out) const {
    prim::CodeScores<B>::matches(view.state[head].plane[0].data(), 2, planes.tables, first, count, words, out);
  }

 private:
  std::int32_t word(const float* row, index_t table) const {
    std::int32_t bits = 0;
    for (index_t b = 0; b < planes.bits; ++b) {
      const float* plane = planes.plane(table, b);
      float sum = 0.0f;
      for (index_t d = 0; d < planes.dim; ++d) sum += row[d] * plane[d];
      bits |= static_cast<std::int32_t>(sum > 0.0f) << b;
    }
    return bits;
  }
};

/// Selector: slots that meet the query in at least two tables, a sample; each with minus the logarithm of its chance to be in
/// it, so that the sample stands for all slots.
struct Sampled {
  index_t bits = 10;
  index_t tables = 150;
  index_t first = 4;  ///< slot of candidate 0

  constexpr bool biases() const { return true; }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t) const {
    return false;
  }
  std::size_t workspace_bytes(const CacheShape&, index_t, index_t) const { return 0; }

  /// The chance that vectors of this cosine meet in at least two of the tables.
  static double chance(double cosine, index_t bits, index_t tables) {
    const double p = 1.0 - std::acos(std::clamp(cosine, -1.0, 1.0)) / 3.14159265358979323846;
    const double meets = std::pow(p, static_cast<double>(bits)), l = static_cast<double>(tables);
    return 1.0 - std::pow(1.0 - meets, l - 1.0) * (l * meets + 1.0 - meets);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch&) const {
    ctx.parallel(scores.heads, [&](index_t r, index_t) {
      const index_t dim = view.shape.head_dim, head = r * view.heads() / scores.heads;
      const float *q = view.query(view.tokens - 1, r), *mean = view.state[head].found.data();
      float* bias = lists.bias + scores.offset[r];
      double length = 0.0;
      for (index_t d = 0; d < dim; ++d) length += static_cast<double>(q[d]) * static_cast<double>(q[d]);
      float key[max_head_dim];
      lists.count[r] = 0;
      for (index_t i = 0; i < scores.length(r); ++i) {
        if (!(scores.row(r)[i] >= 2.0f)) continue;
        view.keys->read(head, first + i, {key, 1, dim});
        double dot = 0.0, norm = 0.0;
        for (index_t d = 0; d < dim; ++d) {
          const double c = static_cast<double>(key[d]) - static_cast<double>(mean[d]);
          dot += static_cast<double>(q[d]) * c, norm += c * c;
        }
        const double cosine = norm > 0.0 && length > 0.0 ? dot / std::sqrt(norm * length) : 0.0;
        lists.units.row(r)[lists.count[r]] = static_cast<std::int32_t>(i);
        bias[lists.count[r]++] = static_cast<float>(-std::log(chance(cosine, bits, tables) + 1e-4));
      }
    });
    return Status::ok;
  }

};

}  // namespace kvcondense::retrieve
