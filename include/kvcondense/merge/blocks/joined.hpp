#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/join_gate.hpp>
#include <kvcondense/prim/merge_sets.hpp>

namespace kvcondense::merge {

/// Finder: slots whose tokens live on in a newer one, to that one. Tokens join before they are attended, as the gate says: see
/// `Traits::gate`. What an eviction stage lets go leaves for good.
struct Joined {
  prim::JoinGate join{};

  constexpr prim::JoinGate gate() const { return join; }

  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase != Phase::turn && view.phase != Phase::probe;
  }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Scratch&) const {
    return prim::MergeSets<B>::heirs(ctx, scene.heirs, scene.links);
  }
};

/// Weights: none, since what stays holds the sum already.
struct Summed {
  template <Backend B>
  Status run(Context<B>&, Scene<B>&, Mass, Scratch&) const {
    return Status::ok;
  }
};

}  // namespace kvcondense::merge
