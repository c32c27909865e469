#pragma once

#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Leaves the first and the last layers exact, and has any quantizer code the others.
///
/// Idea     errors of the first layers pass through all others, those of the last ones go straight into the logits: a few
///          exact layers cost little and save most.
/// Source   the vLLM project's TurboQuant backend, which leaves two at each end; KVTuner, arXiv:2502.04420, measures such layers.
/// Needs    what the quantizer needs.
/// Shapes   those of the quantizer; in exact layers no token ever leaves the exact window.
/// Cost     the quantizer's in layers - first - last layers, 16 bits per number in the others.
/// Numbers  those of the quantizer.
/// Errors   invalid_argument when first or last is negative, and where the quantizer says so.
template <class Quantizer = GroupInt<4>>
struct BoundaryLayers {
  static constexpr Descriptor about{"boundary_layers", Stage::quant, "arXiv:2502.04420"};

  static constexpr Inputs needs = [] {
    if constexpr (requires { Quantizer::needs; }) return Quantizer::needs;
    else return Inputs{};
  }();

  Quantizer base{};
  index_t first = 2;
  index_t last = 2;
  index_t sinks = base.sinks;  ///< as the quantizer says

  constexpr auto key_codec(const CacheShape& shape, HeadIndex at = {}) const { return key_codec_of(base, shape, at); }
  constexpr auto value_codec(const CacheShape& shape, HeadIndex at = {}) const { return value_codec_of(base, shape, at); }
  constexpr Flush key_flush(const CacheShape& shape, HeadIndex at = {}) const {
    return exact(shape, at) ? Flush{0, 0} : key_flush_of(base, shape, at);
  }
  constexpr Flush value_flush(const CacheShape& shape, HeadIndex at = {}) const {
    return exact(shape, at) ? Flush{0, 0} : value_flush_of(base, shape, at);
  }
  constexpr bool differs_per_head() const { return true; }
  constexpr auto saliency() const requires requires { base.saliency(); } { return base.saliency(); }
  constexpr bool has_saliency() const requires requires { base.has_saliency(); } { return base.has_saliency(); }

  constexpr Status validate(const CacheShape& shape) const {
    if (first < 0 || last < 0) return Status::invalid_argument;
    return base.validate(shape);
  }

 private:
  constexpr bool exact(const CacheShape& shape, HeadIndex at) const {
    return at.layer < first || at.layer >= shape.layers - last;
  }
};

template <class Quantizer>
BoundaryLayers(Quantizer) -> BoundaryLayers<Quantizer>;

}  // namespace kvcondense::quant
