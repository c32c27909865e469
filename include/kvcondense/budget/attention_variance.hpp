#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include <kvcondense/core/config.hpp>

namespace kvcondense::budget {

/// What the variances of a layer's heads become.
enum class VarianceForm : std::uint8_t {
  normalised,  ///< each head's variance on the scale of its layer's heads, as the authors' code
  mean,        ///< the plain mean: layers keep their own scale
};

/// D2O's number of one layer: how unevenly its heads spread their attention over the tokens.
///
/// Shapes   column_sums: per head, what each token drew from all rows; heads rows of `tokens`.
/// Numbers  variance over the tokens (n - 1), then over the heads what `form` says; double. 0 with fewer
///          than two tokens. With two heads the normalised form is always near 1/2.
inline double attention_variance(const float* column_sums, index_t heads, index_t tokens, VarianceForm form) {
  if (heads < 1 || tokens < 2) return 0.0;
  const auto of = [&](index_t h) {
    const float* s = column_sums + h * tokens;
    double mean = 0, squares = 0;
    for (index_t j = 0; j < tokens; ++j) mean += static_cast<double>(s[j]);
    mean /= static_cast<double>(tokens);
    for (index_t j = 0; j < tokens; ++j) squares += (static_cast<double>(s[j]) - mean) * (static_cast<double>(s[j]) - mean);
    return squares / static_cast<double>(tokens - 1);
  };
  double least = std::numeric_limits<double>::infinity(), most = -least, sum = 0;
  for (index_t h = 0; h < heads; ++h) {
    const double v = of(h);
    least = std::min(least, v), most = std::max(most, v), sum += v;
  }
  const double mean = sum / static_cast<double>(heads);
  return form == VarianceForm::mean ? mean : (mean - least) / (most - least + 1e-6);
}

/// What part of its tokens each layer keeps when all keep `keep` in the mean, before anything is rounded:
/// layers * keep * softmax(-number), between `least` and 1. What the bounds cut off goes to nobody.
inline void variance_ratios(std::span<const double> number, double keep, double least, double* ratio) {
  double lowest = std::numeric_limits<double>::infinity(), sum = 0;
  for (const double n : number) lowest = std::min(lowest, n);
  for (const double n : number) sum += std::exp(lowest - n);
  for (const double n : number)
    *ratio++ = std::clamp(static_cast<double>(number.size()) * keep * std::exp(lowest - n) / sum, least, 1.0);
}

}  // namespace kvcondense::budget
