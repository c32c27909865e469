#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_exposure.hpp>

namespace kvcondense::prim {

template <>
struct SlotExposure<Cpu> {
  static Status count(Context<Cpu>& ctx, index_t stepped, index_t appended, index_t rows, RaggedView<float> mark) {
    const auto now = static_cast<std::uint32_t>(stepped), came = static_cast<std::uint32_t>(appended);
    ctx.parallel(mark.heads, [&](index_t h, index_t) {
      const index_t n = mark.length(h), first = std::max<index_t>(n - appended, 0);  // the first new slot
      float* m = mark.row(h);
      const auto sees = [&](index_t j) { return static_cast<std::uint32_t>(std::min(rows, n - j)); };
      for (index_t j = 0; j < first && rows != appended; ++j) m[j] = exposure_mark(exposed_rows(m[j], now - came) + sees(j), now);
      for (index_t j = first; j < n; ++j) m[j] = exposure_mark(sees(j), now);
    });
    return Status::ok;
  }
  static Status begin(Context<Cpu>& ctx, index_t stepped, index_t rows, RaggedView<float> mark) {
    return count(ctx, stepped, std::numeric_limits<index_t>::max(), rows, mark);
  }

  static Status mean(Context<Cpu>& ctx, RaggedView<const float> sum, RaggedView<const float> mark, index_t stepped, RaggedView<float> out) {
    each(ctx, sum, mark, stepped, out, [](float s, float rows) { return rows > 0.0f ? s / rows : 0.0f; });
    return Status::ok;
  }

  static Status open_logs(Context<Cpu>& ctx, index_t appended, RaggedView<float> logs) {
    ctx.parallel(logs.heads, [&](index_t h, index_t) {
      const index_t n = logs.length(h);
      std::fill(logs.row(h) + std::max<index_t>(n - appended, 0), logs.row(h) + n, -std::numeric_limits<float>::infinity());
    });
    return Status::ok;
  }

  static Status decayed_mean(Context<Cpu>& ctx, RaggedView<const float> logs, RaggedView<const float> mark, index_t stepped, float decay,
                             RaggedView<float> out) {
    each(ctx, logs, mark, stepped, out, [decay](float log, float rows) {
      return rows > 0.0f ? log - std::log(1.0f - std::pow(decay, rows)) : -std::numeric_limits<float>::infinity();
    });
    return Status::ok;
  }

  static Status row_divisors(Context<Cpu>&, index_t seen, index_t rows, float* out) {
    for (index_t r = 0; r < rows; ++r) out[r] = static_cast<float>(seen) / static_cast<float>(seen - rows + r);
    return Status::ok;
  }

 private:
  /// out[h][j] = f(x[h][j], rows that have seen the slot).
  template <class F>
  static void each(Context<Cpu>& ctx, RaggedView<const float> x, RaggedView<const float> mark, index_t stepped, RaggedView<float> out, F&& f) {
    const auto now = static_cast<std::uint32_t>(stepped);
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      const float *from = x.row(h), *m = mark.row(h);
      float* o = out.row(h);
      for (index_t j = 0; j < out.length(h); ++j) o[j] = f(from[j], static_cast<float>(exposed_rows(m[j], now)));
    });
  }
};

}  // namespace kvcondense::prim
