#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// The codec that names the layout which its pages have: lanes need pages of whole blocks.
template <class C>
C as_stored(const C& codec, index_t page_slots, index_t dim) {
  if constexpr (requires { codec.layout; }) return codec.with(codec.layout_of(prim::coded_page_slots(codec, page_slots), dim));
  else return codec;
}
template <class T, class C>
prim::Transformed<T, C> as_stored(const prim::Transformed<T, C>& codec, index_t page_slots, index_t dim) {
  return {codec.transform, as_stored(codec.codec, page_slots, dim)};
}

/// What the columns of all layers have in common, but for a codec and windows of their own.
template <class Codec>
struct CudaColumnPlan {
  prim::ExactRows exact{};
  Codec codec{};
  Flush flush{};
  index_t sinks = 0, heads = 0, dim = 0, page_slots = 0;
  std::int64_t fingerprint = 0;  ///< of the codec as the recipe names it

  std::size_t coded_bytes = 0;

  /// The codec of a layer's heads, or of its first head, as the recipe names it.
  void take(const Codec& named) {
    codec = as_stored(named, page_slots, dim), fingerprint = named.fingerprint();
    coded_bytes = codec.page_bytes(slots_of(1), dim);
  }
  /// That of another head.
  void take_also(const Codec& named) { coded_bytes = std::max(coded_bytes, as_stored(named, page_slots, dim).page_bytes(slots_of(1), dim)); }

  /// Parts: exact first slots, codes, exact newest slots.
  static constexpr int parts = 3;
  index_t slots_of(int part) const {
    return part == 0 ? std::clamp<index_t>(sinks, 1, page_slots) : part == 1 ? prim::coded_page_slots(codec, page_slots) : page_slots;
  }
  /// Of a page, of codes those of the head that needs most: so its pages may go to any head.
  std::size_t bytes_of(int part) const { return part == 1 ? coded_bytes : exact.page_bytes(slots_of(part), dim); }
  index_t pages_for(int part, index_t slots) const { return (slots + slots_of(part) - 1) / slots_of(part); }
  /// Pages that are kept for the slots to come: what a window fills again between two times that it is coded.
  index_t spare_pages(int part) const { return heads * (part == 2 && flush.block > 0 ? std::max<index_t>(1, pages_for(2, flush.block)) : 1); }
  static constexpr bool has_axis = requires(const Codec& c) { c.axis; };
  /// Whether slots share parameters along slots, so that codes cannot move alone.
  bool grouped() const {
    if constexpr (has_axis) return codec.axis == prim::GroupAxis::channel;
    else return codec.group_slots() > 1;
  }
  /// Whether anything but newest slots can be there.
  bool has_parts() const { return flush.block > 0 || sinks > 0; }
};

/// Columns in files: cuda_snapshot_column.cuh.
template <class Codec>
class CudaColumnFile;

}  // namespace kvcondense::cache
