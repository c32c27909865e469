#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/cache/cuda_layer.cuh>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense {

template <Backend B, class R>
class Cache;

namespace detail {
template <class C>
inline constexpr bool cuda_codec = std::same_as<C, prim::ExactRows>;
template <int Bits>
inline constexpr bool cuda_codec<prim::GroupInt<Bits>> = true;
}  // namespace detail

/// The cache of one sequence in device memory: an eviction method, and codes of groups. Its calls are those of Cache<Cpu, R>.
///
/// Idea     the host keeps counters, lengths and lists of pages and decides when something leaves; which slots, and all that moves, is
///          the device's. The eviction pipeline is the one that runs on the CPU: its blocks are written over words.
/// Needs    recipes of an eviction method whose words CUDA has (others stop compilation with a sentence), exact rows or codes of groups with
///          their exact window and first slots, and no other stage. Inputs of steps lie on the device: attention, gates, surprise, classes.
/// Shapes   as Cache<Cpu, R>; keys, values, queries, out, lse, mass in device memory.
/// Cost     append, attend and step enqueue on the context's stream. The host waits where tables grow or many pages go back, and
///          where a step meets the one before of the same layer that is not done yet; how many slots stay it knows itself.
/// Numbers  pages are those of Cache<Cpu, R>. Attention differs in the last bits, so scores that are that close may be ranked
///          otherwise; equal scores are ranked alike. What `append` on the CPU refuses, numbers that the stored type cannot
///          hold, is stored as Inf or NaN here and counted once in the report.
/// Errors   as Cache<Cpu, R>; not_supported for inputs that no word reads here, for one set of all heads (AllHeads) once
///          heads hold different numbers of slots, for an eviction method over groups of several slots (KIVI's keys), for a quant
///          stage that tells layers, heads or slots apart, and where `truncate` or `remove` would cut a group of
///          several slots. Calls of one cache go to one stream; wait for it before the cache is destroyed
///          when its memory is not that of cudaMalloc.
template <class R>
class Cache<Cuda, R> {
  static_assert(std::same_as<decltype(R::merge), NoMerge> && std::same_as<decltype(R::lowrank), NoLowRank> &&
                    std::same_as<decltype(R::retrieve), retrieve::ReadAll> && std::same_as<decltype(R::position), position::Absolute>,
                "kvcondense: a cache on CUDA takes an eviction and a quant stage; make_cache<kvcondense::Cpu> takes the others.");

 public:
  using Evict = decltype(R::evict);
  using Quant = decltype(R::quant);
  using KeyCodec = decltype(key_codec_of(std::declval<const Quant&>(), CacheShape{}));
  using ValueCodec = decltype(value_codec_of(std::declval<const Quant&>(), CacheShape{}));
  static_assert(detail::cuda_codec<KeyCodec> && detail::cuda_codec<ValueCodec>,
                "kvcondense: a cache on CUDA stores exact rows or codes of groups (kivi, group_int and their kin); make_cache<kvcondense::Cpu> takes the others.");

  static Expected<Cache> make(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory = cuda::device_memory()) {
    if (const Status s = validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.evict.validate(shape); s != Status::ok) return s;
    if (const Status s = recipe.quant.validate(shape); s != Status::ok) return s;
    if (has_saliency(recipe.quant) || differs_per_head(recipe.quant)) return Status::not_supported;
    Cache c;
    c.recipe_ = recipe;
    c.pipeline_ = recipe.evict.pipeline();
    c.plan_ = plan_of(shape, recipe, c.pipeline_.lanes());
    constexpr Inputs read = Input::attention | Input::gates | Input::surprise | Input::classes;
    if (!c.pipeline_.inputs().within(read) || evict::model_share(c.pipeline_.allocate).keep > 0.0 ||
        c.pipeline_.residual != evict::Residual::none || c.pipeline_.lanes() > max_lanes)
      return Status::not_supported;
    if (c.pipeline_.allocate.uses_scores()) return Status::not_supported;  // budgets would be known to the device alone
    // Slots that share parameters cannot move alone.
    if (c.changes_length() && (c.plan_.keys.codec.group_slots() > 1 || c.plan_.values.codec.group_slots() > 1)) return Status::not_supported;
    const std::size_t each = c.steering_bytes(), all = each + c.plan_.told_bytes() + Scratch::align;
    if (const Status s = c.steering_.make(all * static_cast<std::size_t>(shape.layers)); s != Status::ok) return s;
    c.counts_ = cuda::DeviceArray<index_t>(memory);
    if (const Status s = c.counts_.resize(2); s != Status::ok) return s;
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
  index_t mass_rows(index_t tokens) const { return pipeline_.attention().of(tokens); }
  bool wants_mass(index_t layer, Phase phase = Phase::automatic) const { return pipeline_.reads_attention(step_view(layer, phase)); }
  /// `data`, device memory of total_slots(layer) numbers, one per (kv head, slot): its offsets are read by kernels too.
  RaggedView<float> ragged(index_t layer, float* data) const { return {data, layers_[layer].device_offset(), shape().kv_heads}; }

  /// Device scratch that any call needs while no head holds more than `slots` slots and no call brings more than `tokens`
  /// tokens. Pure.
  std::size_t workspace_bytes(index_t slots, index_t tokens) const {
    const index_t total = slots * shape().kv_heads;
    const std::size_t mass = Scratch::align + Scratch::bytes_for<float>(total);
    const std::size_t step = Scratch::align + range_bytes() + 2 * Scratch::bytes_for<std::int32_t>(total) +
                             static_cast<std::size_t>(plan_.lanes) * Scratch::bytes_for<float>(total) + pipeline_.workspace_bytes(shape(), total);
    float nothing = 0.0f;
    std::size_t reading = 0;
    // Calls of few rows cut heads into pieces: the longest of them may need more than longer ones.
    for (const index_t n : {tokens, std::min<index_t>(tokens, prim::cuda_kernels::split_rows / shape().group())}) {
      prim::AttendRequest r = request({nullptr, {shape().q_heads, n, shape().head_dim}, {}}, {nullptr, {shape().q_heads, n, shape().values()}, {}});
      r.mass.data = &nothing, r.mass_rows = mass_rows(n);
      reading = std::max(reading, prim::Attend<Cuda>::workspace_bytes(r, shape().kv_heads, slots));
    }
    return mass + std::max(step, reading);
  }

  /// Adds tokens to a layer: keys [kv_heads, tokens, head_dim], values [kv_heads, tokens, value_dim], on the device; `positions` on
  /// the host, one per token, or empty for the next ones.
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status append(Context<Cuda>& ctx, index_t layer, TensorView<K, 3> keys, TensorView<V, 3> values, std::span<const index_t> positions = {}) {
    using T = std::remove_const_t<K>;
    if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
    Layer& l = layers_[layer];
    const index_t n = keys.extent[1];
    if (keys.extent[0] != shape().kv_heads || values.extent[0] != shape().kv_heads || values.extent[1] != n ||
        keys.extent[2] != shape().head_dim || values.extent[2] != shape().values())
      return Status::shape_mismatch;
    if (!positions.empty() && static_cast<index_t>(positions.size()) != n) return Status::shape_mismatch;
    for (const index_t p : positions)
      if (p < 0 || p > max_position) return Status::invalid_argument;
    if (l.counters.seen + n > max_position || (positions.empty() && l.next_position() + n - 1 > max_position)) return Status::out_of_range;
    if (n == 0) return Status::ok;
    Status s = counting_ ? Status::ok : counts_.fill_bytes(ctx, 0);
    if (s == Status::ok) counting_ = true, s = l.reserve(ctx, n);
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

  /// Attention of the newest tokens over everything stored; causal among them.
  Status attend(Context<Cuda>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out, const AttendOutputs& measure = {},
                prim::AttendMath math = prim::AttendMath::f32) const {
    if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
    const Layer& l = layers_[layer];
    const index_t n = queries.extent[1];
    if (queries.extent[0] != shape().q_heads || queries.extent[2] != shape().head_dim || out.extent[1] != n || out.extent[2] != shape().values())
      return Status::shape_mismatch;
    if (measure.mass.data != nullptr && !of_layer(l, measure.mass)) return Status::shape_mismatch;
    if (measure.reads != nullptr || measure.pages != nullptr) return Status::not_supported;
    if (n > std::max<index_t>(1, l.counters.pending)) return Status::order_violation;
    prim::AttendRequest r = request(queries, out);
    r.lse = measure.lse, r.mass = measure.mass, r.mass_rows = mass_rows(n);
    return prim::Attend<Cuda>::run(ctx, r, l.heads(), l.longest(), math);
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
  /// Empty again; waits for the stream.
  Status reset(Context<Cuda>& ctx) {
    Status s = ctx.wait();
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

 private:
  static constexpr index_t max_lanes = 10;
  static constexpr index_t max_position = 0x7fffffff;
  using Pipeline = decltype(std::declval<Evict>().pipeline());
  using Layer = cache::CudaLayer<KeyCodec, ValueCodec>;
  using Plan = typename Layer::Plan;
  static_assert(std::same_as<decltype(Pipeline::select), evict::TopK> || std::same_as<decltype(Pipeline::select), evict::Fixed>,
                "kvcondense: a cache on CUDA takes eviction methods that keep the best slots of each head, or its first and newest ones.");

  prim::AttendRequest request(TensorView<const float, 3> queries, TensorView<float, 3> out) const {
    return {queries, out, {}, {}, 0, shape().softmax_scale};
  }
  /// Whether a view was made by `ragged` for the slots that there are. Its offsets are the device's: nothing else can be seen.
  bool of_layer(const Layer& l, const RaggedView<const float>& v) const { return v.offset == l.device_offset() && v.heads == shape().kv_heads; }
  /// What the host writes in a step: counts, budgets, ends, the pipeline's shield; and what an allocator works with.
  std::size_t steering_bytes() const {
    return 2 * Scratch::bytes_for<index_t>(shape().kv_heads) + 2 * Scratch::bytes_for<prim::Ends>(shape().kv_heads) + Scratch::align +
           pipeline_.allocate.workspace_bytes(shape(), 0);
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
    p.keys = {exact, as_stored(key_codec_of(q, shape), shape.page_slots, shape.head_dim), key_flush_of(q, shape), q.sinks, shape.kv_heads, shape.head_dim, shape.page_slots};
    p.values = {exact, as_stored(value_codec_of(q, shape), shape.page_slots, shape.values()), value_flush_of(q, shape), q.sinks, shape.kv_heads, shape.values(),
                shape.page_slots};
    return p;
  }
  StepView<Cuda> step_view(index_t layer, Phase phase) const;
  Status check_input(const StepView<Cuda>& view, Input what) const;
  Status run_step(Context<Cuda>& ctx, index_t layer, const StepInputs& inputs, Phase phase);
  Status begin(Context<Cuda>& ctx, Layer& l, const StepView<Cuda>& view, Scratch& scratch, evict::KeepSet& keep, std::span<RaggedView<float>> lanes);
  Status commit(Context<Cuda>& ctx, Layer& l, const evict::KeepSet& keep, std::span<const RaggedView<float>> lanes, bool leaves, bool codes,
                const Scratch& scratch);
  bool count_kept(const StepView<Cuda>& view, const evict::KeepSet& keep, index_t* kept) const;

  R recipe_{};
  Pipeline pipeline_{};
  Plan plan_{};
  cuda::SteeringMemory steering_;  ///< outlives the layers
  cuda::DeviceArray<index_t> counts_;  ///< numbers that could not be stored, NaN scores
  bool counting_ = false;
  ObjectArray<Layer> layers_;
};

/// An empty cache on the current device, or why there is none.
template <std::same_as<Cuda> B, class R>
Expected<Cache<B, R>> make_cache(const CacheShape& shape, const R& recipe, MemoryResource<Cuda>& memory = cuda::device_memory()) {
  return Cache<B, R>::make(shape, recipe, memory);
}

}  // namespace kvcondense

#include <kvcondense/cache/cuda_cache_impl.cuh>
