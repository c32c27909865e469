#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/page_codec.hpp>

// Rows of a layer that shares directions with its neighbour: a page holds exact rows, or what the layer has of its own above a page of directions.

namespace kvcondense::prim {

/// Exact rows, of which some are a direction that two layers share and a length.
struct PairedRows {
  ExactRows exact{};

  std::size_t page_bytes(index_t slots, index_t dim) const { return exact.page_bytes(slots, dim); }
  constexpr index_t group_slots() const { return 1; }
  bool valid(index_t dim) const { return exact.valid(dim); }
  std::int64_t fingerprint() const { return exact.fingerprint(); }
};
static_assert(CodecDescription<PairedRows>);

/// What a layer has of its own, on the device: this, then what cache::OwnPart lays out. Whoever names such a page names the byte behind its first one, so
/// that it is told from a page of rows, which begins at an even one.
struct PairedHead {
  std::byte* directions = nullptr;
  std::int32_t kept = 0, unused = 0;  ///< rows that stay as they are

  KVCONDENSE_HD static std::byte* tagged(std::byte* page) { return page + 1; }
  KVCONDENSE_HD static bool is_tagged(const std::byte* page) { return (reinterpret_cast<std::uintptr_t>(page) & 1u) != 0; }
};
static_assert(sizeof(PairedHead) == 16);

namespace cuda_kernels {

/// A layer's own part of a page of `slots` directions.
struct PairedPart {
  ExactRows exact;
  std::byte* data;  ///< behind the head
  PairedHead head;
  int slots, dim;

  __device__ PairedPart(const ExactRows& codec, std::byte* tagged, int page_slots, int row)
      : PairedPart(codec, tagged - 1, *reinterpret_cast<const PairedHead*>(tagged - 1), page_slots, row) {}
  /// Of a page that is being made: another block writes its head.
  __device__ PairedPart(const ExactRows& codec, std::byte* page, const PairedHead& made, int page_slots, int row)
      : exact(codec), data(page + sizeof(PairedHead)), head(made), slots(page_slots), dim(row) {}

  __device__ int number_bytes() const { return exact.dtype == DType::f32 ? 4 : 2; }
  /// Lengths are halves where rows are of 16 bits, whichever these are.
  __device__ DType length_type() const { return exact.dtype == DType::f32 ? DType::f32 : DType::f16; }
  __device__ float length(int slot) const { return read_number(length_type(), data, slot); }
  __device__ void set_length(int slot, float x) const { write_number(length_type(), data, slot, x); }
  __device__ std::uint16_t* kept_slots() const { return reinterpret_cast<std::uint16_t*>(data + slots * number_bytes()); }
  __device__ RowPage<ExactRows> kept_rows() const {
    const int size = number_bytes(), list = (head.kept * 2 + size - 1) / size * size;
    return {exact, data + slots * size + list, head.kept, dim};
  }
  /// The kept row of a slot; -1: it has none.
  __device__ int kept_of(int slot) const {
    const std::uint16_t* const list = kept_slots();
    int low = 0, high = head.kept;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      if (list[middle] < slot) low = middle + 1;
      else high = middle;
    }
    return low < head.kept && list[low] == slot ? low : -1;
  }
};

/// A slot of a page of either kind becomes a row in shared memory. A warp; one function for all kernels.
__attribute__((noinline)) __device__ inline void load_paired(ExactRows exact, std::byte* page, int page_slots, int slot, int dim, float* row) {
  const RowPage<ExactRows> plain(exact, page, page_slots, dim);
  if (!PairedHead::is_tagged(page)) {
    for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = plain.value(slot, c);
    return;
  }
  const PairedPart own(exact, page, page_slots, dim);
  const float length = own.length(slot);
  const int kept = length == 0.0f ? own.kept_of(slot) : -1;
  const RowPage<ExactRows> from = kept >= 0 ? own.kept_rows() : RowPage<ExactRows>(exact, own.head.directions, page_slots, dim);
  const int at = kept >= 0 ? kept : slot;
  for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = kept >= 0 ? from.value(at, c) : __fmul_rn(from.value(at, c), length);
}

template <>
struct RowPage<PairedRows> : RowPage<ExactRows> {
  __device__ RowPage(const PairedRows& c, std::byte* page, int page_slots, int row) : RowPage<ExactRows>(c.exact, page, page_slots, row) {}
  __device__ void load(int slot, float* row) const { load_paired(codec, data, slots, slot, dim, row); }
};

/// What lies in pages that are no layer's own part.
__device__ __host__ inline const ExactRows& stored_codec(const PairedRows& codec) { return codec.exact; }

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
