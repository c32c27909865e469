#pragma once

#include <vector>

#include <kvcondense/core/config.hpp>

namespace eval {

using kvcondense::index_t;

/// DuoAttention's search for gates, on the outputs of attention.
///
/// A head with gate a mixes what it says when it sees everything with what it says when it sees sinks
/// and the newest tokens: a * full + (1 - a) * near. Behind the output projection the error of a layer
/// is the sum over its heads of (1 - a) * gap, and its mean square b' G b, with b = 1 - a and G the
/// products of the heads' gaps. The loss adds up all layers, on a scale where the squares of all gaps by
/// themselves add up to 1, and l1 times the mean gate.
struct GateSearch {
  double l1 = 0.05;
  index_t steps = 2000;  ///< at most; it ends earlier when no gate moves
};

struct Gates {
  std::vector<double> gate;  ///< [layers, heads], 0 to 1
  double loss = 0;           ///< with these gates, l1 included
  index_t steps = 0;
};

/// Projected gradient descent from all gates at 1. `products`: per layer [heads, heads]. With no gap
/// anywhere all gates become 0 as l1 says.
Gates search_gates(const std::vector<std::vector<double>>& products, index_t heads, const GateSearch& how);

}  // namespace eval
