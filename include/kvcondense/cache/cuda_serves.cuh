#pragma once

#include <concepts>
#include <type_traits>

#include <kvcondense/backend/cuda/find_rows.cuh>
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

/// Whether kernels read the codecs of all heads. In a layer: rows of as many bytes, but where tables say how many, windows that fill alike, and differences
/// only in what a table says.
template <class Quant>
bool cuda_serves(const Quant& q, const CacheShape& shape) {
  const auto known = []<class C>(const C& codec) {
    return prim::table_serves(codec) && (codec.group_slots() == 1 || prim::cuda_kernels::codes_groups<prim::DeviceCodec<C>>);
  };
  const auto alike = []<class C>(const C& a, const C& b, index_t dim) {
    using Parts = prim::CodecParts<C>;
    if constexpr (prim::is_latent<prim::DeviceCodec<C>>) return stored_alike(a, b, dim);
    const index_t floats = prim::DeviceForm<C>::floats(a, dim);
    if ((!prim::table_sizes<C> && a.page_bytes(1, dim) != b.page_bytes(1, dim)) || a.group_slots() != b.group_slots() || prim::DeviceForm<C>::floats(b, dim) != floats) return false;
    const bool tables = floats > 0 && !prim::found_from_rows<typename Parts::Transform>;
    return tables ? Parts::transform(a).fingerprint() == Parts::transform(b).fingerprint() : a.fingerprint() == b.fingerprint();
  };
  if (!known(key_codec_of(q, shape)) || !known(value_codec_of(q, shape))) return false;
  for (index_t l = 0; l < (differs_per_head(q) ? shape.layers : 0); ++l) {
    const HeadIndex first{l, 0};
    const auto key = key_codec_of(q, shape, first);
    const auto value = value_codec_of(q, shape, first);
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const HeadIndex at{l, h};
      if (!known(key_codec_of(q, shape, at)) || !known(value_codec_of(q, shape, at))) return false;
      if (!alike(key, key_codec_of(q, shape, at), shape.head_dim) || !alike(value, value_codec_of(q, shape, at), shape.values())) return false;
      if (!(key_flush_of(q, shape, at) == key_flush_of(q, shape, first)) || !(value_flush_of(q, shape, at) == value_flush_of(q, shape, first))) return false;
    }
  }
  return true;
}
}  // namespace detail

}  // namespace kvcondense
