#pragma once

#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// One rule per pair of stages that needs one, with its reason. Pairs without a rule are allowed and
/// tested.
template <class E, class Q, class P>
constexpr Status compatible(const Recipe<E, Q, P>&) {
  return Status::ok;
}

}  // namespace kvcondense
