#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/clean_row.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/group_quant_fold.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/cluster_rows.hpp>
#include <kvcondense/prim/pack_bits.hpp>

namespace kvcondense::prim {

/// Queries are put in the order of the groups once per call, sums back out of it; scales multiply the dot product of a group,
/// or its weight.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond `largest_coded` (left
///           out of ranges, then clamped to them), and one for every group whose parameters did not fit their type.
template <>
struct PageCodec<Cpu, ClusterRows> {
  static index_t encode(const ClusterRows& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    const ClusterOrder order = codec.order(page.dim);
    index_t repaired = 0;
    for (index_t i = 0; i < count; ++i)
      repaired += encode_row(codec, order, rows.data + i * rows.step, page.dim, row(codec, page, first + i));
    return repaired;
  }

  static void decode(const ClusterRows& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    const ClusterOrder order = codec.order(page.dim);
    Slot slot;
    for (index_t i = 0; i < count; ++i) {
      slot.load(codec, order, row(codec, page, first + i), page.dim);
      float* x = rows.data + i * rows.step;
      for (index_t g = 0, k = 0; g < order.groups; ++g)
        for (; k < order.end[g]; ++k) x[order.channel[k]] = slot.code[k] * slot.scale[g] + slot.base[g];
    }
  }

  static void move(const ClusterRows& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(row(codec, to, to_slot), row(codec, from, from_slot), static_cast<std::size_t>(codec.row_bytes(to.dim)));
  }

  static void scores(const ClusterRows& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    const ClusterOrder order = codec.order(page.dim);
    const index_t dim = page.dim;
    Slot slot;
    alignas(64) float turned[cpu::fold_rows * max_head_dim];
    float sums[cpu::fold_rows * ClusterRows::most_groups];
    cpu::by_rows(queries, out, [&](RowBlock<const float> q, RowBlock<float> o) {
      for (index_t r = 0; r < q.rows; ++r)
        for (index_t g = 0, k = 0; g < order.groups; ++g) {
          float sum = 0.0f;
          for (; k < order.end[g]; ++k) sum += turned[r * dim + k] = q.data[r * q.step + order.channel[k]];
          sums[r * order.groups + g] = sum;
        }
      for (index_t i = 0; i < count; ++i) {
        slot.load(codec, order, row(codec, page, first + i), dim);
        for (index_t r = 0; r < q.rows; ++r) {
          float s = 0.0f;
          for (index_t g = 0, k = 0; g < order.groups; k = order.end[g++])
            s += slot.scale[g] * cpu::dot(turned + r * dim + k, slot.code + k, order.end[g] - k) +
                 slot.base[g] * sums[r * order.groups + g];
          o.data[r * o.step + i] = s;
        }
      }
    });
  }

  static void accumulate(const ClusterRows& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    const ClusterOrder order = codec.order(page.dim);
    const index_t dim = page.dim;
    Slot slot;
    alignas(64) float sums[cpu::fold_rows * max_head_dim];
    float zero[cpu::fold_rows * ClusterRows::most_groups];
    cpu::by_rows(weights, out, [&](RowBlock<const float> w, RowBlock<float> o) {
      std::fill_n(sums, w.rows * dim, 0.0f);
      std::fill_n(zero, w.rows * order.groups, 0.0f);
      for (index_t i = 0; i < count; ++i) {
        slot.load(codec, order, row(codec, page, first + i), dim);
        for (index_t r = 0; r < w.rows; ++r)
          for (index_t g = 0, k = 0; g < order.groups; ++g) {
            const float weight = w.data[r * w.step + i], scaled = weight * slot.scale[g];
            zero[r * order.groups + g] += weight * slot.base[g];
            for (; k < order.end[g]; ++k) sums[r * dim + k] += scaled * slot.code[k];
          }
      }
      for (index_t r = 0; r < w.rows; ++r)
        for (index_t g = 0, k = 0; g < order.groups; ++g)
          for (; k < order.end[g]; ++k) o.data[r * o.step + order.channel[k]] += sums[r * dim + k] + zero[r * order.groups + g];
    });
  }

 private:
  static std::byte* row(const ClusterRows& codec, PageSpan page, index_t slot) {
    return page.data + slot * codec.row_bytes(page.dim);
  }

  /// Calls f with the bits of a code as a constant; 0 for three levels.
  template <class F>
  static void with_levels(const ClusterRows& codec, F&& f) {
    switch (codec.levels) {
      case 2: return f.template operator()<1>();
      case 3: return f.template operator()<0>();
      case 4: return f.template operator()<2>();
      case 8: return f.template operator()<3>();
      default: return f.template operator()<4>();
    }
  }

  static float read_param(ClusterParam type, const std::byte* at, index_t i) {
    float v = 0.0f;
    if (type == ClusterParam::e4m3) return mini_float_values<float_e4m3>[static_cast<std::size_t>(at[i])];
    const bool half = type == ClusterParam::f16;
    cpu::read_numbers(half ? ParamType::f16 : ParamType::f32, at + i * (half ? 2 : 4), 1, &v);
    return v;
  }
  static void write_param(ClusterParam type, std::byte* at, index_t i, float v) {
    const bool half = type == ClusterParam::f16;
    if (type == ClusterParam::e4m3) at[i] = static_cast<std::byte>(mini_float_code<float_e4m3, Rounding::half_even>(v));
    else cpu::write_numbers(half ? ParamType::f16 : ParamType::f32, &v, 1, at + i * (half ? 2 : 4));
  }

  /// One row, unpacked: codes in the order of groups; number = code * scale + base.
  struct Slot {
    alignas(64) float code[max_head_dim];
    float scale[ClusterRows::most_groups], base[ClusterRows::most_groups];

    void load(const ClusterRows& codec, const ClusterOrder& order, const std::byte* from, index_t dim) {
      std::uint8_t codes[max_head_dim + cpu::code_step];
      with_levels(codec, [&]<int Bits>() {
        if constexpr (Bits > 0) cpu::unpack_codes<Bits>(from, dim, codes);
        else
          for (index_t k = 0; k < dim; ++k) codes[k] = static_cast<std::uint8_t>(Trit5{}.get(from, k));
      });
      for (index_t k = 0; k < dim; ++k) code[k] = static_cast<float>(codes[k]);
      const std::byte* params = from + codec.code_bytes(dim);
      for (index_t g = 0; g < order.groups; ++g) {
        const float offset = read_param(codec.params, params, order.groups + g);
        scale[g] = read_param(codec.params, params, g);
        base[g] = codec.form == GroupForm::minimum ? offset : -offset * scale[g];
      }
    }
  };

  static index_t encode_row(const ClusterRows& codec, const ClusterOrder& order, const float* x, index_t dim, std::byte* to) {
    std::uint8_t codes[max_head_dim];
    std::byte* params = to + codec.code_bytes(dim);
    index_t repaired = 0;
    for (index_t g = 0, from = 0; g < order.groups; from = order.end[g++]) {
      GroupRange range;
      for (index_t k = from; k < order.end[g]; ++k) {
        range.include(x[order.channel[k]]);
        repaired += static_cast<index_t>(needs_repair(x[order.channel[k]]));
      }
      const GroupParams p = fit_clipped(codec, range);
      repaired += static_cast<index_t>(p.saturated);
      write_param(codec.params, params, g, p.scale);
      write_param(codec.params, params, order.groups + g, p.offset);
      const float m = codec.form == GroupForm::minimum ? p.offset : 0.0f;
      const std::int32_t zero = codec.form == GroupForm::minimum ? 0 : static_cast<std::int32_t>(p.offset);
      for (index_t k = from; k < order.end[g]; ++k) {
        const float v = limit_to(without_nan(x[order.channel[k]]), 2.0f * largest_coded);
        const std::int32_t code = round_code(codec.rounding, limit_to((v - m) * p.inverse, 0x1p20f)) + zero;
        codes[k] = static_cast<std::uint8_t>(std::clamp(code, 0, codec.levels - 1));
      }
    }
    with_levels(codec, [&]<int Bits>() {
      if constexpr (Bits > 0) {
        cpu::pack_codes<Bits>(codes, dim, to);
      } else {
        std::fill_n(to, codec.code_bytes(dim), std::byte{});
        for (index_t k = 0; k < dim; ++k) Trit5{}.set(to, k, codes[k]);
      }
    });
    return repaired;
  }
};

}  // namespace kvcondense::prim
