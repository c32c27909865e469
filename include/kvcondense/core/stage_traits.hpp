#pragma once

#include <concepts>
#include <type_traits>

#include <kvcondense/core/model_arrays.hpp>

namespace kvcondense {

/// What a stage wants of a model that no step brings. A stage's struct says so: by a member `output`, by a function
/// `missing()`, and by the static members that are named like the flags below.
struct StageTraits {
  bool output_weights = false;  ///< the model's output projections
  bool calibrated = false;      ///< arrays that were made from the model beforehand
  bool trained = false;         ///< a model that was trained with the method
  bool key_norms = false;       ///< keys of different lengths: it tells tokens apart by nothing else
  bool key_weights = false;     ///< keys that are a linear map of the layer's input: its arrays come from that map's weights

  constexpr StageTraits operator|(const StageTraits& o) const {
    return {output_weights || o.output_weights, calibrated || o.calibrated, trained || o.trained, key_norms || o.key_norms,
            key_weights || o.key_weights};
  }
};

/// Of a type, with what it wraps (members `policy`, `base`; `keys` and `values`, where these are stages). What depends on
/// fields (a function `traits()`) is as it is by default.
template <class S>
constexpr StageTraits stage_traits() {
  if constexpr (requires { typename std::bool_constant<(S{}.traits() | StageTraits{}).trained>; }) return S{}.traits();
  StageTraits t;
  t.output_weights = requires(S s) { { s.output } -> std::convertible_to<const LayerMatrices&>; };
  t.calibrated = requires(const S s) { s.missing(); } && !t.output_weights;
  if constexpr (requires { S::trained; }) t.trained = S::trained;
  if constexpr (requires { S::key_norms; }) t.key_norms = S::key_norms;
  if constexpr (requires { S::key_weights; }) t.key_weights = S::key_weights;
  if constexpr (requires(S s) { s.policy; }) t = t | stage_traits<std::remove_cvref_t<decltype(S::policy)>>();
  if constexpr (requires(S s) { s.base; }) t = t | stage_traits<std::remove_cvref_t<decltype(S::base)>>();
  if constexpr (requires(S s) { s.keys.about; s.values.about; })
    t = t | stage_traits<std::remove_cvref_t<decltype(S::keys)>>() | stage_traits<std::remove_cvref_t<decltype(S::values)>>();
  return t;
}

/// Of a value: stages whose fields say what they want, and those that are chosen at run time, answer for themselves.
template <class S>
constexpr StageTraits traits_of(const S& stage) {
  if constexpr (requires { { stage.traits() } -> std::same_as<StageTraits>; }) return stage.traits();
  else {
    StageTraits t = stage_traits<S>();
    if constexpr (requires { stage.policy; }) t = t | traits_of(stage.policy);
    if constexpr (requires { stage.base; }) t = t | traits_of(stage.base);
    return t;
  }
}

}  // namespace kvcondense
