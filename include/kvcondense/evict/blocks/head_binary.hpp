#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

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

  /// The `count` largest, in 32 passes over the table; no memory.
  static TopHeads of(const HeadTable& table, index_t count) {
    TopHeads top{table};
    if (table.empty() || count <= 0) return top;
    const auto at_least = [&](std::uint32_t key) {
      index_t n = 0;
      for (index_t i = 0; i < table.size(); ++i) n += rank(table.data[i]) >= key;
      return n;
    };
    std::uint32_t key = 0;
    for (std::uint32_t bit = 1u << 31; bit != 0; bit >>= 1)
      if (at_least(key | bit) >= count) key |= bit;
    index_t ties = key == 0 ? 0 : count - (key == ~0u ? 0 : at_least(key + 1));
    for (index_t i = 0; i < table.size() && ties > 0; ++i)
      if (rank(table.data[i]) == key) {
        top.cut = table.data[i], top.last = i;
        --ties;
      }
    if (key == 0) top.cut = -std::numeric_limits<float>::infinity(), top.last = table.size();  // fewer are numbers
    return top;
  }

  bool operator()(index_t layer, index_t head) const {
    if (table.empty()) return false;
    const float x = table(layer, head);
    return x > cut || (x == cut && layer * table.heads + head <= last);
  }

 private:
  /// The order of floats as an order of whole numbers; NaN is 0, below all of them.
  static std::uint32_t rank(float x) {
    if (std::isnan(x)) return 0;
    const auto bits = std::bit_cast<std::uint32_t>(x == 0.0f ? 0.0f : x);
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
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
