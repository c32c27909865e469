#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include <kvcondense/cache/cuda_found.cuh>
#include <kvcondense/cache/cuda_index.cuh>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::cache {

/// What the step that ends the first prompt teaches the heads of a layer, for a pipeline whose summary learns.
template <class Pipeline>
struct CudaLearning {
  using Summary = CudaUnitSummary<std::remove_cvref_t<decltype(Pipeline::summary)>>;
  /// Whether the summary has a form of it on the device.
  static constexpr bool there = requires(const Pipeline& p, const CacheShape& shape) { Summary::fit_bytes(p.summary, shape, index_t{}); };

  static bool learns(const Pipeline& p, const CacheShape& shape) { return p.found_floats(shape, 1) > 0; }
  /// See CudaFound.
  static constexpr index_t lead() {
    if constexpr (requires { Summary::lead(); }) return Summary::lead();
    else return 0;
  }
  static std::size_t fit_bytes(const Pipeline& p, const CacheShape& shape, index_t slots) {
    if constexpr (there) return learns(p, shape) && slots > 0 ? Scratch::align + Summary::fit_bytes(p.summary, shape, slots) : 0;
    else return 0;
  }
  /// How many numbers a step that keeps so many slots of a head teaches it.
  static index_t floats(const Pipeline& p, const CacheShape& shape, index_t slots, const IndexChange& change) {
    if (!learns(p, shape) || change.lesson == nullptr || slots < 1) return 0;
    const index_t queries = change.lesson->extent[1];
    if (p.fit_queries() && queries < 1) return 0;
    if constexpr (requires { Summary::learns_from(p.summary, slots, queries); })
      if (!Summary::learns_from(p.summary, slots, queries)) return 0;
    return p.found_floats(shape, slots);
  }
  /// Which heads learn, room for it, and which slots an index can know: those of heads that have learned, or do. `change.known` is how many stay.
  static Status reserve(const Context<Cuda>& ctx, const Pipeline& p, const CacheShape& shape, CudaFound& found, IndexChange& change) {
    index_t most = 0;
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      change.learned[h] = found.size(h) > 0 ? 0 : floats(p, shape, change.known[h], change);
      most = std::max(most, change.learned[h]);
      if (learns(p, shape) && found.size(h) == 0 && change.learned[h] == 0) change.known[h] = 0;
    }
    return found.reserve(ctx, most);
  }
  /// Behind the changes of the step, before the index is made.
  static Status run(Context<Cuda>& ctx, const Pipeline& p, const CacheShape& shape, index_t layer, const CudaRows& rows, CudaFound& found, const IndexChange& change,
                    const Scratch& scratch) {
    Status s = Status::ok;
    if constexpr (there)
      for (index_t h = 0; h < shape.kv_heads && s == Status::ok; ++h) {
        if (change.learned[h] == 0) continue;
        const HeadIndex at{layer, h};
        s = Summary::fit(ctx, p.summary, rows, shape, at, change.known[h], *change.lesson, found.row(h), scratch);
        if (s == Status::ok) found.settle(h, change.learned[h]);
      }
    return s;
  }
  /// Whether these numbers of a file can be a head's.
  static bool fits(const Pipeline& p, const CacheShape& shape, std::span<const float> found) {
    if (!p.found_fits(shape, static_cast<index_t>(found.size()))) return false;
    if constexpr (requires { Summary::found_good(found, shape.head_dim); }) return found.empty() || Summary::found_good(found, shape.head_dim);
    else return true;
  }
};

}  // namespace kvcondense::cache
