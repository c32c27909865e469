#include <eval/gate_search.hpp>

#include <algorithm>
#include <cmath>

namespace eval {
namespace {

double entry(const std::vector<double>& m, index_t heads, index_t a, index_t b) {
  return m[static_cast<std::size_t>(a * heads + b)];
}

}  // namespace

Gates search_gates(const std::vector<std::vector<double>>& products, index_t heads, const GateSearch& how) {
  const auto n = products.size() * static_cast<std::size_t>(heads);
  Gates r;
  r.gate.assign(n, 1.0);
  double scale = 0, steepest = 0;
  for (const auto& m : products)
    for (index_t a = 0; a < heads; ++a) {
      double row = 0;
      for (index_t b = 0; b < heads; ++b) row += std::abs(entry(m, heads, a, b));
      steepest = std::max(steepest, row);
      scale += entry(m, heads, a, a);
    }
  const double pull = how.l1 / static_cast<double>(n);
  const double stride = scale > 0 ? scale / (2 * steepest) : static_cast<double>(n);
  const auto slope = [&](const std::vector<double>& m, const double* gate, index_t a) {
    double sum = 0;
    for (index_t b = 0; b < heads; ++b) sum += entry(m, heads, a, b) * (1 - gate[b]);
    return scale > 0 ? sum / scale : 0.0;
  };
  std::vector<double> next(r.gate);
  for (double moved = 1; r.steps < how.steps && moved > 1e-9; ++r.steps) {
    moved = 0;
    for (std::size_t l = 0; l < products.size(); ++l) {
      const double* gate = r.gate.data() + l * static_cast<std::size_t>(heads);
      for (index_t a = 0; a < heads; ++a) {
        const double to = std::clamp(gate[a] - stride * (pull - 2 * slope(products[l], gate, a)), 0.0, 1.0);
        next[l * static_cast<std::size_t>(heads) + static_cast<std::size_t>(a)] = to;
        moved = std::max(moved, std::abs(to - gate[a]));
      }
    }
    r.gate.swap(next);
  }
  for (std::size_t l = 0; l < products.size(); ++l) {
    const double* gate = r.gate.data() + l * static_cast<std::size_t>(heads);
    for (index_t a = 0; a < heads; ++a) r.loss += (1 - gate[a]) * slope(products[l], gate, a) + pull * gate[a];
  }
  return r;
}

}  // namespace eval
