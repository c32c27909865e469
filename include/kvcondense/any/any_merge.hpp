#pragma once

#include <utility>

#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/pipeline.hpp>

namespace kvcondense::any {
namespace detail {

using MergeRoom = InlineValue<320>;

struct MergeTable {
  merge::Traits (*traits)(const MergeRoom&);
  std::size_t (*workspace_bytes)(const MergeRoom&, const CacheShape&, index_t);
  Status (*observe)(const MergeRoom&, Context<Cpu>&, const StepView<Cpu>&, evict::LaneViews);
  bool (*fires)(const MergeRoom&, const StepView<Cpu>&);
  void (*truncate)(const MergeRoom&, index_t, float*);
  Status (*decide)(const MergeRoom&, Context<Cpu>&, const merge::Scene<Cpu>&, evict::LaneViews, const evict::KeepSet&,
                   RaggedView<std::int32_t>, index_t*, const Scratch&);
  Status (*validate)(const MergeRoom&, const CacheShape&);
  const char* word;
  StageTraits traits_of_stage;

  template <class M>
  static consteval MergeTable of() {
    MergeTable t{};
    t.validate = [](const MergeRoom& m, const CacheShape& s) { return m.as<M>().validate(s); };
    t.word = M::about.word;
    t.traits_of_stage = stage_traits<M>();
    if constexpr (merge::Merges<M>) t.traits = [](const MergeRoom& m) { return m.as<M>().pipeline().traits(); };
    if constexpr (merge::Folds<decltype(merger_of(std::declval<M>()))>) {
      t.workspace_bytes = [](const MergeRoom& m, const CacheShape& s, index_t n) { return m.as<M>().pipeline().workspace_bytes(s, n); };
      t.observe = [](const MergeRoom& m, Context<Cpu>& c, const StepView<Cpu>& v, evict::LaneViews l) {
        return m.as<M>().pipeline().observe(c, v, l);
      };
      t.fires = [](const MergeRoom& m, const StepView<Cpu>& v) { return m.as<M>().pipeline().fires(v); };
      t.truncate = [](const MergeRoom& m, index_t tokens, float* state) { m.as<M>().pipeline().truncate(tokens, state); };
      t.decide = [](const MergeRoom& m, Context<Cpu>& c, const merge::Scene<Cpu>& scene, evict::LaneViews l,
                    const evict::KeepSet& k, RaggedView<std::int32_t> turn, index_t* folded, const Scratch& s) {
        return m.as<M>().pipeline().decide(c, scene, l, k, turn, folded, s);
      };
    }
    return t;
  }
};
template <class M>
inline constexpr MergeTable merge_table = MergeTable::of<M>();

}  // namespace detail

/// Any merge pipeline as a value; one that folds nothing has traits that say so, and nothing else is asked of it.
class AnyMerger {
 public:
  AnyMerger() = default;
  AnyMerger(const detail::MergeRoom& room, const detail::MergeTable* table) : room_(room), table_(table) {}

  merge::Traits traits() const {
    return table_ == nullptr || table_->traits == nullptr ? merge::Traits{} : table_->traits(room_);
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const { return table_->workspace_bytes(room_, shape, slots); }
  Status observe(Context<Cpu>& ctx, const StepView<Cpu>& view, evict::LaneViews lanes) const {
    return table_->observe(room_, ctx, view, lanes);
  }
  bool fires(const StepView<Cpu>& view) const { return table_->fires(room_, view); }
  void truncate(index_t tokens, float* state) const { table_->truncate(room_, tokens, state); }
  Status decide(Context<Cpu>& ctx, const merge::Scene<Cpu>& scene, evict::LaneViews lanes, const evict::KeepSet& keep,
                RaggedView<std::int32_t> turn, index_t* folded, const Scratch& scratch) const {
    return table_->decide(room_, ctx, scene, lanes, keep, turn, folded, scratch);
  }

 private:
  detail::MergeRoom room_;
  const detail::MergeTable* table_ = nullptr;
};

/// Any merge stage as a value. Trivially copyable.
class AnyMerge {
 public:
  static constexpr Descriptor about{"any", Stage::merge, "chosen at run time"};
  static constexpr Inputs needs = Inputs::all();  ///< at most

  AnyMerge() : AnyMerge(NoMerge{}) {}
  template <class M>
  requires(Described<M> && !std::same_as<M, AnyMerge>) explicit AnyMerge(const M& stage)
      : room_(stage), table_(&detail::merge_table<M>) {}

  AnyMerger pipeline() const { return {room_, table_}; }
  Status validate(const CacheShape& shape) const { return table_->validate(room_, shape); }
  const char* word() const { return table_->word; }
  StageTraits traits() const { return table_->traits_of_stage; }

 private:
  detail::MergeRoom room_;
  const detail::MergeTable* table_;
};

}  // namespace kvcondense::any
