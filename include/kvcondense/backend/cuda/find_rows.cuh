#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/channel_list.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/found_basis.hpp>
#include <kvcondense/prim/settle_map.hpp>

namespace kvcondense::prim {

/// The rows that become codes in a step, of heads whose map waits for them: sums of them, from which the host finds the map.
struct FirstRows {
  ExactRows exact{};
  ColumnParts column{};
  KeptSlots due{};
  MapFlags maps{};                           ///< heads that have theirs are passed over
  TensorView<const float, 3> queries{};      ///< of the step
  index_t group = 0;                         ///< query heads of a head

  /// Those of a head; none where it waits for no map.
  __device__ cuda_kernels::DueRows of(index_t head) const { return {exact, column.newest, head, maps.waits(head) ? due.of(head) : HeadKept{}}; }
};

namespace cuda_kernels {

inline constexpr int product_tile = 16, product_threads = product_tile * product_tile, product_rows = 16;

struct ProductShared {
  float row[product_rows][max_head_dim];
  int some[product_rows];  ///< whether the row counts: all its numbers are such that products of them are some
};

/// Sums of products of numbers i and j, of numbers, and how many rows: a thread a pair, in the order of the CPU. Grid: tiles of i, of j, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_products(FirstRows first, float* out, index_t step) {
  ProductShared& shared = cuda::shared_as<ProductShared>();
  const index_t head = blockIdx.z;
  const DueRows rows = first.of(head);
  if (rows.due.size == 0) return;
  const int dim = static_cast<int>(first.column.newest.dim), thread = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * product_tile + thread / product_tile, j = static_cast<int>(blockIdx.y) * product_tile + thread % product_tile;
  float product = 0.0f, sum = 0.0f, count = 0.0f;
  for (index_t from = 0; from < rows.due.size; from += product_rows) {
    const int n = static_cast<int>(rows.due.size - from < product_rows ? rows.due.size - from : product_rows);
    __syncthreads();
    for (int r = cuda::warp_of_block(); r < n; r += Threads / cuda::warp_lanes) {
      const auto x = rows.row(static_cast<int>(from) + r);
      bool some = true;
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) shared.row[r][c] = x(c), some = some && fabsf(x(c)) <= 1e15f;
      const int all = __all_sync(cuda::full_warp, static_cast<int>(some));
      if (cuda::lane_of_warp() == 0) shared.some[r] = all;
    }
    __syncthreads();
    for (int r = 0; r < n; ++r) {
      if (shared.some[r] == 0) continue;
      if (i < dim && j < dim) product = __fadd_rn(product, __fmul_rn(shared.row[r][i], shared.row[r][j]));
      if (i < dim) sum += shared.row[r][i];
      count += 1.0f;
    }
  }
  float* const to = out + head * step;
  if (i < dim && j < dim) to[i * dim + j] = product;
  if (i < dim && j == 0) to[dim * dim + i] = sum;
  if (i == 0 && j == 0) to[dim * dim + dim] = count;
}

/// Energies of channels in rows, then in queries: a thread a channel, in the order of the CPU. Grid: blocks of channels, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_energies(ChannelList list, FirstRows first, float* out, index_t step) {
  const index_t head = blockIdx.y;
  const DueRows rows = first.of(head);
  if (rows.due.size == 0) return;
  const int dim = static_cast<int>(first.column.newest.dim), c = static_cast<int>(blockIdx.x) * Threads + static_cast<int>(threadIdx.x);
  if (c >= dim) return;
  float of_rows = 0.0f, of_queries = 0.0f;
  for (index_t i = 0; i < rows.due.size; ++i) of_rows += ChannelList::energy(rows.row(static_cast<int>(i))(c));
  const index_t tokens = first.queries.extent[1];
  for (index_t h = head * first.group; h < (head + 1) * first.group; ++h)
    for (index_t i = list.first_query(tokens); i < tokens; ++i) of_queries += ChannelList::energy(first.queries(h, i, static_cast<index_t>(c)));
  float* const to = out + head * step;
  to[c] = of_rows, to[dim + c] = of_queries;
}

inline constexpr int top_threads = 512, top_stripes = top_threads / cuda::warp_lanes;  ///< a lane a channel, a warp every sixteenth row

struct TopShared {
  float of[top_stripes][cuda::warp_lanes];
};
__device__ inline int top_channel() { return static_cast<int>(blockIdx.x) * cuda::warp_lanes + cuda::lane_of_warp(); }
/// The largest of what the stripes of rows have of each channel, in any order the same. All threads; a barrier.
__device__ inline void join_tops(float top, int dim, float* to) {
  TopShared& shared = cuda::shared_as<TopShared>();
  shared.of[cuda::warp_of_block()][cuda::lane_of_warp()] = top;
  __syncthreads();
  if (cuda::warp_of_block() != 0 || top_channel() >= dim) return;
  for (int w = 1; w < top_stripes; ++w) top = ChannelScale::larger(top, shared.of[w][cuda::lane_of_warp()]);
  to[top_channel()] = top;
}

/// The largest sizes of channels in rows, of numbers that are some. Grid: warps of channels, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) top_channels(FirstRows first, float* out, index_t step) {
  const index_t head = blockIdx.y;
  const DueRows rows = first.of(head);
  if (rows.due.size == 0) return;
  const int dim = static_cast<int>(first.column.newest.dim), c = top_channel();
  float top = 0.0f;
  for (index_t i = cuda::warp_of_block(); c < dim && i < rows.due.size; i += top_stripes) top = ChannelScale::larger(top, rows.row(static_cast<int>(i))(c));
  join_tops(top, dim, out + head * step);
}

/// The same in queries, of which a turn has none, behind those.
template <int Threads>
__global__ void __launch_bounds__(Threads) top_query_channels(FirstRows first, float* out, index_t step) {
  const index_t head = blockIdx.y, tokens = first.queries.extent[1];
  if (first.of(head).due.size == 0) return;
  const int dim = static_cast<int>(first.column.newest.dim), c = top_channel();
  float top = 0.0f;
  for (index_t h = head * first.group; h < (head + 1) * first.group; ++h)
    for (index_t i = cuda::warp_of_block(); c < dim && i < tokens; i += top_stripes) top = ChannelScale::larger(top, first.queries(h, i, c));
  join_tops(top, dim, out + head * step + dim);
}

}  // namespace cuda_kernels

/// Of maps one behind the other the first, which alone is found from rows.
template <class T>
struct FirstMap {
  using type = T;
};
template <class F, class S>
struct FirstMap<Chained<F, S>> {
  using type = F;
};

/// Whether a map is found from rows, and how.
template <class T>
inline constexpr bool found_from_rows = false;
template <>
inline constexpr bool found_from_rows<FoundBasis> = true;
template <>
inline constexpr bool found_from_rows<ChannelList> = true;
template <>
inline constexpr bool found_from_rows<ChannelScale> = true;

/// Sums of rows for maps that are found from them: `finding_floats` numbers of every head that has rows here, `step` apart.
struct FindRows {
  static Status observe(Context<Cuda>& ctx, const FoundBasis&, const FirstRows& first, float* out, index_t step) {
    using namespace cuda_kernels;
    const index_t tiles = cuda::covering(first.column.newest.dim, product_tile);
    return cuda::launch(ctx, sum_products<product_threads>, {tiles, tiles, first.column.heads()}, product_threads, sizeof(ProductShared), first, out, step);
  }
  static Status observe(Context<Cuda>& ctx, const ChannelList& list, const FirstRows& first, float* out, index_t step) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, sum_energies<128>, {cuda::covering(first.column.newest.dim, 128), first.column.heads()}, 128, 0, list, first, out, step);
  }
  static Status observe(Context<Cuda>& ctx, const ChannelScale& scale, const FirstRows& first, float* out, index_t step) {
    using namespace cuda_kernels;
    const cuda::Grid grid{cuda::covering(first.column.newest.dim, cuda::warp_lanes), first.column.heads()};
    const Status s = cuda::launch(ctx, top_channels<top_threads>, grid, top_threads, sizeof(TopShared), first, out, step);
    return s == Status::ok && scale.needs_queries() ? cuda::launch(ctx, top_query_channels<top_threads>, grid, top_threads, sizeof(TopShared), first, out, step) : s;
  }
  /// What they become, on the host; `asked`: query rows that a head was asked by.
  static void settle(const FoundBasis& t, index_t dim, index_t, float* sums) { settle_basis(t, dim, sums); }
  static void settle(const ChannelList& t, index_t dim, index_t, float* sums) { settle_channels(t, dim, sums); }
  static void settle(const ChannelScale& t, index_t dim, index_t asked, float* tops) { settle_scales(t, dim, asked, tops); }
  /// Whether numbers from a file can be that.
  static bool good(const FoundBasis& t, index_t dim, const float* state) {
    return std::all_of(state, state + t.state_floats(dim), [](float x) { return std::isfinite(x); });
  }
  static bool good(const ChannelList& t, index_t dim, const float* state) { return t.good_state(dim, state); }
  static bool good(const ChannelScale& t, index_t dim, const float* state) {
    return std::all_of(state, state + t.state_floats(dim), [](float x) { return x >= 1.0f / ChannelScale::most && x <= ChannelScale::most; });
  }
};

}  // namespace kvcondense::prim
