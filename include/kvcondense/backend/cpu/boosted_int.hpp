#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include <kvcondense/backend/cpu/group_quant_fold.hpp>
#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/backend/cpu/group_quant_tile.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/boosted_int.hpp>

namespace kvcondense::prim {

namespace cpu {

/// Parameters of one group of slots, and the boosted channels in order of rank.
struct BoostedGroup {
  float scale[max_head_dim];
  float minimum[max_head_dim];
  std::int32_t channel[max_head_dim];
};

/// A page of BoostedInt rows: addresses.
template <int Low, int High>
struct BoostedPage {
  const BoostedInt<Low, High>& codec;
  PageSpan page;

  std::byte* low(index_t slot) const { return page.data + slot * codec.low_bytes(page.dim); }
  std::byte* high(index_t slot) const {
    return page.data + codec.high_at(page.slots, page.dim) + slot * codec.high_bytes(page.dim);
  }
  std::byte* params(index_t slot) const {
    return page.data + codec.params_at(page.slots, page.dim) + slot / codec.group_size * codec.group_bytes(page.dim);
  }

  void read_group(index_t slot, BoostedGroup& g) const {
    const std::byte* at = params(slot);
    read_numbers(ParamType::f16, at, page.dim, g.scale);
    read_numbers(ParamType::f16, at + 2 * page.dim, page.dim, g.minimum);
    const index_t boosted = codec.boosted(page.dim);
    std::fill_n(g.channel, boosted, 0);  // a damaged map leaves ranks out
    for (index_t c = 0; c < page.dim; ++c) {
      const auto rank = static_cast<index_t>(at[4 * page.dim + c]);
      if (rank < boosted) g.channel[rank] = static_cast<std::int32_t>(c);
    }
  }
  void write_group(index_t slot, const BoostedGroup& g) const {
    std::byte* at = params(slot);
    write_numbers(ParamType::f16, g.scale, page.dim, at);
    write_numbers(ParamType::f16, g.minimum, page.dim, at + 2 * page.dim);
    const index_t boosted = codec.boosted(page.dim);
    std::fill_n(at + 4 * page.dim, page.dim, static_cast<std::byte>(boosted));
    for (index_t k = 0; k < boosted; ++k) at[4 * page.dim + g.channel[k]] = static_cast<std::byte>(k);
  }
};

}  // namespace cpu

/// Codes in two planes. The high plane is a second, short row: its scales are those of its channels times
/// 2^Low, so that attention adds two products and nothing is put back in place per token.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond
///           `largest_coded` (clamped to the range of the others, and not counted when channels are ranked),
///           and one more for every channel whose parameters did not fit fp16. Magnitudes are summed in
///           double, slot by slot; of equal ones the smaller channel comes first.
template <int Low, int High>
struct PageCodec<Cpu, BoostedInt<Low, High>> {
  using Codec = BoostedInt<Low, High>;
  using Page = cpu::BoostedPage<Low, High>;

  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    const Page to{codec, page};
    index_t repaired = 0;
    for (index_t i = 0; i < count; i += codec.group_size)
      repaired += encode_group(to, first + i, {rows.data + i * rows.step, codec.group_size, rows.step});
    return repaired;
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    const Page from{codec, page};
    const index_t boosted = codec.boosted(page.dim);
    cpu::BoostedGroup group;
    std::uint8_t codes[cpu::code_buffer], high[cpu::code_buffer];
    for (index_t i = 0; i < count; ++i) {
      const index_t slot = first + i;
      if (i == 0 || slot % codec.group_size == 0) from.read_group(slot, group);
      cpu::unpack_codes<Low>(from.low(slot), page.dim, codes);
      cpu::unpack_codes<High>(from.high(slot), boosted, high);
      for (index_t k = 0; k < boosted; ++k)
        codes[group.channel[k]] = static_cast<std::uint8_t>(codes[group.channel[k]] | high[k] << Low);
      float* x = rows.data + i * rows.step;
      for (index_t c = 0; c < page.dim; ++c)
        x[c] = value_of<Low, GroupForm::minimum>(codes[c], group.scale[c], group.minimum[c]);
    }
  }

  static void scores(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    cpu::by_rows(queries, out, [&](RowBlock<const float> q, RowBlock<float> o) {
      score_rows({codec, page}, first, count, q, o);
    });
  }

  static void accumulate(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    cpu::by_rows(weights, out, [&](RowBlock<const float> w, RowBlock<float> o) {
      add_rows({codec, page}, first, count, w, o);
    });
  }

 private:
  static constexpr float high_unit = static_cast<float>(1 << Low);

  static void score_rows(const Page& from, index_t first, index_t count, RowBlock<const float> queries, RowBlock<float> out) {
    const index_t dim = from.page.dim, boosted = from.codec.boosted(dim), each = from.codec.group_size;
    const index_t width = cpu::padded(dim, cpu::lanes), high_width = cpu::padded(boosted, cpu::lanes), step = cpu::tile_slots;
    alignas(64) float tile[cpu::tile_slots * max_head_dim], part[cpu::fold_rows * cpu::tile_slots];
    alignas(64) float low[cpu::fold_rows * max_head_dim], high[cpu::fold_rows * max_head_dim];
    float zero[cpu::fold_rows];
    cpu::BoostedGroup group;
    for (index_t done = 0; done < count;) {
      const index_t slot = first + done, end = done + std::min(each - slot % each, count - done);
      from.read_group(slot, group);
      for (index_t r = 0; r < queries.rows; ++r) {
        const float* q = queries.data + r * queries.step;
        float* l = low + r * width;
        float* h = high + r * high_width;
        for (index_t c = 0; c < dim; ++c) l[c] = q[c] * group.scale[c];
        std::fill(l + dim, l + width, 0.0f);
        for (index_t k = 0; k < boosted; ++k) h[k] = high_unit * l[group.channel[k]];
        std::fill(h + boosted, h + high_width, 0.0f);
        zero[r] = cpu::dot(q, group.minimum, dim);
      }
      for (; done < end; done += step) {
        const index_t n = std::min(step, end - done);
        cpu::unpack_tile<cpu::DenseRows<Low>>(from.low(first + done), from.codec.low_bytes(dim), n, dim, width, tile);
        cpu::dot_tile(tile, n, width, low, queries.rows, part);
        for (index_t r = 0; r < queries.rows; ++r)
          for (index_t i = 0; i < n; ++i) out.data[r * out.step + done + i] = part[r * step + i] + zero[r];
        if (boosted == 0) continue;
        cpu::unpack_tile<cpu::DenseRows<High>>(from.high(first + done), from.codec.high_bytes(dim), n, boosted, high_width, tile);
        cpu::dot_tile(tile, n, high_width, high, queries.rows, part);
        for (index_t r = 0; r < queries.rows; ++r)
          for (index_t i = 0; i < n; ++i) out.data[r * out.step + done + i] += part[r * step + i];
      }
      done = end;
    }
  }

  static void add_rows(const Page& from, index_t first, index_t count, RowBlock<const float> weights, RowBlock<float> out) {
    const index_t dim = from.page.dim, boosted = from.codec.boosted(dim), each = from.codec.group_size;
    const index_t width = cpu::padded(dim, cpu::lanes), high_width = cpu::padded(boosted, cpu::lanes), step = cpu::tile_slots;
    alignas(64) float tile[cpu::tile_slots * max_head_dim];
    alignas(64) float low[cpu::fold_rows * max_head_dim], high[cpu::fold_rows * max_head_dim];
    float total[cpu::fold_rows];
    cpu::BoostedGroup group;
    for (index_t done = 0; done < count;) {
      const index_t slot = first + done, end = done + std::min(each - slot % each, count - done);
      std::fill_n(low, weights.rows * width, 0.0f);
      std::fill_n(high, weights.rows * high_width, 0.0f);
      std::fill_n(total, weights.rows, 0.0f);
      for (; done < end; done += step) {
        const index_t n = std::min(step, end - done);
        cpu::unpack_tile<cpu::DenseRows<Low>>(from.low(first + done), from.codec.low_bytes(dim), n, dim, width, tile);
        cpu::add_tile(tile, n, width, 0, width, weights.data + done, weights.step, weights.rows, low);
        for (index_t r = 0; r < weights.rows; ++r)
          for (index_t i = 0; i < n; ++i) total[r] += weights.data[r * weights.step + done + i];
        if (boosted == 0) continue;
        cpu::unpack_tile<cpu::DenseRows<High>>(from.high(first + done), from.codec.high_bytes(dim), n, boosted, high_width, tile);
        cpu::add_tile(tile, n, high_width, 0, high_width, weights.data + done, weights.step, weights.rows, high);
      }
      done = end;
      from.read_group(slot, group);
      for (index_t r = 0; r < weights.rows; ++r) {
        float* sums = low + r * width;
        for (index_t k = 0; k < boosted; ++k) sums[group.channel[k]] += high_unit * high[r * high_width + k];
        float* o = out.data + r * out.step;
        for (index_t c = 0; c < dim; ++c) o[c] += group.scale[c] * sums[c] + group.minimum[c] * total[r];
      }
    }
  }

  static index_t encode_group(const Page& to, index_t slot, RowBlock<const float> rows) {
    const Codec& codec = to.codec;
    const index_t dim = to.page.dim, boosted = codec.boosted(dim);
    cpu::BoostedGroup group;
    float lo[max_head_dim], hi[max_head_dim], inverse[max_head_dim];
    std::fill_n(lo, dim, GroupRange{}.lo);
    std::fill_n(hi, dim, GroupRange{}.hi);
    index_t repaired = 0;
    for (index_t i = 0; i < rows.rows; ++i) repaired += cpu::coding_ops().widen_ranges(rows.data + i * rows.step, dim, lo, hi);
    rank_channels(rows, dim, boosted, group.channel);
    bool strong[max_head_dim] = {};
    for (index_t k = 0; k < boosted; ++k) strong[group.channel[k]] = true;
    for (index_t c = 0; c < dim; ++c) {
      const GroupParams p = fit_group(GroupForm::minimum, strong[c] ? Low + High : Low, ParamType::f16, {lo[c], hi[c]});
      group.scale[c] = p.scale;
      group.minimum[c] = p.offset;
      inverse[c] = p.inverse;
      repaired += static_cast<index_t>(p.saturated);
    }
    float x[max_head_dim], offset[max_head_dim], inv[max_head_dim];
    for (index_t k = 0; k < boosted; ++k) offset[k] = group.minimum[group.channel[k]], inv[k] = inverse[group.channel[k]];
    std::uint8_t codes[max_head_dim], high[max_head_dim];
    for (index_t i = 0; i < rows.rows; ++i) {
      const float* row = rows.data + i * rows.step;
      for (index_t k = 0; k < boosted; ++k) x[k] = row[group.channel[k]];
      cpu::coding_ops().code_row(GroupForm::minimum, codec.rounding, Low, row, group.minimum, inverse, dim, codes);
      cpu::coding_ops().code_row(GroupForm::minimum, codec.rounding, Low + High, x, offset, inv, boosted, high);
      for (index_t k = 0; k < boosted; ++k) {
        codes[group.channel[k]] = static_cast<std::uint8_t>(high[k] & ((1 << Low) - 1));
        high[k] = static_cast<std::uint8_t>(high[k] >> Low);
      }
      cpu::pack_codes<Low>(codes, dim, to.low(slot + i));
      cpu::pack_codes<High>(high, boosted, to.high(slot + i));
    }
    to.write_group(slot, group);
    return repaired;
  }

  /// The `boosted` channels of largest mean magnitude, the strongest first.
  static void rank_channels(RowBlock<const float> rows, index_t dim, index_t boosted, std::int32_t* channel) {
    double sum[max_head_dim] = {};
    for (index_t i = 0; i < rows.rows; ++i)
      for (index_t c = 0; c < dim; ++c) {
        const float x = rows.data[i * rows.step + c];
        sum[c] += needs_repair(x) ? 0.0 : std::abs(static_cast<double>(x));
      }
    std::int32_t order[max_head_dim];
    std::iota(order, order + dim, 0);
    std::partial_sort(order, order + boosted, order + dim,
                      [&](std::int32_t a, std::int32_t b) { return sum[a] != sum[b] ? sum[a] > sum[b] : a < b; });
    std::copy_n(order, boosted, channel);
  }
};

}  // namespace kvcondense::prim
