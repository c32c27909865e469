#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/backend/cuda/attend_halves.cuh>
#include <kvcondense/backend/cuda/attend_latent.cuh>
#include <kvcondense/backend/cuda/attend_latent_halves.cuh>
#include <kvcondense/backend/cuda/attend_piece.cuh>
#include <kvcondense/backend/cuda/attend_plan.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::prim {

/// How products are made.
enum class AttendMath : std::uint8_t {
  f32,     ///< in float32, for every codec and size
  halves,  ///< on tensor cores: queries, decoded keys and values and weights are rounded to halves, sums are float32
  either,  ///< halves where these serve (Errors below), else f32: for callers whose layers differ
};

/// Heads are PagedHeads on the device; lengths, runs and pages are read there, so a captured graph stays right while a
/// cache grows up to `max_slots` per head. Not so with numbers per slot and slots that live on in others (PassedSlots): how many slots are new (PagedScalars::fresh)
/// and where they lie are arguments of the kernels, so what is captured holds for that number of new slots alone.
/// Three launches: pieces, their join, mass where it is asked for; for each 256 rows of a KV head where more than these count for mass, whose logits are kept until
/// then (kv_heads * max_slots kB). Over coordinates of a low-rank stage two more: queries into them, sums out of them.
///
/// Numbers  AttendMath::f32: as on the CPU, sums in another order. AttendMath::halves: as attention over a cache of
///          halves that the codes were decoded into; queries are first brought below 1 by a power of two. Queries times
///          scales of the channel axis are halves too: of scales below about 1e-3 digits are lost.
///          The result of a head does not depend on the device nor on other heads. Several sequences are more heads.
/// Errors   shape_mismatch, invalid_argument, workspace_too_small; not_supported: AttendMath::halves of anything but
///          heads of a multiple of 16 up to 128 for keys and values alike (each by itself where either holds coordinates: those are halves, or codes of a multiple of 16, as many in every head), exact parts and parameters in f16, codes of 2, 4 or 8
///          bits in rows, without numbers per slot (PagedScalars), raw keys (KeyTurn) or slots that live on in others (PassedSlots), keys on either axis and values on the token axis, groups of channels multiples of eight; or where
///          the device has too little shared memory (75 kB a block at 4 bits). Nothing is enqueued then.
///          A head with more than `max_slots` slots is the caller's mistake, which only the device could see.
template <>
struct Attend<Cuda> {
  /// `sides`: columns that hold coordinates of a low-rank stage.
  static std::size_t workspace_bytes(const AttendRequest& request, index_t kv_heads, index_t max_slots, const LatentSides& sides = {}) {
    std::size_t most = 0;
    static_cast<void>(cuda_kernels::by_turns(request, kv_heads, [&](const cuda_kernels::AttendTurn& turn) {
      const cuda_kernels::AttendPlan plan = cuda_kernels::plan_of(turn, kv_heads, max_slots);
      most = std::max(most, cuda_kernels::workspace_of(plan) + cuda_kernels::latent_workspace_of(plan, sides));
      return Status::ok;
    }));
    return most;
  }

  template <class KeyCodec, class ValueCodec>
  static Status run(Context<Cuda>& ctx, const AttendRequest& request, const PagedHeads<KeyCodec, ValueCodec>& heads,
                    index_t max_slots, AttendMath math = AttendMath::either) {
    using namespace cuda_kernels;
    if (const Status s = check(request, heads, max_slots); s != Status::ok) return s;
    bool served = math != AttendMath::f32 && serves_halves(request, heads);
    if (math == AttendMath::halves && !served) return Status::not_supported;
    if (max_slots == 0) served = false, math = AttendMath::either;  // no head has runs, which a ring begins with
    if (request.queries.extent[0] * request.queries.extent[1] == 0) return Status::ok;
    if (ctx.workspace().size() < workspace_bytes(request, heads.kv_heads, max_slots, sides_of<KeyCodec, ValueCodec>)) return Status::workspace_too_small;
    return by_turns(request, heads.kv_heads, [&](const AttendTurn& turn) {
      PagedHeads<KeyCodec, ValueCodec> of_turn = heads;
      const index_t tokens = turn.request.queries.extent[1];
      if (of_turn.turn.far.data != nullptr) of_turn.turn.far = tokens_of(of_turn.turn.far, turn.first, turn.first + tokens);
      return run_turn(ctx, turn, of_turn, max_slots, math, served);
    });
  }

 private:
  template <class KeyCodec, class ValueCodec>
  static constexpr LatentSides sides_of{is_latent<KeyCodec>, is_latent<ValueCodec>};

  template <class KeyCodec, class ValueCodec>
  static Status run_turn(Context<Cuda>& ctx, const cuda_kernels::AttendTurn& turn, const PagedHeads<KeyCodec, ValueCodec>& heads, index_t max_slots, AttendMath math,
                         bool served) {
    using namespace cuda_kernels;
    constexpr LatentSides sides = sides_of<KeyCodec, ValueCodec>;
    AttendPlan plan = plan_of(turn, heads.kv_heads, max_slots);
    if (served) plan.cut.least = halves_least;
    LatentPlan latent;
    Scratch scratch(ctx.workspace());
    if (!place(latent, plan, sides, scratch) || !place(plan, scratch)) return Status::workspace_too_small;
    Status s = Status::ok;
    if constexpr (sides.keys || sides.values)
      if ((s = map_queries_of(ctx, heads, plan, latent)) != Status::ok) return s;
    if (!served) s = Status::not_supported;
    else if constexpr (sides.keys || sides.values) s = start_latent_halves(ctx, heads, plan, latent);
    else s = start_halves(ctx, heads, plan);  // the device may have too little shared memory
    if (s == Status::not_supported && math != AttendMath::halves) plan.cut.least = PieceRule{}.least, s = start_floats(ctx, heads, plan, latent);
    if (s == Status::ok)
      s = cuda::launch(ctx, join_pieces<join_threads>, {plan.rows, plan.kv_heads}, join_threads, sizeof(PieceSums), heads.slots, heads.summaries, plan);
    if constexpr (sides.values)
      if (s == Status::ok)
        s = cuda::launch(ctx, add_latent_sums<ValueCodec>, {plan.rows, plan.kv_heads}, latent_threads, (max_head_dim + 1) * sizeof(float), heads.value_codec, heads.slots,
                         plan, latent);
    if (s == Status::ok && plan.request.mass.data != nullptr)
      s = cuda::launch(ctx, add_mass<256>, {cuda::covering(max_slots, 256), plan.kv_heads}, 256, 0, heads.slots, plan);
    return s;
  }
  /// Queries of coordinates, where these are no raw keys.
  template <class KeyCodec, class ValueCodec>
  static Status map_queries_of(Context<Cuda>& ctx, const PagedHeads<KeyCodec, ValueCodec>& heads, const cuda_kernels::AttendPlan& plan,
                               const cuda_kernels::LatentPlan& latent) {
    using namespace cuda_kernels;
    if constexpr (is_latent<KeyCodec>)
      if (heads.turn.fine == nullptr)
        return cuda::launch(ctx, map_queries<KeyCodec>, {plan.rows, plan.kv_heads}, latent_threads, max_head_dim * sizeof(float), heads.key_codec, plan, latent);
    return Status::ok;
  }
  template <class KeyCodec, class ValueCodec>
  static Status start_floats(Context<Cuda>& ctx, const PagedHeads<KeyCodec, ValueCodec>& heads, const cuda_kernels::AttendPlan& plan,
                             const cuda_kernels::LatentPlan& latent) {
    using namespace cuda_kernels;
    if constexpr (is_latent<KeyCodec> || is_latent<ValueCodec>)
      return start(ctx, attend_latent_piece<KeyCodec, ValueCodec>, latent_blocks, latent_shared(heads.turn, plan.dim, plan.value_dim), plan, heads, plan, latent);
    else
      return start(ctx, attend_piece<KeyCodec, ValueCodec>, attend_blocks<KeyCodec, ValueCodec>, piece_shared(heads.turn, plan.dim, plan.value_dim), plan, heads, plan);
  }
  /// A kernel that walks pieces, of which a multiprocessor has room for `blocks` blocks beside their registers.
  template <class Kernel, class... A>
  static Status start(Context<Cuda>& ctx, Kernel kernel, int blocks, std::size_t shared, const cuda_kernels::AttendPlan& plan, A&&... arguments) {
    const cuda::Grid grid = cuda_kernels::walk_grid(ctx.facts(), blocks, shared, plan.cut.row_blocks, plan.most * plan.kv_heads);
    return cuda::launch(ctx, kernel, grid, cuda_kernels::piece_threads, shared, static_cast<A&&>(arguments)...);
  }

  template <class KeyCodec, class ValueCodec>
  static constexpr bool has_halves = cuda_kernels::stored_bits<cuda_kernels::RingCodec<KeyCodec>> != 0 && cuda_kernels::stored_bits<cuda_kernels::RingCodec<ValueCodec>> != 0;
  template <class KeyCodec, class ValueCodec>
  static bool serves_halves(const AttendRequest& r, const PagedHeads<KeyCodec, ValueCodec>& heads) {
    using namespace cuda_kernels;
    const index_t dim = r.queries.extent[2], value_dim = r.out.extent[2];
    const bool sizes = dim % 16 == 0 && dim <= 128 && (dim == value_dim || ((is_latent<KeyCodec> || is_latent<ValueCodec>) && value_dim % 16 == 0 && value_dim <= 128));
    if (heads.scalars.bias.data != nullptr || heads.scalars.value_scale.data != nullptr || heads.turn.fine != nullptr || heads.passed.passed.data != nullptr) return false;
    if constexpr (!has_halves<KeyCodec, ValueCodec>) return false;
    else return sizes && heads.exact.dtype == DType::f16 && reads_as_halves(heads.key_codec, dim, true) && reads_as_halves(heads.value_codec, value_dim, false);
  }
  template <class KeyCodec, class ValueCodec>
  static Status start_latent_halves(Context<Cuda>& ctx, const PagedHeads<KeyCodec, ValueCodec>& heads, const cuda_kernels::AttendPlan& plan,
                                    const cuda_kernels::LatentPlan& latent) {
    using namespace cuda_kernels;
    if constexpr (has_halves<KeyCodec, ValueCodec>) {
      const index_t keys = widest_coded(heads.key_codec, plan.dim), values = widest_coded(heads.value_codec, plan.value_dim);
      const auto of_dim = [&]<int Dim, int Rank>() {
        const auto& key_codec = ring_codec(heads.key_codec);
        const auto& value_codec = ring_codec(heads.value_codec);
        const RingLayout ring = ring_layout(StoredColumn<RingCodec<KeyCodec>>{key_codec, heads.keys.page_slots, stored_dim(heads.key_codec, plan.dim)},
                                            StoredColumn<RingCodec<ValueCodec>>{value_codec, heads.values.page_slots, stored_dim(heads.value_codec, plan.value_dim)}, Dim, Rank);
        return start(ctx, attend_latent_halves<KeyCodec, ValueCodec, Dim, Rank>, latent_halves_blocks<Dim>, latent_halves_shared<Dim, Rank>(ring), plan, heads, plan, latent, ring);
      };
      if (plan.dim <= 64 && plan.value_dim <= 64) return of_dim.template operator()<64, 64>();
      return keys <= 64 && values <= 64 ? of_dim.template operator()<128, 64>() : of_dim.template operator()<128, 128>();
    } else {
      return Status::not_supported;
    }
  }
  template <class KeyCodec, class ValueCodec>
  static Status start_halves(Context<Cuda>& ctx, const PagedHeads<KeyCodec, ValueCodec>& heads, const cuda_kernels::AttendPlan& plan) {
    using namespace cuda_kernels;
    static_assert(halves_threads == piece_threads);
    if constexpr (has_halves<KeyCodec, ValueCodec>) {
      const auto of_dim = [&]<int Dim>() {
        const RingLayout ring = ring_layout(heads.key_codec, heads.keys.page_slots, heads.value_codec, heads.values.page_slots, plan.dim, Dim);
        return start(ctx, attend_halves<KeyCodec, ValueCodec, Dim>, halves_blocks, halves_shared<Dim>(ring), plan, heads, plan, ring);
      };
      return plan.dim <= 64 ? of_dim.template operator()<64>() : of_dim.template operator()<128>();
    } else {
      return Status::not_supported;
    }
  }

  template <class KeyCodec, class ValueCodec>
  static Status check(const AttendRequest& r, const PagedHeads<KeyCodec, ValueCodec>& heads, index_t max_slots) {
    const index_t q_heads = r.queries.extent[0], tokens = r.queries.extent[1];
    if (heads.kv_heads < 1 || heads.kv_heads > 65535 || max_slots < 0 || max_slots > 0x7fffffff || r.mass_rows < 0)
      return Status::invalid_argument;
    if (q_heads % heads.kv_heads != 0 || r.out.extent[0] != q_heads || r.out.extent[1] != tokens) return Status::shape_mismatch;
    if (r.lse.data != nullptr && (r.lse.extent[0] != q_heads || r.lse.extent[1] != tokens)) return Status::shape_mismatch;
    const bool sizes = heads.key_codec.valid(r.queries.extent[2]) && heads.value_codec.valid(r.out.extent[2]) &&
                       r.queries.extent[2] <= max_head_dim && r.out.extent[2] <= max_head_dim;
    return sizes ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::prim
