#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/join_gate.hpp>
#include <kvcondense/prim/merge_sets.hpp>
#include <kvcondense/prim/merge_weights.hpp>
#include <kvcondense/prim/rope_config.hpp>
#include <kvcondense/prim/segmented_combine.hpp>
#include <kvcondense/prim/shared_direction.hpp>

namespace kvcondense::merge {

using prim::RopeConfig;

/// What keeps the attention that a slot draws in step with what it stands for.
enum class Mass : std::uint8_t {
  none,         ///< nothing: it competes as one slot
  log_count,    ///< the logarithm of the number of its tokens is added to its logit
  exact,        ///< what makes it, for the newest query, as heavy as its members were
  value_scale,  ///< its value counts as often as it has tokens
};

/// Where keys stand while they are summed.
enum class Place : std::uint8_t {
  as_cached,  ///< each where it is
  pivot,      ///< all turned to the position of the slot they fold into
  latest,     ///< all turned to the newest of their positions, which the slot takes over
};

/// Which rows are summed; the others of a target stay as they are.
enum class Target : std::uint8_t {
  keys_and_values,
  values,
  none,  ///< what stays holds the sum already
};

/// How neighbouring layers store rows together: once per pair of layers the direction, in each its length.
struct Across {
  bool active = false;
  float start = 0.5f;  ///< part of the layers, the first ones, that share nothing
  index_t recent = 0;  ///< newest slots that stay in each layer
  prim::DirectionRule rule{};

  /// The first layer of the first pair.
  index_t first(const CacheShape& shape) const {
    return static_cast<index_t>(static_cast<double>(start) * static_cast<double>(shape.layers) + 1e-6);
  }
  RowGroups groups(const CacheShape& shape) const { return active ? RowGroups{first(shape), 2} : RowGroups{}; }
};

/// What a cache must know of a merge stage before it runs.
struct Traits {
  bool active = false;
  AttentionNeed attention{};
  AttentionNeed queries{};
  Inputs inputs{};
  index_t lanes = 0;  ///< numbers per slot, the first of them the source's
  index_t state = 0;  ///< numbers per head that last between steps
  // Lanes with a meaning of their own; -1: not there.
  index_t sizes = -1;        ///< logarithm of the number of tokens
  index_t bias = -1;         ///< added to the logit; may be `sizes`
  index_t value_scale = -1;  ///< multiplies the value
  index_t place = -1;        ///< position, as bits
  Target target = Target::keys_and_values;
  prim::RowSplit split = prim::RowSplit::none;
  index_t fan = 1;
  Mass mass = Mass::none;
  Place position = Place::as_cached;
  prim::JoinGate gate{};  ///< active: tokens join the newest slot before they are attended
  bool shrinks = false;  ///< slots fold that no eviction stage lets go
  RopeConfig rope{};     ///< how keys turn, where they do
  Across across{};       ///< of a stage that folds nothing
};

/// One step of one layer as finders, thresholds and weights see it.
template <Backend B>
struct Scene {
  const StepView<B>* view = nullptr;
  const prim::SlotRange* targets = nullptr;    ///< per head: slots that may be written
  RaggedView<const std::int32_t> tokens{};     ///< ordinals
  evict::LaneViews lanes{};                    ///< the source's
  RaggedView<float> scores{};                  ///< of the source, where a block reads them
  RaggedView<float> sizes{};                   ///< lane, or empty
  RaggedView<const std::int32_t> heirs{};      ///< with a gate: the slot that holds what a slot held; its own where it does itself
  TensorView<float, 2> state{};                ///< a threshold's, [heads, floats], behind those of the finder
  prim::MergeLinks links{};
  const index_t* stay = nullptr;               ///< per head: slots that no eviction stage lets go, where the host reads it; null: what `keep` counts
  TensorView<float, 2> found{};                ///< the finder's, [heads, floats], where the host reads it; of no data: in `state`

  index_t heads() const { return view->heads(); }
};

/// What a finder of sets among the slots that stay says of a step; finders that fold what an eviction stage lets go
/// do not say it.
template <class Finder, Backend B>
bool finds_sets(const Finder& finder, const StepView<B>& view) {
  if constexpr (requires { finder.fires(view); }) return finder.fires(view);
  else return false;
}
template <class Block>
constexpr bool reads_scores(const Block& block) {
  if constexpr (requires { block.reads_scores(); }) return block.reads_scores();
  else return false;
}
template <class Block>
constexpr index_t state_floats(const Block& block) {
  if constexpr (requires { block.state_floats(); }) return block.state_floats();
  else return 0;
}
template <class Weights>
constexpr bool reads_sizes(const Weights& weights) {
  if constexpr (requires { weights.reads_sizes(); }) return weights.reads_sizes();
  else return false;
}
template <class Finder>
constexpr index_t fan_of(const Finder& finder) {
  if constexpr (requires { finder.fan; }) return finder.fan;
  else return 1;
}

/// One merge method as a value: which blocks it is made of, in the order in which they run.
///
///   source     as an eviction pipeline's: scores, and the lanes they are made of
///   finder     run(ctx, Scene&, Scratch&) -> Status      links slots to those they may fold into: unlinked ones, which an
///                                                       eviction stage let go, or such that stay
///              fires(view) -> bool (may be left out)    finds sets among the slots that stay in this step
///              seeks(view, float found) -> bool (may be left out)   whether it then has something to do, by the first of a head's
///                                                       numbers; what it writes of them, and for words, lies in steering memory
///              truncate(tokens, float* state) (may be left out)    what its numbers are when tokens from there on are gone
///              gate() -> prim::JoinGate (may be left out)  tokens join the newest slot before they are attended
///   threshold  run(ctx, Scene&) -> Status                which links hold
///   weights    run(ctx, Scene&, Mass, Scratch&) -> Status    what counts how much in a sum
///              reads_sizes() -> bool (may be left out)  knows how many tokens slots stand for
///              owns_mass() -> bool (may be left out)    writes sizes itself
/// Each may have reads_scores() -> bool, state_floats() -> index_t (numbers per head) and
/// workspace_bytes(shape, slots). Then come what is summed, and how: target, split, mass, position.
template <class Source, class Finder, class Threshold, class Weights>
struct Pipeline {
  Source source;
  Finder finder;
  Threshold threshold;
  Weights weights;
  Target target = Target::keys_and_values;
  prim::RowSplit split = prim::RowSplit::none;
  Mass mass = Mass::none;
  Place position = Place::as_cached;
  RopeConfig rope{};

  constexpr Traits traits() const {
    Traits t;
    t.active = true;
    t.attention = source.attention();
    t.queries = evict::query_need(source);
    t.inputs = evict::input_need(source);
    if (t.attention.rows != AttentionNeed::Rows::none) t.inputs = t.inputs | Input::attention;
    if (mass == Mass::exact || t.queries.rows != AttentionNeed::Rows::none) t.inputs = t.inputs | Input::queries;
    t.lanes = source.lanes();
    if (mass == Mass::log_count || reads_sizes(weights)) t.sizes = t.lanes++;
    if (mass == Mass::log_count) t.bias = t.sizes;
    if (mass == Mass::exact) t.bias = t.lanes++;
    if (mass == Mass::value_scale) t.value_scale = t.lanes++;
    if (position != Place::as_cached) t.place = t.lanes++;
    t.state = state_floats(finder) + state_floats(threshold);
    if constexpr (requires { finder.gate(); }) t.gate = finder.gate();
    t.target = target, t.split = split, t.fan = fan_of(finder), t.mass = mass, t.position = position, t.rope = rope;
    t.shrinks = requires { finder.fires(StepView<Cpu>{}); };
    return t;
  }

  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    const auto of = [&](const auto& block) {
      if constexpr (requires { block.workspace_bytes(shape, slots); }) return block.workspace_bytes(shape, slots);
      else return std::size_t{0};
    };
    return Scratch::bytes_for<float>(slots) + std::max({of(source), of(finder), of(weights)});
  }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes) const {
    const evict::LaneViews own = lanes.first(static_cast<std::size_t>(source.lanes()));
    if (view.phase == Phase::turn) return evict::observe_turn(source, ctx, view, own);
    return source.observe(ctx, view, own);
  }

  /// What the finder writes on the host, at most: see Scratch::take_steering.
  std::size_t steering_bytes(const CacheShape& shape) const {
    if constexpr (requires { finder.workspace_bytes(shape, index_t{}); }) return finder.workspace_bytes(shape, 0);
    else return 0;
  }

  /// `found`: the finder's numbers, which may tell that it has nothing to do.
  template <Backend B>
  bool fires(const StepView<B>& view, TensorView<const float, 2> found = {}) const {
    if (found.data == nullptr || !finds_sets(finder, view)) return finds_sets(finder, view);
    if constexpr (requires { finder.seeks(view, 0.0f); }) {
      bool seeks = false;
      for (index_t h = 0; h < view.heads(); ++h) seeks = seeks || finder.seeks(view, found(h, 0));
      return seeks;
    }
    return true;
  }

  /// What the numbers of a head are when all tokens from ordinal `tokens` on are gone.
  void truncate(index_t tokens, float* state) const {
    if constexpr (requires { finder.truncate(tokens, state); }) finder.truncate(tokens, state);
  }

  /// Links of a step, after eviction said which slots stay: `keep` goes in with those, and comes out with what is left
  /// of them. `lanes` are the stage's own, copies; `folded`: per head, how many slots fold.
  template <Backend B>
  Status decide(Context<B>& ctx, Scene<B> scene, evict::LaneViews lanes, const evict::KeepSet& keep,
                RaggedView<std::int32_t> turn, index_t* folded, Scratch scratch) const {
    const Traits t = traits();
    scene.lanes = lanes.first(static_cast<std::size_t>(source.lanes()));
    if (t.sizes >= 0) scene.sizes = lanes[static_cast<std::size_t>(t.sizes)];
    scene.links.fan = t.fan;
    if (scene.stay == nullptr) scene.stay = keep.count;
    if (scene.found.data == nullptr) scene.found = scene.state;
    Status s = prim::MergeSets<B>::begin(ctx, keep.slots, keep.count, scene.links);
    if (s == Status::ok && (reads_scores(finder) || reads_scores(threshold) || reads_scores(weights))) {
      scene.scores = scene.view->ragged(scratch.take<float>(scene.view->total()));
      if (scene.scores.data == nullptr) return Status::workspace_too_small;
      Scratch own = scratch;
      s = source.score(ctx, *scene.view, scene.lanes, scene.scores, own);
    }
    Scratch own = scratch;
    if (s == Status::ok) s = finder.run(ctx, scene, own);
    if (s == Status::ok) s = prim::MergeSets<B>::drop(ctx, scene.links);
    if (scene.state.data != nullptr) scene.state.data += state_floats(finder);
    if (s == Status::ok) s = threshold.run(ctx, scene);
    own = scratch;
    if (s == Status::ok) s = weights.run(ctx, scene, mass, own);
    constexpr bool own_mass = requires { weights.owns_mass(); };
    if (s == Status::ok && t.sizes >= 0 && !own_mass)
      s = prim::MergeWeights<B>::add_sizes(ctx, scene.targets, scene.links, scene.sizes, scene.view->total());
    if (s == Status::ok && t.value_scale >= 0)
      s = prim::MergeWeights<B>::add_scales(ctx, scene.targets, scene.links, lanes[static_cast<std::size_t>(t.value_scale)], scene.view->total());
    if (s == Status::ok && t.place >= 0)
      s = prim::MergeWeights<B>::places(ctx, position == Place::latest, scene.links, lanes[static_cast<std::size_t>(t.place)], turn);
    if (s != Status::ok) return s;
    return prim::MergeSets<B>::end(ctx, scene.links, keep.slots, keep.count, folded);
  }
};

template <class Source, class Finder, class Threshold, class Weights, class... Rest>
Pipeline(Source, Finder, Threshold, Weights, Rest...) -> Pipeline<Source, Finder, Threshold, Weights>;

/// Whether a stage merges at all: the one of a recipe that names none does not.
template <class P>
concept Merges = requires(const P stage) { stage.pipeline().traits(); };

/// Whether what a stage's `pipeline()` returns folds slots of a layer.
template <class M>
concept Folds = requires(const M merger, const StepView<Cpu> view) { merger.fires(view); };

/// What a stage that only stores rows of two layers together is made of.
struct AcrossLayers {
  Across across;
  constexpr Traits traits() const {
    Traits t;
    t.across = across;
    return t;
  }
};

}  // namespace kvcondense::merge
