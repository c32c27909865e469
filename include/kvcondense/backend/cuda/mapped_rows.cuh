#pragma once

#include <kvcondense/backend/cuda/hadamard.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim::cuda_kernels {

// Maps of single rows in shared memory, by a warp: map_forward(t, dim, row), map_backward(t, dim, row).
__device__ inline void map_forward(const Hadamard& t, int dim, float* row) {
  __syncwarp();
  map_hadamard(t, dim, row, false);
}
__device__ inline void map_backward(const Hadamard& t, int dim, float* row) {
  __syncwarp();
  map_hadamard(t, dim, row, true);
}

/// Rows that are mapped before they are coded, and back behind: `value` is a number of the mapped row.
template <class T, class C>
struct RowPage<Transformed<T, C>> : RowPage<C> {
  T transform;

  __device__ RowPage(const Transformed<T, C>& c, std::byte* page, int page_slots, int row) : RowPage<C>(c.codec, page, page_slots, row), transform(c.transform) {}
  __device__ void finish(float* row) const { map_backward(transform, this->dim, row); }

  struct Scratch {
    float mapped[max_head_dim];
    typename RowPage<C>::Scratch inner;
  };
  struct MappedRow {
    static constexpr bool counted = true;  ///< what a map spreads was counted where it was stored
    const float* numbers;

    __device__ auto row(int) const {
      const float* x = numbers;
      return [x](int c) { return x[c]; };
    }
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const auto x = rows.row(i);
    for (int c = cuda::lane_of_warp(); c < this->dim; c += cuda::warp_lanes) s.mapped[c] = x(c);
    map_forward(transform, this->dim, s.mapped);
    return RowPage<C>::encode(slot, MappedRow{s.mapped}, i, s.inner);
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

}  // namespace kvcondense::prim::cuda_kernels
