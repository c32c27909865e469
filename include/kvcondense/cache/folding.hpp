#pragma once

#include <algorithm>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_links.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::cache {

/// Of a head with codes: fewer exact slots take up nothing. The nearest of a few is not near, and a window of one token would be
/// summed with whatever leaves in every step.
inline constexpr index_t least_targets = 8;

/// What a merge stage decided in one step of a layer.
struct Folding {
  prim::MergeLinks links{};
  prim::SlotRange* targets = nullptr;
  index_t* folded = nullptr;  ///< per head
  RaggedView<std::int32_t> turn{};
  RaggedView<std::int32_t> order{};
  TensorView<float, 2> state{};
  TensorView<float, 2> found{};  ///< the finder's part of it, where the host has that apart
  RaggedView<float> bias{};  ///< to be found when rows are summed; else empty
  bool decided = false;      ///< links and state are there
  bool any = false;          ///< some slot folds
};

/// The exact slots of a column by the number of the slot in its head.
template <class C, class F>
auto with_exact(C& column, index_t slot, F&& f) {
  const index_t sinks = column.sinks().live();
  return slot < sinks ? f(column.sinks(), slot) : f(column.window(), slot - sinks - column.coded().live());
}

/// What the stored type has no number for becomes the nearest one it has, a NaN becomes 0; both are counted.
inline void bring_into_range(float* row, index_t dim, DType dtype, index_t& repaired) {
  const float most = largest_kept(dtype);
  for (index_t d = 0; d < dim; ++d) {
    const float x = row[d];
    row[d] = x == x ? std::clamp(x, -most, most) : 0.0f;
    repaired += row[d] != x;
  }
}

/// Rows of a head as `prim::SegmentedCombine` reads and writes them.
template <class H>
struct FoldRows {
  H* head;
  DType dtype;

  index_t key_dim() const { return head->keys.dim(); }
  index_t value_dim() const { return head->values.dim(); }
  void key(index_t slot, float* row) const { head->keys.decode_from(slot, {row, 1, key_dim()}); }
  void value(index_t slot, float* row) const { head->values.decode_from(slot, {row, 1, value_dim()}); }
  void set_key(index_t slot, float* row) { set(head->keys, slot, row); }
  void set_value(index_t slot, float* row) { set(head->values, slot, row); }

 private:
  template <class C>
  void set(C& column, index_t slot, float* row) {
    bring_into_range(row, column.dim(), dtype, head->repaired);
    with_exact(column, slot, [&](auto& part, index_t at) { part.write(at, row); });
    head->changed(slot);
  }
};

}  // namespace kvcondense::cache
