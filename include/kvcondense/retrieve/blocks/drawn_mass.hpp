#pragma once

#include <cstddef>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/near_share.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Summary: what the newest queries give to every slot, of which every step tells. There are no rows beside those numbers,
/// and no query is compared.
struct DrawnMass {
  prim::NearShare near{};
  index_t history = 64;

  constexpr index_t size() const { return 1; }
  Watch watch() const { return {.history = history, .near = near}; }
  std::size_t plane_bytes(const CacheShape&, int) const { return 0; }
  std::size_t read_bytes(const CacheShape&, index_t n) const { return static_cast<std::size_t>(n) * sizeof(float); }
  constexpr index_t width(const CacheShape&) const { return 0; }

  template <Backend B>
  void build(const HeadRows<B>&, index_t, index_t, index_t, UnitState&) const {}
  template <Backend B>
  void prepare(const ReadView<B>&, index_t, const float*, float*) const {}
  template <Backend B>
  void score(const ReadView<B>& view, index_t head, index_t first, index_t count, prim::RowBlock<const float> queries,
             prim::RowBlock<float> out) const {
    const auto& drawn = view.state[head].drawn;
    for (index_t r = 0; r < queries.rows; ++r)
      for (index_t i = 0; i < count; ++i) out.data[r * out.step + i] = first + i < drawn.size() ? drawn[first + i] : 0.0f;
  }
};

}  // namespace kvcondense::retrieve
