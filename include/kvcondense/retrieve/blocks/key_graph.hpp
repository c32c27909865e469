#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/rank_bits.hpp>
#include <kvcondense/prim/top_k.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// The edges by which keys that are nearest to one query find each other: its best key to each of the others, lower slot
/// first; ascending, each once. knn [queries, k]; returns how many pairs were written (at most queries * (k - 1)).
inline index_t star_edges(const std::int32_t* knn, index_t queries, index_t k, std::int32_t* pairs) {
  index_t n = 0;
  for (index_t q = 0; q < queries; ++q)
    for (index_t i = 1; i < k; ++i) {
      const std::int32_t a = std::min(knn[q * k], knn[q * k + i]), b = std::max(knn[q * k], knn[q * k + i]);
      index_t at = 0;
      while (at < n && (pairs[2 * at] < a || (pairs[2 * at] == a && pairs[2 * at + 1] < b))) ++at;
      if (at < n && pairs[2 * at] == a && pairs[2 * at + 1] == b) continue;
      std::copy_backward(pairs + 2 * at, pairs + 2 * n, pairs + 2 * n + 2);
      pairs[2 * at] = a, pairs[2 * at + 1] = b;
      ++n;
    }
  return n;
}

/// The best places that a walk over a graph has seen, and which places those are: fixed room, no heap.
class GraphWalk {
 public:
  static constexpr index_t most_beam = 256, most_visits = 8192;

  explicit GraphWalk(index_t beam) : beam_(std::min(beam, most_beam)) { std::fill_n(seen_, table, -1); }

  /// False where the place was seen before, or no more are taken.
  bool enter(std::int32_t place) {
    if (visits_ == most_visits) return false;
    index_t at = static_cast<index_t>(static_cast<std::uint32_t>(place) * 2654435761u >> 18);
    for (; seen_[at] >= 0; at = (at + 1) % table)
      if (seen_[at] == place) return false;
    seen_[at] = place;
    ++visits_;
    return true;
  }
  void found(std::int32_t place, float score) {
    const auto better = [&](const Place& p) {
      const auto a = prim::rank_bits(p.score), b = prim::rank_bits(score);
      return a > b || (a == b && p.place < place);
    };
    if (size_ == beam_ && better(best_[size_ - 1])) return;
    index_t at = size_ < beam_ ? size_++ : size_ - 1;
    for (; at > 0 && !better(best_[at - 1]); --at) best_[at] = best_[at - 1];
    best_[at] = {score, place, false};
  }
  /// The best place whose neighbours were not looked at; -1: none is left.
  std::int32_t next() {
    for (index_t i = 0; i < size_; ++i)
      if (!best_[i].open) return best_[i].open = true, best_[i].place;
    return -1;
  }
  index_t size() const { return size_; }
  std::int32_t place(index_t i) const { return best_[i].place; }
  index_t visits() const { return visits_; }

 private:
  static constexpr index_t table = 16384;
  struct Place {
    float score;
    std::int32_t place;
    bool open;
  };
  index_t beam_ = 0, size_ = 0, visits_ = 0;
  Place best_[most_beam];
  std::int32_t seen_[table];
};

/// Summary: a graph over keys. Every slot links to the earlier keys nearest to its own (by inner product, as a walk over the
/// graph so far finds them), and to the first later ones that link to it; queries of the first prompt, each with its nearest
/// keys, are where walks begin, since queries lie elsewhere than keys. A score is exact where a walk came, -inf elsewhere.
struct KeyGraph {
  index_t degree = 8;    ///< links to earlier keys, and as many to later ones
  index_t beam = 64;     ///< best places that a walk keeps
  index_t hubs = 32;     ///< queries of the prompt
  index_t hub_keys = 8;  ///< of each

  constexpr bool slots_scored() const { return true; }
  constexpr bool walks() const { return true; }
  constexpr index_t size() const { return 1; }
  std::size_t plane_bytes(const CacheShape&, int plane) const {
    return plane == 0 ? static_cast<std::size_t>(2 * degree) * sizeof(std::int32_t) : 0;
  }
  std::size_t read_bytes(const CacheShape& shape, index_t visits) const {
    return static_cast<std::size_t>(visits) * (plane_bytes(shape, 0) + static_cast<std::size_t>(shape.head_dim) * size_of(shape.dtype)) +
           static_cast<std::size_t>(found_floats(shape, 0)) * sizeof(float);
  }
  constexpr index_t width(const CacheShape& shape) const { return shape.head_dim; }

  constexpr index_t found_floats(const CacheShape& shape, index_t) const { return hubs * (shape.head_dim + hub_keys); }
  constexpr bool fits(const CacheShape& shape, index_t floats) const { return floats == found_floats(shape, 0); }
  constexpr std::int64_t fingerprint() const { return hubs * 65536 + hub_keys; }
  constexpr bool fit_queries() const { return true; }
  std::size_t fit_bytes(const CacheShape&, index_t) const { return 0; }
  template <Backend B>
  void fit(const HeadRows<B>& rows, const PromptQueries& queries, UnitState& state, const Scratch&) const {
    if (queries.size() < 1 || rows.slots < 1) return;
    const index_t dim = rows.shape->head_dim, group = rows.shape->group();
    state.found.shrink(0);
    for (index_t i = 0; i < found_floats(*rows.shape, 0); ++i) state.found.append_reserved(0.0f);
    for (index_t s = 0; s < hubs; ++s) {
      float* q = state.found.data() + s * dim;
      queries.read(rows.at.head * group + s % group, s * queries.size() / hubs, q);
      GraphWalk best(hub_keys);
      SlotCodes::each_tile(rows, 0, rows.slots, [&](index_t slot, prim::RowBlock<const float> keys) {
        for (index_t i = 0; i < keys.rows; ++i) best.found(static_cast<std::int32_t>(slot + i), dot(q, keys.data + i * keys.step, dim));
      });
      for (index_t i = 0; i < best.size(); ++i) state.found[hubs * dim + s * hub_keys + i] = static_cast<float>(best.place(i));
    }
  }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    std::int32_t* links = reinterpret_cast<std::int32_t*>(state.plane[0].data());
    // After a rollback: links to slots that are about to be made anew.
    for (index_t j = 0; first < state.covered && j < first; ++j)
      for (index_t k = degree; k < 2 * degree; ++k)
        if (links[j * 2 * degree + k] >= first) links[j * 2 * degree + k] = -1;
    float key[max_head_dim];
    for (index_t i = first; i < last; ++i) {
      std::int32_t* own = links + i * 2 * degree;
      std::fill_n(own, 2 * degree, -1);
      rows.keys->read(rows.at.head, i, {key, 1, rows.shape->head_dim});
      GraphWalk walk(std::max(beam, degree));
      go(walk, *rows.shape, rows.at.head, *rows.keys, state, key, 0, i, [](std::int32_t, float) {});
      const index_t n = std::min(degree, walk.size());
      for (index_t k = 0; k < n; ++k) own[k] = walk.place(k);
      for (index_t k = 0; k < n; ++k) {
        std::int32_t* back = links + static_cast<index_t>(own[k]) * 2 * degree + degree;
        index_t room = 0;
        while (room < degree && back[room] >= 0) ++room;
        if (room < degree) back[room] = static_cast<std::int32_t>(i);
      }
    }
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t, const float* query, float* out) const {
    std::copy_n(query, view.shape.head_dim, out);
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    for (index_t r = 0; r < queries.rows; ++r) {
      float* to = out.data + r * out.step;
      std::fill_n(to, count, -std::numeric_limits<float>::infinity());
      GraphWalk walk(beam);
      go(walk, view.shape, head, *view.keys, view.state[head], queries.data + r * queries.step, first, first + count,
         [&](std::int32_t slot, float score) { to[slot - first] = score; });
    }
  }

 private:
  static float dot(const float* a, const float* b, index_t dim) {
    float sum = 0.0f;
    for (index_t d = 0; d < dim; ++d) sum += a[d] * b[d];
    return sum;
  }

  /// Walks towards the largest inner products with q among slots [low, high).
  template <class Rows, class Use>
  void go(GraphWalk& walk, const CacheShape& shape, index_t head, const Rows& keys, const UnitState& state, const float* q, index_t low,
          index_t high, Use&& use) const {
    const index_t dim = shape.head_dim;
    float key[max_head_dim];
    const auto visit = [&](index_t slot) {
      if (slot < low || slot >= high || !walk.enter(static_cast<std::int32_t>(slot))) return;
      keys.read(head, slot, {key, 1, dim});
      const float score = dot(q, key, dim);
      walk.found(static_cast<std::int32_t>(slot), score);
      use(static_cast<std::int32_t>(slot), score);
    };
    visit(high - 1), visit(low), visit((low + high) / 2);
    // The keys of the queries most like this one.
    const float* found = state.found.data();
    GraphWalk nearest(4);
    for (index_t s = 0; s < hubs; ++s) nearest.found(static_cast<std::int32_t>(s), dot(q, found + s * dim, dim));
    for (index_t h = 0; h < nearest.size(); ++h)
      for (index_t i = 0; i < hub_keys; ++i)
        visit(static_cast<index_t>(std::clamp(found[hubs * dim + nearest.place(h) * hub_keys + i], -1.0f, 2e9f)));
    const auto* links = reinterpret_cast<const std::int32_t*>(state.plane[0].data());
    for (std::int32_t at = walk.next(); at >= 0; at = walk.next())
      for (index_t k = 0; k < 2 * degree; ++k)
        if (const std::int32_t other = links[static_cast<index_t>(at) * 2 * degree + k]; other >= 0) visit(other);
  }
};

/// Selector: the slots with the largest scores among those that have one.
struct TopVisited {
  index_t slots = 100;

  template <Backend B>
  constexpr index_t budget(const ReadView<B>&, index_t) const {
    return slots;
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t candidates) const {
    return candidates <= slots;
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const { return Scratch::bytes_for<index_t>(shape.q_heads); }
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>&, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    auto* total = scratch.take<index_t>(scores.heads);
    if (total == nullptr) return Status::workspace_too_small;
    std::fill_n(total, scores.heads, slots);
    if (const Status s = prim::TopK<B>::run(ctx, scores, nullptr, total, lists.units, lists.count); s != Status::ok) return s;
    for (index_t r = 0; r < scores.heads; ++r) {
      const float* x = scores.row(r);
      auto* list = lists.units.row(r);
      lists.count[r] = std::remove_if(list, list + lists.count[r], [&](auto i) { return !(x[i] > -std::numeric_limits<float>::infinity()); }) - list;
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::retrieve
