#pragma once

#include <concepts>
#include <type_traits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::merge {

/// Whether keys can be turned as a place says.
inline Status check_place(Place place, const RopeConfig& rope, const CacheShape& shape) {
  return place == Place::as_cached ? Status::ok : prim::validate_rope(rope, shape.head_dim);
}

/// A value that names the blocks of a merge pipeline.
template <class P>
concept MergePolicy = Described<P> && (P::about.stage == Stage::merge) && Merges<P> && std::copyable<P> &&
                      requires(const P policy, const CacheShape& shape) {
                        { P::needs } -> std::convertible_to<Inputs>;
                        { policy.validate(shape) } -> std::same_as<Status>;
                        { policy.pipeline().traits() } -> std::same_as<Traits>;
                      };

/// The same requirements, one plain sentence per missing piece.
template <class P, Backend B>
consteval bool check_merge_policy() {
  static_assert(Described<P>, "kvcondense: a merge policy needs a member 'static constexpr kvcondense::Descriptor about'.");
  if constexpr (Described<P>)
    static_assert(P::about.stage == Stage::merge, "kvcondense: the stage in a merge policy's 'about' is Stage::merge.");
  static_assert(requires { { P::needs } -> std::convertible_to<Inputs>; },
                "kvcondense: a merge policy needs a member 'static constexpr kvcondense::Inputs needs'.");
  static_assert(requires(const P p, const CacheShape& s) { { p.validate(s) } -> std::same_as<Status>; },
                "kvcondense: a merge policy needs 'Status validate(const CacheShape&) const'.");
  static_assert(Merges<P>, "kvcondense: a merge policy needs 'pipeline() const' that returns a merge::Pipeline.");
  return true;
}

}  // namespace kvcondense::merge
