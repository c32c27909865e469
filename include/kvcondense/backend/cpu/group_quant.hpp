#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/backend/cpu/group_quant_codes.hpp>
#include <kvcondense/backend/cpu/group_quant_fold.hpp>
#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/group_quant.hpp>

namespace kvcondense::prim {

/// Integer codes with shared scales. `scores` and `accumulate` work on the codes: parameters are
/// folded into the queries, the weights or the sums, never into rows.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond
///           `largest_coded` (clamped to the range of the others), and one more for every group whose
///           parameters did not fit their type.
template <int Bits>
struct PageCodec<Cpu, GroupInt<Bits>> {
  using Codec = GroupInt<Bits>;
  using Plan = cpu::CodePlan<Bits>;

  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count,
                        RowBlock<const float> rows) {
    const cpu::GroupPage<Bits> to{codec, page};
    index_t repaired = 0;
    for (index_t i = 0; i < count; i += codec.group_slots()) {
      const RowBlock<const float> group{rows.data + i * rows.step, codec.group_slots(), rows.step};
      repaired += codec.axis == GroupAxis::token ? cpu::encode_slot(to, first + i, group.data)
                                                 : encode_group(to, first + i, group);
    }
    return repaired;
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::decode_slots(cpu::GroupPage<Bits>{codec, page}, first, count, rows);
  }

  /// Token axis only: slots there have parameters of their own.
  static void move(const Codec& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    cpu::move_slot(cpu::GroupPage<Bits>{codec, to}, to_slot, cpu::GroupPage<Bits>{codec, from}, from_slot);
  }

  static void scores(const Codec& codec, std::span<const PagePiece> pieces, const RowBlock<const float>& queries, const RowBlock<float>& out) {
    if (pieces.empty()) return;
    const Plan plan(codec, pieces.front().page.slots, pieces.front().page.dim);
    if constexpr (Page::has_lanes)
      if (plan.scoring != nullptr) return cpu::CodeAttention<Bits>(plan, *plan.scoring).scores(pieces, queries, out);
    for (const PagePiece& p : pieces)
      cpu::by_rows(queries, {out.data + p.at, out.rows, out.step}, [&](RowBlock<const float> q, RowBlock<float> o) {
        const Page from{codec, p.page};
        if (codec.axis == GroupAxis::channel) cpu::scores_by_channel(from, p.first, p.count, q, o);
        else cpu::scores_by_token(from, p.first, p.count, q, o);
      });
  }
  static void scores(const Codec& codec, const PageSpan& page, index_t first, index_t count, const RowBlock<const float>& queries,
                     const RowBlock<float>& out) {
    const PagePiece piece{page, first, count};
    scores(codec, {&piece, 1}, queries, out);
  }

  static void accumulate(const Codec& codec, std::span<const PagePiece> pieces, const RowBlock<const float>& weights, const RowBlock<float>& out) {
    if (pieces.empty()) return;
    const Plan plan(codec, pieces.front().page.slots, pieces.front().page.dim);
    if constexpr (Page::has_lanes)
      if (plan.summing != nullptr) return cpu::CodeAttention<Bits>(plan, *plan.summing).accumulate(pieces, weights, out);
    for (const PagePiece& p : pieces)
      cpu::by_rows(RowBlock<const float>{weights.data + p.at, weights.rows, weights.step}, out, [&](RowBlock<const float> w, RowBlock<float> o) {
        const Page from{codec, p.page};
        if (codec.axis == GroupAxis::channel) cpu::accumulate_by_channel(from, p.first, p.count, w, o);
        else cpu::accumulate_by_token(from, p.first, p.count, w, o);
      });
  }
  static void accumulate(const Codec& codec, const PageSpan& page, index_t first, index_t count, const RowBlock<const float>& weights,
                         const RowBlock<float>& out) {
    const PagePiece piece{page, first, count};
    accumulate(codec, {&piece, 1}, weights, out);
  }

  static const char* kernel(const Codec& codec, PageSpan page, bool sums) {
    const Plan plan(codec, page.slots, page.dim);
    const cpu::CodeOps* ops = sums ? plan.summing : plan.scoring;
    return ops == nullptr ? nullptr : ops->name;
  }

 private:
  using Page = cpu::GroupPage<Bits>;

  static index_t encode_group(const cpu::GroupPage<Bits>& to, index_t slot, RowBlock<const float> rows) {
    const Codec& codec = to.codec;
    const index_t dim = to.page.dim;
    float lo[max_head_dim], hi[max_head_dim], scale[max_head_dim], inverse[max_head_dim];
    std::uint8_t codes[max_head_dim];
    const cpu::CodingOps& ops = cpu::coding_ops();
    std::fill_n(lo, dim, GroupRange{}.lo);
    std::fill_n(hi, dim, GroupRange{}.hi);
    index_t repaired = 0;
    for (index_t i = 0; i < rows.rows; ++i) repaired += ops.widen_ranges(rows.data + i * rows.step, dim, lo, hi);
    float* offset = lo;  // each range is read before its offset is written
    repaired += ops.fit_groups(codec.form, Bits, codec.params, lo, hi, dim, scale, offset, inverse);
    for (index_t i = 0; i < rows.rows; ++i) {
      ops.code_row(codec.form, codec.rounding, Bits, rows.data + i * rows.step, offset, inverse, dim, codes);
      to.put_codes(slot + i, codes);
    }
    to.write_params(slot, scale, offset);
    return repaired;
  }
};

}  // namespace kvcondense::prim
