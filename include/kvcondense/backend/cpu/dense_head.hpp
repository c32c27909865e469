#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/attend.hpp>

namespace kvcondense::prim {

/// A head of dense rows [kv_heads, slots, dim] as `Attend<Cpu>` reads it: the engine's own arrays, any strides with
/// contiguous channels. With `positions` (of the slots that the queries stand at, one per query) each query sees the
/// slots up to its own, in whatever order queries come: attention with explicit query positions.
struct DenseHead {
  struct Cursor {
    index_t at = 0;
  };
  TensorView<const float, 3> keys;
  TensorView<const float, 3> values;
  index_t head = 0;
  const index_t* positions = nullptr;

  index_t slots() const { return keys.extent[1]; }
  index_t visible(index_t query, index_t queries) const {
    return positions == nullptr ? slots() - queries + query + 1 : positions[query] + 1;
  }
  SlotScalars scalars() const { return {}; }
  void seek(Cursor& key, Cursor& value, index_t slot) const { key.at = value.at = slot; }
  void prepare_query(float*, index_t, index_t) const {}
  void key_scores(Cursor& cursor, index_t n, RowBlock<const float> queries, RowBlock<float> out, index_t) const {
    for_tiles(keys, cursor.at, n, [&](const float* tile, index_t done, index_t m) {
      cpu::dot_rows(tile, m, keys.extent[2], queries, {out.data + done, out.rows, out.step});
    });
    cursor.at += n;
  }
  void add_values(Cursor& cursor, index_t n, RowBlock<const float> weights, RowBlock<float> out) const {
    for_tiles(values, cursor.at, n, [&](const float* tile, index_t done, index_t m) {
      cpu::add_rows(tile, m, values.extent[2], {weights.data + done, weights.rows, weights.step}, out);
    });
    cursor.at += n;
  }

 private:
  template <class Use>
  void for_tiles(const TensorView<const float, 3>& rows, index_t first, index_t count, Use&& use) const {
    const index_t dim = rows.extent[2];
    if (rows.stride[1] == dim) return use(&rows(head, first, 0), index_t{0}, count);
    alignas(64) float tile[cpu::tile_slots * max_head_dim];
    for (index_t done = 0; done < count; done += cpu::tile_slots) {
      const index_t n = std::min(cpu::tile_slots, count - done);
      for (index_t i = 0; i < n; ++i) std::copy_n(&rows(head, first + done + i, 0), dim, tile + i * dim);
      use(tile, done, n);
    }
  }
};

}  // namespace kvcondense::prim
