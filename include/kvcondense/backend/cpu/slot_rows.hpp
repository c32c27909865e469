#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense {

/// Rows of one layer, read tile by tile in whatever form they are stored; never a whole dense copy.
template <>
class SlotRows<Cpu> {
 public:
  virtual ~SlotRows() = default;
  virtual index_t dim() const noexcept = 0;
  /// Live slots [first, first + out.rows) of a head, in slot order, as floats.
  virtual void read(index_t head, index_t first, prim::RowBlock<float> out) const noexcept = 0;
};

/// Rows that an engine holds in its own memory: [kv_heads, slots, dim].
class DenseRows final : public SlotRows<Cpu> {
 public:
  explicit DenseRows(TensorView<const float, 3> rows) : rows_(rows) {}
  index_t dim() const noexcept override { return rows_.extent[2]; }
  void read(index_t head, index_t first, prim::RowBlock<float> out) const noexcept override {
    for (index_t i = 0; i < out.rows; ++i)
      for (index_t d = 0; d < rows_.extent[2]; ++d) out.data[i * out.step + d] = rows_(head, first + i, d);
  }

 private:
  TensorView<const float, 3> rows_;
};

}  // namespace kvcondense
