#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/external/agree.hpp>
#include <kvcondense/external/borrowed.hpp>
#include <kvcondense/external/columns.hpp>
#include <kvcondense/external/move_rows.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/merge_links.hpp>

namespace kvcondense::external {

/// How the heads of a sequence come to the lists of slots they keep.
struct CondenserOptions {
  Sharing sharing = Sharing::per_head;
  Agreement agreement = Agreement::votes;
};

/// Decides for one sequence whose keys and values an engine holds: which slots stay, what folds into what. It never holds a row.
///
/// Idea     what a policy must remember (which token a slot holds, numbers per slot, the newest queries) is small and lives here;
///          rows are read where the engine has them, through a view that is borrowed for a call, and moved there.
/// Source   none; the policies are those of a Cache, block for block.
/// Needs    per layer and pass, after the engine has written the new rows behind the old ones: `step` with the rows and what the
///          policy wants. Attention that the engine does not hand over is measured from `inputs.queries`; a policy that looks at
///          the end of a prompt (snapkv) sees the newest queries of all its chunks. Then, where `leaves` says so, `compact`
///          (rows move to the front), or `relist` (the engine takes the places out of its table itself).
/// Shapes   any BorrowedLayer; what `step` saw must be there in `compact`, other tables of the same rows may be.
/// Cost     4 bytes per slot and head, 4 per lane of the policy, the queries of its window (of a policy that looks at the end of a
///          prompt only from the prompt's first chunk to the first token after it); between step and compact as much again, and
///          four numbers per slot with a merge stage: `bytes`. No copy of keys and values.
/// Numbers  decisions are those of a Cache with the same recipe, up to the rounding of attention that is measured here: exact
///          column sums instead of sums beside the output; where a Cache looks at the queries of a prompt's last chunk alone, they are
///          those of a Cache that got the prompt in one. Ties keep the smaller slot.
/// Errors   make: what validate says; incompatible: a merge stage without eviction, or with numbers of other rows; sets of heads
///          (kvmerger, tome, centroid) where heads share a list; not_supported: stages that store rows (quant, low rank,
///          position, retrieval), compensate, global_top, dmc, minicache, merging with one list for all layers.
///          step: as check(); order_violation: a decision waits for compact, or the layer whose choice this one takes over
///          (LayerReuse) was not here yet: incompatible, where it kept what this one lacks, as where one of them alone declined; not_supported: codes, where heads keep their own lists;
///          missing_input, shape_mismatch, out_of_memory,
///          workspace_too_small, what the policy says: the step has not happened, and may be called again.
template <class R>
class Condenser {
  using Evict = decltype(R::evict);
  using Merge = decltype(R::merge);
  using Pipeline = decltype(std::declval<const Evict&>().pipeline());
  using Merger = decltype(merger_of(std::declval<const Merge&>()));
  static constexpr bool can_fold = merge::Folds<Merger>;
  /// Stages that are chosen at run time bring words of their own.
  static constexpr bool compiled = requires(const Evict& e) { e.word(); };
  static_assert(compiled || requires { sizeof(Words<std::conditional_t<std::is_object_v<R>, Cpu, Cuda>>); },
                "kvcondense: a condenser of a recipe as a type wants kvcondense/cpu.hpp, include it too.");

 public:
  static Expected<Condenser> make(const CacheShape& shape, const R& recipe, CondenserOptions options = {},
                                  MemoryResource<Cpu>& memory = heap_memory());

  /// Scratch that any call needs while no head holds more than `slots` slots (new ones too), no call brings more than `tokens` tokens, and no
  /// pool has more than `pool_pages` pages.
  std::size_t workspace_bytes(index_t slots, index_t tokens, index_t pool_pages, index_t workers = 1) const;

  /// What a step wants to see; attention is made from queries where it is not given.
  Inputs needs() const { return needs(0); }
  /// The same of a layer, which asks for less where it takes over what another one chose.
  Inputs needs(index_t layer) const { return pipeline_.inputs(layer) | fold_.inputs; }
  /// Whether the coming step of a layer looks at attention, or is a chunk of a prompt whose last step will: then it wants queries of
  /// that many newest tokens. The mass serves too; with a chunk it says that the last step will have the whole mass as well.
  index_t attention_rows(index_t layer, index_t tokens, Phase phase = Phase::automatic) {
    const StepView<Cpu> view = coming(layer, tokens, phase);
    return reads_attention(view) || keeps_queries(view) ? attention().of(tokens) : 0;
  }
  /// The name of an input that the coming step needs and `inputs` lacks; null: it lacks nothing. "queries": attention is made of them,
  /// where its mass is not there.
  const char* missing(index_t layer, index_t tokens, const StepInputs& inputs, Phase phase = Phase::automatic);

  /// `tokens` rows were written behind the last slot of every head. positions: theirs, empty for the next consecutive ones.
  /// Phase::probe decides nothing and takes the tokens back; Phase::turn brings none.
  /// `rows`: a BorrowedLayer, or a CodedLayer.
  template <class Memory>
  Status step(Context<Cpu>& ctx, index_t layer, const Memory& rows, index_t tokens, const StepInputs& inputs = {},
              Phase phase = Phase::automatic, std::span<const index_t> positions = {});

  /// With one list for all layers, after the step of the last one: settles it. order_violation: a layer had no step, or there is nothing
  /// to settle any more. Where lists are not shared by layers there never is: ok.
  Status settle(Context<Cpu>& ctx);

  /// Whether slots leave (or rows change) in this layer: `compact` or `relist` comes next.
  bool leaves(index_t layer) const { return layers_[layer].waits && layers_[layer].leaves; }
  /// Which slots stay, per head; after the step, until `compact`, `relist` or `accept`.
  KeptLists kept(index_t layer) const {
    const Layer& l = layers_[layer];
    return {{l.kept.data(), l.now.offset.data(), shape_.kv_heads}, l.count.data()};
  }
  /// What folds into what, and how much each counts; no data without a merge stage.
  prim::MergeLinks links(index_t layer) {
    Layer& l = layers_[layer];
    if (!l.folds) return {};
    const auto view = [&](auto* data) { return RaggedView<std::remove_pointer_t<decltype(data)>>{data, l.now.offset.data(), shape_.kv_heads}; };
    const index_t total = l.now.total();
    return {view(l.to.data()), view(l.numbers.data()), view(l.numbers.data() + total), view(l.numbers.data() + 2 * total), fold_.fan};
  }

  /// Folds, and moves the rows that stay to the front. `to`: the table afterwards, empty for the same one; see MoveRows.
  Status compact(Context<Cpu>& ctx, index_t layer, const BorrowedLayer& rows, std::span<const std::int32_t> to = {},
                 std::span<const SlotBytes> numbers = {});
  /// Folds, and moves nothing: the engine drops the places from its table. Only where all heads keep the same slots.
  Status relist(Context<Cpu>& ctx, index_t layer, const BorrowedLayer& rows);

  /// The engine has done what was decided, with `CodedPages::keep` or by itself; no rows fold. Only where all heads keep the same.
  Status accept(index_t layer);
  /// The engine cannot do what was decided: all slots stay, and the next step decides anew. With one list for all layers: in each of
  /// them. not_supported where slots fold, whose numbers have been counted already.
  Status decline(index_t layer);

  /// Attention of the newest queries [q_heads, n, head_dim] over the slots of a layer and `tokens` new ones behind them, with what a
  /// merge stage adds to slots: for engines without kernels for lists that differ between heads. Errors as check().
  Status attend(Context<Cpu>& ctx, index_t layer, const BorrowedLayer& rows, index_t tokens, TensorView<const float, 3> queries,
                TensorView<float, 3> out, TensorView<float, 2> lse = {}) const;

  /// Indices are not checked, as those of a cache.
  index_t slots(index_t layer, index_t head) const { return layers_[layer].now.slots(head); }
  index_t longest(index_t layer) const {
    index_t n = 0;
    for (index_t h = 0; h < shape_.kv_heads; ++h) n = std::max(n, slots(layer, h));
    return n;
  }
  index_t length(index_t layer = 0) const { return layers_[layer].seen; }
  /// The token that a slot holds: its ordinal among all that ever came.
  index_t token(index_t layer, index_t head, index_t slot) const {
    return layers_[layer].now.ids[layers_[layer].now.offset[head] + slot];
  }
  /// What a merge stage adds to logits and multiplies values by, per slot: null where it does not.
  prim::SlotScalars scalars(index_t layer, index_t head) const {
    const Layer& l = layers_[layer];
    const auto row = [&](index_t lane) { return lane < 0 ? nullptr : l.now.lane(pipeline_.lanes() + lane) + l.now.offset[head]; };
    return {nullptr, row(fold_.bias), row(fold_.value_scale)};
  }

  /// Forgets all tokens from ordinal `tokens` on, as if they had never come. order_violation: a decision waits; but with one list for
  /// all layers one that is not settled is dropped, so that a pass whose later layer was refused can be taken back.
  Status truncate(index_t tokens);
  /// The same decisions from here on, for a sequence that begins with this one's tokens.
  Expected<Condenser> fork() const;

  /// What it has taken from its memory.
  std::size_t bytes() const;

  const CacheShape& shape() const { return shape_; }

 private:
  /// Numbers of slots, flat: heads behind each other, a lane behind the other.
  struct Slots {
    Buffer<index_t> offset;
    Buffer<std::int32_t> ids;
    Buffer<float> lanes;
    Buffer<float> state;  ///< of a merge stage, per head

    index_t slots(index_t h) const { return offset[h + 1] - offset[h]; }
    index_t total() const { return offset.back(); }
    std::size_t bytes() const { return offset.bytes() + ids.bytes() + lanes.bytes() + state.bytes(); }
    float* lane(index_t l) { return lanes.data() + l * total(); }
    const float* lane(index_t l) const { return lanes.data() + l * total(); }
  };
  struct Layer {
    Slots now, next;  ///< `next`: what the step in progress makes
    cache::QueryWindow window;         ///< of a policy that looks back at earlier steps
    cache::QueryWindow prompt_window;  ///< of one that looks at the end of a prompt, while its chunks come
    index_t seen = 0, prompt = 0, next_position = 0;
    index_t stepped = 0;  ///< tokens of all steps, those taken back too
    index_t ended = 0;  ///< tokens there when the newest prompt ended
    // What was decided and not done yet.
    Buffer<std::int32_t> kept, to, turn;
    Buffer<index_t> count;
    Buffer<float> numbers;  ///< likeness, key and value weights, of slots that fold
    Buffer<float> query;    ///< the newest one, for a fold that keeps its attention
    Buffer<prim::SlotRange> targets;
    bool waits = false, leaves = false, folds = false, settled = true;
  };

  AttentionNeed attention() const {
    const AttentionNeed a = pipeline_.attention();
    return a.rows == AttentionNeed::Rows::none ? fold_.attention : a;
  }
  AttentionNeed queries() const { return queries(0); }
  AttentionNeed queries(index_t layer) const {
    const AttentionNeed a = pipeline_.queries(layer), b = fold_.queries;
    return a.rows == AttentionNeed::Rows::none || (b.rows == a.rows && b.count > a.count) ? b : a;
  }
  bool reads_attention(const StepView<Cpu>& view) const {
    return pipeline_.reads_attention(view) ||
           (view.phase != Phase::turn && view.phase != Phase::probe && fold_.attention.rows != AttentionNeed::Rows::none);
  }
  index_t lanes() const { return pipeline_.lanes() + fold_.lanes; }
  /// Query rows that a prompt's last step looks at, however few it brings: those of a policy that reads attention there alone.
  index_t prompt_rows() const {
    const AttentionNeed a = pipeline_.attention();
    const bool once = pipeline_.lanes() == 0 && fold_.attention.rows == AttentionNeed::Rows::none;
    return once && a.rows == AttentionNeed::Rows::last && a.count > 1 ? a.count : 0;
  }
  bool keeps_queries(const StepView<Cpu>& view) const {
    return view.phase == Phase::prefill_chunk && prompt_rows() > 0 && !pipeline_.reuse.follows(view.layer);
  }
  static bool in_prompt(const StepView<Cpu>& view) { return view.phase == Phase::prefill_chunk || view.phase == Phase::prefill_end; }
  StepView<Cpu> coming(index_t layer, index_t tokens, Phase phase) {
    Layer& l = layers_[layer];
    for (index_t h = 0; h < shape_.kv_heads; ++h) l.next.offset[h + 1] = l.next.offset[h] + l.now.slots(h) + tokens;
    return step_view(l, layer, tokens, phase);
  }

  StepView<Cpu> step_view(const Layer& l, index_t layer, index_t tokens, Phase phase) const;
  Status check_input(const StepView<Cpu>& view, Input what) const;
  void remember(Layer& l, const StepView<Cpu>& view);
  Status grow(Layer& l, index_t tokens, std::span<const index_t> positions, bool probe);
  template <class Memory>
  Status decide(Context<Cpu>& ctx, Layer& l, StepView<Cpu> view, const Memory& rows, Scratch scratch);
  Status name_followed(StepView<Cpu>& view, Scratch& scratch) const;
  Status agree(index_t* count, std::int32_t* kept, const index_t* offset, Scratch scratch) const;
  Status plan_folds(Context<Cpu>& ctx, Layer& l, const StepView<Cpu>& view, const BorrowedLayer& rows, evict::LaneViews lanes, Scratch scratch);
  Status check_writes(const Layer& l, const BorrowedLayer& rows) const;
  void fold(Context<Cpu>& ctx, Layer& l, const BorrowedLayer& rows, Scratch scratch);
  void done(Layer& l);
  RaggedView<const float> lane_of(const Slots& s, index_t lane) const {
    return lane < 0 ? RaggedView<const float>{} : RaggedView<const float>{s.lane(pipeline_.lanes() + lane), s.offset.data(), shape_.kv_heads};
  }
  static Status copy(const Slots& from, Slots& to);

  CacheShape shape_{};
  R recipe_{};
  CondenserOptions options_{};
  Pipeline pipeline_{};
  Merger merger_{};
  merge::Traits fold_{};
  prim::RopeAngles angles_{};
  ObjectArray<Layer> layers_;
  MemoryResource<Cpu>* memory_ = nullptr;
};

/// The recipe's type is found: make_condenser(shape, recipe(evict::SnapKV{}), ...), or with the stages of a text.
template <class R>
Expected<Condenser<R>> make_condenser(const CacheShape& shape, const R& recipe, CondenserOptions options = {},
                                      MemoryResource<Cpu>& memory = heap_memory()) {
  return Condenser<R>::make(shape, recipe, options, memory);
}

}  // namespace kvcondense::external

#include <kvcondense/external/condenser_impl.hpp>
