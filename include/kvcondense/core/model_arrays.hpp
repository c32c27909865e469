#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

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

/// Which keys a basis was made from.
enum class KeyForm : std::uint8_t {
  rotated,  ///< as attention compares them
  raw       ///< before rotation: caches whose position stage stores those
};

/// A basis per layer and KV head, or per group of neighbouring heads whose rows stand side by side as one row of
/// heads * head_dim numbers, or one for the rows of all layers side by side (io/kvtc.hpp); the caller owns the arrays and keeps them. A row x is stored as z = (x - mean) E, E the first
/// columns of `encode`, and comes back as z D^t + mean, D the first columns of `decode`.
struct HeadBases {
  const float* encode = nullptr;  ///< [layers, groups, dim, columns], best column first
  const float* decode = nullptr;  ///< the same shape; null where the columns are orthonormal: `encode` serves for both
  const float* mean = nullptr;    ///< [layers, groups, dim]; null: zeros
  const float* energy = nullptr;  ///< [layers, groups, columns], what each column holds; may be null
  const float* ranks = nullptr;   ///< [layers, groups], columns that were chosen for each; may be null
  index_t layers = 0;
  index_t groups = 0;
  index_t dim = 0;
  index_t columns = 0;
  KeyForm keys = KeyForm::rotated;  ///< of bases of keys

  constexpr bool empty() const { return encode == nullptr; }
  constexpr index_t at(index_t layer, index_t group) const { return layer * groups + group; }
  constexpr const float* encoder(index_t layer, index_t group) const { return encode + at(layer, group) * dim * columns; }
  constexpr const float* decoder(index_t layer, index_t group) const {
    return (decode == nullptr ? encode : decode) + at(layer, group) * dim * columns;
  }
  constexpr const float* mean_of(index_t layer, index_t group) const {
    return mean == nullptr ? nullptr : mean + at(layer, group) * dim;
  }
  /// Whether all numbers are some.
  bool finite() const {
    const index_t heads = layers * groups;
    const auto good = [](const float* x, index_t n) {
      for (index_t i = 0; x != nullptr && i < n; ++i)
        if (!std::isfinite(x[i])) return false;
      return true;
    };
    return good(encode, heads * dim * columns) && good(decode, heads * dim * columns) && good(mean, heads * dim) &&
           good(energy, heads * columns) && good(ranks, heads);
  }
};

/// Linear maps from a layer's keys and values to those of the next, all heads of a token side by side, and what the first layer
/// has in the mean; the caller owns the arrays and keeps them.
struct LayerMaps {
  const float* first_keys = nullptr;    ///< [key_channels]
  const float* first_values = nullptr;  ///< [value_channels]
  const float* keys = nullptr;    ///< [layers - 1, key_channels + 1, key_channels]: of the keys below, last what is added
  const float* values = nullptr;  ///< [layers - 1, key_channels + value_channels + 1, value_channels]: of a layer's own keys,
                                  ///< then of the values below, last what is added
  index_t layers = 0;
  index_t key_channels = 0;
  index_t value_channels = 0;
  KeyForm form = KeyForm::raw;  ///< of the keys

  constexpr bool empty() const {
    return first_keys == nullptr || first_values == nullptr || (layers > 1 && (keys == nullptr || values == nullptr));
  }
  /// Numbers of one layer's maps.
  constexpr index_t key_numbers() const { return (key_channels + 1) * key_channels; }
  constexpr index_t value_numbers() const { return (key_channels + value_channels + 1) * value_channels; }
  /// Of a layer behind the first.
  constexpr const float* keys_of(index_t layer) const { return keys + (layer - 1) * key_numbers(); }
  constexpr const float* values_of(index_t layer) const { return values + (layer - 1) * value_numbers(); }
};

/// The bases of keys and values that one method made of a model; either may be missing.
struct NamedBases {
  std::string_view method;  ///< its word
  HeadBases keys{};
  HeadBases values{};
};

/// Bases of several methods; the caller owns the list.
struct BasisList {
  const NamedBases* data = nullptr;
  index_t size = 0;

  /// Null: there are none of this method.
  constexpr const NamedBases* find(std::string_view method) const {
    for (index_t i = 0; i < size; ++i)
      if (data[i].method == method) return data + i;
    return nullptr;
  }
};

/// Random planes through the origin, in tables of a few bits: [tables, bits, dim] row-major; the caller owns and keeps them.
struct HashPlanes {
  const float* data = nullptr;
  index_t tables = 0;
  index_t bits = 0;
  index_t dim = 0;

  constexpr bool empty() const { return data == nullptr; }
  constexpr const float* plane(index_t table, index_t bit) const { return data + (table * bits + bit) * dim; }
};

}  // namespace kvcondense
