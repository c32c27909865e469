#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <kvcondense/backend/cuda/paired_rows.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/cache/stored_layout.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// A codec as a column of the type `To` has it; where layers share directions these are stored in the cache's type.
template <class To, class C>
To in_column(const C& codec, [[maybe_unused]] Together how, [[maybe_unused]] DType dtype) {
  if constexpr (std::same_as<To, C>) return codec;
  else return {how == Together::directions ? prim::ExactRows{dtype} : codec};
}
/// The codec of columns whose layers may share directions: of rows that no quant stage codes.
template <bool Pairs, class C>
using ColumnCodec = std::conditional_t<Pairs && std::same_as<C, prim::ExactRows>, prim::PairedRows, C>;

/// Slots of the parts of a head, at most.
struct CudaMost {
  index_t first = 0, coded = 0, newest = 0;

  index_t of(int part) const { return part == 0 ? first : part == 1 ? coded : newest; }
};

/// What the columns of all layers have in common, but for codecs and windows of their own.
template <class Codec>
struct CudaColumnPlan {
  prim::ExactRows exact{};
  Codec codec{};
  Flush flush{};
  index_t sinks = 0, heads = 0, dim = 0, page_slots = 0;
  Codec filed{};                 ///< the codec as pages of files lie
  std::int64_t fingerprint = 0;  ///< of the codec as the recipe names it
  std::size_t coded_bytes = 0;   ///< of a page of codes, in the head that needs most
  Together together = Together::alone;

  /// The codec is this one, as the recipe names it.
  void describe(const Codec& named) {
    codec = as_stored<Cuda>(named, page_slots, dim), filed = as_stored<Cpu>(named, page_slots, dim), fingerprint = named.fingerprint();
    coded_bytes = codec.page_bytes(slots_of(1), dim);
  }
  /// That of another head is this one.
  void describe_also(const Codec& named) { coded_bytes = std::max(coded_bytes, as_stored<Cuda>(named, page_slots, dim).page_bytes(slots_of(1), dim)); }

  /// Whether other heads store rows with these: rows that no map meets have no sum in common.
  void store(Together how) {
    together = how == Together::sums && !mapped() ? Together::alone : how;
  }
  bool mapped() const { return !prim::leaves_rows(prim::CodecParts<Codec>::transform(codec)); }

  /// Parts: exact first slots, codes, exact newest slots.
  static constexpr int parts = 3;
  index_t slots_of(int part) const {
    return part == 0 ? std::clamp<index_t>(sinks, 1, page_slots) : part == 1 ? prim::coded_page_slots(codec, page_slots) : page_slots;
  }
  /// Of a page that may go to any head.
  std::size_t bytes_of(int part) const { return part == 1 ? coded_bytes : exact.page_bytes(slots_of(part), dim); }
  index_t pages_for(int part, index_t slots) const { return (slots + slots_of(part) - 1) / slots_of(part); }
  /// Pages that are kept for the slots to come: what a window fills again between two times that it is coded.
  index_t spare_pages(int part) const { return heads * (part == 2 && flush.block > 0 ? std::max<index_t>(1, pages_for(2, flush.block)) : 1); }
  /// Whether other heads store rows with these: what leaves the window then waits for them.
  bool paired() const { return together != Together::alone; }
  /// Whether codes cannot move alone: slots share what their numbers are made of, or heads share rows.
  bool grouped() const { return prim::cuda_kernels::shares_slots(codec) || paired(); }
  /// Whether anything but newest slots can be there.
  bool has_parts() const { return flush.block > 0 || sinks > 0 || paired(); }
};

/// Columns in files: cuda_snapshot_column.cuh.
template <class Codec>
class CudaColumnFile;

}  // namespace kvcondense::cache
