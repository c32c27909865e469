#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/group_quant.hpp>

// Rows [heads, tokens, dim] of a layer to symbols and back. A channel is a number of a head: there are C = heads * dim,
// and a token's scale covers all of them. Symbols lie channel by channel: those of one are one run of bytes.

namespace kvcondense::bitstream {

/// A scale as it is stored: f16 ends at its largest number, everything else stays float.
inline float stored_scale(DType type, float x) {
  return type == DType::f16 ? static_cast<float>(half(std::min(x, largest_half))) : x;
}

/// The largest finite magnitude of a token; adds to `repaired` how many numbers are NaN or infinite.
inline float token_most(TensorView<const float, 3> rows, index_t token, index_t& repaired) {
  float most = 0.0f;
  for (index_t h = 0; h < rows.extent[0]; ++h)
    for (index_t d = 0; d < rows.extent[2]; ++d) {
      const float size = std::fabs(rows(h, token, d));
      const bool bad = !std::isfinite(size);
      repaired += bad;
      most = !bad && size > most ? size : most;
    }
  return most;
}

/// NaN becomes 0, an infinity the token's largest finite magnitude.
inline float repaired_number(float x, float most) { return prim::limit_to(prim::without_nan(x), most); }

/// Symbols around `middle` in steps of scale / middle: rne(x * middle / scale + middle), in [0, 2 * middle].
struct TokenSteps {
  int middle;
  float scale;    ///< as stored; 0 where a step is none
  float inverse;  ///< 0 then, which makes every symbol the middle

  static TokenSteps fit(int middle, DType type, float most) {
    const float scale = stored_scale(type, most);
    if (!(scale / static_cast<float>(middle) >= 0x1p-126f)) return {middle, 0.0f, 0.0f};
    return {middle, scale, static_cast<float>(middle) / scale};
  }
  std::uint8_t symbol(float x) const {
    const auto m = static_cast<float>(middle);
    // The limit between product and sum changes no symbol, but keeps compilers from fusing the two.
    const float y = prim::limit_to(x * inverse, 2.0f * m) + m;
    return static_cast<std::uint8_t>(std::clamp(prim::round_half_even(y), 0, 2 * middle));
  }
};

/// What `scale / middle` times (symbol - middle) is.
inline float step_value(int symbol, int middle, float step) { return static_cast<float>(symbol - middle) * step; }

/// Every token in steps of its own largest magnitude, as CacheGen's released code does.
///
/// Shapes   rows [heads, n, dim]; scales [n]; symbols [heads * dim][n], in [0, 2 * middle].
/// Numbers  coded with the scale as it is stored. NaN as 0, infinities as the token's largest finite magnitude; a token
///          without a step (zeros, or below what the scale's type holds) is all middle. Returns how many were repaired.
inline index_t scaled_symbols(TensorView<const float, 3> rows, int middle, DType type, std::span<float> scales,
                              std::span<std::uint8_t> symbols) {
  index_t repaired = 0;
  const index_t n = rows.extent[1], dim = rows.extent[2];
  for (index_t t = 0; t < n; ++t) {
    const float most = token_most(rows, t, repaired);
    const TokenSteps steps = TokenSteps::fit(middle, type, most);
    scales[static_cast<std::size_t>(t)] = steps.scale;
    for (index_t h = 0; h < rows.extent[0]; ++h)
      for (index_t d = 0; d < dim; ++d)
        symbols[static_cast<std::size_t>((h * dim + d) * n + t)] = steps.symbol(repaired_number(rows(h, t, d), most));
  }
  return repaired;
}

/// How the paper of CacheGen codes: the first token of each group in 8 bits, the others as differences to it.
struct DeltaRule {
  static constexpr int anchor_middle = 127;

  index_t group = 10;   ///< tokens that share an anchor, it included
  float width = 0.5f;   ///< a step, in standard deviations of the channel's differences
  int middle = 31;      ///< differences have symbols in [0, 2 * middle]
  DType scales = DType::f16;

  index_t anchors(index_t tokens) const { return (tokens + group - 1) / group; }
};

/// Shapes   rows [heads, n, dim], n at most 4096; with A = rule.anchors(n), C = heads * dim: scales [A] of the anchors,
///          anchors [A][C], steps [C], deltas [C][n - A] in token order.
/// Numbers  differences to the anchor as it decodes. A step is `width` deviations (of a population), more where the
///          largest difference would not fit: nothing clips that the scales' type can hold. A channel without a step
///          is all middle. Repairs as above.
inline index_t delta_symbols(TensorView<const float, 3> rows, const DeltaRule& rule, std::span<float> scales,
                             std::span<std::uint8_t> anchors, std::span<float> steps, std::span<std::uint8_t> deltas) {
  index_t repaired = 0;
  float most[4096];
  const index_t n = rows.extent[1], dim = rows.extent[2], channels = rows.extent[0] * dim;
  const index_t count = n - rule.anchors(n);
  for (index_t t = 0; t < n; ++t) most[t] = token_most(rows, t, repaired);
  for (index_t a = 0; a < rule.anchors(n); ++a)
    scales[static_cast<std::size_t>(a)] = TokenSteps::fit(DeltaRule::anchor_middle, rule.scales, most[a * rule.group]).scale;
  for (index_t c = 0; c < channels; ++c) {
    const auto number = [&](index_t t) { return repaired_number(rows(c / dim, t, c % dim), most[t]); };
    for (index_t a = 0; a < rule.anchors(n); ++a)
      anchors[static_cast<std::size_t>(a * channels + c)] =
          TokenSteps::fit(DeltaRule::anchor_middle, DType::f32, scales[static_cast<std::size_t>(a)]).symbol(number(a * rule.group));
    // use(difference) for all tokens that are no anchor, in order
    const auto each = [&](auto&& use) {
      for (index_t t = 0; t < n; ++t) {
        if (t % rule.group == 0) continue;
        const auto a = static_cast<std::size_t>(t / rule.group);
        const int code = anchors[a * static_cast<std::size_t>(channels) + static_cast<std::size_t>(c)];
        const float anchor = step_value(code, DeltaRule::anchor_middle, scales[a] / static_cast<float>(DeltaRule::anchor_middle));
        use(static_cast<double>(number(t)) - static_cast<double>(anchor));
      }
    };
    double sum = 0, square = 0, largest = 0;
    each([&](double x) { sum += x, largest = std::max(largest, std::fabs(x)); });
    const double mean = count > 0 ? sum / static_cast<double>(count) : 0.0;
    each([&](double x) { square += (x - mean) * (x - mean); });
    const double deviation = count > 0 ? std::sqrt(square / static_cast<double>(count)) : 0.0;
    const double wide = std::max(static_cast<double>(rule.width) * deviation, largest / rule.middle);
    const float step = stored_scale(rule.scales, static_cast<float>(std::min(wide, 3.0e38)));
    const bool none = !(step >= 0x1p-126f);
    steps[static_cast<std::size_t>(c)] = none ? 0.0f : step;
    const float inverse = none ? 0.0f : 1.0f / step;
    std::uint8_t* to = deltas.data() + c * count;
    each([&](double x) {
      const float y = prim::limit_to(static_cast<float>(x) * inverse, static_cast<float>(rule.middle));
      *to++ = static_cast<std::uint8_t>(prim::round_half_even(y) + rule.middle);
    });
  }
  return repaired;
}

}  // namespace kvcondense::bitstream
