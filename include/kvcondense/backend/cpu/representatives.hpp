#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/merge_sets.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/representatives.hpp>

namespace kvcondense::prim {

template <>
struct Representatives<Cpu> {
  static Status distances(Context<Cpu>& ctx, const SignatureRequest& request, RaggedView<const float> scores, const Ends* skip,
                          const index_t* top, RaggedView<float> out) {
    const index_t heads = scores.heads;
    for (index_t h = 1; h < heads && request.block == 0; ++h)
      if (scores.length(h) != scores.length(0)) return Status::not_supported;
    ctx.parallel(heads, [&](index_t h, index_t) {  // bits first
      const index_t n = scores.length(h), first = skip[h].prefix, last = n - skip[h].suffix;
      float* bit = out.row(h);
      std::fill_n(bit, n, 0.0f);
      const index_t best = request.block == 0 ? top[h] : (last - first) / 2;
      cpu::for_best(first, last, scores.row(h), std::clamp<index_t>(best, 0, last - first), [&](index_t j) { bit[j] = 1.0f; });
      if (request.block > 0) of_blocks(request, bit, first, last, n);
    });
    if (request.block > 0 || heads == 0) return Status::ok;
    for (index_t h = 0; h < heads; ++h) {  // bit h of the anchor, and so whether it differs
      const index_t first = skip[h].prefix, last = scores.length(h) - skip[h].suffix;
      float* bit = out.row(h);
      index_t ones = 0;
      for (index_t j = first; j < last; ++j) ones += bit[j] > 0.0f;
      const bool one = anchor_bit(request, h, ones, last - first);
      for (index_t j = 0; j < scores.length(h); ++j) bit[j] = (bit[j] > 0.0f) != one ? 1.0f : 0.0f;
    }
    for (index_t j = 0; j < scores.length(0); ++j) {
      float sum = 0.0f;
      for (index_t h = 0; h < heads; ++h) sum += out.row(h)[j];
      for (index_t h = 0; h < heads; ++h) out.row(h)[j] = sum;
    }
    return Status::ok;
  }

  static Status pick(Context<Cpu>& ctx, index_t block, RaggedView<float> distances, const Ends* skip, const index_t* count,
                     RaggedView<std::int32_t> slots, index_t* kept) {
    ctx.parallel(distances.heads, [&](index_t h, index_t) {
      const index_t n = distances.length(h), first = skip[h].prefix, last = n - skip[h].suffix, unit = std::max<index_t>(1, block);
      float* distance = distances.row(h);
      std::int32_t* list = slots.row(h);
      // What is kept is no candidate, and its block is none.
      for (index_t i = 0; i < kept[h]; ++i) {
        const index_t j = list[i];
        if (j < first || j >= last) continue;
        const index_t begin = first + (j - first) / unit * unit;
        std::fill(distance + begin, distance + std::min(last, begin + unit), std::numeric_limits<float>::infinity());
      }
      index_t open = 0;
      float most = -1.0f;
      for (index_t j = first; j < last; j += unit)
        if (std::isfinite(distance[j])) ++open, most = std::max(most, distance[j]);
      const index_t wanted = std::min(open, count[h] / unit);
      if (wanted <= 0) return;
      const index_t step = open / wanted, end = wanted * step;
      index_t before = 0;  // ranks of lower distances
      for (float low = 0.0f; low <= most && before < end; low += together) {  // so many distances are ranked in two passes
        index_t rank[together] = {}, next[together];  // of every distance: the next rank, and the next of these to be taken
        const auto there = [&](index_t j) { return distance[j] >= low && distance[j] < low + together; };
        const auto level = [&](index_t j) { return static_cast<index_t>(distance[j] - low); };
        for (index_t j = first; j < last; j += unit)
          if (there(j)) ++rank[level(j)];
        for (index_t d = 0; d < together; ++d) {
          const index_t size = std::exchange(rank[d], before);
          next[d] = (before + step - 1) / step * step, before += size;
        }
        for (index_t j = first; j < last; j += unit) {
          if (!there(j)) continue;
          const index_t d = level(j);
          if (rank[d]++ != next[d] || next[d] >= end) continue;
          next[d] += step;
          std::fill_n(distance + j, unit, chosen);
        }
      }
      // Both lists ascend: joined from the end, in place.
      index_t old = kept[h], to = kept[h] + wanted * unit;
      kept[h] = to;
      for (index_t j = n - 1; j >= 0 && to > old; --j) {
        if (old > 0 && list[old - 1] == j) list[--to] = list[--old];
        else if (j >= first && j < last && distance[j] == chosen) list[--to] = static_cast<std::int32_t>(j);
      }
    });
    return Status::ok;
  }

 private:
  static constexpr float chosen = -1.0f;
  static constexpr int together = 32;  ///< distances: as many as most models have KV heads

  static void of_blocks(const SignatureRequest& request, float* bit, index_t first, index_t last, index_t n) {
    const index_t block = request.block, whole = std::max<index_t>(0, last - first) / block;
    for (index_t i = 0; i < block; ++i) {
      index_t ones = 0;
      for (index_t b = 0; b < whole; ++b) ones += bit[first + b * block + i] > 0.0f;
      const bool one = anchor_bit(request, i, ones, whole);
      for (index_t b = 0; b < whole; ++b) {
        float& x = bit[first + b * block + i];
        x = (x > 0.0f) != one ? 1.0f : 0.0f;
      }
    }
    for (index_t b = 0; b < whole; ++b) {
      float* x = bit + first + b * block;
      float sum = 0.0f;
      for (index_t i = 0; i < block; ++i) sum += x[i];
      std::fill_n(x, block, sum);
    }
    std::fill(bit + first + whole * block, bit + std::max(first + whole * block, n), std::numeric_limits<float>::infinity());
  }
};

}  // namespace kvcondense::prim
