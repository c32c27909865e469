#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/bipolar_int.cuh>
#include <kvcondense/backend/cuda/block_codes.cuh>
#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/merge_weights.cuh>
#include <kvcondense/backend/cuda/segmented_combine.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/cache/cuda_layer.cuh>
#include <kvcondense/cache/cuda_retrieval.cuh>
#include <kvcondense/cache/cuda_sharing.cuh>
#include <kvcondense/cache/cuda_serves.cuh>
#include <kvcondense/cache/cuda_word_bytes.cuh>
#include <kvcondense/cache/folding.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/cache/recipe_check.hpp>
#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense {

template <Backend B, class R>
class Cache;

/// The cache of one sequence in device memory: an eviction method, what folds behind it, codes of groups or of single rows, and retrieval. Its calls
/// are those of Cache<Cpu, R>.
///
/// Idea     the host keeps counters, lengths and lists of pages and decides when something leaves; which slots, and all that moves, is
///          the device's. The eviction pipeline is the one that runs on the CPU: its blocks are written over words.
/// Needs    recipes of an eviction method, a merge method, a position stage, exact rows or codes with their exact window and first slots (any codec
///          with a RowPage: row_codec.cuh; behind a Hadamard transform or as coordinates of a low-rank stage too), retrieval methods whose blocks have a form on CUDA (cuda_index.cuh), and
///          no other stage (those stop compilation with a sentence). Inputs of steps lie on the device: attention, queries,
///          projections, moments, gates, surprise, classes; so do matrices that words read (LayerMatrices, HashPlanes).
///          Tables that blocks read (HeadTable, LayerTable) are the host's, and so are those that codecs are made of (ranges, clusters, codebooks, bases): they
///          outlive the cache, whose `fork` and `load` read them again.
/// Shapes   as Cache<Cpu, R>; keys, values, queries, out, lse, mass in device memory.
/// Cost     append, attend and step enqueue on the context's stream. The host waits where tables grow or many pages go back, and
///          where a step meets the one before of the same layer that is not done yet; how many slots stay it knows itself, but for budgets and
///          selections that scores decide, sets that a merge method finds among slots that stay, and which slots leave where codes share parameters along slots
///          (KIVI's keys) or units are chosen that later calls go on reading, and maps of rows that are found from the first of them: these are waited for when they act. A call of `attend` that chooses what it
///          reads waits for the one before of the same layer, and for the step before where it chooses by what came in prompts.
/// Numbers  codes and parameters are those of Cache<Cpu, R>; codes lie in rows, as attention here reads them (Cuda::code_lanes), and files have them as on the CPU. Attention differs in the last bits, so scores that are that close may be ranked
///          otherwise; equal scores are ranked alike. What `append` on the CPU refuses, numbers that the stored type cannot
///          hold, is stored as Inf or NaN here (where tokens may join slots, brought into range) and counted once in the report. Such tokens rule out halves only until their step.
/// Errors   as Cache<Cpu, R>; not_supported for `minicache` behind a quant stage, for retrieval beside a mean of what left, or by an index of turned keys beside raw ones, for `AttendMath::halves` where attention
///          reads numbers of slots, keys are raw or tokens join slots, for one set of all heads (AllHeads) once heads hold
///          different numbers of slots, and for a quant stage that tells heads apart by more than tables of their codecs (layers may
///          differ in the size of a row and in their windows), has a sketch whose directions are a matrix, corrects chunks of one slot, or spreads rows by a Hadamard transform before groups along slots, for a layer of which one head shares rows with none and others do, for rows that are shared where groups of slots do not fit a page, and for codes of coordinates of which heads have different numbers. device_error from every call that a layer takes part in, until `reset` or `load`, once the device took a part of a change of it and refused the rest. Calls of one
///          cache go to one stream; wait for it before the cache is destroyed when its memory is not that of cudaMalloc.
template <class R>
class Cache<Cuda, R> {
 public:
  using Retrieve = decltype(std::declval<const decltype(R::retrieve)&>().pipeline());
  static_assert(cache::cuda_retrieves<Retrieve>,
                "kvcondense: a block of this retrieval pipeline has no form on CUDA (docs/cuda.md lists the methods); make_cache<kvcondense::Cpu> takes it.");
  static constexpr bool retrieves = cache::CudaRetrieval<Retrieve>::there;
  using Evict = decltype(R::evict);
  /// The quant stage, behind the low-rank stage where there is one.
  using Storage = decltype(storage_of(std::declval<const R&>()));
  /// Whether layers may share directions.
  static constexpr bool may_pair = requires(const R& r) { r.merge.pipeline().across; };
  using KeyCodec = cache::ColumnCodec<may_pair, decltype(key_codec_of(std::declval<const Storage&>(), CacheShape{}))>;
  using ValueCodec = cache::ColumnCodec<may_pair, decltype(value_codec_of(std::declval<const Storage&>(), CacheShape{}))>;
  static_assert(detail::cuda_codec<KeyCodec> && detail::cuda_codec<ValueCodec>,
                "kvcondense: a cache on CUDA stores exact rows, codes of groups (kivi, group_int, kitty, polar, gear, qjl, zipcache, mikv), or rows whose slots are independent (fp8, mx, q4_0, kvquant, skvq, turboquant and their kin), as they are or as coordinates in bases that are known (docs/cuda.md lists the stages); make_cache<kvcondense::Cpu> takes the others.");

  static Expected<Cache> make(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory = cuda::device_memory());

  const CacheShape& shape() const { return plan_.shape; }
  const R& recipe() const { return recipe_; }
  index_t length(index_t layer = 0) const { return layers_[layer].counters.seen; }
  index_t pending(index_t layer = 0) const { return layers_[layer].counters.pending; }
  index_t next_position(index_t layer = 0) const { return layers_[layer].next_position(); }
  index_t slots(index_t layer, index_t head) const { return layers_[layer].slots(head); }
  index_t total_slots(index_t layer) const { return layers_[layer].total(); }
  index_t mass_rows(index_t tokens) const { return attention().of(tokens); }
  bool wants_mass(index_t layer, Phase phase = Phase::automatic) const { return reads_attention(step_view(layer, phase)); }
  /// `data`, device memory of total_slots(layer) numbers, one per (kv head, slot): its offsets are read by kernels too.
  RaggedView<float> ragged(index_t layer, float* data) const { return {data, layers_[layer].device_offset(), shape().kv_heads}; }

  /// Device scratch that any call needs while no head holds more than `slots` slots and no call brings more than `tokens`
  /// tokens. Pure.
  std::size_t workspace_bytes(index_t slots, index_t tokens) const {
    const index_t total = slots * shape().kv_heads;
    const std::size_t mass = Scratch::align + Scratch::bytes_for<float>(total);
    const std::size_t step = Scratch::align + range_bytes() + 2 * Scratch::bytes_for<std::int32_t>(total) +
                             static_cast<std::size_t>(plan_.lanes) * Scratch::bytes_for<float>(total) + pipeline_bytes(slots, total, tokens) + fold_bytes(total) + grade_bytes(slots, total, tokens) +
                             column_bytes(tokens, slots) + retrieval_.step_bytes(shape(), slots, tokens, true) + held_bytes(tokens);
    std::size_t reading = cache::attend_bytes(shape(), shape().kv_heads, slots, tokens, attention(), Plan::latent) + turned_bytes(shape().q_heads, tokens);
    if constexpr (retrieves) reading = std::max(reading, retrieval_.workspace_bytes(plan_, slots, tokens, attention()));
    reading += cleared_bytes(tokens);
    return mass + std::max({step, reading, model_bytes(slots), turned_bytes(shape().kv_heads, tokens), joined_bytes(tokens)});
  }

  /// Adds tokens to a layer: keys [kv_heads, tokens, head_dim], values [kv_heads, tokens, value_dim], on the device; `positions` on
  /// the host, one per token, or empty for the next ones. queries: [q_heads, tokens, head_dim] of these tokens; read only where they may join a slot (`dmc`).
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status append(Context<Cuda>& ctx, index_t layer, TensorView<K, 3> keys, TensorView<V, 3> values, std::span<const index_t> positions = {},
                TensorView<const float, 3> queries = {});

  /// Attention of the newest tokens over everything stored, or what a retrieval stage chooses; causal among them. `reads` and `runs` of
  /// `measure` lie on the host: a call that asks for them waits for the stream. out_of_range where `runs` has no room for all runs of a row: of
  /// chosen slots their number is known behind attention alone, so that the other outputs are written by then.
  Status attend(Context<Cuda>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out, const AttendOutputs& measure = {},
                prim::AttendMath math = prim::AttendMath::either) const;

  /// Lets the recipe act on a layer. Views in `inputs` are of device memory.
  Status step(Context<Cuda>& ctx, index_t layer, Phase phase = Phase::automatic) { return run_step(ctx, layer, {}, phase); }
  Status step(Context<Cuda>& ctx, index_t layer, const AttentionView& attention, Phase phase = Phase::automatic) {
    return run_step(ctx, layer, {attention, {}}, phase);
  }
  template <std::same_as<StepInputs> I>
  Status step(Context<Cuda>& ctx, index_t layer, const I& inputs, Phase phase = Phase::automatic) {
    return run_step(ctx, layer, inputs, phase);
  }
  /// Before a turn of `incoming` tokens, while nothing is pending.
  Status turn(Context<Cuda>& ctx, index_t incoming = 0);

  /// append, attend and step in one call.
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status forward(Context<Cuda>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<K, 3> keys, TensorView<V, 3> values,
                 TensorView<float, 3> out, std::span<const index_t> positions = {}, Phase phase = Phase::automatic, StepInputs inputs = {},
                 prim::AttendMath math = prim::AttendMath::either);

  /// Forgets all tokens from ordinal `tokens` on. Tokens that a step has seen are looked for on the device, which is waited for.
  Status truncate(Context<Cuda>& ctx, index_t tokens);
  /// Forgets the tokens [first, last) in every layer; later tokens keep ordinals and positions. Waits for the stream.
  Status remove(Context<Cuda>& ctx, index_t first, index_t last);
  /// A second cache of the same tokens, whose calls go to the same stream. Pages are shared until either side writes them: what is appended copies
  /// one page of a head, what leaves all of a layer's. Waits for the last step of each layer.
  Expected<Cache> fork(Context<Cuda>& ctx);
  /// Empty again; waits for the stream.
  Status reset(Context<Cuda>& ctx) {
    const Status done = ctx.wait();
    Status s = counts_.fill_bytes(ctx, 0);
    if (done != Status::ok) s = done;
    if constexpr (retrieves) retrieval_.clear();
    for (auto& l : layers_) {
      const Status cleared = l.clear(ctx);
      if (s == Status::ok) s = cleared;
    }
    return s;
  }

  /// Lets go the units that a schedule of the retrieval stage holds: the next call of `attend` chooses anew.
  void choose_anew() {
    if constexpr (retrieves)
      for (index_t i = 0; i < layers_.size(); ++i) retrieval_.forget(i, -1);
  }

  /// Which tokens the slots of a head hold, in slot order. Waits for the stream.
  Status tokens(Context<Cuda>& ctx, index_t layer, index_t head, std::span<std::int32_t> out) const;
  /// Slots [first, first + rows) of a head as floats in device memory.
  Status read(Context<Cuda>& ctx, index_t layer, index_t head, index_t first, TensorView<float, 2> keys, TensorView<float, 2> values) const;
  /// Waits for the stream.
  Expected<Report> report(Context<Cuda>& ctx) const;

  /// The store itself, for snapshots.
  using Layer = cache::CudaLayer<KeyCodec, ValueCodec>;
  using Plan = typename Layer::Plan;
  const ObjectArray<Layer>& layers() const { return layers_; }
  ObjectArray<Layer>& layers() { return layers_; }
  const Plan& plan() const { return plan_; }
  /// With raw keys: rotation tables for `slots` slots. Loaders call it; append does by itself.
  Status reserve_rotation(const Context<Cuda>& ctx, index_t slots) { return may_turn ? rotation_.reserve(ctx, slots) : Status::ok; }
  const merge::Traits& folds() const { return fold_; }
  /// Neighbours that store rows together.
  const RowGroups& groups() const { return groups_; }
  const cache::CudaRetrieval<Retrieve>& retrieval() const { return retrieval_; }
  cache::CudaRetrieval<Retrieve>& retrieval() { return retrieval_; }
  MemoryResource<Cuda>& memory() const { return *memory_; }
  /// Numbers that could not be stored, and NaN scores, since it was made, reset or loaded. Waits for the stream.
  Status counted(Context<Cuda>& ctx, std::span<index_t, 2> out) const;
  /// What a retrieval stage knows of slots is made anew; for loaders.
  Status rebuild_index(Context<Cuda>& ctx);

 private:
  static constexpr index_t max_lanes = cache::max_lanes, max_position = cache::max_position;
  using Pipeline = decltype(std::declval<Evict>().pipeline());
  using Saliency = decltype(saliency_of(std::declval<Storage>()));
  using Merge = decltype(R::merge);
  using Merger = decltype(merger_of(std::declval<Merge>()));
  static constexpr bool can_merge = merge::Folds<Merger>;
  static constexpr bool may_turn = decltype(R::position)::raw_keys, may_join = requires(const Merger& m) { m.finder.gate(); };

  prim::AttendRequest request(TensorView<const float, 3> queries, TensorView<float, 3> out) const {
    return {queries, out, {}, {}, 0, logit_scale()};
  }
  /// Whether a view was made by `ragged` for the slots that there are. Its offsets are the device's: nothing else can be seen.
  bool of_layer(const Layer& l, const RaggedView<const float>& v) const { return v.offset == l.device_offset() && v.heads == shape().kv_heads; }
  /// What the host writes in a step: counts, budgets, ends, the pipeline's shield; and what the blocks that allocate and select
  /// write, one behind the other.
  std::size_t steering_bytes() const {
    return (pipeline_.reuse.active() ? 3 : 2) * Scratch::bytes_for<index_t>(shape().kv_heads) + 2 * Scratch::bytes_for<prim::Ends>(shape().kv_heads) + Scratch::align +
           std::max(pipeline_.allocate.workspace_bytes(shape(), 0), pipeline_.select.workspace_bytes(shape(), 0)) +
           fold_steering_bytes() + retrieval_.step_steering_bytes(shape()) + grade_steering_bytes();
  }
  /// Scratch of columns of attention over what queries a step may have.
  std::size_t column_bytes(index_t tokens, index_t slots) const {
    if (queries().rows == AttentionNeed::Rows::none && !pipeline_.probes() && !retrieval_.watches()) return 0;
    const std::size_t bytes = cache::CudaLayerColumns<Layer>::workspace_bytes(shape(), rotation_, {reach(), control()}, std::max(tokens, plan_.query_rows), slots);
    return Scratch::bytes_for<std::byte>(static_cast<index_t>(bytes));
  }
  std::size_t pipeline_bytes(index_t slots, index_t total, index_t tokens) const {
    return cache::cuda_pipeline_bytes(pipeline_, shape(), slots, total, tokens);
  }
  std::size_t range_bytes() const { return 2 * Scratch::bytes_for<prim::KeptRange>(4 * shape().kv_heads); }
  // Raw keys: cuda_cache_append.cuh.
  Status make_rotation();
  /// What turns stored dot products into logits.
  float logit_scale() const { return shape().softmax_scale * (may_turn ? rotation_.logit_scale(recipe_.position.rotated_input) : 1.0f); }
  index_t reach() const { return may_turn ? retrieval_.reach() : 0; }
  std::size_t turned_bytes(index_t heads, index_t tokens) const {
    return may_turn ? Scratch::align + static_cast<std::size_t>(reach() > 0 ? 2 : 1) * Scratch::bytes_for<float>(heads * tokens * shape().head_dim) : 0;
  }
  template <class T>
  Status turn_back(Context<Cuda>& ctx, TensorView<const T, 3> keys, std::span<const index_t> positions, index_t next, TensorView<float, 3> out) const;
  /// How the newest `n` queries meet raw keys. `last`: the position of a query that came without its token.
  cache::QueryTurn query_turn(const Layer& l, index_t n, const index_t& last) const;
  Status stand(Context<Cuda>& ctx, const Layer& l, prim::AttendRequest& request, prim::KeyTurn& keys) const;
  // Tokens that join the newest slot: cuda_cache_join.cuh.
  Status make_joining();
  Status check_join(index_t tokens, TensorView<const float, 3> queries) const;
  template <class T>
  Status join_rows(Context<Cuda>& ctx, Layer& l, TensorView<const T, 3> keys, TensorView<const T, 3> values, TensorView<const float, 3> queries,
                   std::span<const index_t> positions, TensorView<float, 3> key_means, TensorView<float, 3> value_means);
  Status clear_queries(Context<Cuda>& ctx, std::span<const index_t> positions, TensorView<const float, 3>& queries, Scratch& scratch) const;
  Status hold(Context<Cuda>& ctx, index_t layer, cache::NewestQueries& newest, bool prompt);
  const prim::ControlComponent* control() const { return plan_.joins ? &join_.control : nullptr; }
  std::size_t joined_bytes(index_t tokens) const;
  std::size_t cleared_bytes(index_t tokens) const;
  /// The same of a step whose queries choose what later calls read.
  std::size_t held_bytes(index_t tokens) const { return retrieval_.holds() ? cleared_bytes(std::min(tokens, retrieval_.longest_call())) : 0; }
  /// Whether the host has to know which slots stay.
  bool wants_lists(const StepView<Cuda>& view) const {
    return layers_[view.layer].wants_lists() || retrieval_.asks_lists(view.layer, view.appended, view.inputs.queries.extent[1], view.phase);
  }
  /// Whether attention reads a mean beside slots, or an index would be of keys that turn by their slot: neither is there beside a list.
  bool stands_alone() const { return plan_.summary || (may_turn && decltype(R::retrieve)::keys == retrieve::KeyState::rotated); }
  bool changes_length() const {
    if constexpr (requires { recipe_.evict.changes_length(); }) return recipe_.evict.changes_length();
    else return !std::same_as<Evict, evict::KeepAll>;
  }
  static Plan plan_of(const CacheShape& shape, const Storage& q, index_t lanes);
  // What eviction, the saliency of a quant stage and a merge stage look at together.
  AttentionNeed attention() const { return joined(joined(pipeline_.attention(), graded_ ? saliency_.attention() : AttentionNeed{}), fold_.attention); }
  AttentionNeed queries() const { return queries(0); }
  AttentionNeed queries(index_t layer) const { return joined(joined(pipeline_.queries(layer), graded_ ? saliency_.queries() : AttentionNeed{}), fold_.queries); }
  static AttentionNeed joined(AttentionNeed a, AttentionNeed b) {
    return a.rows == AttentionNeed::Rows::none || (b.rows == a.rows && b.count > a.count) ? b : a;
  }
  bool reads_attention(const StepView<Cuda>& view) const {
    const bool step = view.phase != Phase::turn && view.phase != Phase::probe;
    return pipeline_.reads_attention(view) ||
           (step && ((graded_ && saliency_.attention().rows != AttentionNeed::Rows::none) || fold_.attention.rows != AttentionNeed::Rows::none));
  }
  // Scores of a quant stage that tells slots apart: cuda_cache_grade.cuh.
  index_t grade_lanes() const { return graded_ ? saliency_.lanes() : 0; }
  std::size_t grade_bytes(index_t slots, index_t total, index_t tokens) const;
  std::size_t grade_steering_bytes() const;
  Status grade(Context<Cuda>& ctx, const StepView<Cuda>& view, evict::LaneViews lanes, RaggedView<float>& scores, Scratch scratch) const;
  /// Slots that may be written, those that stay, and what a finder writes.
  std::size_t fold_steering_bytes() const;
  bool finds_sets(const StepView<Cuda>& view) const;
  // A merge stage: cuda_cache_fold.cuh.
  std::size_t word_bytes(index_t total) const {
    return std::max(prim::MergeWeights<Cuda>::workspace_bytes(total), prim::SegmentedCombine<Cuda>::workspace_bytes(shape().kv_heads, total));
  }
  std::size_t fold_bytes(index_t total) const;
  Status fold(Context<Cuda>& ctx, const StepView<Cuda>& view, evict::LaneViews lanes, const evict::KeepSet& keep, const cache::CudaKept& kept,
              cache::Folding& out, std::span<std::byte>& words, Scratch scratch);
  Status commit_fold(Context<Cuda>& ctx, Layer& l, const cache::Folding& f, TensorView<const float, 3> queries, std::span<std::byte> words);
  prim::SlotRange targets(const Layer& l, index_t head) const;
  Status mark_places(Context<Cuda>& ctx, const Layer& l, RaggedView<float> places) const;
  Status count_left(Context<Cuda>& ctx, const StepView<Cuda>& view, const evict::KeepSet& keep, cache::CudaKept& kept, bool& leaves) const;
  Status copy_state(const Context<Cuda>& ctx, float* to, const float* from) const;

  // Rows that heads store together: cuda_cache_across.cuh.
  static constexpr bool may_share = requires(const R& r, const CacheShape& shape) { r.lowrank.row_groups(shape); };
  Status make_sharing();
  static index_t indexed_rows(const Layer& l, index_t head);
  static constexpr bool pairs_columns = std::same_as<KeyCodec, prim::PairedRows> && std::same_as<ValueCodec, prim::PairedRows>;
  Together together(index_t layer) const {
    if (groups_.layers_of(shape().layers, layer).count * groups_.heads == 1) return Together::alone;
    return fold_.across.active ? Together::directions : Together::sums;
  }
  Status share_rows(Context<Cuda>& ctx, index_t layer);
  template <class C>
  void report_shared(C Layer::*column, Report& r) const;

  StepView<Cuda> step_view(index_t layer, Phase phase) const;
  Status check_input(const StepView<Cuda>& view, Input what) const;
  Status run_step(Context<Cuda>& ctx, index_t layer, const StepInputs& inputs, Phase phase, const index_t* model_budget = nullptr);
  Status name_followed(Context<Cuda>& ctx, StepView<Cuda>& view, Scratch& scratch);
  Status share_model(Context<Cuda>& ctx, evict::ModelShare share, index_t* budget);
  std::size_t model_steering_bytes() const;
  std::size_t model_bytes(index_t slots) const;
  Status begin(Context<Cuda>& ctx, Layer& l, const StepView<Cuda>& view, Scratch& scratch, evict::KeepSet& keep, std::span<RaggedView<float>> lanes);
  Status take_means(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, const cache::Folding& f);
  /// Numbers per slot go back from where policies work on them.
  Status write_lanes(Context<Cuda>& ctx, Layer& l, std::span<const RaggedView<float>> lanes, RaggedView<const std::int32_t> list, const index_t* count);
  Status commit(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, std::span<const RaggedView<float>> lanes, bool leaves, bool codes,
                RaggedView<const float> scores, TensorView<const float, 3> queries, const Scratch& scratch);
  /// Whether a map of rows is found from queries too.
  bool codec_queries() const {
    return prim::needs_queries(prim::CodecParts<KeyCodec>::transform(plan_.keys.codec)) || prim::needs_queries(prim::CodecParts<ValueCodec>::transform(plan_.values.codec));
  }
  Status count_kept(const Context<Cuda>& ctx, const StepView<Cuda>& view, const evict::KeepSet& keep, cache::CudaKept& kept, bool& leaves) const;

  R recipe_{};
  MemoryResource<Cuda>* memory_ = nullptr;
  Pipeline pipeline_{};
  Saliency saliency_{};
  bool graded_ = false;  ///< codecs tell slots apart by `saliency_`
  Merger merger_{};
  merge::Traits fold_{};  ///< of the merge stage; neutral without one
  prim::RopeAngles fold_angles_{};  ///< how keys turn that are summed at one place
  Plan plan_{};
  cache::CudaRotation rotation_;    ///< of raw keys
  prim::Joining join_{};            ///< how tokens join the newest slot
  RowGroups groups_{};              ///< neighbours that store rows together
  cache::CudaSharing sharing_;      ///< how they come to do so
  cuda::SteeringMemory steering_;  ///< outlives the layers
  std::span<std::byte> model_steering_;  ///< the part of it that is no layer's
  cuda::DeviceArray<index_t> counts_;  ///< numbers that could not be stored, NaN scores
  ObjectArray<Layer> layers_;
  cache::CudaRetrieval<Retrieve> retrieval_;
};

/// An empty cache on the current device, or why there is none. Where the caches of the CPU are included too, this one is the more constrained.
template <Backend B, class R>
  requires std::same_as<B, Cuda>
Expected<Cache<B, R>> make_cache(const CacheShape& shape, const R& recipe, MemoryResource<B>& memory = cuda::device_memory()) {
  return Cache<B, R>::make(shape, recipe, memory);
}

}  // namespace kvcondense

#include <kvcondense/cache/cuda_cache_fold.cuh>
#include <kvcondense/cache/cuda_cache_follow.cuh>
#include <kvcondense/cache/cuda_cache_grade.cuh>
#include <kvcondense/cache/cuda_cache_make.cuh>
#include <kvcondense/cache/cuda_cache_impl.cuh>
#include <kvcondense/cache/cuda_cache_append.cuh>
#include <kvcondense/cache/cuda_cache_attend.cuh>
#include <kvcondense/cache/cuda_cache_join.cuh>
#include <kvcondense/cache/cuda_cache_report.cuh>
#include <kvcondense/cache/cuda_cache_turn.cuh>
#include <kvcondense/cache/cuda_cache_across.cuh>
