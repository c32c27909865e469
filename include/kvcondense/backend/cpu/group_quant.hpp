#pragma once

#include <algorithm>

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

  static void scores(const Plan& plan, const PageSpan& page, index_t first, index_t count,
                     const RowBlock<const float>& queries, const RowBlock<float>& out) {
    if constexpr (Page::has_lanes)
      if (plan.scoring != nullptr) return cpu::CodeAttention<Bits>(plan, page, *plan.scoring).scores(first, count, queries, out);
    const Page from{plan.codec, page};
    cpu::by_rows(queries, out, [&](RowBlock<const float> q, RowBlock<float> o) {
      if (plan.codec.axis == GroupAxis::channel) cpu::scores_by_channel(from, first, count, q, o);
      else cpu::scores_by_token(from, first, count, q, o);
    });
  }
  static void scores(const Codec& codec, const PageSpan& page, index_t first, index_t count,
                     const RowBlock<const float>& queries, const RowBlock<float>& out) {
    scores(Plan(codec, page.slots, page.dim), page, first, count, queries, out);
  }

  static void accumulate(const Plan& plan, const PageSpan& page, index_t first, index_t count,
                         const RowBlock<const float>& weights, const RowBlock<float>& out) {
    if constexpr (Page::has_lanes)
      if (plan.summing != nullptr) return cpu::CodeAttention<Bits>(plan, page, *plan.summing).accumulate(first, count, weights, out);
    const Page from{plan.codec, page};
    cpu::by_rows(weights, out, [&](RowBlock<const float> w, RowBlock<float> o) {
      if (plan.codec.axis == GroupAxis::channel) cpu::accumulate_by_channel(from, first, count, w, o);
      else cpu::accumulate_by_token(from, first, count, w, o);
    });
  }
  static void accumulate(const Codec& codec, const PageSpan& page, index_t first, index_t count,
                         const RowBlock<const float>& weights, const RowBlock<float>& out) {
    accumulate(Plan(codec, page.slots, page.dim), page, first, count, weights, out);
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
