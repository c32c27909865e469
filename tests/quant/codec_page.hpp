#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/page_codec.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>

// What the tests of one codec's methods share: rows in one page with canaries around it, and attention over
// codes against double over what they decode to.

namespace kvcondense::test {

/// Rows coded into one page.
template <class C>
struct CodecPage {
  using Codec = prim::PageCodec<Cpu, C>;

  CodecPage(const C& c, std::vector<float> numbers, index_t d)
      : codec(c), dim(d), slots(static_cast<index_t>(numbers.size()) / d), rows(std::move(numbers)),
        bytes(c.page_bytes(slots, dim)) {
    REQUIRE(codec.valid(dim));
    encode();
  }
  index_t encode() { return repaired = Codec::encode(codec, span(), 0, slots, {rows.data(), slots, dim}); }
  prim::PageSpan span() { return {bytes.data(), slots, dim}; }
  std::vector<float> decoded(index_t first, index_t count) {
    Guarded<float> out(static_cast<std::size_t>(count * dim));
    Codec::decode(codec, span(), first, count, {out.data(), count, dim});
    REQUIRE(out.ok());
    return {out.begin(), out.end()};
  }
  std::vector<float> decoded() { return decoded(0, slots); }
  float half_at(index_t byte) const {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + byte, 2);
    return kvcondense::detail::half_value(bits);
  }

  C codec;
  index_t dim, slots, repaired = 0;
  std::vector<float> rows;
  Guarded<std::byte> bytes;
};

inline std::vector<float> normal_rows(index_t slots, index_t dim, std::uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(slots * dim));
  fill_normal(x.data(), x.size(), seed);
  return x;
}

/// `scores` and `accumulate` of slots [first, first + count) against double over the decoded rows: the largest
/// error, relative to the sum of magnitudes that the fold adds up. Numbers around the output must stay.
template <class C>
double fold_error(CodecPage<C>& page, index_t first, index_t count, index_t query_rows) {
  using Codec = typename CodecPage<C>::Codec;
  const index_t dim = page.dim, q_step = dim + 3, o_step = count + 5, w_step = count + 2;
  const std::vector<float> x = page.decoded(first, count);
  double top = 0.0;  // offsets that cancel are as large as the largest number
  for (const float v : x) top = std::max(top, std::abs(static_cast<double>(v)));
  const auto at = [](index_t row, index_t step, index_t column) { return static_cast<std::size_t>(row * step + column); };
  std::vector<float> q(at(query_rows, q_step, 0)), w(at(query_rows, w_step, 0));
  fill_normal(q.data(), q.size(), 21);
  fill_uniform(w.data(), w.size(), 22);
  Guarded<float> out(at(query_rows, o_step, 0), -7.0f), sums(at(query_rows, dim, 0), 0.25f);
  Codec::scores(page.codec, page.span(), first, count, {q.data(), query_rows, q_step}, {out.data(), query_rows, o_step});
  Codec::accumulate(page.codec, page.span(), first, count, {w.data(), query_rows, w_step}, {sums.data(), query_rows, dim});
  double worst = 0.0;
  const auto compare = [&](double want, double size, float got) {
    worst = std::max(worst, std::abs(want - static_cast<double>(got)) / (size + 1e-30));
  };
  for (index_t r = 0; r < query_rows; ++r) {
    for (index_t i = 0; i < count; ++i) {
      double want = 0.0, size = 0.0;
      for (index_t d = 0; d < dim; ++d) {
        const auto a = static_cast<double>(q[at(r, q_step, d)]), v = static_cast<double>(x[at(i, dim, d)]);
        want += a * v;
        size += std::abs(a) * (std::abs(v) + top);
      }
      compare(want, size, out[at(r, o_step, i)]);
    }
    for (index_t i = count; i < o_step; ++i) REQUIRE(out[at(r, o_step, i)] == -7.0f);
    for (index_t d = 0; d < dim; ++d) {
      double want = 0.25, size = 0.25;
      for (index_t i = 0; i < count; ++i) {
        const auto a = static_cast<double>(w[at(r, w_step, i)]), v = static_cast<double>(x[at(i, dim, d)]);
        want += a * v;
        size += std::abs(a) * (std::abs(v) + top);
      }
      compare(want, size, sums[at(r, dim, d)]);
    }
  }
  REQUIRE((out.ok() && sums.ok() && page.bytes.ok()));
  return worst;
}

/// The folds of a page: all of it, from within, one slot, none, for one to sixteen query rows and for more than
/// one unpacking serves. Far below the promised 1e-5: a few roundings of float.
template <class C>
void require_folds(CodecPage<C>& page, double most = 2e-6) {
  const index_t n = page.slots, inner = std::min<index_t>(7, n - 1);
  for (const index_t rows : {1, 2, 4, 7, 8, 16}) {
    CAPTURE(page.dim, rows);
    REQUIRE(fold_error(page, 0, n, rows) < most);
  }
  REQUIRE(fold_error(page, inner, std::min<index_t>(n - inner, 29), 3) < most);
  REQUIRE(fold_error(page, n - 1, 1, 33) < most);
  REQUIRE(fold_error(page, n / 2, 0, 2) < most);
}

/// A score depends on its slot and query only, bit for bit.
template <class C>
void require_same_alone(CodecPage<C>& page) {
  using Codec = typename CodecPage<C>::Codec;
  const index_t n = page.slots, dim = page.dim;
  std::vector<float> q(static_cast<std::size_t>(5 * dim)), all(static_cast<std::size_t>(5 * n));
  fill_normal(q.data(), q.size(), 7);
  Codec::scores(page.codec, page.span(), 0, n, {q.data(), 5, dim}, {all.data(), 5, n});
  bool same = true;
  for (index_t r = 0; r < 5; ++r)
    for (index_t i = 0; i < n; ++i) {
      float one = 0.0f;
      Codec::scores(page.codec, page.span(), i, 1, {q.data() + r * dim, 1, dim}, {&one, 1, 1});
      same = same && one == all[static_cast<std::size_t>(r * n + i)];
    }
  REQUIRE(same);
}

/// All 65536 half numbers, row by row, `dim` of them to a row.
inline std::vector<float> all_halves(index_t dim) {
  std::vector<float> x;
  for (std::uint32_t h = 0; h < 65536; ++h) x.push_back(kvcondense::detail::half_value(static_cast<std::uint16_t>(h)));
  x.resize((x.size() + static_cast<std::size_t>(dim) - 1) / static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim));
  return x;
}

template <class C>
double bits_per_number(const C& codec, index_t dim) {
  return static_cast<double>(codec.page_bytes(256, dim)) * 8.0 / (256.0 * static_cast<double>(dim));
}

}  // namespace kvcondense::test
