#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::prim {
namespace cpu {

/// The most that `for_head_sums` shows at once: sums that still fit the nearest cache.
inline constexpr index_t most_head_sums = 4096;

/// sums[j] = x[0][first + j] + x[1][first + j] + ... for j < n.
inline void sum_rows(RaggedView<const float> x, index_t first, index_t n, float* sums) {
  constexpr index_t most = 16;
  const float* row[most];
  float once[most];
  std::fill_n(once, most, 1.0f);
  std::fill_n(sums, n, 0.0f);
  for (index_t h = 0; h < x.heads; h += most) {
    const index_t count = std::min(most, x.heads - h);
    for (index_t i = 0; i < count; ++i) row[i] = x.row(h + i) + first;
    number_ops().add_scaled(row, once, count, n, sums);
  }
}

/// Calls use(first, n, sums over all rows) for all slots of rows of one length, the newest ones first: what a
/// layer's heads share is worked out once.
template <class Use>
void for_head_sums(RaggedView<const float> x, Use&& use) {
  float sums[most_head_sums];
  for (index_t last = x.heads > 0 ? x.length(0) : 0; last > 0;) {
    const index_t n = std::min(most_head_sums, last), first = last - n;
    sum_rows(x, first, n, sums);
    use(first, n, sums);
    last = first;
  }
}

}  // namespace cpu

template <>
struct SlotNumbers<Cpu> {
  static Status fill(Context<Cpu>& ctx, float x, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) { std::fill_n(out.row(h), out.length(h), x); });
    return Status::ok;
  }

  static Status index(Context<Cpu>& ctx, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = static_cast<float>(j);
    });
    return Status::ok;
  }

  static Status mix(Context<Cpu>& ctx, RaggedView<const float> x, float scale, float keep,
                    RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) { mix_row(x.row(h), out.length(h), scale, keep, out.row(h)); });
    return Status::ok;
  }
  /// The same for `n` slots of a head.
  static void mix_row(const float* x, index_t n, float scale, float keep, float* out) {
    cpu::number_ops().mix(x, n, scale, keep, out);
  }

  static Status larger(Context<Cpu>& ctx, RaggedView<const float> x, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      cpu::number_ops().larger(x.row(h), out.row(h), out.length(h), out.row(h));
    });
    return Status::ok;
  }

  static Status larger_brought(Context<Cpu>& ctx, RaggedView<const float> x, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* o = out.row(h);
      const float* from = x.row(h);
      double all = 0.0, own = 0.0;
      for (index_t j = 0; j < out.length(h); ++j) all += static_cast<double>(from[j]), own += static_cast<double>(o[j]);
      const float scale = all > 0.0 ? static_cast<float>(own / all) : 0.0f;
      for (index_t j = 0; j < out.length(h); ++j) o[j] = from[j] * scale > o[j] ? from[j] * scale : o[j];
    });
    return Status::ok;
  }

  static Status times(Context<Cpu>& ctx, RaggedView<const float> x, float add, RaggedView<float> out) {
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* o = out.row(h);
      const float* from = x.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = (o[j] + add) * from[j];
    });
    return Status::ok;
  }

  static Status sum_heads(Context<Cpu>&, RaggedView<const float> x, float scale, float keep,
                          RaggedView<float> out) {
    for (index_t h = 1; h < x.heads; ++h)
      if (x.length(h) != x.length(0)) return Status::not_supported;
    for (index_t h = 0; h < out.heads; ++h)
      if (out.length(h) != out.length(0)) return Status::not_supported;
    cpu::for_head_sums(x, [&](index_t first, index_t n, const float* sums) {
      for (index_t h = 0; h < out.heads; ++h) mix_row(sums, n, scale, keep, out.row(h) + first);
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
