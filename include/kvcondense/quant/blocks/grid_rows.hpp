#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/quant/blocks/normal_grid.hpp>

namespace kvcondense::quant {

/// Rows in pieces, each a length and the Hadamard transform of its direction, pair by pair as the nearest point of a grid.
///
/// Source   HIGGS, arXiv:2411.17525.
/// Shapes   a row of `channels` numbers, zeros behind them up to a whole number of pieces: `pieces()` lengths of 16 bits and
///          `pairs()` symbols.
struct GridRows {
  index_t channels = 0;
  index_t piece = 16;  ///< numbers, a power of two

  static GridRows of(index_t channels, index_t most) {
    return {channels, std::min(most, std::max<index_t>(16, channels & -channels))};
  }
  index_t pieces() const { return (channels + piece - 1) / piece; }
  index_t stored() const { return pieces() * piece; }
  index_t pairs() const { return stored() / 2; }

  /// Numbers of `row` are finite; `scratch` has room for `stored()`.
  void encode(std::span<const PlanePoint> grid, const float* row, half* lengths, std::uint8_t* symbols, float* scratch) const {
    for (index_t i = 0; i < stored(); ++i) scratch[i] = i < channels ? prim::limit_to(row[i], largest_half) : 0.0f;
    prim::hadamard_mix(piece, scratch, stored());
    for (index_t p = 0; p < pieces(); ++p) {
      const float* x = scratch + p * piece;
      double square = 0.0;
      for (index_t i = 0; i < piece; ++i) square += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      lengths[p] = half(static_cast<float>(std::min(std::sqrt(square), static_cast<double>(largest_half))));
      const auto length = static_cast<float>(lengths[p]);
      const float unit = length > 0.0f ? std::sqrt(static_cast<float>(piece)) / length : 0.0f;
      for (index_t i = 0; i < piece / 2; ++i)
        symbols[p * (piece / 2) + i] = nearest_point(grid, x[2 * i] * unit, x[2 * i + 1] * unit);
    }
  }
  void take_points(std::span<const PlanePoint> grid, const std::uint8_t* symbols, float* scratch) const {
    for (index_t i = 0; i < pairs(); ++i) scratch[2 * i] = grid[symbols[i]].x, scratch[2 * i + 1] = grid[symbols[i]].y;
  }
  /// Adds a row of codes to `row`; `scratch` holds the grid's points of its pairs, `stored()` numbers.
  void add(const half* lengths, float* scratch, float* row) const {
    for (index_t p = 0; p < pieces(); ++p) {
      const float size = static_cast<float>(lengths[p]) / std::sqrt(static_cast<float>(piece));
      for (index_t i = 0; i < piece; ++i) scratch[p * piece + i] *= size;
    }
    prim::hadamard_mix(piece, scratch, stored());
    for (index_t i = 0; i < channels; ++i) row[i] += scratch[i];
  }
};

}  // namespace kvcondense::quant
