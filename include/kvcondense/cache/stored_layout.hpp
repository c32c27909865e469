#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// The codec with the layout of codes that pages of a backend's cache have: what the method asks for where attention of the backend reads it and
/// pages have whole blocks of it, else rows. Numbers and bytes of a page are the same in every layout; the fingerprint in files is that of the codec as
/// the method names it.
template <Backend B, class C>
constexpr C as_stored(const C& codec, index_t page_slots, index_t dim) {
  if constexpr (requires { codec.layout; }) return codec.with(B::code_lanes ? codec.layout_of(prim::coded_page_slots(codec, page_slots), dim) : prim::CodeLayout::rows);
  else return codec;
}
template <Backend B, class T, class C>
constexpr prim::Transformed<T, C> as_stored(const prim::Transformed<T, C>& codec, index_t page_slots, index_t dim) {
  return {codec.transform, as_stored<B>(codec.codec, page_slots, codec.transform.stored_dim(dim))};
}

}  // namespace kvcondense::cache
