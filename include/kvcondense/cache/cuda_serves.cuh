#pragma once

#include <concepts>
#include <type_traits>

#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/row_transform.hpp>

// Which quant stages a cache on CUDA takes.

namespace kvcondense {

namespace detail {
template <class C>
inline constexpr bool cuda_codec = prim::cuda_kernels::RowCodec<prim::DeviceCodec<C>> || prim::cuda_kernels::GroupCodec<prim::DeviceCodec<C>>;

/// Of codecs of coordinates: the same codec in both, of as many coordinates where that is not exact numbers. Maps are tables.
template <class C>
bool stored_alike(const C& a, const C& b, index_t dim) {
  const auto behind = []<class T, class S>(const prim::Transformed<T, S>& codec) {
    if constexpr (requires { codec.transform.second; }) return prim::Transformed{codec.transform.second, codec.codec}.fingerprint();
    else return codec.codec.fingerprint();
  };
  const bool exact = std::same_as<typename prim::CodecParts<C>::Stored, prim::ExactRows>;
  return behind(a) == behind(b) && (exact || a.transform.stored_dim(dim) == b.transform.stored_dim(dim));
}

/// Whether kernels read the codecs of all heads: rows of as many bytes, windows that fill alike in a layer, and differences only in what a table says.
template <class Quant>
bool cuda_serves(const Quant& q, const CacheShape& shape) {
  const auto key = key_codec_of(q, shape);
  const auto value = value_codec_of(q, shape);
  const auto known = [](const auto& codec) {
    return !prim::has_sketch(codec) && (codec.group_slots() == 1 || prim::cuda_kernels::codes_groups<prim::DeviceCodec<std::remove_cvref_t<decltype(codec)>>>);
  };
  const auto alike = []<class C>(const C& a, const C& b, index_t dim) {
    using Parts = prim::CodecParts<C>;
    if constexpr (prim::is_latent<prim::DeviceCodec<C>>) return stored_alike(a, b, dim);
    const index_t floats = prim::DeviceForm<C>::floats(a, dim);
    if (a.page_bytes(1, dim) != b.page_bytes(1, dim) || a.group_slots() != b.group_slots() || prim::DeviceForm<C>::floats(b, dim) != floats) return false;
    return floats > 0 ? Parts::transform(a).fingerprint() == Parts::transform(b).fingerprint() : a.fingerprint() == b.fingerprint();
  };
  if (!known(key) || !known(value)) return false;
  // Layers may differ in how many coordinates they store.
  constexpr bool per_layer = prim::is_latent<prim::DeviceCodec<std::remove_cvref_t<decltype(key)>>> || prim::is_latent<prim::DeviceCodec<std::remove_cvref_t<decltype(value)>>>;
  for (index_t l = 0; l < (differs_per_head(q) ? shape.layers : 0); ++l)
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const HeadIndex at{l, h}, first{l, 0};
      if (!alike(per_layer ? key_codec_of(q, shape, first) : key, key_codec_of(q, shape, at), shape.head_dim) ||
          !alike(per_layer ? value_codec_of(q, shape, first) : value, value_codec_of(q, shape, at), shape.values()))
        return false;
      if (!(key_flush_of(q, shape, at) == key_flush_of(q, shape, first)) || !(value_flush_of(q, shape, at) == value_flush_of(q, shape, first))) return false;
    }
  return true;
}
}  // namespace detail

}  // namespace kvcondense
