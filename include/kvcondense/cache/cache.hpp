#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/cache/layer.hpp>
#include <kvcondense/cache/layer_columns.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/cache/recipe_check.hpp>
#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense {

namespace cache {
struct Folding;

/// What a selection says of one head.
inline Kept kept_of(const evict::KeepSet& keep, index_t head) {
  const index_t n = keep.count[head], slots = keep.slots.length(head);
  if (n == slots) return Kept::all(n);
  return keep.ends[head].prefix >= 0 ? Kept::ends(keep.ends[head], slots) : Kept::listed(keep.slots.row(head), n);
}
}  // namespace cache

/// The condensed KV cache of one sequence: all layers, ragged per KV head, in pages of the caller's
/// memory resource.
///
/// Order    per layer and forward pass: append, attend, step. A token is pending between its append
///          and the step that follows; several appends may share one step. `truncate` of pending
///          tokens restores the cache bit for bit. Once `attend_counted` has counted them, the step comes next.
/// Counters `length()` tokens ever seen; `slots(layer, head)` stored; `next_position()`.
/// Errors   every call that returns a Status leaves the cache as it was unless it returns ok; `turn` leaves each layer
///          as it was or with its turn done. Indices of calls that return no Status are not checked: a layer or head that is
///          not there is asserted, undefined with NDEBUG, and a slot is undefined.
/// Threads  one writer; const calls from many threads. Caches that share pages may live on different
///          threads when their resource allows it. A context with workers calls the resource from them.
template <Backend B, class R>
class Cache {
  static_assert(std::same_as<B, Cpu>, "kvcondense: include kvcondense/cuda.cuh for a cache on CUDA.");

 public:
  using Evict = decltype(R::evict);
  using Quant = decltype(R::quant);
  using Storage = decltype(storage_of(std::declval<R>()));
  using Position = decltype(R::position);
  using Merge = decltype(R::merge);
  using Retrieve = decltype(R::retrieve);
  static_assert(keys_can_fit<Retrieve, Position>(),
                "kvcondense: this retrieval stage scores keys without rotation: add position::Reindex or position::Rerotate.");
  using KeyCodec = decltype(key_codec_of(std::declval<Storage>(), CacheShape{}));
  using ValueCodec = decltype(value_codec_of(std::declval<Storage>(), CacheShape{}));
  using Layer = cache::Layer<KeyCodec, ValueCodec>;
  using Plan = typename Layer::Plan;

  /// An empty cache. Asks `memory` for the tables of all layers, for pages only when tokens come.
  static Expected<Cache> make(const CacheShape& shape, const R& recipe, MemoryResource<Cpu>& memory = heap_memory());

  const CacheShape& shape() const { return shape_; }
  const R& recipe() const { return recipe_; }
  Capabilities capabilities() const;

  index_t length(index_t layer = 0) const { return layers_[layer].counters.seen; }
  index_t pending(index_t layer = 0) const { return layers_[layer].counters.pending; }
  index_t next_position(index_t layer = 0) const { return layers_[layer].next_position(); }
  index_t slots(index_t layer, index_t head) const { return layers_[layer].heads[head].slots(); }
  /// Which token the slot holds: its ordinal among all tokens ever appended.
  index_t token(index_t layer, index_t head, index_t slot) const { return layers_[layer].heads[head].ids[slot]; }
  /// Slots of a layer, all heads together: the size of a mass buffer.
  index_t total_slots(index_t layer) const { return layers_[layer].total(); }
  /// `data` (total_slots(layer) numbers) as one number per (kv head, slot). Valid until slots change.
  RaggedView<float> ragged(index_t layer, float* data) const {
    return {data, layers_[layer].offset.data(), shape_.kv_heads};
  }
  /// Query rows of a chunk of `tokens` that the recipe's policy wants in the mass.
  index_t mass_rows(index_t tokens) const { return attention().of(tokens); }
  /// Whether the coming step of a layer reads the mass at all: ask between append and attend.
  bool wants_mass(index_t layer, Phase phase = Phase::automatic) const {
    return reads_attention(step_view(layer, phase));
  }

  /// Scratch that any call needs while no head holds more than `slots` slots (pending ones included)
  /// and no call brings more than `tokens` tokens. Pure.
  std::size_t workspace_bytes(index_t slots, index_t tokens, index_t workers = 1) const;

  /// Adds tokens to a layer: keys [kv_heads, tokens, head_dim], values [kv_heads, tokens, value_dim].
  ///
  /// positions: one per token, or empty for the next consecutive ones. Numbers that the stored type
  /// cannot hold (NaN, Inf, beyond its largest) are refused with invalid_argument.
  /// queries: [q_heads, tokens, head_dim] of these tokens; read only where `capabilities().joins_tokens`.
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status append(Context<B>& ctx, index_t layer, TensorView<K, 3> keys, TensorView<V, 3> values,
                std::span<const index_t> positions = {}, TensorView<const float, 3> queries = {}) {
    return append_rows<std::remove_const_t<K>>(ctx, layer, keys, values, positions, queries);
  }

  /// Attention of the newest tokens over everything stored: queries [q_heads, tokens, head_dim], out
  /// [q_heads, tokens, value_dim]. Causal among the newest tokens. Reads codes as they are.
  Status attend(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                const AttendOutputs& measure = {}) const;
  /// Whether `attend_counted` may take the place of `attend` for so many queries: the policy does nothing with the coming step's
  /// attention but add it to a number per slot, and what the step does then is known not to be refused. Ask where `wants_mass`.
  bool counts_attention(index_t layer, index_t tokens = 1, Phase phase = Phase::automatic) const;
  /// `attend`, which adds attention to the policy's sums as it finishes it: no mass is written, and the `step` that follows,
  /// with this phase, wants none. Both leave what `attend` with a mass and `step` leave, bit for bit. The step finds its memory
  /// made; where it is refused all the same (a smaller workspace, an input that is not there, pages forked since), what is
  /// counted stays so, and it may be called again.
  ///
  /// Errors   not_supported where `counts_attention` says no, workspace_too_small, out_of_memory: nothing was done, and `attend`
  ///          may do. order_violation: twice before a step, or with nothing pending. Until the step, append, truncate (of
  ///          tokens that are there), a probe and `save` are refused with order_violation too: sums cannot be taken back.
  Status attend_counted(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                        const AttendOutputs& measure = {}, Phase phase = Phase::automatic);
  /// Tells a provider that these slots are likely to be read soon, such as those that a layer read last: runs of every query
  /// head, ascending. Slots that are not there are passed over.
  Status expect(index_t layer, const ReadRuns& runs, PageProvider<B>& pages) const;

  /// Lets the recipe act on a layer: evict, then code what left the exact window.
  Status step(Context<B>& ctx, index_t layer, Phase phase = Phase::automatic)
    requires(needs<R>.empty())
  {
    return run_step(ctx, layer, {}, phase);
  }
  Status step(Context<B>& ctx, index_t layer, const AttentionView& attention, Phase phase = Phase::automatic)
    requires(needs<R>.within(Input::attention))
  {
    return run_step(ctx, layer, {attention, {}}, phase);
  }
  template <std::same_as<StepInputs> I>  // spelled out, so that braces mean an AttentionView
  Status step(Context<B>& ctx, index_t layer, const I& inputs, Phase phase = Phase::automatic) {
    return run_step(ctx, layer, inputs, phase);
  }
  template <class Asked = R>
    requires(!needs<Asked>.within(Input::attention))
  Status step(Context<B>&, index_t, const AttentionView&, Phase = Phase::automatic) {
    static_assert(detail::always_false<Asked>,
                  "kvcondense: this recipe's policy looks at more than attention: pass step its StepInputs, or call forward.");
    return Status::missing_input;
  }
  template <class Asked = R>
    requires(!needs<Asked>.within(Input::attention))
  Status step(Context<B>&, index_t, Phase = Phase::automatic) {
    static_assert(detail::always_false<Asked>,
                  "kvcondense: this recipe's policy looks at more than attention: pass step its StepInputs, or call forward.");
    return Status::missing_input;
  }
  template <class Asked = R>
    requires(needs<Asked> == Inputs(Input::attention))
  Status step(Context<B>&, index_t, Phase = Phase::automatic) {
    static_assert(detail::always_false<Asked>,
                  "kvcondense: this recipe evicts by attention: pass step the mass that attend measured, or call forward.");
    return Status::missing_input;
  }

  /// Before a turn of `incoming` tokens, while nothing is pending: every layer makes room, in one call,
  /// so that layers may share one budget. The same as `step` with Phase::turn for each layer otherwise.
  Status turn(Context<B>& ctx, index_t incoming = 0);

  /// append, attend and step in one call. It counts attention or measures the mass, and passes the queries on itself; what
  /// else the recipe needs comes in `inputs`.
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status forward(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<K, 3> keys,
                 TensorView<V, 3> values, TensorView<float, 3> out, std::span<const index_t> positions,
                 Phase phase, StepInputs inputs);
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status forward(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<K, 3> keys,
                 TensorView<V, 3> values, TensorView<float, 3> out, std::span<const index_t> positions = {},
                 Phase phase = Phase::automatic) {
    static_assert(detail::dependent<K>(needs<R>).within(Input::attention | Input::queries),
                  "kvcondense: this recipe's policy needs inputs that forward cannot make: pass it StepInputs.");
    return forward(ctx, layer, queries, keys, values, out, positions, phase, {});
  }
  /// The first input that the coming step of a layer needs and does not find in `inputs`, if any.
  const char* missing(index_t layer, const StepInputs& inputs, Phase phase = Phase::automatic) const;

  /// Forgets all tokens from ordinal `tokens` on, in every layer; order_violation where attention of one is counted. Where tokens go that a step has seen, `next_position()`
  /// goes back by one for each of them, not below 0: give positions that count otherwise with the next append.
  Status truncate(index_t tokens);
  /// Forgets the tokens [first, last) in every layer; later tokens keep ordinals and positions.
  Status remove(Context<B>& ctx, index_t first, index_t last);
  /// A second cache with the same content; pages are shared until one of the two writes.
  Expected<Cache> fork() const;
  /// Empty again; pages go back to the resource.
  void reset() {
    for (Layer& l : layers_) l.clear();
  }

  Report report() const;

  /// Decodes slots [first, first + rows) of a head into dense float rows, for inspection and tools.
  Status read(index_t layer, index_t head, index_t first, TensorView<float, 2> keys, TensorView<float, 2> values) const;

  /// Lets go the units that a schedule of the retrieval stage holds: the next call of `attend` chooses anew.
  void choose_anew() {
    for (Layer& l : layers_) l.held.drop();
  }

  /// The store itself, for snapshots and tools.
  const ObjectArray<Layer>& layers() const { return layers_; }
  ObjectArray<Layer>& layers() { return layers_; }
  MemoryResource<Cpu>& memory() const { return *memory_; }
  /// With raw keys: rotation tables for `slots` slots. Loaders call it; append does by itself.
  Status reserve_rotation(index_t slots) { return recipe_.position.raw_keys ? rope_.reserve(slots) : Status::ok; }
  const Plan& plan() const { return plan_; }
  /// Newest tokens of which a slot is the mean, where tokens join slots; 0: all.
  index_t join_window() const { return fold_.gate.window; }
  /// The layers, and the KV heads of each, that store rows together with this one.
  Span layer_group(index_t layer) const { return groups_.layers_of(shape_.layers, layer); }
  Span head_group(index_t head) const { return groups_.heads_of(shape_.kv_heads, head); }
  /// All such groups; of a low-rank stage when `sums()`, else of a merge stage.
  const RowGroups& groups() const { return groups_; }
  bool sums() const { return groups_.most() > 1 && !fold_.across.active; }
  /// Makes the index of the retrieval stage anew from what is stored. Loaders call it.
  Status rebuild_index();
  using Retrieval = decltype(std::declval<Retrieve>().pipeline());
  const Retrieval& retrieval() const { return retrieval_; }
  static constexpr bool may_retrieve = !std::same_as<Retrieval, retrieve::ReadAll::Nothing>;

 private:
  Plan make_plan() const;
  void finish_plan();
  typename Layer::Codecs paired(typename Layer::Codecs codecs, HeadIndex at) const;
  using Pipeline = decltype(std::declval<Evict>().pipeline());
  using Saliency = decltype(saliency_of(std::declval<Storage>()));
  using Merger = decltype(merger_of(std::declval<Merge>()));
  static constexpr bool can_merge = merge::Folds<Merger>;

  // What eviction, the saliency of a quant stage and a merge stage look at together.
  AttentionNeed attention() const {
    const AttentionNeed evicts = pipeline_.attention(), saliency = graded_ ? saliency_.attention() : AttentionNeed{};
    return joined(joined(evicts, saliency), fold_.attention);
  }
  AttentionNeed queries() const { return queries(0); }
  AttentionNeed queries(index_t layer) const {
    return joined(joined(pipeline_.queries(layer), graded_ ? saliency_.queries() : AttentionNeed{}), fold_.queries);
  }
  static AttentionNeed joined(AttentionNeed a, AttentionNeed b) {
    return a.rows == AttentionNeed::Rows::none || (b.rows == a.rows && b.count > a.count) ? b : a;
  }
  Inputs inputs(index_t layer) const {
    Inputs all = pipeline_.inputs(layer);
    if (graded_) all = all | saliency_.inputs();
    all = all | fold_.inputs;
    return plan_.codec_queries || retrieval_.holds() || retrieval_.fit_queries() || plan_.drawn > 0 ? all | Input::queries : all;
  }
  bool reads_attention(const StepView<B>& view) const {
    const bool step = view.phase != Phase::turn && view.phase != Phase::probe;
    return pipeline_.reads_attention(view) ||
           (step && ((graded_ && saliency_.attention().rows != AttentionNeed::Rows::none) ||
                     fold_.attention.rows != AttentionNeed::Rows::none));
  }
  /// Scores by which slots that are about to be coded are told apart; of no data when none are.
  Status grade(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes, const evict::KeepSet& keep,
               RaggedView<float>& scores, Scratch& scratch) const;

  /// What the merge stage makes of what eviction decided; `keep` becomes what is left.
  Status fold(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes, const evict::KeepSet& keep,
              cache::Folding& out, Scratch& scratch) const;
  std::size_t fold_bytes(index_t total) const;
  void mark_places(const Layer& layer, RaggedView<float> places) const;
  Status reserve_fold(Layer& layer, const cache::Folding& folding);
  void commit_fold(Context<B>& ctx, Layer& layer, const cache::Folding& folding, TensorView<const float, 3> queries);

  // Rows that layers store together: cache_across.hpp.
  std::size_t across_bytes(index_t slots, index_t workers) const;
  index_t across_floats(index_t slots, index_t dim) const;
  index_t group_slots(index_t layer) const;
  void share_rows(Context<B>& ctx, index_t layer);

  StepView<B> step_view(index_t layer, Phase phase) const;
  Status check_input(const StepView<B>& view, Input what) const;
  Status check_inputs(const StepView<B>& view) const;
  Status run_step(Context<B>& ctx, index_t layer, const StepInputs& inputs, Phase phase,
                  const index_t* model_budget = nullptr);
  Status name_followed(StepView<B>& view, Scratch& scratch) const;
  Status share_model(Context<B>& ctx, evict::ModelShare share, index_t* budget, Scratch scratch);
  /// What turns stored dot products into logits.
  float logit_scale() const {
    const bool raw = recipe_.position.raw_keys;
    return shape_.softmax_scale * (raw ? rope_.logit_scale(recipe_.position.rotated_input) : 1.0f);
  }
  // Numbers that are added to where they lie: cache_count.hpp.
  bool knows_refusals(const StepView<B>& view) const;
  Status make_room(Layer& l, const StepView<B>& view, std::size_t workspace, index_t workers) const;
  bool lends_lanes(Layer& l, const StepView<B>& view, std::size_t workspace, index_t workers) const;
  bool take_columns(const Layer& l, const StepView<B>& view, index_t workers, Scratch& scratch, std::span<std::byte>& out) const;
  Status attend_to(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                   const AttendOutputs& measure, const prim::AttentionSums& counted) const;
  Status commit(Context<B>& ctx, index_t layer, const evict::KeepSet& keep, std::span<const RaggedView<float>> lanes,
                RaggedView<float> scores, TensorView<const float, 3> queries, const cache::Folding& folding, bool learns, Scratch scratch);
  // Retrieval: cache_retrieve.hpp.
  bool chooses(index_t layer, index_t tokens) const;
  std::size_t choice_bytes(index_t slots, index_t tokens) const;
  bool read_view(index_t layer, TensorView<const float, 3> queries, index_t tokens, index_t prompt, index_t end, Scratch& scratch,
                 retrieve::ReadView<B>& view) const;
  Status attend_chosen(Context<B>& ctx, index_t layer, const prim::AttendRequest& request, const cache::ReadRotation& rotation,
                       const AttendOutputs& measure) const;
  Status attend_all(Context<B>& ctx, index_t layer, const prim::AttendRequest& request, const cache::ReadRotation& rotation,
                    const AttendOutputs& measure, const prim::AttentionSums& counted = {}) const;
  template <class Runs>
  void count_reads(index_t layer, index_t rows, Runs&& runs, ReadCounts& reads) const;
  template <class Runs, class Use>
  Status name_pages(index_t layer, index_t rows, Runs&& runs, Use&& use) const;
  template <class RunsOf>
  Status list_scalars(const Layer& l, index_t rows, RunsOf&& runs_of, const index_t* run_count, const index_t* total, float* bias,
                      Scratch& scratch, prim::SlotScalars& out) const;
  std::size_t fit_bytes(index_t slots, index_t workers) const;
  void learn_prompt(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries);
  Status reserve_index(index_t layer, bool learns);
  void refresh_index(const Context<B>& ctx, index_t layer, index_t pending);
  void hold_units(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, Phase phase, bool evicted);
  Status watch(Context<B>& ctx, const StepView<B>& view, float* sums) const;
  void keep_drawn(Layer& layer, const evict::KeepSet& keep, const float* sums);
  /// How far a slot may be from a query; 0: any distance.
  index_t reach() const { return recipe_.position.raw_keys ? retrieval_.reach() : 0; }
  /// Keys of an index are turned by their slots where they are stored raw, unless the index wants them raw.
  const prim::RopeTable* key_rotation() const {
    return recipe_.position.raw_keys && recipe_.retrieve.keys != retrieve::KeyState::raw ? &rope_ : nullptr;
  }

  template <class T>
  Status append_rows(Context<B>& ctx, index_t layer, TensorView<const T, 3> keys, TensorView<const T, 3> values,
                     std::span<const index_t> positions, TensorView<const float, 3> queries);
  // Tokens that join slots: cache_join.hpp.
  const prim::RopeConfig& turning_rope() const {
    return recipe_.position.raw_keys && fold_.gate.active ? recipe_.position.rope : fold_.rope;
  }
  const prim::ControlComponent* control() const { return fold_.gate.active ? &control_ : nullptr; }
  float joining_query(index_t head, index_t token, TensorView<const float, 3> queries, index_t position) const;
  Status check_join(const Layer& l, index_t tokens, TensorView<const float, 3> queries, std::span<const index_t> positions) const;
  template <class T>
  void join_rows(Layer& l, index_t head, TensorView<const T, 3> keys, TensorView<const T, 3> values,
                 TensorView<const float, 3> queries, std::span<const index_t> positions, index_t sinks) const;
  template <class T>
  Status check_append(index_t layer, const TensorView<const T, 3>& keys, const TensorView<const T, 3>& values,
                      std::span<const index_t> positions) const;
  void truncate_layer(index_t layer, index_t newest);

  CacheShape shape_{};
  R recipe_{};
  Pipeline pipeline_{};
  Saliency saliency_{};
  Retrieval retrieval_{};
  bool graded_ = false;  ///< codecs tell slots apart by `saliency_`
  Merger merger_{};
  merge::Traits fold_{};        ///< of the merge stage; neutral without one
  RowGroups groups_{};          ///< heads that store rows together
  prim::RopeAngles fold_angles_{};
  prim::ControlComponent control_{};
  bool merging_ = false;
  bool found_ = false;  ///< columns are mapped by what their rows showed
  Plan plan_{};
  MemoryResource<Cpu>* memory_ = nullptr;
  ObjectArray<Layer> layers_;
  prim::RopeTable rope_;  ///< only with raw keys
};

/// An empty cache for one sequence, or why there is none: invalid_argument (shape or a knob of the recipe), incompatible (stages
/// that may not meet), missing_input (an array of the model), shape_mismatch (one of another model), not_supported, out_of_memory.
template <Backend B, class R>
Expected<Cache<B, R>> make_cache(const CacheShape& shape, const R& recipe, MemoryResource<B>& memory = heap_memory()) {
  return Cache<B, R>::make(shape, recipe, memory);
}

/// caches[i] becomes a copy of the old caches[map[i]], as beam search wants it; pages are shared.
template <Backend B, class R>
Status reorder(std::span<Cache<B, R>> caches, std::span<const index_t> map) {
  const auto n = static_cast<index_t>(caches.size());
  if (map.size() != caches.size()) return Status::shape_mismatch;
  for (const index_t m : map)
    if (m < 0 || m >= n) return Status::out_of_range;
  if (n == 0) return Status::ok;
  ObjectArray<Cache<B, R>> next;
  Status failed = Status::ok;
  const Status made = next.fill(caches[0].memory(), n, [&](index_t i) {
    auto copy = caches[static_cast<std::size_t>(map[static_cast<std::size_t>(i)])].fork();
    if (!copy) failed = copy.status();
    return copy ? std::move(*copy) : Cache<B, R>{};
  });
  if (made != Status::ok) return made;
  if (failed != Status::ok) return failed;
  for (index_t i = 0; i < n; ++i) caches[static_cast<std::size_t>(i)] = std::move(next[i]);
  return Status::ok;
}

}  // namespace kvcondense

#include <kvcondense/cache/cache_impl.hpp>
