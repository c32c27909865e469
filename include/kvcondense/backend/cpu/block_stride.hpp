#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/block_stride.hpp>

namespace kvcondense::prim {

template <>
struct BlockStride<Cpu> {
  static Status mark(Context<Cpu>& ctx, const BlockPattern& pattern, index_t first, index_t count,
                     RaggedView<float> marks) {
    if (pattern.block < 1 || pattern.every < 1 || pattern.shift < 0) return Status::invalid_argument;
    ctx.parallel(marks.heads, [&](index_t h, index_t) {
      const index_t n = marks.length(h), fresh = std::min(count, n);
      float* m = marks.row(h) + n - fresh;
      for (index_t i = 0; i < fresh; ++i) m[i] = pattern.has(first + count - fresh + i, h) ? 1.0f : 0.0f;
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
