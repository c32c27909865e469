#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

enum class PyramidForm : std::uint8_t {
  exact,         ///< largest remainders: all layers together hold exactly layers * base (ours)
  integer_step,  ///< whole steps, as the authors' code: the total may overshoot
  ratio,         ///< kvpress: real steps, halves to even, the window inside what the ratio keeps
};

/// Allocate: what `base` gives is the mean; the first layer gets most, the last least, in equal steps.
template <class Base>
struct PyramidShare {
  Base base{};
  double beta = 20.0;  ///< the last layer gets about base / beta slots beside its protected ones
  PyramidForm form = PyramidForm::exact;

  /// The same steps over another mean.
  template <class Other>
  constexpr PyramidShare<Other> over(Other other) const {
    return {other, beta, form};
  }

  constexpr bool uses_scores() const { return base.uses_scores(); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return base.workspace_bytes(shape, slots);
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    return of(expected_slots(base, view, head, shield), shield.size(), view.seen, view.layer, view.shape.layers);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    const Status s = base.run(ctx, view, scores, shield, budget, scratch);
    if (s != Status::ok) return s;
    for (index_t h = 0; h < view.heads(); ++h)
      budget[h] = of(budget[h], shield[h].size(), view.seen, view.layer, view.shape.layers);
    return Status::ok;
  }

  /// Slots of one layer, `window` protected ones included, when layers hold `mean` in the mean.
  index_t of(index_t mean, index_t window, index_t tokens, index_t layer, index_t layers) const {
    if (form == PyramidForm::ratio) return real_steps(mean, window, tokens, layer, layers);
    const index_t share = mean - window, room = tokens - window;
    if (tokens < mean || share <= 0 || tokens < 2 * share || layers < 2) return mean;
    index_t least = static_cast<index_t>(std::floor(static_cast<double>(share) / beta));
    index_t most = 2 * share - least;
    if (most >= room) {
      most = room;
      least = 2 * share - room;
    }
    if (form == PyramidForm::integer_step) return window + most - layer * ((most - least) / (layers - 1));
    return window + exact_steps(most, least, layer, layers);
  }

 private:
  /// most - layer * (most - least) / (layers - 1) in whole numbers; what rounding down loses goes to
  /// the layers with the largest remainders, the first of equals.
  static index_t exact_steps(index_t most, index_t least, index_t layer, index_t layers) {
    const index_t steps = layers - 1;
    const auto exact = [&](index_t l) { return most * steps - l * (most - least); };
    const index_t mine = exact(layer) % steps;
    index_t lost = 0, before = 0;
    for (index_t l = 0; l < layers; ++l) {
      const index_t rest = exact(l) % steps;
      lost += rest;
      before += rest > mine || (rest == mine && l < layer);
    }
    return exact(layer) / steps + (before < lost / steps);
  }

  index_t real_steps(index_t mean, index_t window, index_t tokens, index_t layer, index_t layers) const {
    const double kept = static_cast<double>(mean), q = static_cast<double>(tokens);
    double least = kept / beta, most = 2.0 * kept - least;
    if (most >= q - static_cast<double>(window)) {
      most = q - static_cast<double>(window);
      least = 2.0 * kept - most;
    }
    const bool pyramid = q >= most && most >= least && least >= static_cast<double>(window) && layers > 1;
    if (!pyramid) return mean;
    const double step = (most - least) / static_cast<double>(layers - 1);
    return static_cast<index_t>(std::nearbyint(most - static_cast<double>(layer) * step));
  }
};

template <class Base, class... Fields>
PyramidShare(Base, Fields...) -> PyramidShare<Base>;

}  // namespace kvcondense::evict
