#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/top_k.hpp>
#include <kvcondense/prim/unit_fold.hpp>
#include <kvcondense/retrieve/blocks/largest_first.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Query transform: the channels with the largest magnitudes, all others zero, and behind them the temperature of what they
/// leave: sqrt(dim * their part of the query's magnitude).
struct TopChannels {
  index_t channels = 16;

  constexpr index_t rows(index_t group) const { return group; }
  constexpr index_t floats(index_t dim) const { return dim + 1; }

  template <Backend B>
  void run(const ReadView<B>& view, index_t token, index_t head, index_t row, float* out) const {
    of(view.query(token, head * view.shape.group() + row), view.shape.head_dim, out);
  }
  void of(const float* query, index_t dim, float* out) const {
    float left[max_head_dim];
    double all = 0.0, kept = 0.0;
    for (index_t d = 0; d < dim; ++d) left[d] = std::fabs(query[d]), all += static_cast<double>(left[d]);
    std::fill_n(out, dim, 0.0f);
    take_largest(left, dim, channels, [&](index_t best) { out[best] = query[best], kept += static_cast<double>(std::fabs(query[best])); });
    out[dim] = all > 0.0 ? static_cast<float>(std::sqrt(static_cast<double>(dim) * kept / all)) : 1.0f;
  }
};

/// Summary: a second copy of keys, channel by channel in pages of 64 slots, so that a few channels of all slots are read
/// without the others; and the sum of the values of every page.
struct ChannelPages {
  static constexpr index_t page = 64;

  constexpr bool slots_scored() const { return true; }
  constexpr index_t size() const { return page; }
  std::size_t plane_bytes(const CacheShape& shape, int plane) const {
    return plane == 0 ? static_cast<std::size_t>(page * shape.head_dim) * size_of(shape.dtype)
                      : static_cast<std::size_t>(shape.values()) * sizeof(float);
  }
  index_t channels = 16;  ///< that a query reads
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>(n * std::min(channels, shape.head_dim) * shape.group()) * size_of(shape.dtype);
  }
  constexpr index_t width(const CacheShape& shape) const { return shape.head_dim + 1; }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    constexpr index_t tile = 16;
    const index_t dim = rows.shape->head_dim, values = rows.shape->values();
    float keys[tile * max_head_dim], part[tile], sum[max_head_dim];
    const prim::ExactRows codec{rows.shape->dtype};
    for (index_t p = first; p < last; ++p) {
      const index_t begin = p * page, end = std::min(rows.slots, begin + page);
      std::fill_n(sum, values, 0.0f);
      for (index_t i = begin; i < end; i += tile) {
        const index_t n = std::min(tile, end - i);
        rows.keys->read(rows.at.head, i, {keys, n, dim});
        for (index_t d = 0; d < dim; ++d) {
          std::fill_n(part, tile, 0.0f);
          for (index_t k = 0; k < n; ++k) part[k] = keys[k * dim + d];
          prim::PageCodec<B, prim::ExactRows>::encode(codec, strips(*rows.shape, state), (p * dim + d) * (page / tile) + (i - begin) / tile, 1,
                                                      {part, 1, tile});
        }
        rows.values->read(rows.at.head, i, {keys, n, values});
        prim::UnitFold<B>::sum({keys, n, values}, values, sum);
      }
      std::copy_n(reinterpret_cast<const std::byte*>(sum), values * static_cast<index_t>(sizeof(float)),
                  state.plane[1].data() + p * values * static_cast<index_t>(sizeof(float)));
    }
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t, const float* query, float* out) const {
    std::copy_n(query, view.shape.head_dim + 1, out);
  }
  /// Logits over the temperature.
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    constexpr index_t tile = 16;
    const index_t dim = view.shape.head_dim;
    float strip[tile];
    const prim::ExactRows codec{view.shape.dtype};
    for (index_t r = 0; r < queries.rows; ++r) {
      const float* q = queries.data + r * queries.step;
      float* to = out.data + r * out.step;
      std::fill_n(to, count, 0.0f);
      for (index_t d = 0; d < dim; ++d) {
        if (q[d] == 0.0f) continue;
        for (index_t s = first / tile; s * tile < first + count; ++s) {
          prim::PageCodec<B, prim::ExactRows>::decode(codec, strips(view.shape, view.state[head]),
                                                      ((s * tile / page) * dim + d) * (page / tile) + s % (page / tile), 1, {strip, 1, tile});
          const index_t begin = std::max(first, s * tile), end = std::min(first + count, (s + 1) * tile);
          for (index_t i = begin; i < end; ++i) to[i - first] += q[d] * strip[i - s * tile];
        }
      }
      for (index_t i = 0; i < count; ++i) to[i] /= q[dim];
    }
  }
  /// Of the values of all slots, those that no step has seen too.
  template <Backend B>
  void mean_value(const ReadView<B>& view, index_t head, float* out) const {
    const index_t values = view.shape.values(), n = view.slots[head];
    std::fill_n(out, values, 0.0f);
    const UnitState& state = view.state[head];
    float row[16 * max_head_dim];
    for (index_t p = 0; p * page < view.known[head]; ++p) {
      std::copy_n(state.plane[1].data() + p * values * static_cast<index_t>(sizeof(float)), values * static_cast<index_t>(sizeof(float)),
                  reinterpret_cast<std::byte*>(row));
      prim::UnitFold<B>::sum({row, 1, values}, values, out);
    }
    for (index_t i = view.known[head]; i < n; i += 16) {
      const index_t m = std::min<index_t>(16, n - i);
      view.values->read(head, i, {row, m, values});
      prim::UnitFold<B>::sum({row, m, values}, values, out);
    }
    for (index_t d = 0; n > 0 && d < values; ++d) out[d] /= static_cast<float>(n);
  }

 private:
  static prim::PageSpan strips(const CacheShape& shape, const UnitState& state) {
    const auto bytes = static_cast<index_t>(16 * size_of(shape.dtype));
    return {const_cast<std::byte*>(state.plane[0].data()), state.plane[0].size() / bytes, 16};
  }
};

/// Selector: the slots with the largest approximate logits, and what part of the approximate attention they and the slots
/// that are kept draw.
struct TopWithShare {
  index_t slots = 0;      ///< that are chosen; 0: the part `share` of all
  double share = 0.0625;
  index_t channels = 16;  ///< of the approximation, for slots that no index knows
  index_t local = 0;      ///< newest ones that are among the chosen in any case

  constexpr bool shares() const { return true; }
  template <Backend B>
  constexpr index_t budget(const ReadView<B>& view, index_t head) const {
    return slots > 0 ? slots : std::max<index_t>(1, static_cast<index_t>(static_cast<double>(view.slots[head]) * share + 0.5));
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>& view, index_t head, index_t candidates) const {
    return candidates <= budget(view, head);
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const {
    return Scratch::bytes_for<index_t>(shape.q_heads) + Scratch::bytes_for<prim::Ends>(shape.q_heads);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    auto* total = scratch.take<index_t>(scores.heads);
    auto* always = scratch.take<prim::Ends>(scores.heads);
    if (total == nullptr || always == nullptr) return Status::workspace_too_small;
    const index_t per_head = scores.heads / view.heads();
    for (index_t r = 0; r < scores.heads; ++r) {
      total[r] = budget(view, r / per_head);
      always[r] = {0, std::min(local, total[r])};
    }
    if (const Status s = prim::TopK<B>::run(ctx, scores, always, total, lists.units, lists.count); s != Status::ok) return s;
    ctx.parallel(scores.heads, [&](index_t r, index_t) { lists.share[r] = read_share(view, r, r / per_head, scores, lists); });
    return Status::ok;
  }

 private:
  template <Backend B>
  float read_share(const ReadView<B>& view, index_t row, index_t head, RaggedView<const float> scores, const UnitLists& lists) const {
    const float* x = scores.row(row);
    const index_t n = scores.length(row), dim = view.shape.head_dim;
    if (n == 0) return 1.0f;  // nothing is left out
    float most = -std::numeric_limits<float>::infinity();
    for (index_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
    double read = 0.0, all = 0.0, top = static_cast<double>(most);
    for (index_t i = 0; i < n; ++i)
      if (x[i] == x[i]) all += static_cast<double>(std::exp(x[i] - most));
    for (index_t i = 0; i < lists.count[row]; ++i)
      if (const float y = x[lists.units.row(row)[i]]; y == y) read += static_cast<double>(std::exp(y - most));
    // Slots that no index knows are read, and weigh as much as the same channels say.
    float query[max_head_dim + 1], key[max_head_dim];
    TopChannels{channels}.of(view.query(view.tokens - 1, row), dim, query);
    for (index_t slot = n; slot < view.slots[head]; ++slot) {
      view.keys->read(head, slot, {key, 1, dim});
      double dot = 0.0;
      for (index_t d = 0; d < dim; ++d) dot += static_cast<double>(query[d]) * static_cast<double>(key[d]);
      const double logit = dot / static_cast<double>(query[dim]);
      if (logit > top) {  // from here on it is what weighs 1
        const double less = std::exp(top - logit);
        read *= less, all *= less, top = logit;
      }
      if (logit == logit) read += std::exp(logit - top), all += std::exp(logit - top);
    }
    return all > 0.0 ? static_cast<float>(read / all) : 1.0f;
  }
};

}  // namespace kvcondense::retrieve
