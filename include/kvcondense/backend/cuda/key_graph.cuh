#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/rank_bits.hpp>

// A graph over keys, and walks over it: see retrieve::KeyGraph.

namespace kvcondense::prim {

/// The graph of a layer: 2 * degree links of every slot in the first plane, to earlier slots and then to later ones; hubs where a prompt's lessons lie.
struct GraphPlan {
  index_t degree = 8, beam = 64, hubs = 32, hub_keys = 8;
};

namespace cuda_kernels {

inline constexpr int walk_threads = 128, walk_warps = walk_threads / cuda::warp_lanes;
inline constexpr int most_beam = 256, most_visits = 8192, seen_slots = 16384, most_asked = 256, most_hubs = 1024, near_hubs = 4;

/// A walk of one block: the best places it has seen, and which places those are.
struct WalkShared {
  std::int32_t seen[seen_slots];
  float score[most_beam];
  std::int32_t place[most_beam];
  std::uint32_t open[most_beam];
  std::int32_t asked[most_asked];
  float asked_score[most_asked];
  float hub_score[most_hubs];
  std::int32_t hub[near_hubs];
  float query[max_head_dim];
  float row[walk_warps][max_head_dim];
  int size, visits, counted, fresh, next;
};

/// Whether a place ranks before another.
__device__ inline bool ranks_before(float a, std::int32_t a_place, float b, std::int32_t b_place) {
  const std::uint32_t x = rank_bits(a), y = rank_bits(b);
  return x > y || (x == y && a_place < b_place);
}

/// One walk over the graph of a head towards the largest inner products with WalkShared::query among slots [low, high). All threads of a block.
struct Walk {
  WalkShared& shared;
  const SlotRows<Cuda>& keys;
  const UnitPlanes& planes;
  GraphPlan plan;
  index_t head, low, high;
  int beam;

  __device__ std::int32_t* links(index_t slot) const {
    return reinterpret_cast<std::int32_t*>(planes.plane[0] + head * planes.room[0]) + slot * 2 * plan.degree;
  }
  __device__ const float* found() const { return planes.found + head * planes.found_room; }

  template <class Use>
  __device__ void run(Use&& use) const {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < seen_slots; i += walk_threads) shared.seen[i] = -1;
    if (threadIdx.x == 0) {
      shared.size = shared.visits = shared.counted = 0;
      shared.asked[0] = static_cast<std::int32_t>(high - 1), shared.asked[1] = static_cast<std::int32_t>(low);
      shared.asked[2] = static_cast<std::int32_t>((low + high) / 2);
    }
    visit(3, use);
    choose_hubs();
    const int hubs = static_cast<int>(plan.hubs < near_hubs ? plan.hubs : near_hubs);
    for (int h = 0; h < hubs; ++h) {  // the keys of the queries most like this one
      const float* at = found() + plan.hubs * keys.dim() + shared.hub[h] * plan.hub_keys;
      for (int i = static_cast<int>(threadIdx.x); i < plan.hub_keys; i += walk_threads) {
        const float x = at[i];
        shared.asked[i] = static_cast<std::int32_t>(x < -1.0f ? -1.0f : x < 2e9f ? x : 2e9f);
      }
      visit(static_cast<int>(plan.hub_keys), use);
    }
    for (;;) {
      open_next();
      const std::int32_t at = shared.next;
      if (at < 0) break;  // the same in all threads
      for (int k = static_cast<int>(threadIdx.x); k < 2 * plan.degree; k += walk_threads) shared.asked[k] = links(at)[k];
      visit(static_cast<int>(2 * plan.degree), use);
    }
    __syncthreads();
  }

 private:
  /// The first `n` places that were asked for, those that are new.
  template <class Use>
  __device__ void visit(int n, Use&& use) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      shared.fresh = 0;
      for (int i = 0; i < n; ++i)
        if (const std::int32_t slot = shared.asked[i]; slot >= low && slot < high && enter(slot)) shared.asked[shared.fresh++] = slot;
    }
    __syncthreads();
    const int fresh = shared.fresh, dim = static_cast<int>(keys.dim());
    float* const row = shared.row[cuda::warp_of_block()];
    for (int i = cuda::warp_of_block(); i < fresh; i += walk_warps) {
      const std::int32_t slot = shared.asked[i];
      keys.load(keys.locate(head, slot), row);
      float sum = 0.0f;
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) sum += shared.query[c] * row[c];
      sum = cuda::warp_sum(sum);
      if (cuda::lane_of_warp() == 0) shared.asked_score[i] = sum, use(slot, sum);
    }
    __syncthreads();
    if (cuda::warp_of_block() == 0)
      for (int i = 0; i < fresh; ++i) keep(shared.asked[i], shared.asked_score[i]);
    __syncthreads();
  }
  /// False where the place was seen before, or no more are taken. One thread.
  __device__ bool enter(std::int32_t place) const {
    if (shared.visits == most_visits) return false;
    int at = static_cast<int>(static_cast<std::uint32_t>(place) * 2654435761u >> 18);
    for (; shared.seen[at] >= 0; at = (at + 1) % seen_slots)
      if (shared.seen[at] == place) return false;
    shared.seen[at] = place;
    ++shared.visits;
    return true;
  }
  /// A place goes to where it ranks among the best. A warp.
  __device__ void keep(std::int32_t place, float score) const {
    constexpr int each = most_beam / cuda::warp_lanes;
    const int lane = cuda::lane_of_warp(), size = shared.size, more = size < beam ? size + 1 : beam;
    int rank = 0;
    for (int i = lane; i < size; i += cuda::warp_lanes) rank += ranks_before(shared.score[i], shared.place[i], score, place);
    rank = cuda::warp_sum(rank);
    float scores[each] = {};
    std::int32_t places[each] = {};
    std::uint32_t opened[each] = {};
#pragma unroll
    for (int k = 0; k < each; ++k)
      if (const int i = lane + k * cuda::warp_lanes; i >= rank && i + 1 < more) scores[k] = shared.score[i], places[k] = shared.place[i], opened[k] = shared.open[i];
    __syncwarp();
#pragma unroll
    for (int k = 0; k < each; ++k)
      if (const int i = lane + k * cuda::warp_lanes; i >= rank && i + 1 < more) shared.score[i + 1] = scores[k], shared.place[i + 1] = places[k], shared.open[i + 1] = opened[k];
    if (lane == 0) {
      if (rank < more) shared.score[rank] = score, shared.place[rank] = place, shared.open[rank] = 0;
      shared.size = more;
      shared.counted += score > -INFINITY;
    }
    __syncwarp();
  }
  /// The best place whose neighbours were not looked at; -1: none is left.
  __device__ void open_next() const {
    if (cuda::warp_of_block() == 0) {
      int first = most_beam;
      for (int i = cuda::lane_of_warp(); i < shared.size && first == most_beam; i += cuda::warp_lanes)
        if (shared.open[i] == 0) first = i;
      first = cuda::warp_reduce(first, [](int a, int b) { return a < b ? a : b; });
      __syncwarp();  // all have read what one writes
      if (cuda::lane_of_warp() == 0) {
        shared.next = first < most_beam ? shared.place[first] : -1;
        if (first < most_beam) shared.open[first] = 1;
      }
    }
    __syncthreads();
  }
  /// The hubs whose queries are most like this one, the nearest first.
  __device__ void choose_hubs() const {
    const int dim = static_cast<int>(keys.dim()), hubs = static_cast<int>(plan.hubs);
    for (int s = cuda::warp_of_block(); s < hubs; s += walk_warps) {
      float sum = 0.0f;
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) sum += shared.query[c] * found()[s * dim + c];
      sum = cuda::warp_sum(sum);
      if (cuda::lane_of_warp() == 0) shared.hub_score[s] = sum;
    }
    __syncthreads();
    for (int s = static_cast<int>(threadIdx.x); s < hubs; s += walk_threads) {  // a total order: every rank is taken once
      int rank = 0;
      for (int o = 0; o < hubs && rank < near_hubs; ++o) rank += ranks_before(shared.hub_score[o], o, shared.hub_score[s], s);
      if (rank < near_hubs) shared.hub[rank] = s;
    }
    __syncthreads();
  }
};

/// Slots from the first changed one on find their place one behind the other, each by a walk over those before it. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) insert_slots(SlotRows<Cuda> keys, UnitPlanes planes, GraphPlan plan, const index_t* from, const index_t* known) {
  static_assert(Threads == walk_threads);
  WalkShared& shared = cuda::shared_as<WalkShared>();
  const index_t head = blockIdx.x, last = known[head];
  const int degree = static_cast<int>(plan.degree), beam = static_cast<int>(plan.beam > plan.degree ? plan.beam : plan.degree);
  for (index_t i = from[head]; i < last; ++i) {
    const Walk walk{shared, keys, planes, plan, head, 0, i, beam};
    std::int32_t* const own = walk.links(i);
    for (int k = static_cast<int>(threadIdx.x); k < 2 * degree; k += Threads) own[k] = -1;
    if (cuda::warp_of_block() == 0) keys.load(keys.locate(head, i), shared.query);
    walk.run([](std::int32_t, float) {});
    const int n = shared.size < degree ? shared.size : degree;
    for (int k = static_cast<int>(threadIdx.x); k < n; k += Threads) {
      own[k] = shared.place[k];
      std::int32_t* const back = walk.links(shared.place[k]) + degree;
      int room = 0;
      while (room < degree && back[room] >= 0) ++room;
      if (room < degree) back[room] = static_cast<std::int32_t>(i);
    }
    __syncthreads();
  }
}

/// Links to slots that are about to be made anew go. Grid: blocks of slots, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) forget_links(UnitPlanes planes, GraphPlan plan, const index_t* from) {
  const index_t head = blockIdx.y, first = from[head];
  auto* const links = reinterpret_cast<std::int32_t*>(planes.plane[0] + head * planes.room[0]);
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < first * plan.degree; i += static_cast<index_t>(gridDim.x) * Threads) {
    std::int32_t& link = links[i / plan.degree * 2 * plan.degree + plan.degree + i % plan.degree];
    if (link >= first) link = -1;
  }
}

/// Scores of what a walk saw, -inf of all others. A block a query row. `counted`: how many, added up.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) walk_graph(SlotRows<Cuda> keys, UnitPlanes planes, GraphPlan plan, UnitScores scores, const float* queries, index_t* counted) {
  static_assert(Threads == walk_threads);
  WalkShared& shared = cuda::shared_as<WalkShared>();
  const index_t row = blockIdx.x, head = row / scores.per_head, n = scores.out.length(row), first = scores.first[head];
  if (n == 0) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim());
  float* const out = scores.out.row(row);
  for (index_t i = threadIdx.x; i < n; i += Threads) out[i] = -INFINITY;
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += Threads) shared.query[c] = queries[row * dim + c];
  Walk{shared, keys, planes, plan, head, first, first + n, static_cast<int>(plan.beam)}.run([&](std::int32_t slot, float score) { out[slot - first] = score; });
  if (threadIdx.x == 0 && counted != nullptr) counted[row] += shared.counted;
}

struct HubShared {
  WinnerShared winners;
  float query[max_head_dim];
  float row[winner_threads / cuda::warp_lanes][max_head_dim];
  std::int32_t place[most_asked];
};

/// A query of the prompt and its best keys, the best first. A block a hub, from `base` on.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) find_hubs(SlotRows<Cuda> keys, index_t head, index_t slots, GraphPlan plan, TensorView<const float, 3> queries, index_t group,
                                                        index_t base, float* scores, float* found) {
  static_assert(Threads == winner_threads);
  HubShared& shared = cuda::shared_as<HubShared>();
  const index_t s = base + blockIdx.x, k = plan.hub_keys < slots ? plan.hub_keys : slots;
  const int dim = static_cast<int>(keys.dim());
  float* const own = scores + blockIdx.x * slots;
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += Threads)
    found[s * dim + c] = shared.query[c] = queries(head * group + s % group, s * queries.extent[1] / plan.hubs, c);
  __syncthreads();
  float* const row = shared.row[cuda::warp_of_block()];
  for (index_t slot = cuda::warp_of_block(); slot < slots; slot += Threads / cuda::warp_lanes) {
    keys.load(keys.locate(head, slot), row);
    float sum = 0.0f;
    for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) sum += shared.query[c] * row[c];
    sum = cuda::warp_sum(sum);
    if (cuda::lane_of_warp() == 0) own[slot] = sum;
  }
  __syncthreads();
  const BlockCutoff cut = block_cutoff<Threads>(own, slots, k, shared.winners.cutoff);
  block_winners(
      slots, [&](index_t i) { return rank_bits(own[i]); }, cut, 0, [](index_t) { return false; },
      [&](index_t i, std::uint32_t place) { shared.place[place] = static_cast<std::int32_t>(i); }, shared.winners);
  __syncthreads();
  float* const to = found + plan.hubs * dim + s * plan.hub_keys;
  for (index_t i = threadIdx.x; i < plan.hub_keys; i += Threads) {
    int rank = static_cast<int>(i);
    if (i < k) {
      rank = 0;
      for (index_t o = 0; o < k; ++o) rank += ranks_before(own[shared.place[o]], shared.place[o], own[shared.place[i]], shared.place[i]);
    }
    to[rank] = i < k ? static_cast<float>(shared.place[i]) : 0.0f;
  }
}

/// Of lists of candidates those stay that have a score. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) keep_visited(RaggedView<const float> scores, RaggedView<std::int32_t> units, index_t* count) {
  auto& shared = cuda::shared_as<cuda::BlockScratch<std::uint32_t, Threads>>();
  const index_t row = blockIdx.x, n = count[row];
  std::int32_t* const list = units.row(row);
  std::uint32_t taken = 0;
  for (index_t from = 0; from < n; from += Threads) {
    const index_t i = from + threadIdx.x;
    const std::int32_t mine = i < n ? list[i] : 0;
    const bool seen = i < n && scores.row(row)[mine] > -INFINITY;
    const auto place = cuda::block_running<std::uint32_t, Threads>(static_cast<std::uint32_t>(seen), shared);
    if (seen) list[taken + place.before] = mine;  // behind a barrier: what lies there was read
    taken += place.all;
  }
  __syncthreads();
  if (threadIdx.x == 0) count[row] = taken;
}

}  // namespace cuda_kernels

/// A graph over the keys of every head of a layer, and walks over it.
///
/// Needs    all pointers are the device's; `from` and `known` may lie in steering memory. A plan that `fits`; about 80 kB of shared memory a block: not_supported where there is less.
/// Cost     a new slot is a walk, and slots of a head come in one behind the other, by one block; a query row is a walk of one block.
/// Numbers  as retrieve::KeyGraph, inner products summed in another order: two slots whose scores are closer than rounding may change places.
struct KeyGraph {
  static constexpr index_t batch = 16;  ///< hubs that are found together

  /// Whether shared memory has room for such a graph: at most 128 links each way, beams and keys of a hub up to 256, 1024 hubs.
  static constexpr bool fits(const GraphPlan& p) {
    using namespace cuda_kernels;
    return p.degree >= 1 && p.degree <= most_asked / 2 && p.beam >= 1 && p.beam <= most_beam && p.hubs >= 1 && p.hubs <= most_hubs && p.hub_keys >= 1 && p.hub_keys <= most_asked;
  }

  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const GraphPlan& plan, const index_t* from, const index_t* known) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, insert_slots<walk_threads>, {keys.heads()}, walk_threads, sizeof(WalkShared), keys, planes, plan, from, known);
  }
  /// Links from slots before from[head] to slots from there on; `most`: no head has more slots.
  static Status forget(Context<Cuda>& ctx, const UnitPlanes& planes, const GraphPlan& plan, const index_t* from, index_t heads, index_t most) {
    constexpr int threads = 256;
    const index_t blocks = cuda::covering(most * plan.degree, threads);
    return cuda::launch(ctx, cuda_kernels::forget_links<threads>, {std::min<index_t>(blocks, 1024), heads}, threads, 0, planes, plan, from);
  }
  /// `counted`: per query row, null where nobody asks.
  static Status score(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const GraphPlan& plan, const UnitScores& scores, const float* queries,
                      index_t* counted) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, walk_graph<walk_threads>, {scores.out.heads}, walk_threads, sizeof(WalkShared), keys, planes, plan, scores, queries, counted);
  }
  static std::size_t fit_bytes(index_t slots) { return Scratch::align + Scratch::bytes_for<float>(batch * slots); }
  /// Hubs of a head: queries [hubs, head_dim], then the slots of their best keys [hubs, hub_keys].
  static Status fit(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, index_t head, index_t slots, const GraphPlan& plan, TensorView<const float, 3> queries, float* found,
                    Scratch scratch) {
    using namespace cuda_kernels;
    float* scores = scratch.take<float>(batch * slots);
    if (scores == nullptr) return Status::workspace_too_small;
    Status s = Status::ok;
    for (index_t base = 0; base < plan.hubs && s == Status::ok; base += batch)
      s = cuda::launch(ctx, find_hubs<winner_threads>, {std::min(batch, plan.hubs - base)}, winner_threads, sizeof(HubShared), keys, head, slots, plan, queries,
                       queries.extent[0] / keys.heads(), base, scores, found);
    return s;
  }
  /// Only what was seen is chosen.
  static Status keep_visited(Context<Cuda>& ctx, RaggedView<const float> scores, RaggedView<std::int32_t> units, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, cuda_kernels::keep_visited<256>, {scores.heads}, 256, sizeof(cuda::BlockScratch<std::uint32_t, 256>), scores, units, count);
  }
};

}  // namespace kvcondense::prim
