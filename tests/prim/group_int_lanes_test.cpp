#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>

#include <prim/coded_page.hpp>
#include <support/fill.hpp>
#include <support/guarded.hpp>

// GroupInt pages whose codes lie in lanes: the same numbers as in rows, and attention over them.

using namespace kvcondense;
using namespace kvcondense::prim;
using test::group_forms;
using test::size_of_block;

namespace {

constexpr CodeLayout lane_layouts[] = {CodeLayout::slot_lanes, CodeLayout::channel_lanes};

/// Normal numbers, with a strong channel and a channel with an offset.
std::vector<float> rows_of(index_t slots, index_t dim, std::uint64_t seed) {
  std::vector<float> rows = test::normal_rows(slots, dim, seed);
  for (index_t i = 0; i < slots; ++i)
    rows[static_cast<std::size_t>(i * dim + dim / 2)] *= 12.0f, rows[static_cast<std::size_t>(i * dim)] += 5.0f;
  return rows;
}

template <int Bits>
struct Page : test::CodedPage<Bits> {
  Page(const GroupInt<Bits>& c, index_t slot_count, index_t d, std::uint64_t seed)
      : test::CodedPage<Bits>(c, slot_count, d, rows_of(slot_count, d, seed)) {}
};

/// Calls use(codec, dim) for layouts, axes, groups and sizes that lie in lanes.
template <int Bits, class F>
void for_lanes(F&& use) {
  for (const CodeLayout layout : lane_layouts)
    for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel})
      for (const index_t group : {0, 8, 32, 64})
        for (const index_t dim : {64, 96, 128, 256}) {
          const GroupInt<Bits> codec{.axis = axis, .group_size = group, .layout = layout};
          if (!codec.valid(dim) || codec.layout_of(64, dim) == CodeLayout::rows) continue;
          CAPTURE(Bits, static_cast<int>(layout), static_cast<int>(axis), group, dim);
          use(codec, dim);
        }
}

struct Error {
  double wrong = 0, all = 0;
  void add(double want, double got) { wrong += (want - got) * (want - got), all += want * want; }
  double relative() const { return std::sqrt(wrong / all); }
};

/// Relative errors of scores and sums over slots [first, first + count).
template <int Bits, class Scores, class Sums>
void attend(Page<Bits>& page, index_t first, index_t count, index_t rows, double allowed, Scores&& scores, Sums&& sums) {
  CAPTURE(first, count, rows);
  const index_t dim = page.dim, q_step = dim + 3, o_step = count + 5, w_step = count + 2;
  const std::vector<float> x = page.decoded(first, count);
  std::vector<float> q(size_of_block(rows, q_step)), w(size_of_block(rows, w_step));
  test::fill_normal(q.data(), q.size(), 21);
  test::fill_uniform(w.data(), w.size(), 22);
  test::Guarded<float> out(size_of_block(rows, o_step), -7.0f), add(size_of_block(rows, dim), 0.25f);
  scores(page.codec, page.span(), first, count, RowBlock<const float>{q.data(), rows, q_step}, RowBlock<float>{out.data(), rows, o_step});
  sums(page.codec, page.span(), first, count, RowBlock<const float>{w.data(), rows, w_step}, RowBlock<float>{add.data(), rows, dim});
  const auto at = [](index_t row, index_t step, index_t column) { return static_cast<std::size_t>(row * step + column); };
  Error score, sum;
  bool untouched = true;
  for (index_t r = 0; r < rows; ++r) {
    for (index_t i = 0; i < count; ++i) {
      double want = 0;
      for (index_t d = 0; d < dim; ++d) want += static_cast<double>(q[at(r, q_step, d)]) * static_cast<double>(x[at(i, dim, d)]);
      score.add(want, static_cast<double>(out[at(r, o_step, i)]));
    }
    for (index_t i = count; i < o_step; ++i) untouched = untouched && out[at(r, o_step, i)] == -7.0f;
    for (index_t d = 0; d < dim; ++d) {
      double want = 0.25;
      for (index_t i = 0; i < count; ++i) want += static_cast<double>(w[at(r, w_step, i)]) * static_cast<double>(x[at(i, dim, d)]);
      sum.add(want, static_cast<double>(add[at(r, dim, d)]));
    }
  }
  REQUIRE(score.relative() < allowed);
  REQUIRE(sum.relative() < allowed);
  REQUIRE(untouched);
  REQUIRE(out.ok());
  REQUIRE(add.ok());
  REQUIRE(page.bytes.ok());
}

template <int Bits>
void attend(Page<Bits>& page, index_t first, index_t count, index_t rows) {
  using Codec = PageCodec<Cpu, GroupInt<Bits>>;
  // Of a few scores all may be small, as sums of large numbers that cancel.
  const double allowed = page.codec.math == CodeMath::int8 ? 3e-2 : 4e-4;
  attend(page, first, count, rows, count < 8 ? 5 * allowed : allowed, [](const auto&... args) { Codec::scores(args...); },
         [](const auto&... args) { Codec::accumulate(args...); });
}

/// The way of processors that cannot multiply codes.
template <int Bits>
void attend_unpacked(Page<Bits>& page, index_t first, index_t count, index_t rows) {
  const bool by_channel = page.codec.axis == GroupAxis::channel;
  attend(
      page, first, count, rows, 1e-5,
      [&](const auto& codec, PageSpan span, index_t f, index_t n, RowBlock<const float> in, RowBlock<float> out) {
        const cpu::GroupPage<Bits> from{codec, span};
        if (by_channel) cpu::scores_by_channel(from, f, n, in, out);
        else cpu::scores_by_token(from, f, n, in, out);
      },
      [&](const auto& codec, PageSpan span, index_t f, index_t n, RowBlock<const float> in, RowBlock<float> out) {
        const cpu::GroupPage<Bits> from{codec, span};
        if (by_channel) cpu::accumulate_by_channel(from, f, n, in, out);
        else cpu::accumulate_by_token(from, f, n, in, out);
      });
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("group_int lanes: the same numbers and as many bytes as in rows", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  for_lanes<Bits>([](const GroupInt<Bits>& codec, index_t dim) {
    GroupInt<Bits> plain = codec;
    plain.layout = CodeLayout::rows;
    REQUIRE(codec.page_bytes(64, dim) == plain.page_bytes(64, dim));
    REQUIRE(codec.fingerprint() != plain.fingerprint());
    for (const GroupForm form : group_forms) {
      GroupInt<Bits> a = codec;
      a.form = plain.form = form;
      Page<Bits> lanes(a, 128, dim, 3), rows(plain, 128, dim, 3);
      REQUIRE(lanes.decoded(0, 128) == rows.decoded(0, 128));
      REQUIRE(lanes.decoded(17, 30) == rows.decoded(17, 30));
      REQUIRE(std::memcmp(lanes.bytes.data(), rows.bytes.data(), lanes.bytes.size()) != 0);
    }
  });
}

TEST_CASE("group_int lanes: pages that lanes do not fill are rows", "[prim][group_quant][lanes]") {
  REQUIRE(GroupInt<4>{.layout = CodeLayout::slot_lanes}.layout_of(64, 80) == CodeLayout::slot_lanes);
  REQUIRE(GroupInt<4>{.layout = CodeLayout::slot_lanes}.layout_of(48, 128) == CodeLayout::rows);
  REQUIRE(GroupInt<4>{.layout = CodeLayout::slot_lanes}.layout_of(64, 66) == CodeLayout::rows);
  REQUIRE(GroupInt<3>{.layout = CodeLayout::slot_lanes}.layout_of(64, 128) == CodeLayout::rows);
  REQUIRE(GroupInt<4>{.layout = CodeLayout::channel_lanes}.layout_of(64, 96) == CodeLayout::channel_lanes);
  REQUIRE(GroupInt<4>{.layout = CodeLayout::channel_lanes}.layout_of(64, 80) == CodeLayout::rows);
  REQUIRE(GroupInt<2>{.layout = CodeLayout::channel_lanes}.layout_of(64, 96) == CodeLayout::rows);
  REQUIRE(GroupInt<2>{.layout = CodeLayout::channel_lanes}.layout_of(64, 128) == CodeLayout::channel_lanes);
  REQUIRE(GroupInt<4>{}.layout_of(64, 128) == CodeLayout::rows);
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: attention equals attention over what codes decode to", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  if (cpu::code_ops() == nullptr) WARN("this processor cannot multiply codes: they are unpacked");
  for_lanes<Bits>([](const GroupInt<Bits>& codec, index_t dim) {
    Page<Bits> page(codec, 128, dim, 5);
    for (index_t rows = 1; rows <= 9; ++rows) attend(page, 0, 128, rows);
    attend(page, 0, 128, 33);
    attend(page, 7, 100, 4);
    attend(page, 33, 1, 3);
    attend(page, 31, 2, 2);
    attend_unpacked(page, 0, 128, 4);
    attend_unpacked(page, 7, 100, 3);
  });
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: multipliers of one byte are within 3e-2, another answer than those of two", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  for_lanes<Bits>([](const GroupInt<Bits>& codec, index_t dim) {
    GroupInt<Bits> byte = codec;
    byte.math = CodeMath::int8;
    REQUIRE(byte.fingerprint() == codec.fingerprint());
    Page<Bits> page(byte, 128, dim, 5), exact(codec, 128, dim, 5);
    for (index_t rows = 1; rows <= 5; ++rows) attend(page, 0, 128, rows);
    attend(page, 7, 100, 4);
    attend(page, 33, 1, 3);
    attend(page, 40, 60, 2);
    if (PageCodec<Cpu, GroupInt<Bits>>::kernel(byte, page.span(), codec.layout == CodeLayout::channel_lanes) == nullptr) return;
    std::vector<float> q(size_of_block(1, 256), 0.3f), a(size_of_block(1, 256)), b(a);
    q[5] = -0.77f;
    const auto use = [&](Page<Bits>& p, std::vector<float>& out) {
      if (codec.layout == CodeLayout::slot_lanes) Page<Bits>::Codec::scores(p.codec, p.span(), 0, 128, {q.data(), 1, dim}, {out.data(), 1, 128});
      else Page<Bits>::Codec::accumulate(p.codec, p.span(), 0, 128, {q.data(), 1, 128}, {out.data(), 1, dim});
    };
    use(page, a), use(exact, b);
    REQUIRE(a != b);
  });
}

/// The error of attention over 16 pages, logits of this spread, against double over what codes decode to.
template <int Bits>
double attention_error(CodeMath math, index_t group, double spread) {
  constexpr index_t pages = 16, slots = 64, dim = 128, rows = 4, all = pages * slots;
  using Codec = PageCodec<Cpu, GroupInt<Bits>>;
  std::vector<float> q(size_of_block(rows, dim)), l(size_of_block(rows, all)), out(size_of_block(rows, dim));
  std::vector<float> keys, values;
  std::deque<Page<Bits>> k, v;
  for (index_t p = 0; p < pages; ++p) {
    const auto seed = static_cast<std::uint64_t>(40 + 2 * p);
    k.emplace_back(GroupInt<Bits>{.axis = GroupAxis::channel, .group_size = group, .math = math}.for_scores(), slots, dim, seed);
    v.emplace_back(GroupInt<Bits>{.axis = GroupAxis::token, .group_size = group, .math = math}.for_sums(), slots, dim, seed + 1);
    const std::vector<float> a = k.back().decoded(0, slots), b = v.back().decoded(0, slots);
    keys.insert(keys.end(), a.begin(), a.end()), values.insert(values.end(), b.begin(), b.end());
  }
  std::vector<PagePiece> key_pieces, value_pieces;
  for (index_t p = 0; p < pages; ++p) {
    const auto i = static_cast<std::size_t>(p);
    key_pieces.push_back({k[i].span(), 0, slots, p * slots}), value_pieces.push_back({v[i].span(), 0, slots, p * slots});
  }
  test::fill_normal(q.data(), q.size(), 39);
  const auto dot = [&](index_t r, index_t i) {
    double sum = 0;
    for (index_t d = 0; d < dim; ++d) sum += static_cast<double>(q[static_cast<std::size_t>(r * dim + d)]) * static_cast<double>(keys[static_cast<std::size_t>(i * dim + d)]);
    return sum;
  };
  for (index_t r = 0; r < rows; ++r) {  // as far apart as asked
    double mean = 0, square = 0;
    for (index_t i = 0; i < all; ++i) mean += dot(r, i) / all;
    for (index_t i = 0; i < all; ++i) square += std::pow(dot(r, i) - mean, 2) / all;
    for (index_t d = 0; d < dim; ++d) q[static_cast<std::size_t>(r * dim + d)] *= static_cast<float>(spread / std::sqrt(square));
  }
  Codec::scores(k.front().codec, key_pieces, {q.data(), rows, dim}, {l.data(), rows, all});
  std::vector<double> want(out.size());
  std::vector<float> sums(static_cast<std::size_t>(rows));
  for (index_t r = 0; r < rows; ++r) {
    float* row = l.data() + r * all;
    const float top = *std::max_element(row, row + all);
    double most = -1e300, sum = 0;
    for (index_t i = 0; i < all; ++i) most = std::max(most, dot(r, i));
    for (index_t i = 0; i < all; ++i) {
      row[i] = std::exp(row[i] - top), sums[static_cast<std::size_t>(r)] += row[i];
      const double w = std::exp(dot(r, i) - most);
      sum += w;
      for (index_t d = 0; d < dim; ++d) want[static_cast<std::size_t>(r * dim + d)] += w * static_cast<double>(values[static_cast<std::size_t>(i * dim + d)]);
    }
    for (index_t d = 0; d < dim; ++d) want[static_cast<std::size_t>(r * dim + d)] /= sum;
  }
  Codec::accumulate(v.front().codec, value_pieces, {l.data(), rows, all}, {out.data(), rows, dim});
  Error e;
  for (std::size_t i = 0; i < out.size(); ++i) e.add(want[i], static_cast<double>(out[i] / sums[i / dim]));
  return e.relative();
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: attention with multipliers of one byte is within 3e-2 of double, 6e-2 where it is sharp", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  for (const index_t group : {32, 64})
    for (const double spread : {0.1, 0.5, 2.0, 6.0}) {
      const double byte = attention_error<Bits>(CodeMath::int8, group, spread), two = attention_error<Bits>(CodeMath::int16, group, spread);
      CAPTURE(Bits, group, spread, byte, two);
      CHECK(byte < (spread > 2.0 ? 6e-2 : 3e-2));
      CHECK(byte > 5e-4);
      CHECK(two < (spread > 2.0 ? 5e-4 : 4e-4));
    }
}

namespace {

/// A multiplier as the two bytes say it.
double multiplier(const cpu::FoldedRows& by, index_t row, index_t c) {
  return by.bytes == 2 ? by.plane[row][0][c] * 128 + by.plane[row][1][c] : by.plane[row][0][c];
}
void fold(const cpu::CodeOps& ops, int bytes, const RowBlock<const float>& x, index_t groups, const float* scale, const float* mid, index_t n,
          cpu::FoldedRows* out) {
  cpu::UnroundedRows products;
  ops.multiply(bytes, x, groups, scale, mid, n, products, out);
  ops.round(products, x.rows, groups, n, 7.5f, out);
}
/// The code that output i of a run has for multiplier c.
double code_at(const std::vector<std::byte>& codes, int bits, const cpu::CodeRun& run, index_t i, index_t c) {
  const index_t field = bits == 2 ? i / 16 : i / 16 % 2;
  const index_t at = c / 4 * run.step + (bits == 2 ? 0 : i / 32 * run.other) + (bits == 8 ? field * run.second : 0) + i % 16 * 4 + c % 4;
  const unsigned byte = static_cast<unsigned>(codes[static_cast<std::size_t>(at)]);
  return bits == 8 ? byte : (byte >> (static_cast<unsigned>(field) * static_cast<unsigned>(bits))) & ((1u << bits) - 1u);
}

}  // namespace

TEST_CASE("group_int lanes: every instruction set makes the same integers and the same sums of them", "[prim][group_quant][lanes]") {
  const cpu::CodeOps& plain = cpu::byte_code_ops(cpu::Isa::portable);
  std::vector<float> x(4 * 256), scale(2 * max_head_dim), mid(2 * max_head_dim);
  std::vector<std::byte> codes(2 * 64 * 64);
  test::fill_normal(x.data(), x.size(), 31), test::fill_uniform(scale.data(), scale.size(), 32), test::fill_normal(mid.data(), mid.size(), 33);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  for (const cpu::Isa isa : cpu::all_isas) {
    if (!cpu::can_run(isa)) continue;
    const cpu::CodeOps& ops = cpu::byte_code_ops(isa);
    for (const int bytes : {1, 2})
      for (const index_t rows : {1, 2, 3, 4})
        for (const index_t n : {4, 8, 60, 64, 96, 128, 256}) {
          CAPTURE(std::string(ops.name), bytes, rows, n);
          cpu::FoldedRows a[2] = {}, b[2] = {}, alone[2] = {};
          const RowBlock<const float> in{x.data(), rows, 256};
          fold(ops, bytes, in, 2, scale.data(), mid.data(), n, a);
          fold(plain, bytes, in, 2, scale.data(), mid.data(), n, b);
          for (index_t k = 0; k < 2; ++k) fold(ops, bytes, in, 1, scale.data() + k * max_head_dim, mid.data() + k * max_head_dim, n, alone + k);
          bool same = true, near = true, apart = true;
          for (int k = 0; k < 2; ++k)
            for (index_t r = 0; r < rows; ++r) {
              for (int p = 0; p < bytes; ++p)
                same = same && std::memcmp(a[k].plane[r][p], b[k].plane[r][p], static_cast<std::size_t>((n + 63) / 64 * 64)) == 0;
              same = same && a[k].unit[r] == b[k].unit[r] && a[k].bytes == bytes && b[k].bytes == bytes;
              apart = apart && std::memcmp(a[k].plane[r], alone[k].plane[r], sizeof a[k].plane[r]) == 0 && a[k].unit[r] == alone[k].unit[r] &&
                      a[k].add[r] == alone[k].add[r];
              near = near && std::abs(a[k].add[r] - b[k].add[r]) < 2e-4f;
            }
          REQUIRE(same);
          REQUIRE(near);
          REQUIRE(apart);
          for (const int bits : {2, 4, 8})
            for (const int pairs : {1, 2}) {
              const cpu::CodeRun run{.first = codes.data(), .second = 64, .step = 64, .steps = n / 4, .pairs = pairs, .other = 2048};
              std::vector<float> got(4 * 64, 1.0f), want(got);
              ops.dot_add(bits, run, b[0], b[1], {got.data(), rows, 64});
              for (index_t r = 0; r < rows; ++r)
                for (index_t i = 0; i < 32 * pairs; ++i) {
                  const cpu::FoldedRows& by = b[i / 32];
                  double sum = 0;
                  for (index_t c = 0; c < n; ++c) sum += multiplier(by, r, c) * code_at(codes, bits, run, i, c);
                  want[static_cast<std::size_t>(r * 64 + i)] += static_cast<float>(sum * static_cast<double>(by.unit[r]) + static_cast<double>(by.add[r]));
                }
              float worst = 0.0f, most = 0.0f;
              for (std::size_t i = 0; i < got.size(); ++i)
                worst = std::max(worst, std::abs(got[i] - want[i])), most = std::max(most, std::abs(want[i]));
              CAPTURE(bits, pairs);
              REQUIRE(worst <= 1e-6f * most);
              REQUIRE(most > 1.0f);
              std::vector<float> over(4 * 64, 3.0f);
              ops.dot(bits, run, b[0], b[1], {over.data(), rows, 64});
              for (std::size_t i = 0; i < over.size(); ++i) {
                const bool there = static_cast<index_t>(i) < rows * 64 && static_cast<index_t>(i % 64) < 32 * pairs;
                worst = std::max(worst, there ? std::abs(over[i] + 1.0f - want[i]) : std::abs(over[i] - 3.0f));
              }
              REQUIRE(worst <= 1e-6f * most);
            }
        }
  }
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: steps of a run ask for what is read later byte after byte", "[prim][group_quant][lanes]", ((int Bits), Bits), 2, 4, 8) {
  std::vector<std::byte> here(64), later(2 * 64 * 64);
  for (const index_t steps : {1, 16, 32})
    for (const int pairs : {1, 2})
      for (const bool together : {false, true}) {
        const cpu::CodeRun run{.first = here.data(), .steps = steps, .pairs = pairs, .next = later.data()};
        index_t asked = 0;
        for (int p = 0; p < pairs; p += together ? pairs : 1) {
          cpu::RunAhead<Bits> ahead(run, p, together ? pairs : 1);
          for (index_t s = 0; s < steps; ++s, ahead.at += ahead.step) {
            REQUIRE(ahead.at - later.data() == asked);
            asked += ahead.step;
          }
        }
        REQUIRE(asked == steps * pairs * 16 * Bits);  // 32 outputs of four multipliers
      }
  const cpu::RunAhead<Bits> nothing({.first = here.data(), .steps = 16, .pairs = 2}, 1, 1);
  REQUIRE(nothing.at == here.data());
  REQUIRE(nothing.step == 0);
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: every form and parameter type", "[prim][group_quant][lanes]", ((int Bits), Bits), 2, 4, 8) {
  for (const GroupForm form : group_forms)
    for (const ParamType type : {ParamType::f16, ParamType::bf16, ParamType::f32})
      for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel})
        for (const CodeLayout layout : lane_layouts) {
          CAPTURE(static_cast<int>(form), static_cast<int>(type), static_cast<int>(axis), static_cast<int>(layout));
          Page<Bits> page({axis, 32, form, type, Rounding::half_even, layout}, 64, 128, 6);
          attend(page, 0, 64, 4);
          attend_unpacked(page, 3, 60, 4);
          page.codec.math = CodeMath::int8;
          attend(page, 0, 64, 4);
        }
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: a score depends on its slot and query only, bit for bit", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  const CodeMath math = GENERATE(CodeMath::int16, CodeMath::int8);
  for_lanes<Bits>([math](GroupInt<Bits> codec, index_t dim) {
    codec.math = math;
    Page<Bits> page(codec, 128, dim, 7);
    std::vector<float> q(size_of_block(5, dim)), all(size_of_block(5, 128));
    test::fill_normal(q.data(), q.size(), 8);
    Page<Bits>::Codec::scores(codec, page.span(), 0, 128, {q.data(), 5, dim}, {all.data(), 5, 128});
    bool same = true;
    for (index_t r = 0; r < 5; ++r)
      for (index_t i = 0; i < 128; ++i) {
        float one = 0.0f;
        Page<Bits>::Codec::scores(codec, page.span(), i, 1, {q.data() + r * dim, 1, dim}, {&one, 1, 1});
        same = same && one == all[static_cast<std::size_t>(r * 128 + i)];
      }
    REQUIRE(same);
  });
}

/// Pieces of pages in any order, some of one page, some whole, at places in another order.
template <int Bits>
std::vector<PagePiece> pieces_of(std::deque<Page<Bits>>& pages, std::size_t n, std::mt19937& random, index_t& places) {
  std::vector<PagePiece> pieces;
  for (std::size_t i = 0; i < n; ++i) {
    Page<Bits>& page = pages[random() % pages.size()];
    const index_t first = i % 3 == 0 ? 0 : static_cast<index_t>(random() % static_cast<unsigned>(page.slots));
    const index_t most = page.slots - first;
    pieces.push_back({page.span(), first, i % 3 == 0 ? most : 1 + static_cast<index_t>(random() % static_cast<unsigned>(most)), 0});
    if (i % 2 == 0) pieces.back().page.next = pages[random() % pages.size()].span().data;
  }
  std::vector<std::size_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  places = 0;
  for (const std::size_t i : order) pieces[i].at = places, places += pieces[i].count;
  return pieces;
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: a list of pieces is each of them alone, one after the other, bit for bit", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  std::mt19937 random(51);
  for_lanes<Bits>([&](GroupInt<Bits> codec, index_t dim) {
    using Codec = PageCodec<Cpu, GroupInt<Bits>>;
    std::deque<Page<Bits>> pages;
    for (std::uint64_t p = 0; p < 2; ++p) pages.emplace_back(codec, 128, dim, 52 + p);
    for (const auto& [math, rows] : {std::pair(CodeMath::int16, 1), {CodeMath::int8, 3}, {CodeMath::int8, 5}, {CodeMath::int16, 9}}) {
      codec.math = math;
      index_t places = 0;
      const std::vector<PagePiece> pieces = pieces_of(pages, rows < 9 ? 5 : 3, random, places);
      CAPTURE(static_cast<int>(math), rows, pieces.size());
      std::vector<float> q(size_of_block(rows, dim)), w(size_of_block(rows, places));
      test::fill_normal(q.data(), q.size(), 54), test::fill_uniform(w.data(), w.size(), 55);
      std::vector<float> scores(size_of_block(rows, places), -7.0f), sums(size_of_block(rows, dim), 0.25f), each_score = scores, each_sum = sums;
      const RowBlock<const float> queries{q.data(), rows, dim}, weights{w.data(), rows, places};
      Codec::scores(codec, pieces, queries, {scores.data(), rows, places});
      Codec::accumulate(codec, pieces, weights, {sums.data(), rows, dim});
      for (const PagePiece& p : pieces) {
        Codec::scores(codec, p.page, p.first, p.count, queries, {each_score.data() + p.at, rows, places});
        Codec::accumulate(codec, p.page, p.first, p.count, {w.data() + p.at, rows, places}, {each_sum.data(), rows, dim});
      }
      REQUIRE((scores == each_score));
      REQUIRE((sums == each_sum));
    }
  });
}

TEMPLATE_TEST_CASE_SIG("group_int lanes: slots move, within a page and between pages, and others stay", "[prim][group_quant][lanes]",
                       ((int Bits), Bits), 2, 4, 8) {
  for (const CodeLayout layout : lane_layouts) {
    Page<Bits> a({.group_size = 32, .layout = layout}, 64, 128, 11), b({.group_size = 32, .layout = layout}, 64, 128, 12);
    const std::vector<float> last = a.decoded(63, 1), other = b.decoded(37, 1), rest = a.decoded(4, 60);
    Page<Bits>::Codec::move(a.codec, a.span(), 2, a.span(), 63);
    Page<Bits>::Codec::move(a.codec, a.span(), 3, b.span(), 37);
    Page<Bits>::Codec::move(a.codec, a.span(), 5, a.span(), 5);
    REQUIRE(a.decoded(2, 1) == last);
    REQUIRE(a.decoded(3, 1) == other);
    REQUIRE(a.decoded(4, 60) == rest);
    REQUIRE(a.bytes.ok());
  }
}

TEST_CASE("group_int lanes: coding slot by slot over old codes equals coding all at once", "[prim][group_quant][lanes]") {
  for (const CodeLayout layout : lane_layouts)
    for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel}) {
      Page<4> page({.axis = axis, .group_size = 16, .layout = layout}, 64, 96, 13), pieces({.axis = axis, .group_size = 16, .layout = layout}, 64, 96, 14);
      if (page.codec.layout_of(64, 96) == CodeLayout::rows) FAIL("not in lanes");
      const index_t step = page.codec.group_slots();
      for (index_t at = 0; at < 64; at += step)
        Page<4>::Codec::encode(pieces.codec, pieces.span(), at, step, {page.rows.data() + at * 96, step, 96});
      REQUIRE(std::memcmp(page.bytes.data(), pieces.bytes.data(), page.bytes.size()) == 0);
    }
}

TEST_CASE("group_int lanes: NaN queries and weights stay NaN, zeros stay zero", "[prim][group_quant][lanes]") {
  const float bad = std::numeric_limits<float>::quiet_NaN();
  const CodeMath math = GENERATE(CodeMath::int16, CodeMath::int8);
  for (const CodeLayout layout : lane_layouts)
    for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel}) {
      Page<4> page({.axis = axis, .group_size = 32, .layout = layout, .math = math}, 64, 128, 15);
      std::vector<float> q(2 * 128, 0.0f), w(2 * 64, 0.0f), out(2 * 64, 3.0f), sums(2 * 128, 0.5f);
      q[128 + 5] = bad, w[64 + 9] = bad;
      Page<4>::Codec::scores(page.codec, page.span(), 0, 64, {q.data(), 2, 128}, {out.data(), 2, 64});
      Page<4>::Codec::accumulate(page.codec, page.span(), 0, 64, {w.data(), 2, 64}, {sums.data(), 2, 128});
      bool zero = true, kept = true;
      for (std::size_t i = 0; i < 64; ++i) zero = zero && out[i] == 0.0f, kept = kept && std::isnan(out[64 + i]);
      for (std::size_t c = 0; c < 128; ++c) zero = zero && sums[c] == 0.5f, kept = kept && std::isnan(sums[128 + c]);
      REQUIRE(zero);
      REQUIRE(kept);
    }
}
