#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::quant {

/// How a book of complex codewords is fitted.
struct ComplexBookFit {
  index_t stages = 21;
  index_t base = 64;
  prim::RopePairing pairing = prim::RopePairing::half_split;
  int rounds = 20;          ///< of assignment and update, per stage
  double hot = 1e-3;        ///< temperature of the first round's assignments, in squares of rows of length 1; 0: all or nothing
  double cold = 1e-5;       ///< and of the last round's, geometrically from there to here
  std::uint64_t seed = 1;   ///< of the rows that stages begin with
};

/// Scratch of `fit_complex_book`.
inline std::size_t complex_book_bytes(index_t rows, index_t dim, const ComplexBookFit& how) {
  return Scratch::bytes_for<float>(rows * dim) + Scratch::bytes_for<std::int32_t>(2 * rows) +
         Scratch::bytes_for<double>(how.base * (dim + 1));
}

/// Finds a book for rows of one head, stage by stage: codewords z such that z_A + i z_B is near to what the stages before leave
/// of rows of length 1.
///
/// Source   CommVQ, arXiv:2506.18879.
/// Shapes   rows [tokens, dim]; book [stages, base, dim].
/// Numbers  float32, means in double. A and B are assigned one after the other, given the other; every codeword is then the
///          mean of what rows want of it, each by exp(-square distance / temperature). One without rows takes the row that is left worst. Rows without a length, and
///          those with numbers that are none, are left out.
/// Cost     rounds * stages * 4 * tokens * base * dim, half of it with `hot` 0.
/// Errors   invalid_argument for an odd dim, sizes or temperatures that are none, or no row to learn from; shape_mismatch, workspace_too_small.
///          Nothing is written then.
inline Status fit_complex_book(TensorView<const float, 2> rows, const ComplexBookFit& how, std::span<float> book, Scratch scratch) {
  const index_t tokens = rows.extent[0], dim = rows.extent[1], base = how.base;
  if (dim < 2 || dim % 2 != 0 || dim > max_head_dim || how.stages < 1 || base < 2 || base > 256 || how.rounds < 1)
    return Status::invalid_argument;
  if (!(how.hot >= 0.0) || (how.hot > 0.0 && !(how.cold > 0.0 && how.cold <= how.hot))) return Status::invalid_argument;
  if (static_cast<index_t>(book.size()) != how.stages * base * dim) return Status::shape_mismatch;
  float* rest = scratch.take<float>(tokens * dim);
  std::int32_t* code = scratch.take<std::int32_t>(2 * tokens);
  double* sum = scratch.take<double>(base * (dim + 1));  // and how many, behind each
  if (rest == nullptr || code == nullptr || sum == nullptr) return Status::workspace_too_small;
  index_t n = 0;
  for (index_t t = 0; t < tokens; ++t) {
    double square = 0.0;
    for (index_t c = 0; c < dim; ++c) square += static_cast<double>(rows(t, c)) * static_cast<double>(rows(t, c));
    if (!std::isfinite(square) || !(square > 0.0)) continue;
    for (index_t c = 0; c < dim; ++c) rest[n * dim + c] = static_cast<float>(static_cast<double>(rows(t, c)) / std::sqrt(square));
    ++n;
  }
  if (n == 0) return Status::invalid_argument;

  const auto first = [&](index_t j) { return how.pairing == prim::RopePairing::half_split ? j : 2 * j; };
  const auto second = [&](index_t j) { return how.pairing == prim::RopePairing::half_split ? j + dim / 2 : 2 * j + 1; };
  // out = x - z (of i z with `turned`), then, with `back`, times -i.
  const auto without = [&](const float* x, const float* z, bool turned, bool back, float* out) {
    for (index_t j = 0; j < dim / 2; ++j) {
      const index_t a = first(j), b = second(j);
      const float re = x[a] - (turned ? -z[b] : z[a]), im = x[b] - (turned ? z[a] : z[b]);
      out[a] = back ? im : re;
      out[b] = back ? -re : im;
    }
  };
  float want[max_head_dim];
  double far_from[256];
  for (index_t s = 0; s < how.stages; ++s) {
    float* word = book.data() + s * base * dim;
    for (index_t k = 0; k < base; ++k) {
      const auto t = static_cast<index_t>(random_bits(how.seed, static_cast<std::uint64_t>(s * base + k)) % static_cast<std::uint64_t>(n));
      for (index_t c = 0; c < dim; ++c) word[k * dim + c] = 0.5f * rest[t * dim + c];
    }
    std::fill_n(code, 2 * n, 0);
    const auto distance = [&](index_t k) {
      float far = 0.0f;
      for (index_t c = 0; c < dim; ++c) far += (want[c] - word[k * dim + c]) * (want[c] - word[k * dim + c]);
      return static_cast<double>(far);
    };
    const auto nearest = [&](double* square) {
      std::int32_t best = 0;
      double least = HUGE_VAL;
      for (index_t k = 0; k < base; ++k) {
        const double far = distance(k);
        if (far < least) least = far, best = static_cast<std::int32_t>(k);
      }
      *square = least;
      return best;
    };
    for (int round = 0; round < how.rounds; ++round) {
      index_t worst = 0;
      double most = -1.0, square = 0.0;
      for (index_t t = 0; t < n; ++t) {
        const float* x = rest + t * dim;
        for (const bool b : {false, true}) {
          without(x, word + code[2 * t + (b ? 0 : 1)] * dim, !b, b, want);
          code[2 * t + (b ? 1 : 0)] = nearest(&square);
        }
        if (square > most) most = square, worst = t;
      }
      const double part = how.rounds > 1 ? static_cast<double>(round) / (how.rounds - 1) : 1.0;
      const double temperature = how.hot * std::pow(how.hot > 0.0 ? how.cold / how.hot : 1.0, part);
      std::fill_n(sum, base * (dim + 1), 0.0);
      for (index_t t = 0; t < n; ++t)
        for (const bool b : {false, true}) {
          without(rest + t * dim, word + code[2 * t + (b ? 0 : 1)] * dim, !b, b, want);
          const auto add = [&](index_t k, double weight) {
            double* to = sum + k * (dim + 1);
            for (index_t c = 0; c < dim; ++c) to[c] += weight * static_cast<double>(want[c]);
            to[dim] += weight;
          };
          if (how.hot == 0.0) {
            add(code[2 * t + (b ? 1 : 0)], 1.0);
            continue;
          }
          double least = HUGE_VAL, all = 0.0;
          for (index_t k = 0; k < base; ++k) least = std::min(least, far_from[k] = distance(k));
          for (index_t k = 0; k < base; ++k) all += far_from[k] = std::exp((least - far_from[k]) / temperature);
          for (index_t k = 0; k < base; ++k)
            if (far_from[k] > 1e-6 * all) add(k, far_from[k] / all);
        }
      for (index_t k = 0; k < base; ++k) {
        const double* of = sum + k * (dim + 1);
        for (index_t c = 0; c < dim; ++c)
          word[k * dim + c] = of[dim] > 0.0 ? static_cast<float>(of[c] / of[dim]) : 0.5f * rest[worst * dim + c];
      }
    }
    double square = 0.0;
    for (index_t t = 0; t < n; ++t) {
      float* x = rest + t * dim;
      for (const bool b : {false, true}) {
        without(x, word + code[2 * t + (b ? 0 : 1)] * dim, !b, b, want);
        code[2 * t + (b ? 1 : 0)] = nearest(&square);
      }
      without(x, word + code[2 * t] * dim, false, false, want);
      without(want, word + code[2 * t + 1] * dim, true, false, x);
    }
  }
  return Status::ok;
}

}  // namespace kvcondense::quant
