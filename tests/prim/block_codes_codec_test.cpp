#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/block_codes.hpp>
#include <kvcondense/prim/pack_bits.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>

// BlockCodes pages on the CPU: attention over codes against double over what they decode to, and what
// holds for every element and scale form.

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

using Codec = PageCodec<Cpu, BlockCodes>;

BlockCodes block_codes(BlockElement element, BlockScale scale, index_t block, float factor = 1.0f) {
  BlockCodes c;
  c.element = element;
  c.scale = scale;
  c.block = block;
  c.factor = factor;
  return c;
}
BlockCodes ggml_codes(GgmlType t) {
  BlockCodes c;
  c.element = BlockElement::ggml;
  c.ggml = t;
  return c;
}

constexpr BlockElement elements[] = {BlockElement::e2m1, BlockElement::e2m3, BlockElement::e3m2,
                                     BlockElement::e4m3, BlockElement::e5m2, BlockElement::int8,
                                     BlockElement::int2, BlockElement::int3, BlockElement::int4,
                                     BlockElement::int5, BlockElement::int6, BlockElement::int7};
constexpr GgmlType ggml_types[] = {GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1,
                                   GgmlType::q8_0, GgmlType::mxfp4, GgmlType::nvfp4};

/// The formats of the methods, and every scale form with every element.
std::vector<BlockCodes> all_codecs() {
  std::vector<BlockCodes> all;
  for (const BlockElement e : elements) {
    for (const BlockScale s : {BlockScale::e8m0, BlockScale::e8m0_ceil, BlockScale::f32, BlockScale::f32_power})
      all.push_back(block_codes(e, s, 32));
    all.push_back(block_codes(e, BlockScale::e4m3, 16, 0.01f));
    all.push_back(block_codes(e, BlockScale::fixed, 0, 0.5f));
    all.push_back(block_codes(e, BlockScale::f32, 0));
    all.push_back(block_codes(e, BlockScale::f32, 8));
    all.push_back(block_codes(e, BlockScale::f32, 128));
  }
  for (const GgmlType t : ggml_types) all.push_back(ggml_codes(t));
  return all;
}

std::size_t at(index_t row, index_t step, index_t column) { return static_cast<std::size_t>(row * step + column); }

/// A page with canaries around it, and the rows it was made of.
struct CodedPage {
  CodedPage(const BlockCodes& c, index_t slot_count, index_t d, std::uint64_t seed)
      : codec(c), slots(slot_count), dim(d), rows(at(slots, dim, 0)), bytes(c.page_bytes(slots, dim)) {
    test::fill_normal(rows.data(), rows.size(), seed);
    encode();
  }
  index_t encode() { return Codec::encode(codec, span(), 0, slots, {rows.data(), slots, dim}); }
  PageSpan span() { return {bytes.data(), slots, dim}; }
  std::vector<float> decoded(index_t first, index_t count) {
    test::Guarded<float> out(at(count, dim, 0));
    Codec::decode(codec, span(), first, count, {out.data(), count, dim});
    REQUIRE(out.ok());
    return {out.begin(), out.end()};
  }

  BlockCodes codec;
  index_t slots, dim;
  std::vector<float> rows;
  test::Guarded<std::byte> bytes;
};

void capture(const BlockCodes& c) {
  UNSCOPED_INFO("element " << static_cast<int>(c.element) << " scale " << static_cast<int>(c.scale) << " block " << c.block
                           << " ggml " << static_cast<int>(c.ggml));
}

/// scores and accumulate of slots [first, first + count) against double over the decoded rows.
void require_attention_matches(CodedPage& page, index_t first, index_t count, index_t query_rows) {
  const index_t dim = page.dim;
  const std::vector<float> x = page.decoded(first, count);
  double top = 0.0;  // codes with a minimum cancel against it
  for (const float v : x) top = std::max(top, std::abs(static_cast<double>(v)));
  const double extra = page.codec.is_ggml() && has_minimum(page.codec.ggml) ? top : 0.0;
  const index_t q_step = dim + 3, o_step = count + 5, w_step = count + 2;
  std::vector<float> q(at(query_rows, q_step, 0)), w(at(query_rows, w_step, 0));
  test::fill_normal(q.data(), q.size(), 21);
  test::fill_uniform(w.data(), w.size(), 22);
  test::Guarded<float> out(at(query_rows, o_step, 0), -7.0f), sums(at(query_rows, dim, 0), 0.25f);
  Codec::scores(page.codec, page.span(), first, count, {q.data(), query_rows, q_step}, {out.data(), query_rows, o_step});
  Codec::accumulate(page.codec, page.span(), first, count, {w.data(), query_rows, w_step}, {sums.data(), query_rows, dim});
  double worst = 0.0;
  bool untouched = true;
  for (index_t r = 0; r < query_rows; ++r) {
    for (index_t i = 0; i < count; ++i) {
      double want = 0.0, size = 1e-30;
      for (index_t d = 0; d < dim; ++d) {
        const double term = static_cast<double>(q[at(r, q_step, d)]), v = static_cast<double>(x[at(i, dim, d)]);
        want += term * v;
        size += std::abs(term) * (std::abs(v) + extra);
      }
      worst = std::max(worst, std::abs(want - static_cast<double>(out[at(r, o_step, i)])) / size);
    }
    for (index_t i = count; i < o_step; ++i) untouched = untouched && out[at(r, o_step, i)] == -7.0f;
    for (index_t d = 0; d < dim; ++d) {
      double want = 0.25, size = 0.25;
      for (index_t i = 0; i < count; ++i) {
        const double term = static_cast<double>(w[at(r, w_step, i)]), v = static_cast<double>(x[at(i, dim, d)]);
        want += term * v;
        size += std::abs(term) * (std::abs(v) + extra);
      }
      worst = std::max(worst, std::abs(want - static_cast<double>(sums[at(r, dim, d)])) / size);
    }
  }
  capture(page.codec);
  REQUIRE(worst < 2e-6);  // far below the promised 1e-5: a few roundings of float
  REQUIRE((untouched && out.ok() && sums.ok() && page.bytes.ok()));
}

}  // namespace

TEST_CASE("block_codes: attention over codes equals attention over what they decode to", "[prim][block_codes]") {
  const index_t dim = GENERATE(1, 7, 16, 33, 64, 80, 96, 112, 128, 256);
  const std::vector<BlockCodes> all = all_codecs();
  for (const BlockCodes& codec : all) {
    if (!codec.valid(dim)) continue;
    CAPTURE(dim);
    CodedPage page(codec, 50, dim, 3);
    require_attention_matches(page, 0, 50, 1);
    require_attention_matches(page, 7, 29, 3);
    require_attention_matches(page, 15, 17, 7);
    require_attention_matches(page, 49, 1, 16);
  }
}

TEST_CASE("block_codes: any number of query rows", "[prim][block_codes]") {
  const index_t rows = GENERATE(1, 2, 16, 31, 32, 33, 70);
  for (const BlockCodes& codec : {block_codes(BlockElement::e2m1, BlockScale::e8m0, 32), ggml_codes(GgmlType::q5_1),
                                  block_codes(BlockElement::e4m3, BlockScale::f32, 0)}) {
    CodedPage page(codec, 64, 128, 4);
    CAPTURE(rows);
    require_attention_matches(page, 3, 61, rows);
  }
}

TEST_CASE("block_codes: a score depends on its slot and query only, bit for bit", "[prim][block_codes]") {
  for (const BlockCodes& codec : all_codecs()) {
    const index_t dim = codec.is_ggml() ? 64 : 80;
    CodedPage page(codec, 40, dim, 6);
    std::vector<float> q(at(5, dim, 0)), all(5 * 40);
    test::fill_normal(q.data(), q.size(), 7);
    Codec::scores(codec, page.span(), 0, 40, {q.data(), 5, dim}, {all.data(), 5, 40});
    bool same = true;
    for (index_t r = 0; r < 5; ++r)
      for (index_t i = 0; i < 40; ++i) {
        float one = 0.0f;
        Codec::scores(codec, page.span(), i, 1, {q.data() + r * dim, 1, dim}, {&one, 1, 1});
        same = same && one == all[at(r, 40, i)];
      }
    capture(codec);
    REQUIRE(same);
  }
}

TEST_CASE("block_codes: every code of every element decodes to its number times the scale", "[prim][block_codes]") {
  for (const BlockElement e : elements) {
    const BlockCodes codec = block_codes(e, BlockScale::fixed, 0, 0.25f);
    const index_t n = index_t{1} << bits_of(e);
    CodedPage page(codec, 1, n, 8);
    for (index_t c = 0; c < n; ++c) {
      const auto code = static_cast<std::uint32_t>(c);
      [&]<int... B>(std::integer_sequence<int, B...>) {
        ((bits_of(e) == B + 2 ? DenseLe<B + 2>{}.set(page.bytes.data(), c, code) : void()), ...);
      }(std::make_integer_sequence<int, 7>{});
    }
    const std::vector<float> got = page.decoded(0, 1);
    std::size_t wrong = 0;
    for (index_t c = 0; c < n; ++c) {
      const index_t turn = index_t{1} << (bits_of(e) - 1);  // two's complement
      const float element = is_integer(e) ? static_cast<float>(c < turn ? c : c - 2 * turn) / static_cast<float>(turn / 2)
                                          : mini_float_value(mini_float_of(e), static_cast<std::uint32_t>(c));
      const float v = got[static_cast<std::size_t>(c)];
      wrong += std::isnan(element) ? !std::isnan(v) : v != 0.25f * element;
    }
    capture(codec);
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("block_codes: bad numbers are counted and never leave their block", "[prim][block_codes]") {
  for (const BlockCodes& codec : all_codecs()) {
    CodedPage page(codec, 8, 64, 9);
    const index_t clipped = page.encode();  // numbers a fixed scale cannot reach, if any
    const std::vector<float> clean = page.decoded(0, 8);
    page.rows[5 * 64 + 20] = std::numeric_limits<float>::quiet_NaN();
    page.rows[6 * 64 + 20] = std::numeric_limits<float>::infinity();
    page.rows[6 * 64 + 21] = -std::numeric_limits<float>::infinity();
    page.rows[7 * 64 + 63] = 3e38f;  // finite, but beyond what a range may hold
    capture(codec);
    const index_t repaired = page.encode();
    if (codec.scale == BlockScale::fixed) REQUIRE((repaired >= clipped && repaired <= clipped + 4));
    else REQUIRE(repaired == clipped + 4);
    const std::vector<float> dirty = page.decoded(0, 8);
    const index_t group = codec.group(64), alone = codec.is_ggml() ? ggml_shape(codec.ggml).numbers : group;
    bool finite = true, same = true;
    for (index_t t = 0; t < 8; ++t)
      for (index_t c = 0; c < 64; ++c) {
        finite = finite && std::isfinite(dirty[at(t, 64, c)]);
        const bool in_block = ((t == 5 || t == 6) && c / alone == 20 / alone) || (t == 7 && c / alone == 63 / alone);
        same = same && (in_block || dirty[at(t, 64, c)] == clean[at(t, 64, c)]);
      }
    REQUIRE(finite);
    REQUIRE(same);
    std::fill(page.rows.begin(), page.rows.end(), std::numeric_limits<float>::quiet_NaN());
    REQUIRE(page.encode() == 8 * 64);
    for (const float v : page.decoded(0, 8)) REQUIRE(v == 0.0f);
  }
}

TEST_CASE("block_codes: zeros stay zeros, and a row of the smallest and largest numbers stays finite", "[prim][block_codes]") {
  for (const BlockCodes& codec : all_codecs()) {
    CodedPage page(codec, 4, 64, 9);
    std::fill(page.rows.begin(), page.rows.end(), 0.0f);
    capture(codec);
    REQUIRE(page.encode() == 0);
    for (const float v : page.decoded(0, 4)) REQUIRE(v == 0.0f);
    for (const float size : {1e-45f, 1e-40f, 1e-38f, 1e-10f, 1e10f, 0x1p126f}) {
      for (std::size_t i = 0; i < page.rows.size(); ++i) page.rows[i] = i % 3 == 0 ? size : i % 3 == 1 ? -size : 0.0f;
      page.encode();
      for (const float v : page.decoded(0, 4)) REQUIRE(std::isfinite(v));
    }
  }
}

TEST_CASE("block_codes: coding in pieces equals coding all at once, and unused bits are zero", "[prim][block_codes]") {
  for (const BlockCodes& codec : all_codecs()) {
    const index_t dim = codec.is_ggml() ? 128 : 77;
    CodedPage page(codec, 16, dim, 13), pieces(codec, 16, dim, 14);
    for (index_t s = 0; s < 16; ++s)
      Codec::encode(codec, pieces.span(), s, 1, {page.rows.data() + s * dim, 1, dim});
    REQUIRE(std::memcmp(page.bytes.data(), pieces.bytes.data(), page.bytes.size()) == 0);
    Codec::move(codec, pieces.span(), 2, page.span(), 15);
    Codec::move(codec, pieces.span(), 3, pieces.span(), 3);
    capture(codec);
    REQUIRE(pieces.decoded(2, 1) == page.decoded(15, 1));
    REQUIRE(pieces.decoded(3, 1) == page.decoded(3, 1));
    REQUIRE(pieces.decoded(1, 1) == page.decoded(1, 1));
  }
}

TEST_CASE("block_codes: a description refuses what it cannot store", "[prim][block_codes]") {
  for (const index_t dim : {0, 257, -1}) REQUIRE_FALSE(BlockCodes{}.valid(dim));
  for (const index_t dim : {1, 80, 96, 112, 256}) REQUIRE(BlockCodes{}.valid(dim));
  for (const index_t block : {-8, 1, 4, 24, 512}) REQUIRE_FALSE(block_codes(BlockElement::e2m1, BlockScale::e8m0, block).valid(64));
  for (const float factor : {0.0f, -1.0f, 1e-30f, 1e30f, std::numeric_limits<float>::quiet_NaN()})
    REQUIRE_FALSE(block_codes(BlockElement::e2m1, BlockScale::e4m3, 16, factor).valid(64));
  REQUIRE_FALSE(BlockCodes{.rounding = Rounding::half_up}.valid(64));
  for (const GgmlType t : ggml_types) {
    REQUIRE(ggml_codes(t).valid(128));
    for (const index_t dim : {1, 16, 80, 112}) REQUIRE_FALSE(ggml_codes(t).valid(dim));
    REQUIRE(ggml_codes(t).valid(96) == (t != GgmlType::nvfp4));
  }
  const std::vector<BlockCodes> all = all_codecs();
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) REQUIRE(all[i].fingerprint() != all[j].fingerprint());
}
