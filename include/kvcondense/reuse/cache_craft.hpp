#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::reuse {

/// Names a chunk: whatever an engine calls it.
using ChunkId = std::int64_t;

/// What part of a query's attention goes to some of its slots, from the lse over them and over all.
inline double attention_share(double lse_part, double lse_all) { return std::exp(lse_part - lse_all); }

/// A stored cache of a chunk: what stood before it when it was made, and how much it looked there.
struct ChunkVariant {
  std::span<const ChunkId> prefix;       ///< earlier chunks, in their order
  std::span<const double> inter;         ///< attention from the chunk's tokens to each of them, all layers together
  double context = 0.5;                  ///< CacheCraft::context of it
};

/// Tells how much of a stored chunk must be computed again behind a new prefix, and which of its tokens.
///
/// Idea     a chunk that hardly looked at what stood before it may be reused anywhere; one that did can be repaired
///          where the same chunks stand before it again, in the same order. Its tokens that looked back most are
///          computed again.
/// Source   Cache-Craft, arXiv:2502.15734.
/// Needs    per layer the attention of a chunk to each earlier chunk and to itself: `attention_share` of partial lse.
/// Shapes   one number per layer, per earlier chunk, per token.
/// Cost     passes over those numbers; orders are compared pair by pair.
/// Numbers  double. context = 1 / (1 + exp(-a / b)), a and b means over layers of attention per pair of tokens,
///          outside and inside; fraction = clamp(alpha context (1 - overlap (1 - disorder)), 0, 1). Without any
///          inside b = 0: context 1 where there is an outside, else 0.5; a prefix that was never looked at overlaps
///          wholly. Ties take the earlier token.
/// Errors   validate, variants: invalid_argument; shape_mismatch where lists differ in length. Sizes are above 0.
struct CacheCraft {
  static constexpr Descriptor about{"cache_craft", Stage::reuse, "arXiv:2502.15734"};

  double alpha = 1.0;  ///< tuned on data: more computes more

  Status validate() const { return alpha >= 0.0 && alpha < 1e6 ? Status::ok : Status::invalid_argument; }

  /// Attention per pair of tokens from a chunk of `tokens` to earlier ones, in one layer.
  static double outside(std::span<const double> inter, std::span<const index_t> sizes, index_t tokens) {
    double a = 0.0;
    for (std::size_t j = 0; j < inter.size(); ++j) a += inter[j] / (static_cast<double>(tokens) * static_cast<double>(sizes[j]));
    return a;
  }
  static double inside(double intra, index_t tokens) { return intra / (static_cast<double>(tokens) * static_cast<double>(tokens)); }

  /// From 0.5 (looked at itself only) towards 1, from outside and inside of every layer.
  static double context(std::span<const double> outside, std::span<const double> inside) {
    double a = 0.0, b = 0.0;
    for (const double x : outside) a += x;
    for (const double x : inside) b += x;
    a = outside.empty() ? 0.0 : a / static_cast<double>(outside.size());
    b = inside.empty() ? 0.0 : b / static_cast<double>(inside.size());
    if (!(b > 0.0)) return a > 0.0 ? 1.0 : 0.5;
    return 1.0 / (1.0 + std::exp(-a / b));
  }

  /// What part of the attention to the old prefix went to chunks that the new one has too.
  static double overlap(const ChunkVariant& v, std::span<const ChunkId> now) {
    double common = 0.0, all = 0.0;
    for (std::size_t j = 0; j < v.prefix.size(); ++j) {
      all += v.inter[j];
      if (place(now, v.prefix[j]) >= 0) common += v.inter[j];
    }
    return all > 0.0 ? common / all : 1.0;
  }
  /// Pairs of common chunks that changed order, of all pairs of them: 0 as before, 1 reversed.
  static double disorder(std::span<const ChunkId> before, std::span<const ChunkId> now) {
    index_t pairs = 0, turned = 0;
    for (std::size_t i = 0; i < before.size(); ++i)
      for (std::size_t j = i + 1; j < before.size(); ++j) {
        const index_t a = place(now, before[i]), b = place(now, before[j]);
        if (a < 0 || b < 0) continue;
        ++pairs;
        turned += a > b ? 1 : 0;
      }
    return pairs == 0 ? 0.0 : static_cast<double>(turned) / static_cast<double>(pairs);
  }

  /// Part of the chunk's tokens to compute again behind the prefix `now`.
  double fraction(const ChunkVariant& v, std::span<const ChunkId> now) const {
    const double fits = overlap(v, now) * (1.0 - disorder(v.prefix, now));
    return std::clamp(alpha * v.context * (1.0 - fits), 0.0, 1.0);
  }
  static index_t tokens(double fraction, index_t size) {
    return static_cast<index_t>(std::ceil(fraction * static_cast<double>(size) - 1e-12));
  }

  /// The stored variant that needs least; -1 where there is none. A chunk that is named twice in a prefix, or lists of
  /// different lengths, are refused.
  Status choose(std::span<const ChunkVariant> variants, std::span<const ChunkId> now, index_t& best, double& part) const {
    for (const ChunkVariant& v : variants) {
      if (v.prefix.size() != v.inter.size()) return Status::shape_mismatch;
      if (twice(v.prefix)) return Status::invalid_argument;
    }
    if (twice(now)) return Status::invalid_argument;
    best = -1, part = 1.0;
    for (std::size_t i = 0; i < variants.size(); ++i) {
      const double f = fraction(variants[i], now);
      if (best < 0 || f < part) best = static_cast<index_t>(i), part = f;
    }
    return Status::ok;
  }

  /// The `chosen.size()` tokens that looked back most, ascending. NaN counts as most: such a token is no good.
  static Status pick(std::span<const double> inter, std::span<index_t> chosen) {
    if (chosen.size() > inter.size()) return Status::shape_mismatch;
    const auto key = [&](std::size_t t) { return inter[t] != inter[t] ? HUGE_VAL : inter[t]; };
    std::size_t n = 0;
    for (std::size_t t = 0; t < inter.size(); ++t) {  // insertion: few are chosen of a chunk
      std::size_t at = n;
      while (at > 0 && key(t) > key(static_cast<std::size_t>(chosen[at - 1]))) --at;
      if (at == chosen.size()) continue;
      n = std::min(n + 1, chosen.size());
      for (std::size_t i = n - 1; i > at; --i) chosen[i] = chosen[i - 1];
      chosen[at] = static_cast<index_t>(t);
    }
    std::sort(chosen.begin(), chosen.end());
    return Status::ok;
  }

 private:
  static index_t place(std::span<const ChunkId> list, ChunkId id) {
    const auto at = std::find(list.begin(), list.end(), id);
    return at == list.end() ? -1 : at - list.begin();
  }
  static bool twice(std::span<const ChunkId> list) {
    for (std::size_t i = 0; i < list.size(); ++i)
      if (place(list.first(i), list[i]) >= 0) return true;
    return false;
  }
};

}  // namespace kvcondense::reuse
