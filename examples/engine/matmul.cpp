#include <engine/matmul.hpp>

#include <algorithm>
#include <cassert>
#include <cstring>

namespace engine {
namespace {

/// Four floats. Spelled out, because plain loops over columns end up between 3 and 30 GFLOP/s
/// depending on the compiler and its flags; this form stays above 20 with all of them.
using Quad [[gnu::vector_size(16)]] = float;

Quad load(const float* p) {
  Quad q;
  std::memcpy(&q, p, sizeof q);
  return q;
}

/// Rows of one tile: four rows of eight sums fit the vector registers of any machine. A row's sums
/// do not depend on how many rows a tile has, so one token at a time equals a whole chunk.
constexpr index_t tile_rows = 4;
static_assert(panel_width == 8);

/// Writes whole rows of a panel.
template <int Rows>
void multiply_tile(const float* x, index_t x_stride, const float* panel, index_t depth, float* y,
                   index_t y_stride) {
  Quad sums[Rows][2] = {};
  for (index_t i = 0; i < depth; ++i) {
    const Quad low = load(panel + i * panel_width), high = load(panel + i * panel_width + 4);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const float a = x[r * x_stride + i];
      sums[r][0] += a * low;
      sums[r][1] += a * high;
    }
  }
  for (int r = 0; r < Rows; ++r) std::memcpy(y + r * y_stride, sums[r], sizeof sums[r]);
}

template <int Rows>
void multiply_some(const float* x, index_t x_stride, const float* panel, index_t depth, float* y,
                   index_t y_stride, index_t width) {
  if (width == panel_width) return multiply_tile<Rows>(x, x_stride, panel, depth, y, y_stride);
  float whole[Rows * panel_width];
  multiply_tile<Rows>(x, x_stride, panel, depth, whole, panel_width);
  for (int r = 0; r < Rows; ++r) std::copy_n(whole + r * panel_width, width, y + r * y_stride);
}

}  // namespace

void multiply_panel(const float* x, index_t x_stride, index_t rows, const float* panel,
                    index_t depth, float* y, index_t y_stride, index_t width) {
  index_t r = 0;
  for (; r + tile_rows <= rows; r += tile_rows)
    multiply_some<tile_rows>(x + r * x_stride, x_stride, panel, depth, y + r * y_stride, y_stride,
                             width);
  for (; r < rows; ++r)
    multiply_some<1>(x + r * x_stride, x_stride, panel, depth, y + r * y_stride, y_stride, width);
}

PackedMatrix::PackedMatrix(std::span<const float> row_major, index_t out, index_t in)
    : out_(out), in_(in) {
  assert(static_cast<index_t>(row_major.size()) == out * in);
  const index_t panels = (out + panel_width - 1) / panel_width;
  panels_.assign(static_cast<std::size_t>(panels * in * panel_width), 0.0f);
  for (index_t o = 0; o < out; ++o) {
    float* panel = panels_.data() + (o / panel_width) * in * panel_width + o % panel_width;
    const float* row = row_major.data() + o * in;
    for (index_t i = 0; i < in; ++i) panel[i * panel_width] = row[i];
  }
}

std::vector<float> PackedMatrix::row_major() const {
  std::vector<float> rows(static_cast<std::size_t>(out_ * in_));
  for (index_t o = 0; o < out_; ++o) {
    const float* panel = panels_.data() + (o / panel_width) * in_ * panel_width + o % panel_width;
    for (index_t i = 0; i < in_; ++i) rows[static_cast<std::size_t>(o * in_ + i)] = panel[i * panel_width];
  }
  return rows;
}

void PackedMatrix::multiply(const float* x, index_t rows, float* y) const {
  for (index_t o = 0; o < out_; o += panel_width)
    multiply_panel(x, in_, rows, panels_.data() + o * in_, in_, y + o, out_,
                   std::min(panel_width, out_ - o));
}

}  // namespace engine
