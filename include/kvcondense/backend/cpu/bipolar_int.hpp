#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/group_quant_fold.hpp>
#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/bipolar_int.hpp>

namespace kvcondense::prim {

namespace cpu {

/// Rows of codes as planes of bits, dim / 8 bytes each.
template <int Bits>
struct PlaneRows {
  static void unpack(const std::byte* row, index_t dim, std::uint8_t* codes) {
    std::uint8_t plane[code_buffer];
    unpack_codes<1>(row, dim, codes);
    for (int p = 1; p < Bits; ++p) {
      unpack_codes<1>(row + p * (dim / 8), dim, plane);
      for (index_t c = 0; c < dim; ++c) codes[c] = static_cast<std::uint8_t>(codes[c] | plane[c] << p);
    }
  }
  static void pack(const std::uint8_t* codes, index_t dim, std::byte* row) {
    std::uint8_t plane[max_head_dim];
    for (int p = 0; p < Bits; ++p) {
      for (index_t c = 0; c < dim; ++c) plane[c] = (codes[c] >> p) & 1;
      pack_codes<1>(plane, dim, row + p * (dim / 8));
    }
  }
};

inline constexpr index_t max_planes = 8;
/// Words of a plane when each group begins a new one: groups of at least 8 channels.
inline constexpr index_t plane_words = max_head_dim / 8;

/// Planes of one row, word by word, its groups on words of their own: bits beyond a group are zero, in keys and queries
/// alike, and so never differ.
struct PlaneWords {
  alignas(64) std::uint64_t word[plane_words][max_planes];

  void load(const std::byte* row, int planes, index_t dim, index_t group) {
    const index_t each = (group + 63) / 64, bytes = group / 8;
    for (int p = 0; p < max_planes; ++p)
      for (index_t j = 0; j < dim / group; ++j)
        for (index_t w = 0; w < each; ++w) {
          std::uint64_t bits = 0;
          if (p < planes)
            std::memcpy(&bits, row + p * (dim / 8) + j * bytes + 8 * w, static_cast<std::size_t>(std::min<index_t>(8, bytes - 8 * w)));
          word[j * each + w][p] = bits;
        }
  }
};

/// Sum over planes i of a and j of b of 2^(i + j) times the bits that differ in words [from, from + words). All planes
/// of b are counted, those it has not for nothing: a loop without conditions.
template <int Bits>
std::int32_t differing_bits(const PlaneWords& a, const PlaneWords& b, int b_planes, index_t from, index_t words) {
  std::int64_t counts[max_planes] = {};
  for (index_t w = from; w < from + words; ++w)
    for (int i = 0; i < Bits; ++i)
      for (int j = 0; j < max_planes; ++j)
        counts[j] += std::int64_t{std::popcount(a.word[w][i] ^ b.word[w][j])} << i;
  std::int64_t sum = 0;
  for (int j = 0; j < b_planes; ++j) sum += counts[j] << j;
  return static_cast<std::int32_t>(sum);
}

/// Queries in bipolar numbers: planes, and per group the number that 1 stands for and the sum of the exact query.
struct BipolarQueries {
  PlaneWords planes[fold_rows];
  float unit[fold_rows * plane_words];
  float sum[fold_rows * plane_words];

  void code(RowBlock<const float> queries, int bits, index_t dim, index_t group) {
    for (index_t r = 0; r < queries.rows; ++r) {
      const float* q = queries.data + r * queries.step;
      std::uint8_t words[max_head_dim], plane[max_head_dim];
      const auto last = static_cast<float>((1 << bits) - 1);
      for (index_t j = 0; j < dim / group; ++j) {
        float top = 0.0f, total = 0.0f;
        for (index_t c = j * group; c < (j + 1) * group; ++c) {
          top = std::max(top, q[c] < 0.0f ? -q[c] : q[c]);
          total += q[c];
        }
        const float scale = top / last, inverse = scale >= smallest_step ? 0.5f / scale : 0.0f;
        unit[r * plane_words + j] = inverse > 0.0f ? scale : 0.0f;
        sum[r * plane_words + j] = total;
        for (index_t c = j * group; c < (j + 1) * group; ++c) {
          const float y = limit_to(without_nan(q[c]) * inverse, 0x1p20f) + 0.5f * last;
          words[c] = static_cast<std::uint8_t>(std::clamp(round_half_even(y), 0, (1 << bits) - 1));
        }
      }
      std::byte row[max_planes * max_head_dim / 8];
      for (int p = 0; p < bits; ++p) {
        for (index_t c = 0; c < dim; ++c) plane[c] = (words[c] >> p) & 1;
        pack_codes<1>(plane, dim, row + p * (dim / 8));
      }
      planes[r].load(row, bits, dim, group);
    }
  }
};

}  // namespace cpu

/// Planes of bits. With coded queries a score is, per group, unit * scale / 2 * (dot product of bipolar numbers) +
/// middle * (sum of the query): the first factor by counting bits, the second with the exact query, so that what
/// is constant in a group is exact. `accumulate`, and `scores` with query_bits 0, unpack the planes and fold as
/// GroupInt does.
///
/// Numbers   a number of a coded query errs by 1 / (2^query_bits - 1) of the largest of its group at most. `encode`
///           counts as GroupInt does.
template <int Bits>
struct PageCodec<Cpu, BipolarInt<Bits>> {
  using Codec = BipolarInt<Bits>;
  using Page = cpu::GroupPage<Bits, cpu::PlaneRows<Bits>>;

  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    const Page to{codec.numbers(), page};
    index_t repaired = 0;
    for (index_t i = 0; i < count; ++i) repaired += cpu::encode_slot(to, first + i, rows.data + i * rows.step);
    return repaired;
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::decode_slots(Page{codec.numbers(), page}, first, count, rows);
  }

  static void move(const Codec& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    cpu::move_slot(Page{codec.numbers(), to}, to_slot, Page{codec.numbers(), from}, from_slot);
  }

  static void scores(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    const Page from{codec.numbers(), page};
    cpu::by_rows(queries, out, [&](RowBlock<const float> q, RowBlock<float> o) {
      if (codec.query_bits == 0) cpu::scores_by_token(from, first, count, q, o);
      else count_rows(from, static_cast<int>(codec.query_bits), first, count, q, o);
    });
  }

  static void accumulate(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    const Page from{codec.numbers(), page};
    cpu::by_rows(weights, out, [&](RowBlock<const float> w, RowBlock<float> o) {
      cpu::accumulate_by_token(from, first, count, w, o);
    });
  }

 private:
  static void count_rows(const Page& from, int query_bits, index_t first, index_t count, RowBlock<const float> queries,
                         RowBlock<float> out) {
    const index_t dim = from.page.dim, group = from.codec.group_channels(dim), groups = dim / group;
    const index_t each = (group + 63) / 64;
    cpu::BipolarQueries coded;
    coded.code(queries, query_bits, dim, group);
    cpu::PlaneWords key;
    float scale[max_head_dim], middle[max_head_dim];
    for (index_t i = 0; i < count; ++i) {
      key.load(from.row(first + i), Bits, dim, group);
      from.read_params(first + i, scale, middle);
      from.fold_offsets(scale, middle, groups);
      for (index_t j = 0; j < groups; ++j) {
        scale[j] *= 0.5f;  // of the bipolar number 1
        middle[j] += static_cast<float>((1 << Bits) - 1) * scale[j];
      }
      for (index_t r = 0; r < queries.rows; ++r) {
        const float* unit = coded.unit + r * cpu::plane_words;
        const float* sum = coded.sum + r * cpu::plane_words;
        float score = 0.0f;
        for (index_t j = 0; j < groups; ++j) {
          const std::int32_t differ = cpu::differing_bits<Bits>(key, coded.planes[r], query_bits, j * each, each);
          const auto dot = static_cast<float>(bipolar_dot(group, Bits, query_bits, differ));
          score += unit[j] * scale[j] * dot + middle[j] * sum[j];
        }
        out.data[r * out.step + i] = score;
      }
    }
  }
};

}  // namespace kvcondense::prim
