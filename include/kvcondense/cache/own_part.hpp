#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense::cache {

/// What one layer has of its own in a page of directions that two layers share: a length per slot, and the rows that it
/// kept as they were, each with its slot. The length of a kept row is 0, so that its direction counts for nothing.
///
/// Layout: a length per slot (16-bit floats; 32-bit ones in caches of 32-bit numbers), the slots of kept rows u16,
/// ascending, filled up to whole numbers, then these rows in the cache's type.
class OwnPart {
 public:
  OwnPart(DType dtype, index_t dim, index_t slots, Page& page)
      : exact_{dtype}, data_(page.payload()), bytes_(page.payload_bytes), slots_(slots), dim_(dim) {
    const auto each = static_cast<std::size_t>(dim) * size_of(dtype) + sizeof(std::uint16_t);
    kept_ = bytes_ < lengths() ? 0 : static_cast<index_t>((bytes_ - lengths()) / each);
  }

  static std::size_t bytes(DType dtype, index_t dim, index_t slots, index_t kept) {
    const std::size_t size = size_of(dtype), n = static_cast<std::size_t>(kept);
    return static_cast<std::size_t>(slots) * size + (n * sizeof(std::uint16_t) + size - 1) / size * size + n * static_cast<std::size_t>(dim) * size;
  }

  index_t kept() const { return kept_; }
  index_t kept_slot(index_t k) const {
    std::uint16_t slot;
    std::memcpy(&slot, data_ + lengths() + static_cast<std::size_t>(k) * sizeof slot, sizeof slot);
    return slot;
  }
  float length(index_t slot) const {
    if (exact_.dtype != DType::f32) return detail::half_value(half(slot));
    float x;
    std::memcpy(&x, data_ + static_cast<std::size_t>(slot) * sizeof x, sizeof x);
    return x;
  }

  // For whoever makes the page.
  void set_length(index_t slot, float length) {
    const std::uint16_t h = detail::half_bits(length);
    if (exact_.dtype != DType::f32) std::memcpy(data_ + static_cast<std::size_t>(slot) * sizeof h, &h, sizeof h);
    else std::memcpy(data_ + static_cast<std::size_t>(slot) * sizeof length, &length, sizeof length);
  }
  void set_kept(index_t k, index_t slot, const float* row) {
    const auto s = static_cast<std::uint16_t>(slot);
    std::memcpy(data_ + lengths() + static_cast<std::size_t>(k) * sizeof s, &s, sizeof s);
    (void)Rows::encode(exact_, rows(), k, 1, {row, 1, dim_});
    set_length(slot, 0.0f);
  }
  /// For loaders: whether the bytes can be what such a page holds.
  bool valid() const {
    if (kept_ > slots_ || bytes_ != bytes(exact_.dtype, dim_, slots_, kept_)) return false;
    for (index_t s = 0; s < slots_; ++s)
      if (!(length(s) >= 0.0f && std::isfinite(length(s)))) return false;
    for (index_t k = 0; k < kept_; ++k)
      if (kept_slot(k) >= slots_ || length(kept_slot(k)) != 0.0f || (k > 0 && kept_slot(k) <= kept_slot(k - 1))) return false;
    return true;
  }

  /// rows[i]: the direction of slot first + i becomes its row.
  void restore(index_t first, prim::RowBlock<float> out) const {
    for (index_t i = 0; i < out.rows; ++i) prim::cpu::row_ops().scale(out.data + i * out.step, dim_, length(first + i));
    each_kept(first, out.rows, [&](index_t k, index_t i) { Rows::decode(exact_, rows(), k, 1, {out.data + i * out.step, 1, dim_}); });
  }

  /// out[r][i]: the product with the direction of slot first + i becomes that with its row.
  void finish_scores(index_t first, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out) const {
    float of[max_page_slots];
    read_lengths(first, n, of);
    for (index_t r = 0; r < queries.rows; ++r)
      for (index_t i = 0; i < n; ++i) out.data[r * out.step + i] *= of[i];
    each_kept(first, n, [&](index_t k, index_t i) { Rows::scores(exact_, rows(), k, 1, queries, {out.data + i, out.rows, out.step}); });
  }

  /// scaled[r][i] = weights[r][i] * length; what kept rows weigh is added to `out`.
  void take_weights(index_t first, index_t n, prim::RowBlock<const float> weights, prim::RowBlock<float> scaled, prim::RowBlock<float> out) const {
    float of[max_page_slots];
    read_lengths(first, n, of);
    for (index_t r = 0; r < weights.rows; ++r)
      for (index_t i = 0; i < n; ++i) scaled.data[r * scaled.step + i] = weights.data[r * weights.step + i] * of[i];
    each_kept(first, n, [&](index_t k, index_t i) { Rows::accumulate(exact_, rows(), k, 1, {weights.data + i, weights.rows, weights.step}, out); });
  }

 private:
  using Rows = prim::PageCodec<Cpu, prim::ExactRows>;

  std::size_t lengths() const { return static_cast<std::size_t>(slots_) * size_of(exact_.dtype); }
  std::uint16_t half(index_t slot) const {
    std::uint16_t h;
    std::memcpy(&h, data_ + static_cast<std::size_t>(slot) * sizeof h, sizeof h);
    return h;
  }
  prim::PageSpan rows() const {
    return {data_ + bytes(exact_.dtype, 0, slots_, kept_), kept_, dim_};
  }
  void read_lengths(index_t first, index_t n, float* out) const {
    for (index_t i = 0; i < n; ++i) out[i] = length(first + i);
  }
  /// use(k, i) for kept rows of slots first + i, i < n.
  template <class Use>
  void each_kept(index_t first, index_t n, Use&& use) const {
    index_t k = 0;
    for (index_t end = kept_; k < end;) {
      const index_t middle = k + (end - k) / 2;
      if (kept_slot(middle) < first) k = middle + 1;
      else end = middle;
    }
    for (; k < kept_ && kept_slot(k) < first + n; ++k) use(k, kept_slot(k) - first);
  }

  prim::ExactRows exact_;
  std::byte* data_;
  std::size_t bytes_;
  index_t slots_, dim_, kept_ = 0;
};

}  // namespace kvcondense::cache
