#pragma once

#include <algorithm>
#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/backend/cuda/scaled_rows.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/channel_list.hpp>
#include <kvcondense/prim/found_basis.hpp>
#include <kvcondense/prim/projection.hpp>
#include <kvcondense/prim/row_transform.hpp>

// Rows that a low-rank stage stores as coordinates: a linear map per head, in device memory, in front of any codec that has a RowPage.

namespace kvcondense::prim {

/// The linear maps of a layer's heads. A head's table, in floats:
///
///   rank, whether rows are mapped: not so before a map is found that is found from rows, of which none is coded then
///   encode [dim][rank]
///   decode [rank + 1][dim], whose last row is the mean that was taken off: zeros where rows are not centred
///   the table of the codec behind the map, where that has one: heads then have as many coordinates
///
/// Coordinates with a 1 behind them are a row of rank + 1 numbers, of which `decode` makes the row again: a query that met `decode` meets
/// coordinates and mean in one product.
struct LatentMap {
  static constexpr int header = 2, maps_at = 1;

  const float* table = nullptr;
  index_t step = 0;     ///< floats from a head's table to the next's; 0: all heads share one
  int dim = 0;          ///< of rows before they are mapped
  int rank = 0;         ///< of the first head; of a head's own map, its
  int sharing = 1;      ///< heads of a kernel, one behind the other, that read one KV head: see `shared_by`
  bool uneven = false;  ///< heads differ in their ranks

  static constexpr index_t floats(index_t dim, index_t rank) { return dim * rank + (rank + 1) * dim; }

  __device__ LatentMap of(index_t head) const {
    LatentMap m = *this;
    m.table = table + static_cast<int>(head) / sharing * step, m.step = 0, m.rank = static_cast<int>(m.table[0]);
    return m;
  }
  // Of a head's own map.
  __device__ bool maps() const { return table[maps_at] != 0.0f; }
  __device__ const float* encode() const { return table + header; }
  __device__ const float* decode() const { return encode() + dim * rank; }
  __device__ const float* mean() const { return decode() + rank * dim; }
};

/// A codec of coordinates, as kernels take it.
template <CodecDescription C>
struct Latent {
  C codec{};
  LatentMap map{};

  constexpr std::size_t page_bytes(index_t slots, index_t) const { return codec.page_bytes(slots, map.rank); }
  constexpr index_t group_slots() const { return codec.group_slots(); }
  constexpr bool valid(index_t dim) const { return map.table != nullptr && dim == map.dim && codec.valid(map.rank); }
  constexpr std::int64_t fingerprint() const { return codec.fingerprint(); }
};

template <class C>
inline constexpr bool is_latent = false;
template <class C>
inline constexpr bool is_latent<Latent<C>> = true;

/// Which columns of a cache hold coordinates.
struct LatentSides {
  bool keys = false, values = false;
};

/// How a transform becomes a LatentMap: `fill(transform, dim, state, encode, decode)`, of zeros, on the host. `state`: what it found in the rows that
/// were coded first, where it is found there.
template <class T>
struct LatentForm;
template <>
struct LatentForm<Projection> {
  static void fill(const Projection& p, index_t dim, const float*, float* encode, float* decode) {
    for (index_t i = 0; i < dim; ++i)
      for (index_t j = 0; j < p.rank; ++j) encode[i * p.rank + j] = p.encode[i * p.columns + j], decode[j * dim + i] = p.decode[i * p.columns + j];
    if (p.centred()) std::copy_n(p.mean, dim, decode + p.rank * dim);
  }
};
template <>
struct LatentForm<FoundBasis> {
  static void fill(const FoundBasis& b, index_t dim, const float* state, float* encode, float* decode) {
    std::copy_n(state, b.state_floats(dim), decode);
    for (index_t i = 0; i < dim; ++i)
      for (index_t j = 0; j < b.rank; ++j) encode[i * b.rank + j] = state[j * dim + i];
  }
};
/// A list of channels is a map of zeros and ones.
template <>
struct LatentForm<ChannelList> {
  static void fill(const ChannelList& l, index_t dim, const float* state, float* encode, float* decode) {
    index_t j = 0;
    for (index_t i = 0; i < dim && j < l.kept; ++i)
      if (ChannelList::has(state, i)) encode[i * l.kept + j] = decode[j * dim + i] = 1.0f, ++j;
  }
};
template <class T>
concept HasLatentForm = requires(const T& t, float* x) { LatentForm<T>::fill(t, index_t{}, x, x, x); };

template <HasLatentForm T, class C>
struct DeviceForm<Transformed<T, C>> {
  using Codec = Transformed<T, C>;
  using Inner = DeviceForm<C>;
  using type = Latent<typename Inner::type>;

  static constexpr index_t found_at = LatentMap::maps_at;
  static index_t found_floats(const Codec& c, index_t dim) { return LatentMap::header + LatentMap::floats(dim, c.transform.stored_dim(dim)); }
  static index_t floats(const Codec& c, index_t dim) { return inner_at(c, dim) + Inner::floats(c.codec, c.transform.stored_dim(dim)); }
  /// `out` of zeros. `state`: null where it is not found yet: nothing is coded until it is.
  static void fill(const Codec& c, index_t dim, float* out, const float* state = nullptr) {
    const index_t rank = c.transform.stored_dim(dim);
    constexpr bool found = requires { c.transform.state_floats(dim); };
    const bool maps = found ? state != nullptr : !leaves_rows(c.transform);
    out[0] = static_cast<float>(rank), out[LatentMap::maps_at] = maps ? 1.0f : 0.0f;
    Inner::fill(c.codec, rank, out + inner_at(c, dim));
    if (maps) LatentForm<T>::fill(c.transform, dim, state, out + LatentMap::header, out + LatentMap::header + dim * rank);
  }
  static type of(const Codec& c, const float* table, index_t step, index_t dim) {
    const index_t rank = c.transform.stored_dim(dim);
    return {Inner::of(c.codec, table + inner_at(c, dim), step, rank), {.table = table, .step = step, .dim = static_cast<int>(dim), .rank = static_cast<int>(rank)}};
  }

 private:
  static index_t inner_at(const Codec& c, index_t dim) {
    return LatentMap::header + (leaves_rows(c.transform) ? 0 : LatentMap::floats(dim, c.transform.stored_dim(dim)));
  }
};
/// A second map behind the first is part of the codec of coordinates.
template <HasLatentForm F, class T, class C>
struct DeviceForm<Transformed<Chained<F, T>, C>> {
  using Codec = Transformed<Chained<F, T>, C>;
  using Form = DeviceForm<Transformed<F, Transformed<T, C>>>;
  using type = typename Form::type;

  static constexpr index_t found_at = Form::found_at;
  static index_t found_floats(const Codec& c, index_t dim) { return Form::found_floats(split(c), dim); }
  static index_t floats(const Codec& c, index_t dim) { return Form::floats(split(c), dim); }
  static void fill(const Codec& c, index_t dim, float* out, const float* state = nullptr) { Form::fill(split(c), dim, out, state); }
  static type of(const Codec& c, const float* table, index_t step, index_t dim) { return Form::of(split(c), table, step, dim); }

 private:
  static Transformed<F, Transformed<T, C>> split(const Codec& c) { return {c.transform.first, {c.transform.second, c.codec}}; }
};

template <class C>
__device__ inline Latent<C> of_head(const Latent<C>& codec, index_t head) {
  return {of_head(codec.codec, head), codec.map.of(head)};
}
template <class C>
Latent<C> shared_by(int count, const Latent<C>& codec) {
  LatentMap map = codec.map;
  map.sharing = count;
  return {shared_by(count, codec.codec), map};
}

namespace cuda_kernels {

/// What number `x` adds by an entry of a map. By a zero nothing, also of Inf and NaN: a list of channels is a map of zeros and ones, and the channels
/// that it drops are not looked at.
__device__ inline float entry_times(float entry, float x) { return entry == 0.0f ? 0.0f : __fmul_rn(entry, x); }

/// Coordinate j of a row, a sum in the order of the CPU.
template <class X>
__device__ inline float coordinate(const LatentMap& map, const X& x, int j) {
  const float *const encode = map.encode(), *const mean = map.mean();
  float sum = 0.0f;
  for (int i = 0; i < map.dim; ++i) sum = __fadd_rn(sum, entry_times(encode[i * map.rank + j], x(i) - mean[i]));
  return sum;
}
/// A row becomes its coordinates: `out` must not be the row. A warp.
template <class X>
__device__ inline void into_latent(const LatentMap& map, const X& x, float* out) {
  for (int j = cuda::lane_of_warp(); j < map.rank; j += cuda::warp_lanes) out[j] = coordinate(map, x, j);
  __syncwarp();
}
/// Whether every `step`-th number of a row from `first` on can be stored.
template <class X>
__device__ inline bool storable_numbers(const X& x, int dim, int first, int step) {
  bool good = true;
  for (int c = first; c < dim; c += step) good = good && can_store(DType::f32, x(c));
  return good;
}
/// The same of a whole row, in every lane of a warp.
template <class X>
__device__ inline bool storable_row(const X& x, int dim) {
  const bool good = storable_numbers(x, dim, cuda::lane_of_warp(), cuda::warp_lanes);
  return __all_sync(cuda::full_warp, static_cast<int>(good)) != 0;
}
/// Coordinates in shared memory become the row again. A warp; a lane has written its own alone, or behind a barrier.
__device__ inline void leave_latent(const LatentMap& map, float* row) {
  if (!map.maps()) return;
  constexpr int each = static_cast<int>(max_head_dim) / cuda::warp_lanes;
  const float* const decode = map.decode();
  const int lane = cuda::lane_of_warp();
  float sum[each] = {};
  __syncwarp();
  for (int j = 0; j <= map.rank; ++j) {
    const float z = j < map.rank ? row[j] : 1.0f;
#pragma unroll
    for (int k = 0; k < each; ++k)
      if (const int c = lane + k * cuda::warp_lanes; c < map.dim && decode[j * map.dim + c] != 0.0f) sum[k] += z * decode[j * map.dim + c];  // see `entry_times`
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < each; ++k)
    if (lane + k * cuda::warp_lanes < map.dim) row[lane + k * cuda::warp_lanes] = sum[k];
}

/// A sum that a float cannot hold, of rows that it can, `storable()`, is the largest: to be repaired, and to be counted, which what is no number of a row has
/// been. Of Infs of both signs it is a NaN, which is coded as 0, as on the host.
template <class Storable>
__device__ inline float finite_sum(float sum, Storable&& storable) {
  return fabsf(sum) <= FLT_MAX || sum != sum || !storable() ? sum : limit_to(sum, FLT_MAX);
}

/// The rows of a group of slots as a block that codes them reads them: a number is a coordinate, made whenever it is read, which is a few times alone, by the
/// thread that reads it: where a thread codes a channel, as many work as there are coordinates. A group of coordinates may be larger than shared memory.
template <class Rows>
struct LatentRows {
  static constexpr bool counted = Rows::counted;
  const Rows& rows;
  LatentMap map;

  __device__ auto row(int i) const {
    return [x = rows.row(i), m = map](int j) { return m.maps() ? finite_sum(coordinate(m, x, j), [&] { return storable_numbers(x, m.dim, 0, 1); }) : x(j); };
  }
  __device__ float score(int i) const { return rows.score(i); }
};

template <GroupCodec C>
inline constexpr bool codes_groups<Latent<C>> = true;
template <class C>
inline constexpr int group_blocks<Latent<C>> = group_blocks<C> < 3 ? group_blocks<C> : 3;  // a row is made as it is read: that takes registers

/// Rows of coordinates: `dim` is how many they are.
template <class C>
  requires(RowCodec<C> || GroupCodec<C>)
struct RowPage<Latent<C>> : RowPage<C> {
  LatentMap map;

  __device__ RowPage(const Latent<C>& c, std::byte* page, int page_slots, int) : RowPage<C>(c.codec, page, page_slots, c.map.rank), map(c.map) {}
  __device__ const RowPage<C>& coordinates() const { return *this; }
  __device__ void load(int slot, float* row) const {
    load_row(coordinates(), slot, row);
    leave_latent(map, row);
  }

  struct Scratch {
    float latent[max_head_dim];
    typename RowPage<C>::Scratch inner;
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    if (!map.maps()) return RowPage<C>::encode(slot, rows, i, s.inner);
    const auto x = rows.row(i);
    const bool counted = rows.counted && !storable_row(x, map.dim);
    into_latent(map, x, s.latent);
    return RowPage<C>::encode(slot, MappedRow{s.latent, counted}, i, s.inner);
  }

  static std::size_t behind(const Latent<C>& c)
    requires requires { RowPage<C>::behind(c.codec); }
  {
    return RowPage<C>::behind(c.codec);
  }
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, auto& shared) const {
    return RowPage<C>::encode_group(slot, LatentRows<Rows>{rows, map}, begin, shared);
  }
};

template <class C>
__device__ __host__ inline const auto& stored_codec(const Latent<C>& codec) {
  return stored_codec(codec.codec);
}
template <class C>
inline index_t stored_dim(const Latent<C>& codec, index_t) {
  return codec.map.rank;
}

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
