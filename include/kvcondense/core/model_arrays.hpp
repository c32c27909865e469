#pragma once

#include <cmath>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense {

/// One number per (layer, KV head), row by row; the caller owns it and keeps it.
struct HeadTable {
  const float* data = nullptr;
  index_t layers = 0;
  index_t heads = 0;

  constexpr bool empty() const { return data == nullptr; }
  constexpr bool fits(const CacheShape& shape) const { return layers == shape.layers && heads == shape.kv_heads; }
  constexpr index_t size() const { return layers * heads; }
  constexpr float operator()(index_t layer, index_t head) const { return data[layer * heads + head]; }
  constexpr float operator()(HeadIndex at) const { return data[at.layer * heads + at.head]; }
  bool finite() const {
    for (index_t i = 0; i < size(); ++i)
      if (!std::isfinite(data[i])) return false;
    return true;
  }
};

/// A row of numbers per (layer, KV head), one after another; the caller owns and keeps them.
struct HeadRows {
  const float* data = nullptr;
  index_t layers = 0;
  index_t heads = 0;
  index_t numbers = 0;  ///< of a row

  constexpr bool empty() const { return data == nullptr; }
  constexpr bool fits(const CacheShape& shape, index_t n) const {
    return layers == shape.layers && heads == shape.kv_heads && numbers == n;
  }
  /// Null where there are none.
  constexpr const float* row(HeadIndex at) const {
    return empty() ? nullptr : data + (at.layer * heads + at.head) * numbers;
  }
};

/// One number per layer; the caller owns it and keeps it.
struct LayerTable {
  const float* data = nullptr;
  index_t layers = 0;

  constexpr bool empty() const { return data == nullptr; }
  constexpr bool fits(const CacheShape& shape) const { return layers == shape.layers; }
  constexpr float operator()(index_t layer) const { return data[layer]; }
  /// Whether all numbers are from `least` to `most`; NaN is not.
  constexpr bool within(float least, float most) const {
    for (index_t i = 0; i < layers; ++i)
      if (!(data[i] >= least && data[i] <= most)) return false;
    return true;
  }
};

/// One row-major float32 matrix [rows, columns] per layer; the caller owns and keeps the matrices and
/// the list of their addresses.
struct LayerMatrices {
  const float* const* data = nullptr;
  index_t layers = 0;
  index_t rows = 0;
  index_t columns = 0;

  constexpr bool empty() const { return data == nullptr; }
  constexpr const float* operator()(index_t layer) const { return data[layer]; }
};

}  // namespace kvcondense
