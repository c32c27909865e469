#pragma once

#include <kvcondense/backend/cuda/hadamard.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim::cuda_kernels {

/// A row that was mapped, for the codec behind the map.
struct MappedRow {
  const float* numbers;
  bool counted;  ///< an Inf or a NaN was, before the map spread it

  __device__ auto row(int) const {
    const float* x = numbers;
    return [x](int c) { return x[c]; };
  }
};

/// What a warp needs that maps a row for a codec.
template <class C>
struct MappedScratch {
  float mapped[max_head_dim];
  typename RowPage<C>::Scratch inner;
};

/// Row `i` as the codec behind a map takes it: `made` of each number and its channel, then `mix` of all of them, before which the warp meets. What the
/// codec returns.
template <class C, class Rows, class Made, class Mix>
__device__ int encode_mapped(const RowPage<C>& page, int slot, const Rows& rows, int i, MappedScratch<C>& s, Made made, Mix mix) {
  const auto x = rows.row(i);
  bool good = true;
  for (int c = cuda::lane_of_warp(); c < page.dim; c += cuda::warp_lanes) {
    const float number = x(c);
    s.mapped[c] = made(number, c);
    good = good && can_store(DType::f32, number);
  }
  const bool counted = rows.counted && __all_sync(cuda::full_warp, static_cast<int>(good)) == 0;
  __syncwarp();
  mix(s.mapped);
  return page.encode(slot, MappedRow{s.mapped, counted}, i, s.inner);
}

/// A mapped row in shared memory becomes what it was. A warp; one function for all kernels.
__attribute__((noinline)) __device__ inline void unmap_row(Hadamard map, int dim, float* row) {
  __syncwarp();
  map_hadamard(map, dim, row, true);
}

/// Rows that are mapped before they are coded, and back when they are loaded: `value` is a number of the mapped row.
template <RowCodec C>
struct RowPage<Transformed<Hadamard, C>> : RowPage<C> {
  Hadamard transform;

  __device__ RowPage(const Transformed<Hadamard, C>& c, std::byte* page, int page_slots, int row) : RowPage<C>(c.codec, page, page_slots, row), transform(c.transform) {}
  __device__ void load(int slot, float* row) const {
    load_row(static_cast<const RowPage<C>&>(*this), slot, row);
    unmap_row(transform, this->dim, row);
  }

  using Scratch = MappedScratch<C>;
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    return encode_mapped<C>(*this, slot, rows, i, s, [](float number, int) { return number; },
                            [this](float* row) { map_hadamard(transform, this->dim, row, false); });
  }
};

/// What lies in pages, whatever a number of it means.
template <class C>
__device__ __host__ inline const C& stored_codec(const C& codec) {
  return codec;
}
template <class T, class C>
__device__ __host__ inline const C& stored_codec(const Transformed<T, C>& codec) {
  return codec.codec;
}
/// How many numbers of a row lie there.
template <class C>
inline index_t stored_dim(const C&, index_t dim) {
  return dim;
}

}  // namespace kvcondense::prim::cuda_kernels
