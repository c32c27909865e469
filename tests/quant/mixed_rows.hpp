#pragma once

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/prim/mixed_rows.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>

namespace kvcondense::test {

/// Rows of two precisions in one page.
template <class Codec>
struct MixedPage {
  using Page = prim::PageCodec<Cpu, Codec>;

  Codec codec;
  index_t dim, slots;
  std::vector<float> rows;
  Guarded<std::byte> bytes;
  prim::PageSpan page;

  MixedPage(const Codec& c, index_t d, index_t n, const std::vector<float>& scores, std::uint64_t seed = 1)
      : codec(c), dim(d), slots(n), rows(static_cast<std::size_t>(d * n)), bytes(c.page_bytes(n, d)), page{bytes.data(), n, d} {
    fill_normal(rows.data(), rows.size(), seed);
    REQUIRE(codec.valid(dim));
    REQUIRE(Page::encode(codec, page, 0, n, {rows.data(), n, dim}, scores.empty() ? nullptr : scores.data()) == 0);
    REQUIRE(bytes.ok());
  }
  std::vector<float> decoded() const {
    std::vector<float> out(rows.size());
    Page::decode(codec, page, 0, slots, {out.data(), slots, dim});
    return out;
  }
  bool high(index_t slot) const { return Page::grade(codec, page, slot) > 0.5f; }
  double error(index_t slot) const {
    const auto back = decoded();
    double sum = 0;
    for (index_t c = 0; c < dim; ++c) {
      const auto i = static_cast<std::size_t>(slot * dim + c);
      sum += std::pow(static_cast<double>(back[i] - rows[i]), 2);
    }
    return sum / static_cast<double>(dim);
  }
  /// Whether folded scores and sums over slots [first, first + count) are those of decoded rows.
  void require_fold(index_t first, index_t count, index_t queries) const {
    const auto back = decoded();
    const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
    std::vector<float> q(at(queries * dim)), w(at(queries * count)), s(at(queries * (count + 3)), -5.0f), sums(q.size(), 0.25f);
    fill_normal(q.data(), q.size(), 7), fill_uniform(w.data(), w.size(), 8);
    Page::scores(codec, page, first, count, {q.data(), queries, dim}, {s.data(), queries, count + 3});
    Page::accumulate(codec, page, first, count, {w.data(), queries, count}, {sums.data(), queries, dim});
    for (index_t r = 0; r < queries; ++r) {
      std::vector<double> want(at(dim), 0.25);
      for (index_t i = 0; i < count; ++i) {
        double dot = 0;
        for (index_t c = 0; c < dim; ++c) {
          const auto v = static_cast<double>(back[at((first + i) * dim + c)]);
          dot += static_cast<double>(q[at(r * dim + c)]) * v;
          want[at(c)] += static_cast<double>(w[at(r * count + i)]) * v;
        }
        REQUIRE(static_cast<double>(s[at(r * (count + 3) + i)]) == Approx(dot).epsilon(1e-5).margin(1e-4));
      }
      REQUIRE(s[at(r * (count + 3) + count)] == -5.0f);
      for (index_t c = 0; c < dim; ++c) REQUIRE(static_cast<double>(sums[at(r * dim + c)]) == Approx(want[at(c)]).epsilon(1e-5).margin(1e-4));
    }
  }
};

}  // namespace kvcondense::test
