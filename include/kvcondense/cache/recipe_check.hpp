#pragma once

#include <initializer_list>

#include <kvcondense/cache/page.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/merge/pipeline.hpp>

// What a recipe is asked before a cache is made of it, whatever the backend.

namespace kvcondense::cache {

/// Whether the stages of a recipe fit a shape, and each other as far as their settings tell.
template <class R>
Status check_recipe(const CacheShape& shape, const R& recipe) {
  if (const Status s = validate(shape); s != Status::ok) return s;
  if (shape.page_slots > max_page_slots) return Status::invalid_argument;
  if (const Status s = recipe.evict.validate(shape); s != Status::ok) return s;
  if (const Status s = storage_of(recipe).validate(shape); s != Status::ok) return s;
  if (const Status s = recipe.position.validate(shape); s != Status::ok) return s;
  if (const Status s = recipe.merge.validate(shape); s != Status::ok) return s;
  if (const Status s = recipe.retrieve.validate(shape); s != Status::ok) return s;
  return keys_fit(recipe.retrieve, recipe.position) && takes_keys(recipe.lowrank, recipe.position.raw_keys) ? Status::ok : Status::incompatible;
}

/// One call of `attend` measures one set of rows.
inline bool one_set_of_rows(std::initializer_list<AttentionNeed> needs) {
  AttentionNeed first;
  for (const AttentionNeed& a : needs) {
    if (a.rows == AttentionNeed::Rows::none) continue;
    if (first.rows == AttentionNeed::Rows::none) first = a;
    if (a.rows != first.rows || (a.rows == AttentionNeed::Rows::last && a.count != first.count)) return false;
  }
  return true;
}

/// Whether what evicts, what folds and what grades slots (`grades`: by what attention) go together, and with the form of keys. `changes_length`: slots may leave
/// by the eviction stage.
template <class Evicts>
Status check_policies(const Evicts& evicts, const merge::Traits& fold, const AttentionNeed& grades, bool raw_keys, bool changes_length) {
  if (!one_set_of_rows({evicts.attention(), grades, fold.attention})) return Status::incompatible;
  // A stage that folds what leaves has nothing to do where nothing leaves.
  if (fold.active && !changes_length && !fold.shrinks) return Status::incompatible;
  // A layer that takes over what another one kept has no scores to share slots out by, and what folds among the slots that
  // stay, or before them, is not the same in both.
  const bool scored = evicts.allocate.uses_scores() || evict::model_share(evicts.allocate).keep > 0.0;
  if (evicts.reuse.active() && (scored || fold.shrinks || fold.gate.active)) return Status::incompatible;
  // Sets are each head's own; a policy that adds up the attention of all heads would mix them up.
  if (fold.shrinks && evicts.source.one_set() && evict::gives_shares(evicts.source)) return Status::incompatible;
  if (!raw_keys) return Status::ok;
  // Logits of raw keys depend on where slots stand, and their positions are their places.
  if (fold.mass == merge::Mass::exact || fold.position == merge::Place::latest) return Status::incompatible;
  // A mean of raw keys is no key, and neither is what a closed form of rotated ones makes of them.
  return evict::reads_rotated_keys(evicts.source) || evicts.residual != evict::Residual::none ? Status::incompatible : Status::ok;
}

}  // namespace kvcondense::cache
