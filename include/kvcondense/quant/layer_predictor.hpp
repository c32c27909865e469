#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::quant {

/// Scratch of `fit_layer_predictor`.
inline std::size_t layer_predictor_bytes(index_t inputs, index_t outputs) {
  return Scratch::bytes_for<double>((inputs + 1) * (inputs + 1)) + Scratch::bytes_for<double>((inputs + 1) * outputs);
}

/// Finds the linear map with an intercept that predicts rows of one layer from rows of another: what is left to code is the
/// difference, which is small where layers are alike.
///
/// Source   AQUA-KV, arXiv:2501.19392: keys of a layer before RoPE from the reconstructed keys of the layer before, values from
///          the layer's own reconstructed keys and the values of the layer before, all heads one after another.
/// Shapes   x [tokens, inputs], y [tokens, outputs]; weights [inputs + 1, outputs], the intercept last.
/// Numbers  least squares by normal equations in double. `ridge`, as a part of the mean square of the inputs, is added to
///          their squares (not to the intercept's): above 0 it also decides what inputs that depend on each other leave open.
/// Cost     tokens * inputs * (inputs + outputs), and inputs^3 / 3.
/// Errors   invalid_argument for sizes below 1, numbers that are none, a negative ridge, or inputs that leave the map open;
///          shape_mismatch, workspace_too_small. Nothing is written then.
inline Status fit_layer_predictor(TensorView<const float, 2> x, TensorView<const float, 2> y, TensorView<float, 2> weights,
                                  Scratch scratch, double ridge = 0.0) {
  const index_t tokens = x.extent[0], inputs = x.extent[1], outputs = y.extent[1], n = inputs + 1;
  if (tokens < 1 || inputs < 1 || outputs < 1 || !(ridge >= 0.0)) return Status::invalid_argument;
  if (y.extent[0] != tokens || weights.extent[0] != n || weights.extent[1] != outputs) return Status::shape_mismatch;
  double* gram = scratch.take<double>(n * n);
  double* right = scratch.take<double>(n * outputs);
  if (gram == nullptr || right == nullptr) return Status::workspace_too_small;
  for (index_t i = 0; i < n * n; ++i) gram[i] = 0.0;
  for (index_t i = 0; i < n * outputs; ++i) right[i] = 0.0;
  const auto input = [&](index_t t, index_t i) { return i < inputs ? static_cast<double>(x(t, i)) : 1.0; };
  for (index_t t = 0; t < tokens; ++t)
    for (index_t i = 0; i < n; ++i) {
      const double a = input(t, i);
      for (index_t j = 0; j <= i; ++j) gram[i * n + j] += a * input(t, j);
      for (index_t o = 0; o < outputs; ++o) right[i * outputs + o] += a * static_cast<double>(y(t, o));
    }
  double trace = 0.0;
  for (index_t i = 0; i < inputs; ++i) trace += gram[i * n + i];
  for (index_t i = 0; i < inputs; ++i) gram[i * n + i] += ridge * trace / static_cast<double>(inputs);
  // Cholesky, in the lower half.
  for (index_t j = 0; j < n; ++j) {
    const double before = gram[j * n + j];
    double d = before;
    for (index_t k = 0; k < j; ++k) d -= gram[j * n + k] * gram[j * n + k];
    if (!(d > 1e-12 * before) || !std::isfinite(d)) return Status::invalid_argument;
    gram[j * n + j] = std::sqrt(d);
    for (index_t i = j + 1; i < n; ++i) {
      double s = gram[i * n + j];
      for (index_t k = 0; k < j; ++k) s -= gram[i * n + k] * gram[j * n + k];
      gram[i * n + j] = s / gram[j * n + j];
    }
  }
  for (index_t o = 0; o < outputs; ++o) {
    for (index_t i = 0; i < n; ++i) {
      double s = right[i * outputs + o];
      for (index_t k = 0; k < i; ++k) s -= gram[i * n + k] * right[k * outputs + o];
      right[i * outputs + o] = s / gram[i * n + i];
    }
    for (index_t i = n - 1; i >= 0; --i) {
      double s = right[i * outputs + o];
      for (index_t k = i + 1; k < n; ++k) s -= gram[k * n + i] * right[k * outputs + o];
      right[i * outputs + o] = s / gram[i * n + i];
    }
  }
  for (index_t i = 0; i < n * outputs; ++i)
    if (!std::isfinite(right[i])) return Status::invalid_argument;
  for (index_t i = 0; i < n; ++i)
    for (index_t o = 0; o < outputs; ++o) weights(i, o) = static_cast<float>(right[i * outputs + o]);
  return Status::ok;
}

namespace detail {

/// y += x weights, for rows of x and y without gaps; a few rows at a time, so that weights are read once for them.
inline void add_product(const float* weights, TensorView<const float, 2> x, TensorView<float, 2> y) {
  constexpr index_t tile = 16;
  const index_t inputs = x.extent[1], outputs = y.extent[1];
  for (index_t t0 = 0; t0 < x.extent[0]; t0 += tile)
    for (index_t i = 0; i < inputs; ++i) {
      const float* row = weights + i * outputs;
      for (index_t t = t0; t < (t0 + tile < x.extent[0] ? t0 + tile : x.extent[0]); ++t) {
        const float v = x(t, i);
        float* to = &y(t, 0);
        for (index_t o = 0; o < outputs; ++o) to[o] += v * row[o];
      }
    }
}

}  // namespace detail

/// y = [x, z, 1] weights, row by row; z may have no numbers.
///
/// Shapes   weights and y without gaps in a row, weights without any.
/// Errors   shape_mismatch; nothing is written then.
inline Status predict_layer(TensorView<const float, 2> weights, TensorView<const float, 2> x, TensorView<const float, 2> z,
                            TensorView<float, 2> y) {
  const index_t first = x.extent[1], inputs = first + z.extent[1], outputs = y.extent[1], tokens = y.extent[0];
  if (weights.extent[0] != inputs + 1 || weights.extent[1] != outputs || x.extent[0] != tokens || z.extent[0] != tokens)
    return Status::shape_mismatch;
  if (outputs > 0 && (weights.stride[1] != 1 || weights.stride[0] != outputs || y.stride[1] != 1)) return Status::shape_mismatch;
  for (index_t t = 0; t < tokens; ++t)
    for (index_t o = 0; o < outputs; ++o) y(t, o) = weights(inputs, o);
  detail::add_product(weights.data, x, y);
  detail::add_product(weights.data + first * outputs, z, y);
  return Status::ok;
}
inline Status predict_layer(TensorView<const float, 2> weights, TensorView<const float, 2> x, TensorView<float, 2> y) {
  return predict_layer(weights, x, TensorView<const float, 2>{nullptr, {x.extent[0], 0}, {0, 1}}, y);
}

}  // namespace kvcondense::quant
