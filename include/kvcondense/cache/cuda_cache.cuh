#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/block_codes.cuh>
#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/merge_weights.cuh>
#include <kvcondense/backend/cuda/segmented_combine.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/cache/cuda_layer.cuh>
#include <kvcondense/cache/cuda_retrieval.cuh>
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

namespace kvcondense {

template <Backend B, class R>
class Cache;

namespace detail {
template <class C>
inline constexpr bool cuda_codec = std::same_as<C, prim::ExactRows> || std::same_as<C, prim::BlockCodes>;
template <int Bits>
inline constexpr bool cuda_codec<prim::GroupInt<Bits>> = true;
}  // namespace detail

/// The cache of one sequence in device memory: an eviction method, what folds behind it, codes of groups or blocks, and retrieval. Its calls are those
/// of Cache<Cpu, R>.
///
/// Idea     the host keeps counters, lengths and lists of pages and decides when something leaves; which slots, and all that moves, is
///          the device's. The eviction pipeline is the one that runs on the CPU: its blocks are written over words.
/// Needs    recipes of an eviction method, a merge method over exact rows, exact rows or codes of groups or blocks with their exact window and
///          first slots, retrieval methods whose blocks have a form on CUDA (cuda_index.cuh), and no other stage (those stop compilation
///          with a sentence). Inputs of steps lie on the device: attention, queries, projections, moments, gates, surprise, classes; so do
///          matrices that words read (LayerMatrices of critical and locret).
///          Tables that blocks read (HeadTable, LayerTable) are the host's.
/// Shapes   as Cache<Cpu, R>; keys, values, queries, out, lse, mass in device memory.
/// Cost     append, attend and step enqueue on the context's stream. The host waits where tables grow or many pages go back, and
///          where a step meets the one before of the same layer that is not done yet; how many slots stay it knows itself, but for budgets and
///          selections that scores decide, and which slots leave where codes share parameters along slots (KIVI's keys): these are waited for when they act.
///          A call of `attend` that chooses what it reads waits for the one before of the same layer.
/// Numbers  pages are those of Cache<Cpu, R>. Attention differs in the last bits, so scores that are that close may be ranked
///          otherwise; equal scores are ranked alike. What `append` on the CPU refuses, numbers that the stored type cannot
///          hold, is stored as Inf or NaN here and counted once in the report.
/// Errors   as Cache<Cpu, R>; not_supported for a method that keeps a mean of what left, for a merge method beside codes, or one that keeps
///          the mass or the place of what folded or finds sets among slots that stay, for one set of all heads (AllHeads) once heads hold
///          different numbers of slots, and for a quant stage that tells layers, heads or slots apart. device_error from every call that a
///          layer takes part in, until `reset` or `load`, once the device took a part of a change of it and refused the rest. Calls of one
///          cache go to one stream; wait for it before the cache is destroyed when its memory is not that of cudaMalloc.
template <class R>
class Cache<Cuda, R> {
  static_assert(std::same_as<decltype(R::lowrank), NoLowRank> && std::same_as<decltype(R::position), position::Absolute>,
                "kvcondense: a cache on CUDA takes an eviction, a merge, a quant and a retrieval stage; make_cache<kvcondense::Cpu> takes the others.");

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
                "kvcondense: a cache on CUDA stores exact rows, codes of groups (kivi, group_int and their kin) or of blocks (fp8, mx, q4_0 and their kin); make_cache<kvcondense::Cpu> takes the others.");

  static Expected<Cache> make(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory = cuda::device_memory()) {
    if (const Status s = validate(shape); s != Status::ok) return s;
    if (shape.page_slots > cache::max_page_slots) return Status::invalid_argument;
    if (const Status s = recipe.evict.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.quant.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.merge.validate(shape); s != Status::ok) return s;
    if (has_saliency(recipe.quant) || differs_per_head(recipe.quant)) return Status::not_supported;
    Cache c;
    c.recipe_ = recipe, c.memory_ = &memory;
    c.pipeline_ = recipe.evict.pipeline();
    if constexpr (merge::Merges<Merge>) c.merger_ = merger_of(recipe.merge), c.fold_ = c.merger_.traits();
    c.plan_ = plan_of(shape, recipe, c.pipeline_.lanes() + c.fold_.lanes);
    c.plan_.state = c.fold_.state;
    if (c.pipeline_.queries().rows == AttentionNeed::Rows::last) c.plan_.query_rows = c.pipeline_.queries().count;
    if (c.pipeline_.residual != evict::Residual::none || c.plan_.lanes > max_lanes) return Status::not_supported;
    if (const Status s = c.check_merge(); s != Status::ok) return s;
    if (const Status s = recipe.retrieve.validate(shape); s != Status::ok) return s;
    if constexpr (retrieves)  // numbers of the slots' own that attention reads were refused above
      if (const Status s = c.retrieval_.make(recipe.retrieve.pipeline(), c.plan_.shape, c.changes_length(), memory); s != Status::ok) return s;
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
      Layer l(c.plan_, memory);
      const std::size_t first = static_cast<std::size_t>(i) * all;
      if (failed == Status::ok) failed = l.make(c.steering_.part(first + each, all - each));
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
    std::size_t reading = cache::attend_bytes(shape(), shape().kv_heads, slots, tokens, attention());
    if constexpr (retrieves) reading = std::max(reading, retrieval_.workspace_bytes(plan_, slots, tokens, attention()));
    return mass + std::max({step, reading, model_bytes(slots)});
  }

  /// Adds tokens to a layer: keys [kv_heads, tokens, head_dim], values [kv_heads, tokens, value_dim], on the device; `positions` on
  /// the host, one per token, or empty for the next ones.
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status append(Context<Cuda>& ctx, index_t layer, TensorView<K, 3> keys, TensorView<V, 3> values, std::span<const index_t> positions = {}) {
    using T = std::remove_const_t<K>;
    if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
    Layer& l = layers_[layer];
    if (l.torn) return Status::device_error;
    const index_t n = keys.extent[1];
    if (keys.extent[0] != shape().kv_heads || values.extent[0] != shape().kv_heads || values.extent[1] != n ||
        keys.extent[2] != shape().head_dim || values.extent[2] != shape().values())
      return Status::shape_mismatch;
    if (!positions.empty() && static_cast<index_t>(positions.size()) != n) return Status::shape_mismatch;
    for (const index_t p : positions)
      if (p < 0 || p > max_position) return Status::invalid_argument;
    if (l.counters.seen + n > max_position || (positions.empty() && l.next_position() + n - 1 > max_position)) return Status::out_of_range;
    if (n == 0) return Status::ok;
    Status s = l.reserve(ctx, n);
    if (s != Status::ok) return s;
    const index_t first = l.sinks_due(n);
    s = l.add_slots(ctx, n, first);
    if (s == Status::ok) s = l.keys.template append<T>(ctx, first, l.device_slots(), keys, counts_.data());
    if (s == Status::ok) s = l.values.template append<T>(ctx, first, l.device_slots(), values, counts_.data());
    if (s != Status::ok) return static_cast<void>(l.add_slots(ctx, -n, -first)), s;
    const index_t next = l.next_position();
    for (index_t i = 0; i < n; ++i) l.pending_positions.append_reserved(positions.empty() ? next + i : positions[static_cast<std::size_t>(i)]);
    l.counters.seen += n, l.counters.pending += n;
    return Status::ok;
  }

  /// Attention of the newest tokens over everything stored, or what a retrieval stage chooses; causal among them. `reads` and `runs` of
  /// `measure` lie on the host: a call that asks for them waits for the stream. out_of_range where `runs` has no room for all runs of a row: of
  /// chosen slots their number is known behind attention alone, so that the other outputs are written by then.
  Status attend(Context<Cuda>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out, const AttendOutputs& measure = {},
                prim::AttendMath math = prim::AttendMath::f32) const {
    if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
    const Layer& l = layers_[layer];
    if (l.torn) return Status::device_error;
    const index_t n = queries.extent[1];
    if (queries.extent[0] != shape().q_heads || queries.extent[2] != shape().head_dim || out.extent[1] != n || out.extent[2] != shape().values())
      return Status::shape_mismatch;
    if (measure.mass.data != nullptr && !of_layer(l, measure.mass)) return Status::shape_mismatch;
    if (measure.pages != nullptr) return Status::not_supported;
    if (measure.runs.data != nullptr && measure.runs.room < 1 && l.longest() > 0) return Status::out_of_range;
    if (n > std::max<index_t>(1, l.counters.pending)) return Status::order_violation;
    prim::AttendRequest r = request(queries, out);
    r.lse = measure.lse, r.mass = measure.mass, r.mass_rows = mass_rows(n);
    if (measure.reads != nullptr) *measure.reads = {};
    if constexpr (retrieves)
      if (bool all = false; retrieval_.chooses(layer, n))
        if (const Status s = retrieval_.attend(ctx, layer, l, plan_, r, measure, math, all); s != Status::ok || !all) return s;
    const Status s = prim::Attend<Cuda>::run(ctx, r, l.heads(), l.longest(), math);
    return s == Status::ok && (measure.reads != nullptr || measure.runs.data != nullptr) ? cache::tell_all_read(ctx, l, shape(), measure) : s;
  }

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

  prim::AttendRequest request(TensorView<const float, 3> queries, TensorView<float, 3> out) const {
    return {queries, out, {}, {}, 0, shape().softmax_scale};
  }
  /// Whether a view was made by `ragged` for the slots that there are. Its offsets are the device's: nothing else can be seen.
  bool of_layer(const Layer& l, const RaggedView<const float>& v) const { return v.offset == l.device_offset() && v.heads == shape().kv_heads; }
  /// What the host writes in a step: counts, budgets, ends, the pipeline's shield; and what the blocks that allocate and select
  /// write, one behind the other.
  std::size_t steering_bytes() const {
    return 2 * Scratch::bytes_for<index_t>(shape().kv_heads) + 2 * Scratch::bytes_for<prim::Ends>(shape().kv_heads) + Scratch::align +
           std::max(pipeline_.allocate.workspace_bytes(shape(), 0), pipeline_.select.workspace_bytes(shape(), 0)) +
           (fold_.active ? Scratch::bytes_for<prim::SlotRange>(shape().kv_heads) : 0) + retrieval_.step_steering_bytes(shape());
  }
  /// Scratch of columns of attention over what queries a step may have.
  std::size_t column_bytes(index_t tokens, index_t slots) const {
    if (pipeline_.queries().rows == AttentionNeed::Rows::none && !pipeline_.probes()) return 0;
    const std::size_t bytes = cache::CudaLayerColumns<Layer>::workspace_bytes(shape(), std::max(tokens, plan_.query_rows), slots);
    return Scratch::bytes_for<std::byte>(static_cast<index_t>(bytes));
  }
  std::size_t pipeline_bytes(index_t slots, index_t total, index_t tokens) const {
    return cache::cuda_pipeline_bytes(pipeline_, shape(), slots, total, tokens);
  }
  std::size_t range_bytes() const { return 2 * Scratch::bytes_for<prim::KeptRange>(4 * shape().kv_heads); }
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
    return p;
  }
  // What eviction and a merge stage look at together.
  AttentionNeed attention() const {
    const AttentionNeed evicts = pipeline_.attention();
    return evicts.rows == AttentionNeed::Rows::none ? fold_.attention : evicts;
  }
  bool reads_attention(const StepView<Cuda>& view) const {
    const bool step = view.phase != Phase::turn && view.phase != Phase::probe;
    return pipeline_.reads_attention(view) || (step && fold_.attention.rows != AttentionNeed::Rows::none);
  }
  // A merge stage: cuda_cache_fold.cuh.
  Status check_merge() const;
  std::size_t word_bytes(index_t total) const {
    return std::max(prim::MergeWeights<Cuda>::workspace_bytes(total), prim::SegmentedCombine<Cuda>::workspace_bytes(shape().kv_heads, total));
  }
  std::size_t fold_bytes(index_t total) const;
  Status fold(Context<Cuda>& ctx, const StepView<Cuda>& view, evict::LaneViews lanes, const evict::KeepSet& keep, cache::Folding& out,
              std::span<std::byte>& words, Scratch& scratch);
  Status commit_fold(Context<Cuda>& ctx, Layer& l, const cache::Folding& f, std::span<std::byte> words);
  Status copy_state(const Context<Cuda>& ctx, float* to, const float* from) const;

  StepView<Cuda> step_view(index_t layer, Phase phase) const;
  Status check_input(const StepView<Cuda>& view, Input what) const;
  Status run_step(Context<Cuda>& ctx, index_t layer, const StepInputs& inputs, Phase phase, const index_t* model_budget = nullptr);
  Status share_model(Context<Cuda>& ctx, evict::ModelShare share, index_t* budget);
  std::size_t model_steering_bytes() const;
  std::size_t model_bytes(index_t slots) const;
  Status begin(Context<Cuda>& ctx, Layer& l, const StepView<Cuda>& view, Scratch& scratch, evict::KeepSet& keep, std::span<RaggedView<float>> lanes);
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
  Plan plan_{};
  cuda::SteeringMemory steering_;  ///< outlives the layers
  std::span<std::byte> model_steering_;  ///< the part of it that is no layer's
  cuda::DeviceArray<index_t> counts_;  ///< numbers that could not be stored, NaN scores
  ObjectArray<Layer> layers_;
  cache::CudaRetrieval<Retrieve> retrieval_;
};

/// An empty cache on the current device, or why there is none.
template <std::same_as<Cuda> B, class R>
Expected<Cache<B, R>> make_cache(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory = cuda::device_memory()) {
  return Cache<B, R>::make(shape, recipe, memory);
}

}  // namespace kvcondense

#include <kvcondense/cache/cuda_cache_fold.cuh>
#include <kvcondense/cache/cuda_cache_impl.cuh>
#include <kvcondense/cache/cuda_cache_report.cuh>
#include <kvcondense/cache/cuda_cache_turn.cuh>
