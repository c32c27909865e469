#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/cache/folding.hpp>
#include <kvcondense/external/borrowed.hpp>
#include <kvcondense/prim/rope.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::external {

/// Turns stored keys from the positions they were written at to other ones, where they lie.
///
/// Idea     a key turned by p becomes one turned by r when it is turned by r - p more: after an eviction, or when a context
///          shifts, positions close up without the keys before rotation.
/// Source   RoPE, arXiv:2104.09864, equation 34; llama.cpp's context shift; StreamingLLM, arXiv:2309.17453.
/// Needs    the model's rotary embedding; of each slot where it is and where it shall be: without `to`, at its number, so that
///          positions close up.
/// Shapes   from and to: a row per KV head of as many numbers as it has slots, or one row for all heads.
/// Cost     one read and one write of the keys that turn; a cosine and a sine per pair and slot.
/// Numbers  angles in double, cosine and sine in float, the sum in float32, rounded once to the stored type: every call rounds
///          once more, so a stream that turns all its keys at each token drifts; turn in steps of many. What the stored type
///          has no number for becomes the nearest one it has, a NaN becomes 0.
/// Errors   as check(); shape_mismatch: numbers of rows or slots; invalid_argument: a position below 0 or beyond 2^31 - 1, a
///          rotation that cannot be, a key that turns in a shared page; not_supported: dynamic_ntk, whose angles change with
///          the length. No key has turned then.
struct RerotateKeys {
  static std::size_t workspace_bytes(index_t pool_pages) { return Scratch::align + Scratch::bytes_for<std::uint64_t>((pool_pages + 63) / 64); }

  static Status run(Context<Cpu>& ctx, const BorrowedLayer& b, const CacheShape& shape, const prim::RopeConfig& rope,
                    RaggedView<const index_t> from, RaggedView<const index_t> to = {}) {
    const index_t heads = shape.kv_heads;
    const bool close_up = to.data == nullptr && to.heads == 0;
    if ((!close_up && from.heads != to.heads) || (from.heads != 1 && from.heads != heads)) return Status::shape_mismatch;
    index_t longest = 0;
    for (index_t h = 0; h < from.heads; ++h) {
      if ((!close_up && from.length(h) != to.length(h)) || from.length(h) < 0) return Status::shape_mismatch;
      longest = std::max(longest, from.length(h));
    }
    if (const Status s = check(b, shape, longest, Scratch(ctx.workspace())); s != Status::ok) return s;
    if (rope.scaling == prim::RopeScaling::dynamic_ntk) return Status::not_supported;
    const auto angles = prim::rope_angles(rope, shape.head_dim);
    if (!angles) return angles.status();
    const auto target = [&](index_t h, index_t j) { return close_up ? j : to.row(h)[j]; };
    constexpr index_t most = 0x7fffffff;
    for (index_t h = 0; h < from.heads; ++h)
      for (index_t j = 0; j < from.length(h); ++j) {
        const index_t a = from.row(h)[j], z = target(h, j);
        if (a < 0 || z < 0 || a > most || z > most) return Status::invalid_argument;
        if (a != z && b.shared(b.page(j))) return Status::invalid_argument;
      }
    const bool one = from.heads == 1;
    ctx.parallel(one ? longest : heads, [&](index_t task, index_t) {
      float cos[max_head_dim / 2], sin[max_head_dim / 2], row[max_head_dim];
      const index_t list = one ? 0 : task;
      for (index_t j = one ? task : 0; j < (one ? task + 1 : from.length(list)); ++j) {
        const index_t by = target(list, j) - from.row(list)[j];
        if (by == 0) continue;
        prim::rope_cos_sin(*angles, by, cos, sin);
        for (index_t h = one ? 0 : task; h < (one ? heads : task + 1); ++h) {
          prim::cpu::read_paged(b.keys, b.page(j), h, j % b.page_slots, row);
          prim::rotate_row(row, row, cos, sin, angles->pairs, angles->pairing);
          index_t repaired = 0;
          cache::bring_into_range(row, shape.head_dim, b.keys.dtype, repaired);
          prim::cpu::write_paged(b.keys, b.page(j), h, j % b.page_slots, row);
        }
      }
    });
    return Status::ok;
  }

  /// The same positions for all heads.
  static Status run(Context<Cpu>& ctx, const BorrowedLayer& b, const CacheShape& shape, const prim::RopeConfig& rope,
                    std::span<const index_t> from, std::span<const index_t> to) {
    const index_t now[] = {0, static_cast<index_t>(from.size())}, then[] = {0, static_cast<index_t>(to.size())};
    return run(ctx, b, shape, rope, RaggedView<const index_t>{from.data(), now, 1}, RaggedView<const index_t>{to.data(), then, 1});
  }
  static Status run(Context<Cpu>& ctx, const BorrowedLayer& b, const CacheShape& shape, const prim::RopeConfig& rope,
                    std::span<const index_t> from) {
    const index_t now[] = {0, static_cast<index_t>(from.size())};
    return run(ctx, b, shape, rope, RaggedView<const index_t>{from.data(), now, 1});
  }
};

}  // namespace kvcondense::external
