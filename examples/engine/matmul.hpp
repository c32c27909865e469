#pragma once

#include <span>
#include <vector>

#include <kvcondense/core/config.hpp>

namespace engine {

using kvcondense::index_t;

/// Columns that are multiplied together.
inline constexpr index_t panel_width = 8;

/// y[r, 0..width) = sum_i x[r, i] * panel[i, 0..width) for `rows` rows; width <= panel_width, and
/// the panel holds panel_width numbers per i.
void multiply_panel(const float* x, index_t x_stride, index_t rows, const float* panel,
                    index_t depth, float* y, index_t y_stride, index_t width);

/// A weight matrix [out, in], reordered once into panels of outputs: [out / 8, in, 8].
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(std::span<const float> row_major, index_t out, index_t in);

  index_t out() const { return out_; }
  index_t in() const { return in_; }

  /// The matrix as it was given, [out, in].
  std::vector<float> row_major() const;

  /// y[rows, out] = x[rows, in] * transpose(this), both dense. x and y do not overlap.
  void multiply(const float* x, index_t rows, float* y) const;

 private:
  index_t out_ = 0;
  index_t in_ = 0;
  std::vector<float> panels_;
};

}  // namespace engine
