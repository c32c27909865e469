#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::prim {

template <>
struct Rope<Cpu> {
  static Status rotate(Context<Cpu>& ctx, const RopeAngles& angles, TensorView<const float, 3> rows,
                       TensorView<const index_t, 2> positions, TensorView<float, 3> out, RopeTurn turn = {}) {
    const index_t heads = rows.extent[0], tokens = rows.extent[1], dim = rows.extent[2];
    const bool same = out.extent[0] == heads && out.extent[1] == tokens && out.extent[2] == dim;
    const bool placed = positions.extent[1] == tokens && (positions.extent[0] == heads || positions.extent[0] == 1);
    if (!same || !placed || dim < 2 * angles.pairs || (dim > 1 && (rows.stride[2] != 1 || out.stride[2] != 1)))
      return Status::shape_mismatch;
    if (heads == 0) return Status::ok;

    ctx.parallel(tokens, [&](index_t t, index_t) {
      float cos_sin[max_head_dim];
      for (index_t h = 0; h < heads; ++h) {
        if (h < positions.extent[0]) {
          rope_cos_sin(angles, positions(h, t), cos_sin, cos_sin + angles.pairs);
          for (index_t i = 0; i < 2 * angles.pairs; ++i) cos_sin[i] *= turn.scale;
        }
        const float* in = &rows(h, t, 0);
        float* to = &out(h, t, 0);
        if (in != to) std::copy(in, in + dim, to);
        cpu::turn_rows(to, 1, dim, cos_sin, 0, angles, turn.back);
      }
    });
    return Status::ok;
  }

  static Status shift(Context<Cpu>& ctx, const RopeAngles& angles, TensorView<const float, 3> rows, index_t by, TensorView<float, 3> out,
                      RopeTurn turn = {}) {
    return rotate(ctx, angles, rows, {&by, {1, rows.extent[1]}, {0, 0}}, out, turn);
  }
};

}  // namespace kvcondense::prim
