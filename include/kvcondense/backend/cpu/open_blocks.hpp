#pragma once

#include <algorithm>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/open_blocks.hpp>

namespace kvcondense::prim {
namespace cpu {

inline constexpr float out_of_contest = std::numeric_limits<float>::infinity();

/// Places [first, last) of a row.
struct Span {
  index_t first = 0;
  index_t last = 0;
  index_t size() const { return last - first; }
};

/// From the first to the last place that competes, between the ends; empty where none does.
inline Span competing(const float* scores, index_t n, Ends ends) {
  Span s{ends.prefix, n - ends.suffix};
  while (s.last > s.first && scores[s.last - 1] == out_of_contest) --s.last;
  while (s.first < s.last && scores[s.first] == out_of_contest) ++s.first;
  return s;
}

}  // namespace cpu

template <>
struct OpenBlocks<Cpu> {
  static Status mark(Context<Cpu>& ctx, RaggedView<const float> settled, index_t first, index_t block,
                     RaggedView<float> scores) {
    if (block < 1) return Status::invalid_argument;
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const index_t n = scores.length(h);
      index_t base = n;
      while (base > 0 && !(settled.row(h)[base - 1] >= 1.0f)) --base;
      base = std::max(base, std::min(first, n));
      const index_t open = std::max<index_t>(0, (n - base) / block - 1) * block;
      float* s = scores.row(h);
      std::fill_n(s, n, cpu::out_of_contest);
      std::fill_n(s + base, open, 0.0f);
    });
    return Status::ok;
  }

  static Status settle(Context<Cpu>& ctx, RaggedView<const float> scores, RaggedView<float> settled) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const cpu::Span run = cpu::competing(scores.row(h), scores.length(h), {});
      if (run.size() > 0) std::fill_n(settled.row(h), run.last, 1.0f);
    });
    return Status::ok;
  }

  static Status count(Context<Cpu>& ctx, RaggedView<const float> scores, const Ends* skip, index_t* count) {
    ctx.parallel(scores.heads, [&](index_t h, index_t) {
      const Ends ends = skip == nullptr ? Ends{} : skip[h].within(scores.length(h));
      count[h] = cpu::competing(scores.row(h), scores.length(h), ends).size();
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
