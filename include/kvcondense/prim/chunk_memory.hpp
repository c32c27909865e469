#pragma once

#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// Rows of a memory in chunks of `chunk`, as a ring: logical chunk c lies at place (first + c) % places.
///
/// Shapes   keys and means [kv_heads, ...] with places * chunk rows and places rows, values like keys.
struct ChunkMemory {
  TensorView<const float, 3> keys;
  TensorView<const float, 3> values;
  TensorView<const float, 3> means;  ///< the mean key of each chunk
  index_t chunk = 1;
  index_t first = 0;   ///< place of the oldest chunk
  index_t chunks = 0;  ///< in use

  KVCONDENSE_HD index_t place(index_t c) const { return (first + c) % means.extent[1]; }
};

/// Whether a call of RetrieveChunks has views that agree.
inline bool chunk_memory_fits(const ChunkMemory& m, const TensorView<const float, 3>& queries, index_t most, const TensorView<float, 3>& out,
                              const TensorView<float, 2>& lse, const TensorView<std::int32_t, 3>& chosen) {
  const index_t q_heads = queries.extent[0], tokens = queries.extent[1], dim = queries.extent[2], kv = m.keys.extent[0];
  const bool same = kv > 0 && q_heads % kv == 0 && m.keys.extent[2] == dim && m.means.extent[2] == dim && m.means.extent[0] == kv &&
                    m.values.extent[0] == kv && out.extent[0] == q_heads && out.extent[1] == tokens && out.extent[2] == m.values.extent[2];
  const bool ring = m.chunk > 0 && m.chunks >= 0 && m.chunks <= m.means.extent[1] && m.keys.extent[1] >= m.means.extent[1] * m.chunk &&
                    m.values.extent[1] >= m.means.extent[1] * m.chunk && (m.chunks == 0 || (m.first >= 0 && m.first < m.means.extent[1]));
  const bool more = (lse.data == nullptr || (lse.extent[0] == q_heads && lse.extent[1] == tokens)) &&
                    (chosen.data == nullptr || (chosen.extent[0] == q_heads && chosen.extent[1] == tokens && chosen.extent[2] == most));
  return same && ring && more && most >= 0;
}

/// Attention of every query over the chunks of a memory whose mean keys it likes best.
///
///   run(ctx, memory, queries, most, softmax_scale, out, lse, chosen, Scratch) -> Status
///   means(ctx, keys, chunk, out)       out[h, c, :] = mean of rows [c chunk, (c + 1) chunk) of keys
///
/// Shapes   queries [q_heads, tokens, dim], out [q_heads, tokens, value_dim], lse [q_heads, tokens] or empty; chosen
///          (empty: not wanted) [q_heads, tokens, most]: logical chunks, ascending, -1 behind the last.
/// Numbers  float32; a chunk's score is query . mean, each query head chooses alone. Larger first, ties take the older
///          chunk, NaN is never chosen. Without a chunk: zeros and lse = -inf.
/// Cost     one read of the means and of `most` chunks per query.
/// Errors   shape_mismatch; workspace_too_small, nothing is written.
template <Backend B>
struct RetrieveChunks {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Mixes two outputs per head: out = (1 - g) a + g b, g = 1 / (1 + exp(-bias[h])). Two softmaxes, not one.
///
///   run(ctx, a, b, std::span<const float> bias, out) -> Status
///
/// Shapes   a, b and out [heads, tokens, dim], bias [heads], where the backend's words read; out may be a or b.
/// Errors   shape_mismatch.
template <Backend B>
struct GatedMerge {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
