#pragma once

#include <algorithm>

#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/channel_scale.hpp>

namespace kvcondense::prim {

/// Codecs behind factors of channels: a head's table is its state, zeros until a step has found it. The codec below has no table.
template <class C>
  requires(!HasCodecTable<C>)
struct CodecTable<Transformed<ChannelScale, C>> {
  static bool serves(const Transformed<ChannelScale, C>& c) { return c.transform.rule == ChannelScale::Rule::root_max; }
  static index_t floats(const Transformed<ChannelScale, C>&, index_t dim) { return 2 * dim; }
};
template <class C>
  requires(!HasCodecTable<C>)
struct DeviceForm<Transformed<ChannelScale, C>> : TabledForm<Transformed<ChannelScale, C>> {
  static constexpr index_t found_at = 0;
  static index_t found_floats(const Transformed<ChannelScale, C>&, index_t dim) { return 2 * dim; }
  static void fill(const Transformed<ChannelScale, C>&, index_t dim, float* out, const float* state = nullptr) {
    if (state != nullptr) std::copy_n(state, 2 * dim, out);
  }
};

template <class C>
constexpr bool table_serves(const Transformed<ChannelScale, C>& c) {
  return CodecTable<Transformed<ChannelScale, C>>::serves(c) && table_serves(c.codec);
}
/// A step finds factors of rows as they are stored exactly, not of those that another map makes.
template <class T, class C>
constexpr bool table_serves(const Transformed<T, Transformed<ChannelScale, C>>&) {
  return false;
}
template <class T, class C>
constexpr bool table_serves(const Transformed<Chained<T, ChannelScale>, C>&) {
  return false;
}

namespace cuda_kernels {

/// Codecs that are read number by number: a row that is loaded whole would come without its factors.
template <class C>
concept ReadByNumber = RowCodec<C> && !requires(const RowPage<C>& page, float* row) { page.load(0, row); };

template <ReadByNumber C>
struct RowPage<Tabled<Transformed<ChannelScale, C>>> : RowPage<C> {
  const float* state;  ///< factors, then their inverses

  __device__ RowPage(const Tabled<Transformed<ChannelScale, C>>& c, std::byte* page, int page_slots, int row)
      : RowPage<C>(c.codec.codec, page, page_slots, row), state(c.table) {}
  __device__ float value(int slot, int c) const { return __fmul_rn(RowPage<C>::value(slot, c), state[this->dim + c]); }

  struct Scratch {
    float scaled[max_head_dim];
    typename RowPage<C>::Scratch inner;
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const auto x = rows.row(i);
    bool good = true;  // an Inf that the factor makes is counted here
    for (int c = cuda::lane_of_warp(); c < this->dim; c += cuda::warp_lanes) s.scaled[c] = __fmul_rn(x(c), state[c]), good = good && fabsf(x(c)) <= 3.38e38f;
    const bool counted = rows.counted && __all_sync(cuda::full_warp, static_cast<int>(good)) == 0;
    __syncwarp();
    return RowPage<C>::encode(slot, MappedRow{s.scaled, counted}, i, s.inner);
  }
};

template <class C>
__device__ __host__ inline const C& stored_codec(const Tabled<Transformed<ChannelScale, C>>& codec) {
  return codec.codec.codec;
}

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
