#pragma once

// Links between slots as finders of merge sets make them, on both backends.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <kvcondense/prim/merge_links.hpp>

#include "numbers.hpp"

namespace kvcondense::test {

inline const std::vector<index_t> ragged_slots{0, 1, 2, 37, 300};

/// Links of ragged heads: every fourth slot of the targets' ranges stays or so, the others fold into one that does, some into none.
struct Links {
  std::vector<index_t> slots, offset;
  std::vector<prim::SlotRange> targets;
  std::vector<std::int32_t> to;
  std::vector<float> likeness, key, value;
  index_t fan = 1;

  /// 0: nothing folds; 1: all into the first target.
  Links(std::vector<index_t> lengths, index_t fan_out, unsigned seed, bool one_target = false) : slots(std::move(lengths)), offset(offsets(slots)), fan(fan_out) {
    std::mt19937 random(seed);
    for (const index_t n : slots) {
      targets.push_back({std::min<index_t>(3, n), std::min<index_t>(5, n), n - n / 9});
      std::vector<std::int32_t> of(at(n), prim::dropped), those;
      for (index_t j = 0; j < n; ++j)
        if (j == 0 || (targets.back().has(j) && !one_target && random() % 4 == 0) || (!targets.back().has(j) && random() % 2 == 0))
          of[at(j)] = static_cast<std::int32_t>(j);
      for (index_t j = 0; j < n; ++j)
        if (of[at(j)] == j && targets.back().has(j)) those.push_back(static_cast<std::int32_t>(j));
      for (index_t j = 0; j < n; ++j)
        if (of[at(j)] != j && random() % 5 != 0 && !those.empty()) of[at(j)] = those[random() % those.size()];
      to.insert(to.end(), of.begin(), of.end());
    }
    likeness = normals(offset.back(), seed + 1), key = normals(offset.back(), seed + 2), value = key;
    for (float& x : likeness) x = std::tanh(x);
  }
  index_t heads() const { return static_cast<index_t>(slots.size()); }
  index_t total() const { return offset.back(); }
  prim::MergeLinks view() { return of(to.data(), likeness.data(), key.data(), value.data(), offset.data()); }
  prim::MergeLinks of(std::int32_t* t, float* l, float* k, float* v, const index_t* o) const {
    return {{t, o, heads()}, {l, o, heads()}, {k, o, heads()}, {v, o, heads()}, fan};
  }
};

/// The same on a device.
struct DeviceLinks {
  DeviceLinks(Device& device, const Links& l)
      : host(l), to(device, l.to), likeness(device, l.likeness), key(device, l.key), value(device, l.value), offset(device, l.offset), targets(device, l.targets) {}
  prim::MergeLinks view() { return host.of(to.data(), likeness.data(), key.data(), value.data(), offset.data()); }
  RaggedView<float> ragged(OnDevice<float>& x) { return {x.data(), offset.data(), host.heads()}; }

  const Links& host;
  OnDevice<std::int32_t> to;
  OnDevice<float> likeness, key, value;
  OnDevice<index_t> offset;
  OnDevice<prim::SlotRange> targets;
};

}  // namespace kvcondense::test
