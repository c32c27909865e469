#pragma once

#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::evict {

// What sources that add attention up say of themselves, so that a cache may do it where attention is computed: nobody writes a
// mass then that the source would read, and the sums are read and written once.

/// Where a source adds the attention of a step: lane[h][j] = lane[h][j] + scale * mass[h][j].
struct Counting {
  index_t lane = -1;  ///< of the source's; -1: it does anything else
  float scale = 1.0f;

  constexpr explicit operator bool() const { return lane >= 0; }
};
/// The same for a step whose attention is that of so many query rows; sources that do not say do something else. Who does says
/// Touches::whole besides (touches.hpp). Whoever derives from such a source, or from a group or accumulate block that it asks
/// (attention_mass.hpp), inherits what it says, and an `observe` or `add` of its own is then not called where attention is
/// counted: who observes more says what is left of that (`observe_counted`), who does something else hides `counting`,
/// `counted_lane` or `own_scale` (`= delete`).
template <class Source>
constexpr Counting counting(const Source& source, const CacheShape& shape, index_t rows) {
  if constexpr (requires { source.counting(shape, rows); }) return source.counting(shape, rows);
  else return {};
}
/// What is left of `observe` where the attention of `view.counted` rows was added so; for most nothing.
template <class Source, Backend B>
Status observe_counted(const Source& source, Context<B>& ctx, const StepView<B>& view, std::span<const RaggedView<float>> lane) {
  if constexpr (requires { source.observe_counted(ctx, view, lane); }) return source.observe_counted(ctx, view, lane);
  else return Status::ok;
}

}  // namespace kvcondense::evict
