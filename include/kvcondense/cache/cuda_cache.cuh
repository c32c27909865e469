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
#include <kvcondense/cache/cuda_serves.cuh>
#include <kvcondense/cache/cuda_word_bytes.cuh>
#include <kvcondense/cache/folding.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/cache/recipe.hpp>
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
///          with a RowPage: row_codec.cuh; behind a Hadamard transform too), retrieval methods whose blocks have a form on CUDA (cuda_index.cuh), and
///          no other stage (those stop compilation with a sentence). Inputs of steps lie on the device: attention, queries,
///          projections, moments, gates, surprise, classes; so do matrices that words read (LayerMatrices of critical and locret).
///          Tables that blocks read (HeadTable, LayerTable) are the host's, and so are those that codecs are made of (ranges, clusters, codebooks): they
///          outlive the cache, whose `fork` and `load` read them again.
/// Shapes   as Cache<Cpu, R>; keys, values, queries, out, lse, mass in device memory.
/// Cost     append, attend and step enqueue on the context's stream. The host waits where tables grow or many pages go back, and
///          where a step meets the one before of the same layer that is not done yet; how many slots stay it knows itself, but for budgets and
///          selections that scores decide, sets that a merge method finds among slots that stay, and which slots leave where codes share parameters along slots
///          (KIVI's keys): these are waited for when they act. A call of `attend` that chooses what it reads waits for the one before of the same layer.
/// Numbers  pages are those of Cache<Cpu, R>. Attention differs in the last bits, so scores that are that close may be ranked
///          otherwise; equal scores are ranked alike. What `append` on the CPU refuses, numbers that the stored type cannot
///          hold, is stored as Inf or NaN here (where tokens may join slots, brought into range) and counted once in the report. Such tokens rule out halves only until their step.
/// Errors   as Cache<Cpu, R>; not_supported for a merge method that stores rows of layers together or, beside raw keys or retrieval, lets tokens join a slot
///          when they come, for retrieval beside numbers of slots that attention reads (the mass of
///          a merge method), a mean of what left or raw keys, for `AttendMath::halves` where there are such numbers, keys are raw or tokens join slots, for one set of all heads (AllHeads) once heads hold
///          different numbers of slots, and for a quant stage that tells slots apart, or heads by more than tables of their codecs (layers may
///          differ in their windows), has a sketch, or maps rows before groups along slots. device_error from every call that a
///          layer takes part in, until `reset` or `load`, once the device took a part of a change of it and refused the rest. Calls of one
///          cache go to one stream; wait for it before the cache is destroyed when its memory is not that of cudaMalloc.
template <class R>
class Cache<Cuda, R> {
  static_assert(std::same_as<decltype(R::lowrank), NoLowRank>,
                "kvcondense: a cache on CUDA takes every stage but low rank; make_cache<kvcondense::Cpu> takes that one too.");

 public:
  using Retrieve = decltype(std::declval<const decltype(R::retrieve)&>().pipeline());
  static_assert(cache::cuda_retrieves<Retrieve>,
                "kvcondense: a block of this retrieval pipeline has no form on CUDA (docs/cuda.md lists the methods); make_cache<kvcondense::Cpu> takes it.");
  static constexpr bool retrieves = cache::CudaRetrieval<Retrieve>::there;
  using Evict = decltype(R::evict);
  using Quant = decltype(R::quant);
  using KeyCodec = decltype(key_codec_of(std::declval<const Quant&>(), CacheShape{}));
  using ValueCodec = decltype(value_codec_of(std::declval<const Quant&>(), CacheShape{}));
  static_assert(detail::cuda_codec<KeyCodec> && detail::cuda_codec<ValueCodec>,
                "kvcondense: a cache on CUDA stores exact rows, codes of groups (kivi, group_int, kitty, polar), or rows whose slots are independent (fp8, mx, q4_0, kvquant, skvq, turboquant and their kin); make_cache<kvcondense::Cpu> takes the others.");

  static Expected<Cache> make(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory = cuda::device_memory()) {
    if (const Status s = validate(shape); s != Status::ok) return s;
    if (shape.page_slots > cache::max_page_slots) return Status::invalid_argument;
    if (const Status s = recipe.evict.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.quant.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.position.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.merge.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.retrieve.validate(shape); s != Status::ok) return s;
    if (!keys_fit(recipe.retrieve, recipe.position)) return Status::incompatible;
    if (has_saliency(recipe.quant) || !detail::cuda_serves(recipe.quant, shape)) return Status::not_supported;
    Cache c;
    c.recipe_ = recipe, c.memory_ = &memory;
    c.pipeline_ = recipe.evict.pipeline();
    if constexpr (merge::Merges<Merge>) c.merger_ = merger_of(recipe.merge), c.fold_ = c.merger_.traits();
    c.plan_ = plan_of(shape, recipe, c.pipeline_.lanes() + c.fold_.lanes);
    c.plan_.state = c.fold_.state;
    if constexpr (can_merge) c.plan_.found = merge::state_floats(c.merger_.finder);
    if (c.fold_.bias >= 0) c.plan_.bias = c.pipeline_.lanes() + c.fold_.bias;
    if (c.fold_.value_scale >= 0) c.plan_.value_scale = c.pipeline_.lanes() + c.fold_.value_scale;
    if (c.queries().rows == AttentionNeed::Rows::last) c.plan_.query_rows = c.queries().count;
    c.plan_.summary = c.pipeline_.residual == evict::Residual::mean;
    if (c.plan_.lanes > max_lanes) return Status::not_supported;
    if (const Status s = c.check_merge(); s != Status::ok) return s;
    if (const Status s = c.make_rotation(); s != Status::ok) return s;
    if (c.fold_.place >= 0) {
      const auto angles = prim::rope_angles(c.fold_.rope, shape.head_dim);
      if (!angles) return angles.status();
      c.fold_angles_ = *angles;
    }
    if (const Status s = c.make_joining(); s != Status::ok) return s;
    if constexpr (retrieves) {
      if (c.slots_have_own()) return Status::not_supported;
      if (const Status s = c.retrieval_.make(recipe.retrieve.pipeline(), c.plan_.shape, c.changes_length() || c.fold_.shrinks, memory); s != Status::ok) return s;
    }
    const std::size_t each = c.steering_bytes(), all = each + c.plan_.told_bytes() + Scratch::align;
    const std::size_t layers = all * static_cast<std::size_t>(shape.layers), model = c.model_steering_bytes();
    if (const Status s = c.steering_.make(layers + model); s != Status::ok) return s;
    c.model_steering_ = c.steering_.part(layers, model);
    c.counts_ = cuda::DeviceArray<index_t>(memory);
    if (const Status s = c.counts_.resize(2); s != Status::ok) return s;
    // A cache that a file was loaded into counts before anything is appended. Layers wait for it below.
    if (const Status s = cuda::settled(cudaMemsetAsync(c.counts_.data(), 0, c.counts_.bytes().size(), nullptr)); s != Status::ok) return s;
    Status failed = Status::ok;
    const Status made = c.layers_.fill(heap_memory(), shape.layers, [&](index_t i) {
      Plan own = c.plan_;
      const Quant& q = recipe.quant;
      own.keys.flush = key_flush_of(q, shape, {i, 0}), own.values.flush = value_flush_of(q, shape, {i, 0});
      Layer l(own, memory);
      const std::size_t first = static_cast<std::size_t>(i) * all;
      if (failed == Status::ok) failed = l.make(c.steering_.part(first + each, all - each));
      if (failed == Status::ok && differs_per_head(q)) {
        failed = l.keys.describe([&](index_t h) { return key_codec_of(q, shape, {i, h}); });
        if (failed == Status::ok) failed = l.values.describe([&](index_t h) { return value_codec_of(q, shape, {i, h}); });
      }
      l.steering = c.steering_.part(first, each);
      return l;
    });
    if (made != Status::ok) return made;
    if (failed != Status::ok) return failed;
    return Expected<Cache>(std::move(c));
  }

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
                             static_cast<std::size_t>(plan_.lanes) * Scratch::bytes_for<float>(total) + pipeline_bytes(slots, total, tokens) + fold_bytes(total) +
                             column_bytes(tokens, slots) + retrieval_.step_bytes(shape(), slots, tokens);
    std::size_t reading = cache::attend_bytes(shape(), shape().kv_heads, slots, tokens, attention()) + turned_bytes(shape().q_heads, tokens) + cleared_bytes(tokens);
    if constexpr (retrieves) reading = std::max(reading, retrieval_.workspace_bytes(plan_, slots, tokens, attention()));
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
                prim::AttendMath math = prim::AttendMath::f32) const;

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
                 TensorView<float, 3> out, std::span<const index_t> positions = {}, Phase phase = Phase::automatic, StepInputs inputs = {});

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
    return 2 * Scratch::bytes_for<index_t>(shape().kv_heads) + 2 * Scratch::bytes_for<prim::Ends>(shape().kv_heads) + Scratch::align +
           std::max(pipeline_.allocate.workspace_bytes(shape(), 0), pipeline_.select.workspace_bytes(shape(), 0)) +
           fold_steering_bytes() + retrieval_.step_steering_bytes(shape());
  }
  /// Scratch of columns of attention over what queries a step may have.
  std::size_t column_bytes(index_t tokens, index_t slots) const {
    if (queries().rows == AttentionNeed::Rows::none && !pipeline_.probes()) return 0;
    const std::size_t bytes = cache::CudaLayerColumns<Layer>::workspace_bytes(shape(), rotation_, control(), std::max(tokens, plan_.query_rows), slots);
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
  prim::KeyTurn key_turn() const { return may_turn ? rotation_.view() : prim::KeyTurn{}; }
  std::size_t turned_bytes(index_t heads, index_t tokens) const {
    return may_turn ? Scratch::align + Scratch::bytes_for<float>(heads * tokens * shape().head_dim) : 0;
  }
  template <class T>
  Status turn_back(Context<Cuda>& ctx, TensorView<const T, 3> keys, std::span<const index_t> positions, index_t next, TensorView<float, 3> out) const;
  Status stand(Context<Cuda>& ctx, const Layer& l, prim::AttendRequest& request) const;
  // Tokens that join the newest slot: cuda_cache_join.cuh.
  Status make_joining();
  Status check_join(index_t tokens, TensorView<const float, 3> queries) const;
  template <class T>
  Status join_rows(Context<Cuda>& ctx, Layer& l, TensorView<const T, 3> keys, TensorView<const T, 3> values, TensorView<const float, 3> queries,
                   std::span<const index_t> positions, TensorView<float, 3> key_means, TensorView<float, 3> value_means);
  Status clear_queries(Context<Cuda>& ctx, const Layer& l, prim::AttendRequest& request) const;
  const prim::ControlComponent* control() const { return plan_.joins ? &join_.control : nullptr; }
  std::size_t joined_bytes(index_t tokens) const;
  std::size_t cleared_bytes(index_t tokens) const;
  /// Whether attention reads numbers of the slots' own, a mean beside them, or keys that turn by their slot: a list of chosen ones has none of these.
  bool slots_have_own() const { return plan_.bias >= 0 || plan_.value_scale >= 0 || plan_.summary || may_turn; }
  bool changes_length() const {
    if constexpr (requires { recipe_.evict.changes_length(); }) return recipe_.evict.changes_length();
    else return !std::same_as<Evict, evict::KeepAll>;
  }
  /// The codec that names the layout which its pages have: lanes need pages of whole blocks.
  template <class C>
  static C as_stored(const C& codec, index_t page_slots, index_t dim) {
    if constexpr (requires { codec.layout; }) return codec.with(codec.layout_of(prim::coded_page_slots(codec, page_slots), dim));
    else return codec;
  }
  template <class T, class C>
  static prim::Transformed<T, C> as_stored(const prim::Transformed<T, C>& codec, index_t page_slots, index_t dim) {
    return {codec.transform, as_stored(codec.codec, page_slots, dim)};
  }
  static Plan plan_of(const CacheShape& shape, const R& recipe, index_t lanes) {
    Plan p;
    p.shape = shape, p.lanes = lanes, p.sinks = recipe.quant.sinks;
    if (shape.softmax_scale == 0.0f) p.shape.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    const prim::ExactRows exact{shape.dtype};
    const Quant& q = recipe.quant;
    const auto column = [&](const auto& codec, const Flush& flush, index_t dim) {
      return cache::CudaColumnPlan<std::remove_cvref_t<decltype(codec)>>{exact, as_stored(codec, shape.page_slots, dim), flush, q.sinks, shape.kv_heads, dim,
                                                                         shape.page_slots, codec.fingerprint()};
    };
    p.keys = column(key_codec_of(q, shape), key_flush_of(q, shape), shape.head_dim);
    p.values = column(value_codec_of(q, shape), value_flush_of(q, shape), shape.values());
    for (index_t l = 1; l < shape.layers; ++l) {  // a layer may stay exact: the plan is that of those that do not
      if (p.keys.flush.block == 0) p.keys.flush = key_flush_of(q, shape, {l, 0});
      if (p.values.flush.block == 0) p.values.flush = value_flush_of(q, shape, {l, 0});
    }
    return p;
  }
  // What eviction and a merge stage look at together.
  AttentionNeed attention() const { return joined(pipeline_.attention(), fold_.attention); }
  AttentionNeed queries() const { return joined(pipeline_.queries(), fold_.queries); }
  static AttentionNeed joined(AttentionNeed a, AttentionNeed b) {
    return a.rows == AttentionNeed::Rows::none || (b.rows == a.rows && b.count > a.count) ? b : a;
  }
  bool reads_attention(const StepView<Cuda>& view) const {
    const bool step = view.phase != Phase::turn && view.phase != Phase::probe;
    return pipeline_.reads_attention(view) || (step && fold_.attention.rows != AttentionNeed::Rows::none);
  }
  /// Slots that may be written, those that stay, and what a finder writes.
  std::size_t fold_steering_bytes() const;
  bool finds_sets(const StepView<Cuda>& view) const;
  // A merge stage: cuda_cache_fold.cuh.
  Status check_merge() const;
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

  StepView<Cuda> step_view(index_t layer, Phase phase) const;
  Status check_input(const StepView<Cuda>& view, Input what) const;
  Status run_step(Context<Cuda>& ctx, index_t layer, const StepInputs& inputs, Phase phase, const index_t* model_budget = nullptr);
  Status share_model(Context<Cuda>& ctx, evict::ModelShare share, index_t* budget);
  std::size_t model_steering_bytes() const;
  std::size_t model_bytes(index_t slots) const;
  Status begin(Context<Cuda>& ctx, Layer& l, const StepView<Cuda>& view, Scratch& scratch, evict::KeepSet& keep, std::span<RaggedView<float>> lanes);
  Status take_means(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, const cache::Folding& f);
  /// Numbers per slot go back from where policies work on them.
  Status write_lanes(Context<Cuda>& ctx, Layer& l, std::span<const RaggedView<float>> lanes, RaggedView<const std::int32_t> list, const index_t* count);
  Status commit(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, std::span<const RaggedView<float>> lanes, bool leaves, bool codes,
                const Scratch& scratch);
  Status count_kept(const Context<Cuda>& ctx, const StepView<Cuda>& view, const evict::KeepSet& keep, cache::CudaKept& kept, bool& leaves) const;

  R recipe_{};
  MemoryResource<Cuda>* memory_ = nullptr;
  Pipeline pipeline_{};
  Merger merger_{};
  merge::Traits fold_{};  ///< of the merge stage; neutral without one
  prim::RopeAngles fold_angles_{};  ///< how keys turn that are summed at one place
  Plan plan_{};
  cache::CudaRotation rotation_;    ///< of raw keys
  prim::Joining join_{};            ///< how tokens join the newest slot
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
#include <kvcondense/cache/cuda_cache_impl.cuh>
#include <kvcondense/cache/cuda_cache_append.cuh>
#include <kvcondense/cache/cuda_cache_attend.cuh>
#include <kvcondense/cache/cuda_cache_join.cuh>
#include <kvcondense/cache/cuda_cache_report.cuh>
#include <kvcondense/cache/cuda_cache_turn.cuh>
