#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/rope.cuh>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/join_gate.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// The newest slot of every head, which later tokens may still join: cache::OpenSlot of all heads of a layer.

namespace kvcondense::prim {

/// The tokens of which the newest slots of the heads are means, as they came: rows of key, value, what it counts, and 1 where it joined what was
/// before it. Behind the `settled` of a head, which a step has seen, those of the pending tokens.
struct OpenRows {
  float* rows = nullptr;            ///< of head h from row h * room on
  index_t* settled = nullptr;       ///< per head
  HeadNumbers<std::uint8_t> passed{};  ///< see PassedSlots
  index_t room = 0, heads = 0, key_dim = 0, value_dim = 0;

  KVCONDENSE_HD index_t width() const { return key_dim + value_dim + 2; }
  KVCONDENSE_HD float* row(index_t head, index_t i) const { return rows + (head * room + i) * width(); }
  KVCONDENSE_HD bool joined(index_t head, index_t i) const { return row(head, i)[width() - 1] != 0.0f; }
  /// The first of the tokens of which the slot is the mean that token i is in.
  KVCONDENSE_HD index_t first_of(index_t head, index_t i, index_t window) const {
    index_t first = i;
    while (first > 0 && joined(head, first) && (window == 0 || i + 1 - first < window)) --first;
    return first;
  }
};

/// How tokens join: what a gate reads, and how keys turn that are summed without rotation.
struct Joining {
  JoinGate gate{};
  ControlComponent control{};
  RopeAngles angles{};
  bool turned = false;  ///< keys come rotated
  bool raw = false;     ///< they are stored without
};

namespace cuda_kernels {

inline constexpr int open_slot_threads = 128;

/// Where some tokens stand, and what turns the component that a gate reads: they travel with a kernel's arguments.
struct GateTokens {
  static constexpr index_t most = 128;
  std::int32_t position[most];
  float cosine[most], sine[most];

  GateTokens(const ControlComponent& control, std::span<const index_t> positions) {
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const double angle = static_cast<double>(positions[i]) * static_cast<double>(control.frequency);
      position[i] = static_cast<std::int32_t>(positions[i]);
      cosine[i] = static_cast<float>(std::cos(angle)), sine[i] = static_cast<float>(std::sin(angle));
    }
  }
};

/// ControlComponent::read of a row whose numbers are row(c).
template <class Row>
__device__ inline float read_control(const ControlComponent& k, const Row& row, float cosine, float sine) {
  if (k.partner < 0) return row(k.at);
  const float own = __fmul_rn(row(k.at), cosine), other = __fmul_rn(row(k.partner), sine);
  return __fadd_rn(own, k.first_of_pair ? other : -other) / k.factor;
}

/// The weighted mean of column c of tokens [first, last], summed as they came.
__device__ inline float mean_of(const OpenRows& open, index_t head, index_t first, index_t last, index_t c) {
  const index_t weight = open.width() - 2;
  const float* row = open.row(head, first);
  float sum = row[weight], mean = row[c];
  for (index_t i = first + 1; i <= last; ++i) {
    row = open.row(head, i);
    sum = __fadd_rn(sum, row[weight]);
    const float part = sum > 0.0f ? row[weight] / sum : 1.0f;
    mean = __fadd_rn(mean, __fmul_rn(part, __fadd_rn(row[c], -mean)));
  }
  return mean;
}

/// `bad` counts a number that had to be brought there.
__device__ inline float in_range(DType type, float x, int& bad) {
  const float y = in_range(type, x);
  bad += static_cast<int>(y != x);
  return y;
}

/// Tokens [first, first + grid) of a call get their rows behind `pending` others. Grid: tokens, heads.
template <class T, int Threads>
__global__ void __launch_bounds__(Threads) hold_tokens(OpenRows open, Joining join, GateTokens at, index_t pending, index_t first, TensorView<const T, 3> keys,
                                                       TensorView<const T, 3> values, TensorView<const float, 3> queries, HeadNumbers<const std::int32_t> ids,
                                                       const index_t* slots, index_t newest, DType type, index_t* repaired) {
  const index_t head = blockIdx.y, t = first + blockIdx.x, next = pending + t, i = open.settled[head] + next;
  const float cosine = at.cosine[blockIdx.x], sine = at.sine[blockIdx.x];
  float* const row = open.row(head, i);
  int bad = 0;
  const auto clean = [&](float x) { return can_store(type, x) ? x : in_range(type, x, bad); };
  const auto key = [&](index_t c) { return static_cast<float>(keys(head, t, c)); };
  const index_t pairs = join.turned ? join.angles.pairs : 0;
  const bool halves = join.angles.pairing == RopePairing::half_split;
  for (index_t p = threadIdx.x; p < pairs; p += Threads) {
    const CosSin turn = cos_sin(join.angles, p, at.position[blockIdx.x]);
    const index_t near = halves ? p : 2 * p, far = halves ? p + pairs : 2 * p + 1;
    const float x = clean(key(near)), y = clean(key(far));
    const float a = __fadd_rn(__fmul_rn(x, turn.cosine), __fmul_rn(y, turn.sine)), b = __fadd_rn(__fmul_rn(y, turn.cosine), -__fmul_rn(x, turn.sine));
    row[near] = near == join.control.at ? 0.0f : in_range(DType::f32, a, bad), row[far] = far == join.control.at ? 0.0f : in_range(DType::f32, b, bad);
  }
  for (index_t c = 2 * pairs + threadIdx.x; c < open.key_dim; c += Threads) {
    const float x = clean(key(c));
    row[c] = c == join.control.at ? 0.0f : x;
  }
  for (index_t c = threadIdx.x; c < open.value_dim; c += Threads) row[open.key_dim + c] = clean(static_cast<float>(values(head, t, c)));
  if (threadIdx.x == 0) {
    const index_t group = queries.extent[0] / open.heads;
    float sum = 0.0f;
    for (index_t g = 0; g < group; ++g)
      sum = __fadd_rn(sum, read_control(join.control, [&](index_t c) { return queries(head * group + g, t, c); }, cosine, sine));
    const float weight = 1.0f / (1.0f + expf(-(sum / static_cast<float>(group)) - join.gate.init)) + join.gate.slack;
    const bool counts = weight == weight, joins = i > 0 && join.gate.joins(read_control(join.control, key, cosine, sine));
    bad += static_cast<int>(!counts);
    row[open.width() - 2] = counts ? weight : 0.0f, row[open.width() - 1] = joins ? 1.0f : 0.0f;
    const index_t stepped = slots[head] - pending - queries.extent[1];
    const bool behind = next > 0 || (stepped > 0 && ids.row(head)[stepped - 1] == newest);
    open.passed.row(head)[next] = static_cast<std::uint8_t>(joins && behind);
  }
  if (bad > 0) add_repaired(repaired, bad);
}

/// What the slots of the same tokens are with them, keys without rotation. Grid: tokens, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) mean_of_tokens(OpenRows open, index_t pending, index_t window, DType type, TensorView<float, 3> keys, TensorView<float, 3> values,
                                                         index_t* repaired) {
  const index_t head = blockIdx.y, t = blockIdx.x, last = open.settled[head] + pending + t, first = open.first_of(head, last, window);
  for (index_t c = threadIdx.x; c < open.key_dim; c += Threads) keys(head, t, c) = mean_of(open, head, first, last, c);
  int bad = 0;
  for (index_t c = threadIdx.x; c < open.value_dim; c += Threads) values(head, t, c) = in_range(type, mean_of(open, head, first, last, open.key_dim + c), bad);
  if (bad > 0) add_repaired(repaired, bad);
}

/// Those keys turn to their positions, unless they are stored without rotation, without the component, and become such that can be stored. Grid: tokens, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) turn_means(Joining join, GateTokens at, index_t first, DType type, TensorView<float, 3> keys, index_t* repaired) {
  const index_t head = blockIdx.y, t = first + blockIdx.x;
  int bad = 0;
  const auto put = [&](index_t c, float x) { keys(head, t, c) = c == join.control.at ? 0.0f : in_range(type, x, bad); };
  const index_t pairs = join.turned && !join.raw ? join.angles.pairs : 0;
  const bool halves = join.angles.pairing == RopePairing::half_split;
  for (index_t p = threadIdx.x; p < pairs; p += Threads) {
    const CosSin turn = cos_sin(join.angles, p, at.position[blockIdx.x]);
    const index_t near = halves ? p : 2 * p, far = halves ? p + pairs : 2 * p + 1;
    const float x = keys(head, t, near), y = keys(head, t, far);
    put(near, __fadd_rn(__fmul_rn(x, turn.cosine), -__fmul_rn(y, turn.sine)));
    put(far, __fadd_rn(__fmul_rn(y, turn.cosine), __fmul_rn(x, turn.sine)));
  }
  for (index_t c = 2 * pairs + threadIdx.x; c < keys.extent[2]; c += Threads) put(c, keys(head, t, c));
  if (bad > 0) add_repaired(repaired, bad);
}

/// At the end of a step: only what later tokens may join stays, in front. A block a head, a thread a column.
template <int Threads>
__global__ void __launch_bounds__(Threads) settle_tokens(OpenRows open, index_t pending, index_t window) {
  const index_t head = blockIdx.x, n = open.settled[head] + pending, width = open.width();
  if (n == 0) return;
  const index_t first = open.first_of(head, n - 1, window), left = window == 0 ? 1 : n - first;
  __syncthreads();  // everybody has seen who joined and how many there are
  int again = 0;    // counted as the slot was stored
  for (index_t c = threadIdx.x; c < width - 2; c += Threads) {
    if (window == 0) open.row(head, 0)[c] = in_range(DType::f32, mean_of(open, head, first, n - 1, c), again);
    else
      for (index_t i = 0; i < left; ++i) open.row(head, i)[c] = open.row(head, first + i)[c];
  }
  __syncthreads();  // of the mean, everybody has read what tokens count
  if (threadIdx.x != 0) return;
  float sum = open.row(head, first)[width - 2];
  for (index_t i = first + 1; window == 0 && i < n; ++i) sum = __fadd_rn(sum, open.row(head, i)[width - 2]);
  const float joined = open.row(head, first)[width - 1];
  if (window == 0) open.row(head, 0)[width - 2] = in_range(DType::f32, sum, again), open.row(head, 0)[width - 1] = joined;
  else
    for (index_t i = 0; i < left; ++i)
      for (index_t c = width - 2; c < width; ++c) open.row(head, i)[c] = open.row(head, first + i)[c];
  open.settled[head] = left;
}

/// Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_heirs(PassedSlots passed, RaggedView<std::int32_t> heirs) {
  const index_t head = blockIdx.y, n = heirs.length(head);
  for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += static_cast<index_t>(gridDim.x) * Threads) {
    index_t heir = j;
    while (passed.hides(head, heir, n, n)) ++heir;
    heirs.row(head)[j] = static_cast<std::int32_t>(heir);
  }
}

/// Rows [first, first + grid) of every query head without the component. Grid: rows, query heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) clear_controls(ControlComponent k, GateTokens at, index_t first, TensorView<const float, 3> queries, TensorView<float, 3> out) {
  const index_t head = blockIdx.y, t = first + blockIdx.x;
  const float cosine = at.cosine[blockIdx.x], sine = at.sine[blockIdx.x];
  for (index_t c = threadIdx.x; c < queries.extent[2]; c += Threads) {
    float x = c == k.at ? 0.0f : queries(head, t, c);
    if (k.partner >= 0 && (c == k.partner || (c == k.at && k.turns))) {  // the pair as it is with the partner alone
      const float own = __fmul_rn(queries(head, t, k.partner), cosine), other = __fmul_rn(queries(head, t, k.at), sine);
      const float partner = __fadd_rn(own, k.first_of_pair ? -other : other);
      x = __fmul_rn(partner, c == k.partner ? cosine : k.first_of_pair ? -sine : sine);
    }
    out(head, t, c) = x;
  }
}

}  // namespace cuda_kernels

/// Pages, rows and lengths lie on the device; positions are the host's, one per token, and travel with the launches.
///
/// Numbers  as cache::OpenSlot, products and sums rounded one by one; the device's own sine, cosine and exponential. What cannot be stored is brought into
///          range as it comes, and counted; so are sums that cannot. A query whose component is NaN counts nothing, which is counted too.
struct OpenSlots {
  /// Rows of new tokens behind `pending` others, and what their slots are with them. `slots` count the new ones already. `newest`: the token of the slot that
  /// the first of all pending ones may join. `keys`, `values`: what comes out.
  template <class T>
  static Status add(Context<Cuda>& ctx, const OpenRows& open, const Joining& join, index_t pending, std::span<const index_t> positions,
                    TensorView<const T, 3> keys, TensorView<const T, 3> values, TensorView<const float, 3> queries, HeadNumbers<const std::int32_t> ids,
                    const index_t* slots, index_t newest, DType type, TensorView<float, 3> key_means, TensorView<float, 3> value_means, index_t* repaired) {
    using namespace cuda_kernels;
    Status s = each(join.control, positions, [&](const GateTokens& at, index_t first, index_t count) {
      return cuda::launch(ctx, hold_tokens<T, open_slot_threads>, {count, open.heads}, open_slot_threads, 0, open, join, at, pending, first, keys, values, queries, ids, slots,
                          newest, type, repaired);
    });
    const auto tokens = static_cast<index_t>(positions.size());
    if (s == Status::ok)
      s = cuda::launch(ctx, mean_of_tokens<open_slot_threads>, {tokens, open.heads}, open_slot_threads, 0, open, pending, join.gate.window, type, key_means,
                       value_means, repaired);
    if (s != Status::ok) return s;
    return each(join.control, positions, [&](const GateTokens& at, index_t first, index_t count) {
      return cuda::launch(ctx, turn_means<open_slot_threads>, {count, open.heads}, open_slot_threads, 0, join, at, first, type, key_means, repaired);
    });
  }
  /// What joins from here on needs only what stays.
  static Status settle(Context<Cuda>& ctx, const OpenRows& open, index_t pending, index_t window) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, settle_tokens<open_slot_threads>, {open.heads}, open_slot_threads, 0, open, pending, window);
  }
  /// Of every slot the one that holds what it held.
  static Status heirs(Context<Cuda>& ctx, const PassedSlots& passed, RaggedView<std::int32_t> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, find_heirs<open_slot_threads>, {64, out.heads}, open_slot_threads, 0, passed, out);
  }
  /// Queries of tokens at `positions` as slots meet them.
  static Status clear(Context<Cuda>& ctx, const ControlComponent& control, std::span<const index_t> positions, TensorView<const float, 3> queries,
                      TensorView<float, 3> out) {
    using namespace cuda_kernels;
    return each(control, positions, [&](const GateTokens& at, index_t first, index_t count) {
      return cuda::launch(ctx, clear_controls<open_slot_threads>, {count, queries.extent[0]}, open_slot_threads, 0, control, at, first, queries, out);
    });
  }

 private:
  template <class Start>
  static Status each(const ControlComponent& control, std::span<const index_t> positions, Start&& start) {
    constexpr std::size_t most = cuda_kernels::GateTokens::most;
    for (std::size_t first = 0; first < positions.size(); first += most) {
      const std::span<const index_t> some = positions.subspan(first, positions.size() - first < most ? positions.size() - first : most);
      const Status s = start(cuda_kernels::GateTokens(control, some), static_cast<index_t>(first), static_cast<index_t>(some.size()));
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
