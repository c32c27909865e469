#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/cache/column.hpp>
#include <kvcondense/cpu.hpp>

#include <support/fill.hpp>

// Columns hand codecs lists of pieces: as many as there are, in lists that end somewhere, they are what each piece is alone.

using namespace kvcondense;

namespace {

constexpr index_t dim = 64, page_slots = 64, gap = 4, run = gap - 1, rows = 5, step = 600;

/// Of tokens one in four has left, so that pieces are three slots long: coded ones, and behind them exact ones.
template <class Codec>
cache::Column<Codec> torn(const Codec& codec, index_t coded, index_t exact) {
  cache::Column<Codec> column(prim::ExactRows{DType::f32}, codec, Flush{}, 0, dim, page_slots, heap_memory());
  const index_t n = coded + exact;
  std::vector<float> x(static_cast<std::size_t>(n * dim)), room(static_cast<std::size_t>(column.scratch()));
  test::fill_normal(x.data(), x.size(), 3);
  REQUIRE(column.reserve(0, n) == Status::ok);
  column.append({x.data(), n, dim}, 0);
  REQUIRE(column.reserve_flush(coded) == Status::ok);
  (void)column.flush(coded, room.data());
  std::vector<std::int32_t> stay;
  for (index_t i = 0; i < n; ++i)
    if (i % gap != run) stay.push_back(static_cast<std::int32_t>(i));
  column.keep(cache::Kept::listed(stay.data(), static_cast<index_t>(stay.size())));
  REQUIRE(column.slots() == static_cast<index_t>(stay.size()));
  REQUIRE(column.coded().live() == coded / gap * run);
  return column;
}

template <class Codec>
void reads_piecewise(const Codec& scored, const Codec& summed) {
  std::vector<float> q(rows * dim), w(rows * step);
  test::fill_normal(q.data(), q.size(), 4), test::fill_uniform(w.data(), w.size(), 5);
  for (const index_t pieces : {1, 15, 16, 17, 32, 33, 80})
    for (const index_t behind : {0, 16, 21}) {
      CAPTURE(pieces, behind);
      const auto keys = torn(scored, pieces * gap, behind * gap), values = torn(summed, pieces * gap, behind * gap);
      const index_t all = keys.slots();
      std::vector<float> scores(rows * step, -7.0f), sums(rows * dim, 0.25f), each_score = scores, each_sum = sums;
      cache::Cursor a, b, c, d;
      keys.scores(a, all, {q.data(), rows, dim}, {scores.data(), rows, step});
      values.accumulate(b, all, {w.data(), rows, step}, {sums.data(), rows, dim});
      for (index_t at = 0; at < all; at += run) {
        keys.scores(c, run, {q.data(), rows, dim}, {each_score.data() + at, rows, step});
        values.accumulate(d, run, {w.data() + at, rows, step}, {each_sum.data(), rows, dim});
      }
      REQUIRE((scores == each_score));
      REQUIRE((sums == each_sum));
    }
}

}  // namespace

TEST_CASE("piece_list: columns read as many pieces as there are, in lists of some", "[cache][column]") {
  using prim::GroupInt;
  const GroupInt<4> codec{.axis = prim::GroupAxis::token, .group_size = 32};
  reads_piecewise(codec, codec);  // piece by piece
  reads_piecewise(codec.for_scores(), codec.for_sums());
}
