#pragma once

#include <type_traits>
#include <utility>

#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/ring_layout.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>

// Coordinates of a low-rank stage as rows of a ring: how long they are, and what they are stored
// as.

namespace kvcondense::prim::cuda_kernels {

/// Coordinates that are halves, as a codec of the ring: rows without parameters, of another length
/// than exact ones.
struct HalfCoordinates {
  static constexpr GroupAxis axis = GroupAxis::token;
  static constexpr GroupForm form = GroupForm::symmetric;
};
template <>
inline constexpr int stored_bits<HalfCoordinates> = 16;
KVCONDENSE_HD constexpr int grain_of_halves(int numbers) {
  return numbers % 8 == 0 ? 16 : numbers % 4 == 0 ? 8 : numbers % 2 == 0 ? 4 : 2;
}
/// Of rows of `width` numbers, which may be another in every head.
KVCONDENSE_HD constexpr void resize(const HalfCoordinates&, PartLayout& p, int width) {
  p.width = width, p.row_bytes = 2 * width, p.row_grain = grain_of_halves(width);
}
template <class Codec>
KVCONDENSE_HD constexpr void resize(const Codec&, PartLayout&, int) {}
inline PartLayout part_layout(const HalfCoordinates& codec, index_t, index_t width, int padded) {
  PartLayout p;
  resize(codec, p, static_cast<int>(width));
  p.most = rows_that_fit(16, padded);
  return p;
}
inline int params_in_stage(const HalfCoordinates&, const PartLayout&, int, int) { return 0; }

/// How the ring takes rows of a codec: coordinates as what they are stored as.
template <class Codec>
KVCONDENSE_HD constexpr const Codec& ring_codec(const Codec& codec) {
  return codec;
}
template <class C>
KVCONDENSE_HD constexpr const C& ring_codec(const Latent<C>& codec) {
  return codec.codec;
}
KVCONDENSE_HD constexpr HalfCoordinates ring_codec(const Latent<ExactRows>&) { return {}; }
template <class Codec>
using RingCodec = std::remove_cvref_t<decltype(ring_codec(std::declval<const Codec&>()))>;
template <class Codec>
inline constexpr bool rows_of_halves = stored_bits<Codec> == 16;

/// Coordinates of a head, as a kernel reads them; of codecs without a map rows as long as exact
/// ones.
struct CoordinateRows {
  int width;
  bool maps;
};
template <class Codec>
__device__ inline CoordinateRows coordinate_rows(const Codec&, index_t, int dim) {
  return {dim, false};
}
template <class C>
__device__ inline CoordinateRows coordinate_rows(const Latent<C>& codec, index_t head, int) {
  const LatentMap map = codec.map.of(head);
  return {map.rank, map.maps()};
}

}  // namespace kvcondense::prim::cuda_kernels
