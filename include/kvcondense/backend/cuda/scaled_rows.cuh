#pragma once

#include <algorithm>
#include <cfloat>
#include <cstddef>

#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/channel_scale.hpp>

namespace kvcondense::prim {

/// Codecs behind factors of channels: a head's table is its state, zeros until a step has found it, and ones where there is nothing to find. The codec
/// below has no table.
template <class C>
  requires(!HasCodecTable<C>)
struct CodecTable<Transformed<ChannelScale, C>> {
  static index_t floats(const Transformed<ChannelScale, C>&, index_t dim) { return 2 * dim; }
};
template <class C>
  requires(!HasCodecTable<C>)
struct DeviceForm<Transformed<ChannelScale, C>> {
  using Codec = Transformed<ChannelScale, C>;
  using Inner = DeviceForm<C>;
  using type = Tabled<Transformed<ChannelScale, typename Inner::type>>;
  static constexpr index_t found_at = 0;
  static index_t found_floats(const Codec&, index_t dim) { return 2 * dim; }
  static index_t floats(const Codec&, index_t dim) { return 2 * dim; }
  static void fill(const Codec& c, index_t dim, float* out, const float* state = nullptr) {
    if (state != nullptr) std::copy_n(state, 2 * dim, out);
    else if (c.transform.identity()) std::fill_n(out, 2 * dim, 1.0f);
  }
  static type of(const Codec& c, const float* table, index_t step, index_t dim) {
    return {{c.transform, Inner::of(c.codec, nullptr, 0, dim)}, table, step, dim};
  }
};

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

/// Codecs that factors may stand in front of: of numbers that are read one by one, and of whole groups of slots.
template <class C>
concept TakesFactors = (RowCodec<C> && !requires(const RowPage<C>& page, float* row) { page.load(0, row); }) || (GroupCodec<C> && !RowCodec<C>);

/// Rows by factors of channels. What a factor makes of a number that was none stays one; of a number that becomes too large for a float the largest, which
/// is repaired and counted as that is on the host.
template <class Rows>
struct ScaledRows {
  static constexpr bool counted = Rows::counted;
  const Rows& rows;
  const float* factors;

  __device__ auto row(int i) const {
    return [x = rows.row(i), f = factors](int c) {
      const float number = x(c), scaled = __fmul_rn(number, f[c]);
      return fabsf(number) <= FLT_MAX ? limit_to(scaled, FLT_MAX) : scaled;
    };
  }
  __device__ float score(int i) const { return rows.score(i); }
};

template <GroupCodec C>
inline constexpr bool codes_groups<Tabled<Transformed<ChannelScale, C>>> = true;

template <TakesFactors C>
struct RowPage<Tabled<Transformed<ChannelScale, C>>> : RowPage<C> {
  using Codec = Tabled<Transformed<ChannelScale, C>>;

  const float* state;  ///< factors, then their inverses

  __device__ RowPage(const Codec& c, std::byte* page, int page_slots, int row) : RowPage<C>(c.codec.codec, page, page_slots, row), state(c.table) {}
  __device__ void load(int slot, float* row) const {
    load_row(static_cast<const RowPage<C>&>(*this), slot, row);
    for (int c = cuda::lane_of_warp(); c < this->dim; c += cuda::warp_lanes) row[c] = __fmul_rn(row[c], state[this->dim + c]);
  }

  using Scratch = MappedScratch<C>;
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    return encode_mapped<C>(*this, slot, rows, i, s, [factors = state](float number, int c) { return __fmul_rn(number, factors[c]); }, [](float*) {});
  }

  static std::size_t behind(const Codec& c)
    requires requires { RowPage<C>::behind(c.codec.codec); }
  {
    return RowPage<C>::behind(c.codec.codec);
  }
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, auto& shared) const {
    return RowPage<C>::encode_group(slot, ScaledRows<Rows>{rows, state}, begin, shared);
  }
};

template <class C>
__device__ __host__ inline const C& stored_codec(const Tabled<Transformed<ChannelScale, C>>& codec) {
  return codec.codec.codec;
}

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
