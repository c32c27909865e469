#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/prim/pack_bits.hpp>

#include <prim/coded_page.hpp>
#include <support/fill.hpp>
#include <support/guarded.hpp>

// GroupInt pages on the CPU: layout, coding, and attention over codes against double over what they decode to.

using namespace kvcondense;
using namespace kvcondense::prim;
using test::CodedPage;
using test::group_forms;
using test::size_of_block;

namespace {

/// |x| and the constant term it was folded with: what a rounding error is relative to.
template <int Bits>
double folded_size(const GroupInt<Bits>& codec, double x, double group_top) {
  return codec.form == GroupForm::minimum ? std::abs(x) + group_top : 2.0 * group_top + std::abs(x);
}

/// scores and accumulate of slots [first, first + count) against double over the decoded rows.
template <int Bits>
void require_attention_matches(CodedPage<Bits>& page, index_t first, index_t count, index_t query_rows) {
  const index_t dim = page.dim;
  const std::vector<float> x = page.decoded(first, count);
  double top = 0.0;
  for (const float v : x) top = std::max(top, std::abs(static_cast<double>(v)));

  const index_t q_step = dim + 3, o_step = count + 5, w_step = count + 2;
  std::vector<float> q(size_of_block(query_rows, q_step)), w(size_of_block(query_rows, w_step));
  test::fill_normal(q.data(), q.size(), 21);
  test::fill_uniform(w.data(), w.size(), 22);
  test::Guarded<float> out(size_of_block(query_rows, o_step), -7.0f), sums(size_of_block(query_rows, dim), 0.25f);
  CodedPage<Bits>::Codec::scores(page.codec, page.span(), first, count, {q.data(), query_rows, q_step},
                                 {out.data(), query_rows, o_step});
  CodedPage<Bits>::Codec::accumulate(page.codec, page.span(), first, count, {w.data(), query_rows, w_step},
                                     {sums.data(), query_rows, dim});
  const auto at = [](index_t row, index_t step, index_t column) { return static_cast<std::size_t>(row * step + column); };
  double worst = 0.0;
  bool untouched = true;
  for (index_t r = 0; r < query_rows; ++r) {
    for (index_t i = 0; i < count; ++i) {
      double want = 0.0, size = 0.0;
      for (index_t d = 0; d < dim; ++d) {
        const double term = q[at(r, q_step, d)], v = x[at(i, dim, d)];
        want += term * v;
        size += std::abs(term) * folded_size(page.codec, v, top);
      }
      worst = std::max(worst, std::abs(want - static_cast<double>(out[at(r, o_step, i)])) / (size + 1e-30));
    }
    for (index_t i = count; i < o_step; ++i) untouched = untouched && out[at(r, o_step, i)] == -7.0f;
    for (index_t d = 0; d < dim; ++d) {
      double want = 0.25, size = 0.25;
      for (index_t i = 0; i < count; ++i) {
        const double term = w[at(r, w_step, i)], v = x[at(i, dim, d)];
        want += term * v;
        size += std::abs(term) * folded_size(page.codec, v, top);
      }
      worst = std::max(worst, std::abs(want - static_cast<double>(sums[at(r, dim, d)])) / size);
    }
  }
  REQUIRE(worst < 2e-6);  // far below the promised 1e-5: a few roundings of float
  REQUIRE(untouched);
  REQUIRE(out.ok());
  REQUIRE(sums.ok());
  REQUIRE(page.bytes.ok());
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("group_int: attention over codes equals attention over what they decode to",
                       "[prim][group_quant]", ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  const index_t dim = GENERATE(1, 64, 80, 96, 112, 128, 256);
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel})
    for (const index_t group : {0, 1, 8, 16, 31, 32, 33})
      for (const GroupForm form : group_forms) {
        const GroupInt<Bits> codec{axis, group, form, ParamType::f16, Rounding::half_even};
        if (!codec.valid(dim)) continue;
        CAPTURE(dim, static_cast<int>(axis), group, static_cast<int>(form));
        const index_t slots = 2 * std::max<index_t>(33, axis == GroupAxis::channel ? group : 1);
        CodedPage<Bits> page(codec, slots / codec.group_slots() * codec.group_slots(), dim, 3);
        require_attention_matches(page, 0, page.slots, 2);
        require_attention_matches(page, 7, std::min<index_t>(page.slots - 7, 29), 3);
        require_attention_matches(page, page.slots - 1, 1, 1);
      }
}

TEST_CASE("group_int: any number of query rows and parameter types", "[prim][group_quant]") {
  const index_t rows = GENERATE(1, 2, 5, 16, 32, 33, 70, 128);
  for (const ParamType type : {ParamType::f16, ParamType::bf16, ParamType::f32})
    for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel}) {
      CAPTURE(rows, static_cast<int>(type), static_cast<int>(axis));
      CodedPage<2> two({axis, 32, GroupForm::minimum, type, Rounding::half_even}, 64, 128, 4);
      require_attention_matches(two, 3, 61, rows);
      CodedPage<4> four({axis, 32, GroupForm::float_zero, type, Rounding::half_up}, 64, 96, 5);
      require_attention_matches(four, 0, 64, rows);
    }
}

TEST_CASE("group_int: a score depends on its slot and query only, bit for bit", "[prim][group_quant]") {
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel})
    for (const index_t group : {4, 16, 32, 80}) {
      CodedPage<4> page({axis, group}, 160, 80, 6);
      if (!page.codec.valid(80)) continue;
      std::vector<float> q(5 * 80);
      test::fill_normal(q.data(), q.size(), 7);
      std::vector<float> all(5 * 160);
      CodedPage<4>::Codec::scores(page.codec, page.span(), 0, 160, {q.data(), 5, 80}, {all.data(), 5, 160});
      bool same = true;
      for (index_t r = 0; r < 5; ++r)
        for (index_t i = 0; i < 160; ++i) {
          float one = 0.0f;
          CodedPage<4>::Codec::scores(page.codec, page.span(), i, 1, {q.data() + r * 80, 1, 80}, {&one, 1, 1});
          same = same && one == all[static_cast<std::size_t>(r * 160 + i)];
        }
      CAPTURE(static_cast<int>(axis), group);
      REQUIRE(same);
    }
}

TEMPLATE_TEST_CASE_SIG("group_int: a page is rows of dense codes, then parameters", "[prim][group_quant]",
                       ((int Bits), Bits), 1, 2, 3, 4, 5, 6, 7, 8) {
  const index_t dim = GENERATE(1, 20, 64, 100);
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel})
    for (const GroupForm form : group_forms) {
      const GroupInt<Bits> codec{axis, axis == GroupAxis::token ? 0 : 4, form, ParamType::f16, Rounding::half_even};
      if (!codec.valid(dim)) continue;
      CodedPage<Bits> page(codec, 8, dim, 8);
      const std::vector<float> values = page.decoded(0, 8);
      const index_t row_bytes = (dim * Bits + 7) / 8, groups = axis == GroupAxis::token ? 8 : 2;
      const index_t numbers = axis == GroupAxis::token ? 1 : dim;  // scales per group of slots
      const index_t each = numbers * (has_offset(form) ? 2 : 1);
      const index_t params_at = (8 * row_bytes + 3) / 4 * 4;
      REQUIRE(codec.page_bytes(8, dim) == static_cast<std::size_t>(params_at + groups * each * 2));
      const auto param = [&](index_t i) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, page.bytes.data() + params_at + 2 * i, 2);
        return kvcondense::detail::half_value(bits);
      };
      bool same = true;
      for (index_t t = 0; t < 8; ++t)
        for (index_t c = 0; c < dim; ++c) {
          const auto code = static_cast<float>(DenseLe<Bits>{}.get(page.bytes.data() + t * row_bytes, c));
          const index_t base = (axis == GroupAxis::token ? t : t / 4) * each, k = axis == GroupAxis::token ? 0 : c;
          const float s = param(base + k), o = !has_offset(form) ? 0.0f : param(base + numbers + k);
          const float half_code = static_cast<float>((1 << (Bits - 1)) - 1);
          const float want = form == GroupForm::minimum     ? code * s + o
                             : form == GroupForm::symmetric ? (code - half_code) * s
                             : form == GroupForm::mid_rise  ? (code - 0.5f * static_cast<float>((1 << Bits) - 1)) * s
                                                            : (code - o) * s;
          same = same && want == values[static_cast<std::size_t>(t * dim + c)];
        }
      CAPTURE(dim, static_cast<int>(axis), static_cast<int>(form));
      REQUIRE(same);
    }
}

TEST_CASE("group_int: bad numbers are counted and never leave their group", "[prim][group_quant]") {
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel}) {
    CodedPage<4> page({axis, 16}, 64, 64, 9);
    const std::vector<float> clean = page.decoded(0, 64);
    page.rows[5 * 64 + 20] = std::numeric_limits<float>::quiet_NaN();
    page.rows[6 * 64 + 20] = std::numeric_limits<float>::infinity();
    page.rows[7 * 64 + 20] = -std::numeric_limits<float>::infinity();
    page.rows[40 * 64 + 63] = 3e38f;  // finite, but beyond what a range may hold
    REQUIRE(page.encode() == 4);
    const std::vector<float> dirty = page.decoded(0, 64);
    bool finite = true, same = true;
    for (std::size_t t = 0; t < 64; ++t)
      for (std::size_t c = 0; c < 64; ++c) {
        finite = finite && std::isfinite(dirty[t * 64 + c]);
        const bool in_group = axis == GroupAxis::token ? ((t >= 5 && t <= 7 && c / 16 == 1) || (t == 40 && c / 16 == 3))
                                                       : ((t / 16 == 0 && c == 20) || (t / 16 == 2 && c == 63));
        same = same && (in_group || dirty[t * 64 + c] == clean[t * 64 + c]);
      }
    REQUIRE(finite);
    REQUIRE(same);
  }
  CodedPage<4> large({GroupAxis::token, 0}, 4, 32, 10);
  large.rows[0] = 1e30f;  // does not fit an fp16 parameter: saturates, counted once
  REQUIRE(large.encode() == 1);
  REQUIRE(large.decoded(0, 1)[0] == 15 * 65504.0f + large.decoded(0, 1)[1]);
}

TEST_CASE("group_int: a moved slot keeps its numbers, within a page and between pages", "[prim][group_quant]") {
  CodedPage<3> a({GroupAxis::token, 20}, 16, 100, 11), b({GroupAxis::token, 20}, 8, 100, 12);
  const std::vector<float> last = a.decoded(15, 1), other = b.decoded(3, 1), before = a.decoded(4, 1);
  CodedPage<3>::Codec::move(a.codec, a.span(), 2, a.span(), 15);
  CodedPage<3>::Codec::move(a.codec, a.span(), 3, b.span(), 3);
  CodedPage<3>::Codec::move(a.codec, a.span(), 4, a.span(), 4);
  REQUIRE(a.decoded(2, 1) == last);
  REQUIRE(a.decoded(3, 1) == other);
  REQUIRE(a.decoded(4, 1) == before);
  REQUIRE(a.bytes.ok());
}

TEST_CASE("group_int: coding group by group equals coding all at once", "[prim][group_quant]") {
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel}) {
    CodedPage<2> page({axis, 16}, 64, 80, 13), pieces({axis, 16}, 64, 80, 14);
    const index_t step = page.codec.group_slots();
    for (index_t at = 0; at < 64; at += step)
      CodedPage<2>::Codec::encode(pieces.codec, pieces.span(), at, step, {page.rows.data() + at * 80, step, 80});
    REQUIRE(std::memcmp(page.bytes.data(), pieces.bytes.data(), page.bytes.size()) == 0);
  }
}

TEST_CASE("group_int: coding what was decoded changes no byte of the codes", "[prim][group_quant]") {
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel}) {
    CodedPage<2> page({axis, 32, GroupForm::minimum, ParamType::f16, Rounding::half_even}, 64, 96, 15);
    CodedPage<2> again = {page.codec, 64, 96, 15};
    again.rows = page.decoded(0, 64);
    again.encode();
    REQUIRE(std::memcmp(page.bytes.data(), again.bytes.data(), 64 * 96 / 4) == 0);
  }
}

TEST_CASE("group_int: a description refuses what it cannot store", "[prim][group_quant]") {
  REQUIRE(GroupInt<2>{GroupAxis::token, 0}.valid(80));
  REQUIRE(GroupInt<2>{GroupAxis::token, 40}.valid(80));
  REQUIRE_FALSE(GroupInt<2>{GroupAxis::token, 32}.valid(80));
  REQUIRE_FALSE(GroupInt<2>{GroupAxis::token, -8}.valid(80));
  REQUIRE_FALSE(GroupInt<2>{GroupAxis::channel, 0}.valid(80));
  REQUIRE(GroupInt<2>{GroupAxis::channel, 32}.valid(80));
  REQUIRE_FALSE(GroupInt<2>{}.valid(0));
  REQUIRE_FALSE(GroupInt<2>{}.valid(max_head_dim + 1));
  REQUIRE_FALSE(GroupInt<1>{.form = GroupForm::symmetric}.valid(64));
  REQUIRE(GroupInt<2>{}.fingerprint() != GroupInt<3>{}.fingerprint());
  REQUIRE(GroupInt<2>{}.fingerprint() != GroupInt<2>{.rounding = Rounding::half_up}.fingerprint());
}
