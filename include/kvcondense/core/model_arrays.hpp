#pragma once

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
