#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include <kvcondense/backend/cuda/attend_piece.cuh>
#include <kvcondense/backend/cuda/attend_plan.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/query_rows.cuh>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/attend_columns.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// The slots of a ColumnPart in a head.
struct PartSlots {
  index_t sinks_end = 0, begin = 0, end = 0, own = 0;

  KVCONDENSE_HD bool asks(index_t slot) const { return slot >= begin && slot < end; }
  KVCONDENSE_HD bool shows(index_t slot) const { return slot < sinks_end || asks(slot) || slot >= own; }
};

/// A ColumnRequest as kernels get it. A line is what has one softmax: a query row, or with GroupReduce::max_logit the
/// largest logits of a token's rows. Arrays of the workspace: top and total per (head, piece, line), then joined.
struct ColumnPlan {
  TensorView<const float, 3> queries{};
  RaggedView<float> out{};
  index_t kv_heads = 0, group = 0, tokens = 0, dim = 0, lines = 0, max_slots = 0, most = 1, partials = 0, band = 0;
  PieceRule cut{};  ///< rows are lines here
  index_t rows = 0;                  ///< of the request; `tokens` of them count
  const std::int32_t* chosen = nullptr;  ///< which; null: the first
  GroupReduce group_rule = GroupReduce::mean;
  RowReduce row_rule = RowReduce::sum;
  bool past = false, add = false;
  float scale = 1.0f, temperature = 1.0f, warming = 0.0f, decay = 0.0f;
  std::uint64_t seed = 0;
  const float* divide = nullptr;     ///< per row of the request
  SlotTokens held{};                 ///< known where rows may have lost their slots, and for noise
  const index_t* visible = nullptr;  ///< with `held`: slots that a token's row sees, per (head, token)
  ColumnPart part{};
  const PartSlots* parts = nullptr;  ///< with `part`: where it lies in each head
  float *top = nullptr, *total = nullptr, *final_top = nullptr, *final_scale = nullptr;

  KVCONDENSE_HD bool logs() const { return row_rule == RowReduce::log_decay; }
  KVCONDENSE_HD bool joins_logits() const { return group_rule == GroupReduce::max_logit; }
  KVCONDENSE_HD index_t token(index_t line) const { return joins_logits() ? line : line / group; }
  KVCONDENSE_HD index_t members() const { return joins_logits() ? group : 1; }
  KVCONDENSE_HD index_t member(index_t line) const { return joins_logits() ? 0 : line % group; }
  KVCONDENSE_HD index_t row_of(index_t i) const { return chosen == nullptr ? i : index_t{chosen[i]}; }
  KVCONDENSE_HD index_t row(index_t line) const { return row_of(token(line)); }
  KVCONDENSE_HD index_t row_token(index_t line) const { return held.seen - rows + row(line); }
  /// Slots of tokens up to a line's own; its query stands at the last of them.
  KVCONDENSE_HD index_t reach(index_t head, index_t slots, index_t line) const {
    return visible != nullptr ? visible[head * tokens + token(line)] : slots - rows + row(line) + 1;
  }
  /// Slots that take part in a line's softmax: no fewer than in that of the line before.
  KVCONDENSE_HD index_t sees(index_t head, index_t slots, index_t line) const {
    const index_t n = reach(head, slots, line), all = n < 0 ? 0 : n, old = slots - rows < 0 ? 0 : slots - rows;
    return past && old < all ? old : all;
  }
  KVCONDENSE_HD index_t at_piece(index_t head, index_t piece, index_t line) const { return (head * most + piece) * lines + line; }
};

struct ColumnShared {
  float query[piece_rows][max_head_dim];
  float share[piece_rows][piece_tile];
  float bias[piece_tile];
  SlotRun run[piece_tile];
};
inline std::size_t column_shared(const KeyTurn& turn, index_t dim) {
  return sizeof(ColumnShared) + static_cast<std::size_t>(tile_floats(dim)) * sizeof(float) + far_shared(turn, dim);
}

inline constexpr int warp_lines = piece_rows / piece_warps;  ///< of a block of lines, what a warp has

/// Keys of slots [at, at + count) into the tile, and their biases, if these count. All threads; two barriers.
template <class KeyCodec, class ValueCodec>
__device__ inline void load_keys(const PagedHeads<KeyCodec, ValueCodec>& heads, index_t head, index_t at, int count, int dim, bool weighs,
                                 ColumnShared& shared, float* tile, const FarTile& far) {
  if (static_cast<int>(threadIdx.x) < count) {
    shared.run[threadIdx.x] = locate(heads.keys, head, at + threadIdx.x);
    shared.bias[threadIdx.x] = weighs ? heads.scalars.bias_of(head, at + threadIdx.x, heads.slots[head]) : 0.0f;
  }
  __syncthreads();
  load_tile(of_head(heads.key_codec, head), heads.exact, static_cast<int>(heads.keys.page_slots), shared.run, count, dim, tile);
  if (heads.turn.fine != nullptr) turn_tile(heads.turn, head, at, count, dim, tile, far.keys);
  __syncthreads();
}

/// Gumbel noise of a line's query head, its token and the token of a slot.
__device__ inline float noise(const ColumnPlan& plan, index_t head, index_t slots, index_t line, index_t member, index_t slot) {
  const auto q_head = static_cast<std::uint64_t>(head * plan.group + plan.member(line) + member);
  const std::uint64_t key = random_bits(plan.seed + q_head, static_cast<std::uint64_t>(plan.row_token(line)));
  const float u = random_uniform(key, static_cast<std::uint64_t>(plan.held.token(head, slots, slot))) + 0x1p-25f;  // never 0 or 1
  return -logf(-logf(u));
}

/// Which rows count: a list of the host's travels with its launches.
template <int Threads>
__global__ void __launch_bounds__(Threads) list_query_rows(SomeNumbers some, index_t count, std::int32_t* to) {
  for (index_t i = threadIdx.x; i < count; i += Threads) to[i] = some.at[i];
}

/// Slots that rows see, and where a part lies: a thread a (head, token).
template <int Threads>
__global__ void __launch_bounds__(Threads) visible_slots(const index_t* slots, ColumnPlan plan, index_t* visible, PartSlots* parts) {
  const index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (i >= plan.kv_heads * plan.tokens) return;
  const index_t head = i / plan.tokens, begins = plan.held.seen - plan.rows, token = begins + plan.row_of(i % plan.tokens);
  const auto below = [&](index_t t) { return plan.held.below(head, slots[head], t); };
  index_t oldest = plan.part.first < 0 ? plan.held.seen : plan.part.first;
  for (index_t h = 0; plan.part.first < 0 && parts != nullptr && i % plan.tokens == 0 && h < plan.kv_heads; ++h) {
    const index_t n = slots[h], slot = n + plan.part.first < 0 ? 0 : n + plan.part.first;
    if (n > 0 && plan.held.token(h, n, slot) < oldest) oldest = plan.held.token(h, n, slot);
  }
  visible[i] = below(token + 1);
  if (parts != nullptr && i % plan.tokens == 0)
    parts[head] = {below(plan.part.sinks), below(oldest), below(plan.part.last), below(begins)};
}

/// Logits of lines first + warp + 4k with this lane's slot of the tile; -inf where the line does not see it. All
/// threads; barriers.
template <class KeyCodec, class ValueCodec>
__device__ inline void line_logits(const ColumnPlan& plan, const PagedHeads<KeyCodec, ValueCodec>& heads, const FarTile& far, index_t head, index_t slots, index_t at, int count, index_t first, int lines,
                                   ColumnShared& shared, const float* tile, float (&logit)[warp_lines]) {
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), dim = static_cast<int>(plan.dim);
  for (int k = 0; k < warp_lines; ++k) logit[k] = minus_infinity();
  for (index_t m = 0; m < plan.members(); ++m) {
    __syncthreads();  // the queries before are read
    for (int i = static_cast<int>(threadIdx.x); i < lines * dim; i += piece_threads) {
      const index_t line = first + i / dim;
      shared.query[i / dim][i % dim] =
          plan.queries(head * plan.group + plan.member(line) + m, plan.row(line), i % dim) * plan.scale;
      if (far.there()) far.query(i / dim)[i % dim] = heads.turn.far(head * plan.group + plan.member(line) + m, plan.row(line), i % dim) * plan.scale;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < warp_lines; ++k) {
      const int r = warp + k * piece_warps;
      if (r >= lines || lane >= count || at + lane >= plan.sees(head, slots, first + r)) continue;
      if (plan.parts != nullptr && !plan.parts[head].shows(at + lane)) continue;
      const bool out_of_reach = far.there() && heads.turn.out_of_reach(head, plan.reach(head, slots, first + r) - 1, at + lane);
      const float* const key = (out_of_reach ? far.keys : tile) + lane * (dim + 1);
      const float* const query = out_of_reach ? far.query(r) : shared.query[r];
      float x = 0.0f;
      for (int c = 0; c < dim; ++c) x += query[c] * key[c];
      x += shared.bias[lane];
      if (heads.passed.hides(head, at + lane, slots, plan.reach(head, slots, first + r))) x = minus_infinity();
      if (plan.seed != 0) x += noise(plan, head, slots, first + r, m, at + lane);
      const float heat = plan.temperature + plan.warming * static_cast<float>(plan.row(first + r));
      if (heat != 1.0f) x /= heat;
      logit[k] = m == 0 || x > logit[k] ? x : logit[k];
    }
  }
}

/// Largest logit of every line in a piece of a head, and its sum of exp.
template <class KeyCodec, class ValueCodec>
__device__ inline void sum_column_piece(const PagedHeads<KeyCodec, ValueCodec>& heads, const ColumnPlan& plan, index_t head, index_t piece) {
  ColumnShared& shared = *reinterpret_cast<ColumnShared*>(cuda::dyn_smem());
  float* tile = reinterpret_cast<float*>(cuda::dyn_smem() + sizeof(ColumnShared));
  const FarTile far(heads.turn, plan.dim, tile + tile_floats(plan.dim));
  const index_t first = static_cast<index_t>(blockIdx.x) * row_block, slots = heads.slots[head], size = plan.cut.piece_slots(slots);
  const int lines = static_cast<int>(plan.lines - first < row_block ? plan.lines - first : row_block);
  float top[warp_lines], total[warp_lines];
  for (int k = 0; k < warp_lines; ++k) top[k] = minus_infinity(), total[k] = 0.0f;
  const index_t behind = (piece + 1) * size, seen = plan.sees(head, slots, first + lines - 1), end = behind < seen ? behind : seen;
  for (index_t at = piece * size; at < end; at += piece_tile) {
    const int count = static_cast<int>(end - at < piece_tile ? end - at : piece_tile);
    float logit[warp_lines];
    __syncthreads();
    load_keys(heads, head, at, count, static_cast<int>(plan.dim), true, shared, tile, far);
    line_logits(plan, heads, far, head, slots, at, count, first, lines, shared, tile, logit);
#pragma unroll
    for (int k = 0; k < warp_lines; ++k) {
      const bool bad = logit[k] != logit[k];
      const float largest = cuda::warp_max(bad ? minus_infinity() : logit[k]);
      const float most = largest > top[k] ? largest : top[k];
      if (most > minus_infinity()) {  // the same in all lanes
        total[k] = (top[k] > minus_infinity() ? total[k] * expf(top[k] - most) : 0.0f) +
                   cuda::warp_sum(logit[k] > minus_infinity() || bad ? expf(logit[k] - most) : 0.0f);
        top[k] = most;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < warp_lines; ++k) {
    const int r = cuda::warp_of_block() + k * piece_warps;
    if (r >= lines || cuda::lane_of_warp() != 0) continue;
    plan.top[plan.at_piece(head, piece, first + r)] = top[k];
    plan.total[plan.at_piece(head, piece, first + r)] = total[k];
  }
}
/// Grid: `walk_grid`.
template <class KeyCodec, class ValueCodec>
__global__ void __launch_bounds__(piece_threads, piece_blocks) column_pieces(PagedHeads<KeyCodec, ValueCodec> heads, ColumnPlan plan) {
  for (PieceWalk<piece_threads> walk(heads.slots, plan.kv_heads, plan.cut); walk.any(); walk.next()) sum_column_piece(heads, plan, walk.head(), walk.piece());
}

/// Joins the pieces of a line: a warp a line. Grid: blocks of lines, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) join_lines(const index_t* slots, ColumnPlan plan) {
  const index_t line = static_cast<index_t>(blockIdx.x) * (Threads / cuda::warp_lanes) + cuda::warp_of_block(), head = blockIdx.y;
  if (line >= plan.lines) return;
  const index_t n = plan.cut.pieces(slots[head]);
  float top = minus_infinity(), total = 0.0f;
  for (index_t p = cuda::lane_of_warp(); p < n; p += cuda::warp_lanes) top = plan.top[plan.at_piece(head, p, line)] > top ? plan.top[plan.at_piece(head, p, line)] : top;
  top = cuda::warp_max(top);
  for (index_t p = cuda::lane_of_warp(); p < n; p += cuda::warp_lanes) {
    const float t = plan.top[plan.at_piece(head, p, line)];
    if (t > minus_infinity()) total += plan.total[plan.at_piece(head, p, line)] * expf(t - top);
  }
  total = cuda::warp_sum(total);
  if (cuda::lane_of_warp() != 0) return;
  plan.final_top[head * plan.lines + line] = top;
  const float divide = plan.divide == nullptr ? 1.0f : plan.divide[plan.row(line)];
  plan.final_scale[head * plan.lines + line] = total > 0.0f && divide > 0.0f ? 1.0f / (total * divide) : 0.0f;
}

/// What a slot has gathered, in the order of lines. One lane's.
struct SlotColumn {
  float result = 0.0f, lead = 0.0f;
  index_t seen = 0;

  __device__ void put(const ColumnPlan& plan, index_t sees, float p, float& to) {
    if (plan.row_rule == RowReduce::max) to = p > to ? p : to;
    else if (plan.row_rule == RowReduce::mean) to += p / static_cast<float>(plan.tokens);
    else if (plan.row_rule == RowReduce::low_count) to += p >= 1.0f / static_cast<float>(sees) ? 0.0f : 1.0f;
    else to += p;
  }
  __device__ static float add_logs(float a, float b) {
    const float top = a < b ? b : a;
    return top == minus_infinity() ? top : top + logf(expf(a - top) + expf(b - top));
  }
  /// The logit of a line that sees the slot, for log_decay.
  __device__ void fade(const ColumnPlan& plan, index_t line, float logit) {
    lead = plan.member(line) == 0 ? logit : add_logs(lead, logit);
    if (plan.member(line) != plan.group - 1) return;
    result = add_logs(result + logf(plan.decay), lead - logf(static_cast<float>(plan.group)) + logf(1.0f - plan.decay));
  }
  /// Share p of a line that sees the slot.
  __device__ void take(const ColumnPlan& plan, index_t line, index_t sees, bool in_band, float p, float* series, index_t slots) {
    const bool last = plan.joins_logits() || plan.member(line) == plan.group - 1;
    seen += static_cast<index_t>(last);
    if (plan.group_rule == GroupReduce::none) {
      if (in_band) put(plan, sees, p, series[plan.member(line) * slots]);
      return;
    }
    if (plan.joins_logits() || plan.member(line) == 0) lead = p;
    else lead = plan.group_rule != GroupReduce::max ? lead + p : p > lead ? p : lead;
    if (last && in_band) put(plan, sees, plan.group_rule == GroupReduce::mean ? lead / static_cast<float>(plan.group) : lead, result);
  }
};

/// The columns of a tile of slots over all lines. Grid: tiles, heads.
template <class KeyCodec, class ValueCodec>
__global__ void __launch_bounds__(piece_threads, 4) column_tiles(PagedHeads<KeyCodec, ValueCodec> heads, ColumnPlan plan) {
  ColumnShared& shared = *reinterpret_cast<ColumnShared*>(cuda::dyn_smem());
  float* tile = reinterpret_cast<float*>(cuda::dyn_smem() + sizeof(ColumnShared));
  const FarTile far(heads.turn, plan.dim, tile + tile_floats(plan.dim));
  const index_t head = blockIdx.y, at = static_cast<index_t>(blockIdx.x) * piece_tile, slots = heads.slots[head];
  if (at >= slots) return;
  const int count = static_cast<int>(slots - at < piece_tile ? slots - at : piece_tile), lane = cuda::lane_of_warp();
  load_keys(heads, head, at, count, static_cast<int>(plan.dim), !plan.logs(), shared, tile, far);

  const bool mine = cuda::warp_of_block() == 0 && lane < count;  // a lane gathers a slot
  const bool apart = plan.group_rule == GroupReduce::none;
  const index_t series = apart ? plan.group : 1;
  float* out = plan.out.data + plan.out.offset[head] * series + at + lane;
  SlotColumn column;
  if (mine && !plan.add)
    for (index_t m = 0; m < series; ++m) out[m * slots] = plan.logs() ? minus_infinity() : 0.0f;
  const bool asked = plan.parts == nullptr || plan.parts[head].asks(at + lane);
  if (mine && plan.parts != nullptr && asked) out[0] = out[0] > FLT_MIN ? out[0] : FLT_MIN;
  if (mine && !apart) column.result = out[0];
  for (index_t first = 0; first < plan.lines; first += row_block) {
    const int lines = static_cast<int>(plan.lines - first < row_block ? plan.lines - first : row_block);
    if (at >= plan.sees(head, slots, first + lines - 1)) continue;  // nor do the lines before
    float logit[warp_lines];
    line_logits(plan, heads, far, head, slots, at, count, first, lines, shared, tile, logit);
#pragma unroll
    for (int k = 0; k < warp_lines; ++k) {
      const int r = cuda::warp_of_block() + k * piece_warps;
      if (r >= lines) continue;
      const index_t line = head * plan.lines + first + r;
      if (plan.logs()) shared.share[r][lane] = logit[k];
      else shared.share[r][lane] = logit[k] == minus_infinity() ? 0.0f : expf(logit[k] - plan.final_top[line]) * plan.final_scale[line];  // a line may see none
    }
    __syncthreads();
    for (int r = 0; mine && r < lines; ++r) {
      const index_t sees = plan.sees(head, slots, first + r), slot = at + lane;
      if (slot < sees && plan.logs()) column.fade(plan, first + r, shared.share[r][lane]);
      else if (slot < sees) column.take(plan, first + r, sees, plan.band == 0 || slot >= sees - plan.band, asked ? shared.share[r][lane] : 0.0f, out, slots);
    }
  }
  if (!mine) return;
  const float rows = plan.row_rule == RowReduce::seen_mean && column.seen > 0 ? static_cast<float>(column.seen) : 1.0f;
  if (!apart) out[0] = column.result / rows;
  else
    for (index_t m = 0; m < series; ++m) out[m * slots] /= rows;
}

}  // namespace cuda_kernels

/// Queries [q_heads, rows, head_dim] of the newest `rows` tokens, keys of PagedHeads. Three launches: pieces of heads for
/// the normalisers, their join (neither with log_decay), then tiles of slots, which read the keys once for all rows. Where `held` says which tokens the slots hold, a row
/// sees the slots of tokens up to its own, whether that one is there or not (one launch more); else the newest slots are those of the rows.
///
/// A part whose `first` is below 0 begins with the oldest token that any head has in so many of its newest slots.
///
/// Numbers  float32, in a fixed order.
/// Cost     a list of `chosen` rows that are not the first ones goes to the device with a launch for each 256 of them.
/// Errors   shape_mismatch, invalid_argument, workspace_too_small; not_supported: noise and parts where nobody knows which tokens there are.
template <>
struct AttendColumns<Cuda> {
  static std::size_t workspace_bytes(const ColumnRequest& request, index_t q_heads, index_t kv_heads, index_t max_slots) {
    const cuda_kernels::ColumnPlan p = plan_of(request, q_heads, kv_heads, max_slots);
    return Scratch::align + 2 * Scratch::bytes_for<float>(p.kv_heads * p.partials) + 2 * Scratch::bytes_for<float>(p.kv_heads * p.lines) +
           Scratch::bytes_for<index_t>(p.kv_heads * p.tokens) + Scratch::bytes_for<std::int32_t>(p.tokens) + Scratch::bytes_for<cuda_kernels::PartSlots>(p.kv_heads);
  }

  template <class KeyCodec, class ValueCodec>
  static Status run(Context<Cuda>& ctx, const ColumnRequest& request, TensorView<const float, 3> queries, float softmax_scale,
                    const PagedHeads<KeyCodec, ValueCodec>& heads, index_t max_slots, const SlotTokens& held = {}) {
    using namespace cuda_kernels;
    const float last = request.temperature + request.warming * static_cast<float>(request.rows > 0 ? request.rows - 1 : 0);
    if ((request.seed != 0 || request.part.last > 0) && !held.known()) return Status::not_supported;
    if (!(request.temperature > 0.0f && last > 0.0f) || request.rows < 0 || request.band < 0 || !chooses_rows(request)) return Status::invalid_argument;
    if (heads.kv_heads < 1 || heads.kv_heads > 65535 || max_slots < 0 || max_slots > 0x7fffffff) return Status::invalid_argument;
    const index_t q_heads = queries.extent[0], dim = queries.extent[2];
    if (q_heads % heads.kv_heads != 0 || queries.extent[1] != request.rows || request.out.heads != heads.kv_heads) return Status::shape_mismatch;
    if (!heads.key_codec.valid(dim) || dim > max_head_dim) return Status::invalid_argument;
    if (ctx.workspace().size() < workspace_bytes(request, q_heads, heads.kv_heads, max_slots)) return Status::workspace_too_small;

    ColumnPlan plan = plan_of(request, q_heads, heads.kv_heads, max_slots);
    plan.queries = queries, plan.dim = dim, plan.scale = softmax_scale, plan.held = held;
    Scratch scratch(ctx.workspace());
    plan.top = scratch.take<float>(plan.kv_heads * plan.partials);
    plan.total = scratch.take<float>(plan.kv_heads * plan.partials);
    plan.final_top = scratch.take<float>(plan.kv_heads * plan.lines);
    plan.final_scale = scratch.take<float>(plan.kv_heads * plan.lines);
    auto* visible = scratch.take<index_t>(plan.kv_heads * plan.tokens);
    auto* parts = request.part.last > 0 ? scratch.take<PartSlots>(plan.kv_heads) : nullptr;
    auto* chosen = scratch.take<std::int32_t>(plan.tokens);
    if (held.known() && plan.rows > held.seen) return Status::invalid_argument;
    Status s = Status::ok;
    for (index_t first = 0; first < plan.tokens && !begins_with_chosen(request) && s == Status::ok; first += SomeNumbers::most) {
      const index_t count = plan.tokens - first < SomeNumbers::most ? plan.tokens - first : SomeNumbers::most;
      SomeNumbers some;
      std::copy_n(request.chosen.data() + first, count, some.at);
      s = cuda::launch(ctx, list_query_rows<128>, {1}, 128, 0, some, count, chosen + first);
      plan.chosen = chosen;
    }
    if (s == Status::ok && held.known() && plan.tokens > 0) {
      s = cuda::launch(ctx, visible_slots<128>, {cuda::covering(plan.kv_heads * plan.tokens, 128)}, 128, 0, heads.slots, plan, visible, parts);
      plan.visible = visible, plan.parts = parts;
    }
    const std::size_t shared = column_shared(heads.turn, dim);
    if (s == Status::ok && !plan.logs())
      s = cuda::launch(ctx, column_pieces<KeyCodec, ValueCodec>, walk_grid(ctx.facts(), piece_blocks, shared, plan.cut.row_blocks, plan.most * plan.kv_heads), piece_threads,
                       shared, heads, plan);
    if (s == Status::ok && !plan.logs())
      s = cuda::launch(ctx, join_lines<128>, {cuda::covering(plan.lines, 128 / cuda::warp_lanes), plan.kv_heads}, 128, 0, heads.slots, plan);
    if (s == Status::ok)
      s = cuda::launch(ctx, column_tiles<KeyCodec, ValueCodec>, {cuda::covering(max_slots, piece_tile), plan.kv_heads}, piece_threads,
                       shared, heads, plan);
    return s;
  }

 private:
  /// Whether the rows that count are the first ones, which need no list.
  static bool begins_with_chosen(const ColumnRequest& r) { return r.chosen.empty() || r.chosen.back() == static_cast<std::int32_t>(r.chosen.size()) - 1; }
  /// Whether chosen rows ascend, and are some of the request's.
  static bool chooses_rows(const ColumnRequest& r) {
    for (std::size_t i = 1; i < r.chosen.size(); ++i)
      if (r.chosen[i] <= r.chosen[i - 1]) return false;
    return r.chosen.empty() || (r.chosen.front() >= 0 && r.chosen.back() < r.rows);
  }
  static cuda_kernels::ColumnPlan plan_of(const ColumnRequest& r, index_t q_heads, index_t kv_heads, index_t max_slots) {
    cuda_kernels::ColumnPlan p;
    p.out = r.out, p.kv_heads = kv_heads, p.group = q_heads / kv_heads, p.tokens = r.chosen.empty() ? r.rows : static_cast<index_t>(r.chosen.size()), p.max_slots = max_slots;
    p.rows = r.rows;
    p.group_rule = r.group, p.row_rule = r.row, p.past = r.past, p.add = r.add, p.band = r.band;
    p.decay = r.decay;
    if (p.logs()) p.group_rule = GroupReduce::mean, p.band = 0;  // neither acts
    p.temperature = r.temperature, p.warming = r.warming, p.seed = r.seed, p.divide = r.divide, p.part = r.part;
    p.lines = p.joins_logits() ? p.tokens : p.tokens * p.group;
    p.cut.row_blocks = cuda::covering(p.lines, cuda_kernels::row_block);
    p.most = p.cut.most(max_slots), p.partials = cuda_kernels::most_partials(max_slots, p.lines);
    return p;
  }
};

}  // namespace kvcondense::prim
