#pragma once

#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/settle_probed.hpp>

namespace kvcondense::prim {

template <>
struct SettleProbed<Cpu> {
  static Status run(Context<Cpu>& ctx, RaggedView<float> asked, RaggedView<float> out) {
    constexpr float settled = std::numeric_limits<float>::infinity();
    ctx.parallel(out.heads, [&](index_t h, index_t) {
      float* a = asked.row(h);
      for (index_t j = 0; j < out.length(h); ++j) {
        out.row(h)[j] = a[j] == 0.0f ? settled : a[j];
        if (a[j] != 0.0f) a[j] = settled;
      }
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
