#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/k_means.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Codes of slots in plane 0, little-endian, `parts` of one or two bytes for every slot.
struct SlotCodes {
  static void put(UnitState& state, index_t slot, index_t part, index_t parts, index_t bytes, std::int32_t code) {
    std::byte* at = state.plane[0].data() + (slot * parts + part) * bytes;
    at[0] = static_cast<std::byte>(code & 0xff);
    if (bytes == 2) at[1] = static_cast<std::byte>(code >> 8 & 0xff);
  }
  /// Calls use(slot, rows) for tiles of keys of slots [first, last).
  template <Backend B, class Use>
  static void each_tile(const HeadRows<B>& rows, index_t first, index_t last, Use&& use) {
    constexpr index_t tile = 16;
    float keys[tile * max_head_dim];
    for (index_t i = first; i < last; i += tile) {
      const index_t n = std::min(tile, last - i);
      rows.keys->read(rows.at.head, i, {keys, n, rows.shape->head_dim});
      use(i, prim::RowBlock<const float>{keys, n, rows.shape->head_dim});
    }
  }
};

/// Summary: product quantization. A key is cut into `parts`, each is the nearest of 2^bits centroids that k-means finds when
/// the first prompt ends; a score is a sum of table entries.
struct ProductCodes {
  index_t parts = 2;
  index_t bits = 6;
  index_t iterations = 10;

  constexpr index_t entries() const { return index_t{1} << bits; }
  constexpr index_t code_bytes() const { return bits <= 8 ? 1 : 2; }
  constexpr bool slots_scored() const { return true; }

  constexpr index_t size() const { return 1; }
  std::size_t plane_bytes(const CacheShape&, int plane) const { return plane == 0 ? static_cast<std::size_t>(parts * code_bytes()) : 0; }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>(n) * plane_bytes(shape, 0) + static_cast<std::size_t>(found_floats(shape, n)) * sizeof(float);
  }
  constexpr index_t width(const CacheShape&) const { return parts * entries(); }

  constexpr index_t found_floats(const CacheShape& shape, index_t) const { return entries() * shape.head_dim; }
  constexpr bool fits(const CacheShape& shape, index_t floats) const { return floats == found_floats(shape, 0); }
  constexpr std::int64_t fingerprint() const { return parts * 64 + bits; }
  constexpr bool fit_queries() const { return false; }
  template <Backend B = Cpu>
  std::size_t fit_bytes(const CacheShape& shape, index_t slots) const {
    return prim::KMeans<B>::fit_bytes(slots, shape.head_dim / parts, entries()) + Scratch::bytes_for<float>(16 * max_head_dim);
  }
  template <Backend B>
  void fit(const HeadRows<B>& rows, const PromptQueries&, UnitState& state, const Scratch& scratch) const {
    const index_t dim = rows.shape->head_dim, part = dim / parts;
    state.found.shrink(0);
    for (index_t i = 0; i < found_floats(*rows.shape, 0); ++i) state.found.append_reserved(0.0f);
    for (index_t p = 0; p < parts; ++p) {
      Scratch own = scratch;
      float* whole = own.take<float>(16 * max_head_dim);
      prim::KMeans<B>::fit(
          [&](index_t first, prim::RowBlock<float> out) {
            rows.keys->read(rows.at.head, first, {whole, out.rows, dim});
            for (index_t i = 0; i < out.rows; ++i) std::copy_n(whole + i * dim + p * part, part, out.data + i * out.step);
          },
          rows.slots, part, {entries(), iterations, static_cast<std::uint64_t>(p)}, codebook(state, part, p), own);
    }
  }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    const index_t dim = rows.shape->head_dim, part = dim / parts;
    std::int32_t label[16];
    SlotCodes::each_tile(rows, first, last, [&](index_t slot, prim::RowBlock<const float> keys) {
      for (index_t p = 0; p < parts; ++p) {
        prim::KMeans<B>::nearest({keys.data + p * part, keys.rows, keys.step}, part, codebook(state, part, p), entries(), label);
        for (index_t i = 0; i < keys.rows; ++i) SlotCodes::put(state, slot + i, p, parts, code_bytes(), label[i]);
      }
    });
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t head, const float* query, float* out) const {
    const index_t part = view.shape.head_dim / parts;
    auto& state = const_cast<UnitState&>(view.state[head]);  // read only
    for (index_t p = 0; p < parts; ++p)
      for (index_t c = 0; c < entries(); ++c) {
        const float* centroid = codebook(state, part, p) + c * part;
        float sum = 0.0f;
        for (index_t d = 0; d < part; ++d) sum += query[p * part + d] * centroid[d];
        out[p * entries() + c] = sum;
      }
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> tables,
             prim::RowBlock<float> out) const {
    prim::CodeScores<B>::scores(view.state[head].plane[0].data(), code_bytes(), parts, entries(), first, count, tables, out);
  }

 private:
  float* codebook(UnitState& state, index_t part_dim, index_t part) const {
    return state.found.data() + part * entries() * part_dim;
  }
};

/// Summary: vector quantization with a codebook per layer and KV head that was made before, nearest by a metric.
struct VectorCodes {
  LayerMatrices codebook{};  ///< [kv_heads * codes, head_dim], in the space of keys
  LayerMatrices metric{};    ///< [kv_heads * head_dim, head_dim]: distances are those of rows times it; empty: the identity

  constexpr index_t codes(const CacheShape& shape) const { return codebook.rows / shape.kv_heads; }
  constexpr bool slots_scored() const { return true; }
  constexpr index_t size() const { return 1; }
  std::size_t plane_bytes(const CacheShape&, int plane) const { return plane == 0 ? 2 : 0; }
  std::size_t read_bytes(const CacheShape& shape, index_t n) const {
    return static_cast<std::size_t>(n) * 2 + static_cast<std::size_t>(codes(shape) * shape.head_dim) * sizeof(float);
  }
  constexpr index_t width(const CacheShape& shape) const { return codes(shape); }

  template <Backend B>
  void build(const HeadRows<B>& rows, index_t, index_t first, index_t last, UnitState& state) const {
    const index_t dim = rows.shape->head_dim, n = codes(*rows.shape);
    const float* book = codebook(rows.at.layer) + rows.at.head * n * dim;
    const float* l = metric.empty() ? nullptr : metric(rows.at.layer) + rows.at.head * dim * dim;
    float difference[max_head_dim];
    SlotCodes::each_tile(rows, first, last, [&](index_t slot, prim::RowBlock<const float> keys) {
      for (index_t i = 0; i < keys.rows; ++i) {
        float best = std::numeric_limits<float>::infinity();
        std::int32_t code = 0;
        for (index_t c = 0; c < n; ++c) {
          for (index_t d = 0; d < dim; ++d) difference[d] = keys.data[i * keys.step + d] - book[c * dim + d];
          const float far = prim::MetricLength<B>::squared(difference, dim, l);
          if (far < best) best = far, code = static_cast<std::int32_t>(c);
        }
        SlotCodes::put(state, slot + i, 0, 1, 2, code);
      }
    });
  }
  template <Backend B>
  void prepare(const ReadView<B>& view, index_t head, const float* query, float* out) const {
    const index_t n = codes(view.shape), dim = view.shape.head_dim;
    const float* book = codebook(view.layer) + head * n * dim;
    for (index_t c = 0; c < n; ++c) {
      float sum = 0.0f;
      for (index_t d = 0; d < dim; ++d) sum += query[d] * book[c * dim + d];
      out[c] = sum;
    }
  }
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> tables,
             prim::RowBlock<float> out) const {
    prim::CodeScores<B>::scores(view.state[head].plane[0].data(), 2, 1, codes(view.shape), first, count, tables, out);
  }
};

}  // namespace kvcondense::retrieve
