#pragma once

#include <algorithm>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::evict {

/// The heads of a model with the largest numbers. Which they are is worked out once, by `of`; asking
/// for one head is two comparisons.
///
/// Numbers  equal numbers: the head in the earlier layer is the larger, then the smaller head. NaN is
///          never among them.
struct TopHeads {
  HeadTable table{};
  float cut = std::numeric_limits<float>::infinity();
  index_t last = -1;  ///< of the numbers equal to `cut`: the last place that is among them

  /// The `count` largest, in four passes over the table; no memory.
  static TopHeads of(const HeadTable& table, index_t count) {
    TopHeads top{table};
    if (table.empty() || count <= 0) return top;
    const auto cutoff = prim::find_cutoff(std::min(count, table.size()), [&](auto&& use) {
      for (index_t i = 0; i < table.size(); ++i) use(prim::rank_bits(table.data[i]));
    });
    if (cutoff.bits == 0) {  // fewer are numbers
      top.cut = -std::numeric_limits<float>::infinity(), top.last = table.size();
      return top;
    }
    index_t ties = cutoff.ties;
    for (index_t i = 0; i < table.size() && ties > 0; ++i)
      if (prim::rank_bits(table.data[i]) == cutoff.bits) {
        top.cut = table.data[i], top.last = i;
        --ties;
      }
    return top;
  }

  bool operator()(index_t layer, index_t head) const {
    if (table.empty()) return false;
    const float x = table(layer, head);
    return x > cut || (x == cut && layer * table.heads + head <= last);
  }

};

/// Allocate: everything for some heads, for all others exactly what is protected.
///
/// Full     bool operator()(layer, head) const: may this head keep everything?
template <class Full>
struct HeadBinary {
  Full full{};

  constexpr bool uses_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    return full(view.layer, head) ? view.slots(head) : shield.size();
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected* shield,
             index_t* budget, Scratch&) const {
    for (index_t h = 0; h < view.heads(); ++h)
      budget[h] = full(view.layer, h) ? view.slots(h) : shield[h].size();
    return Status::ok;
  }
};

template <class Full>
HeadBinary(Full) -> HeadBinary<Full>;

}  // namespace kvcondense::evict
