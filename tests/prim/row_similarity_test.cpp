#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Random rows of some heads, links that say who leaves, and the words over them.
struct Rig {
  index_t dim;
  std::vector<index_t> offset{0};
  std::vector<std::vector<float>> key, value;
  test::Guarded<std::int32_t> to;
  test::Guarded<float> likeness, wk, wv;
  std::vector<prim::SlotRange> targets;

  struct Rows final : SlotRows<Cpu> {
    const std::vector<std::vector<float>>* rows;
    index_t size;
    Rows(const std::vector<std::vector<float>>& r, index_t d) : rows(&r), size(d) {}
    index_t dim() const noexcept override { return size; }
    void read(index_t h, index_t first, prim::RowBlock<float> out) const noexcept override {
      for (index_t i = 0; i < out.rows; ++i) std::copy_n((*rows)[at(h)].data() + (first + i) * size, size, out.data + i * out.step);
    }
  };

  Rig(index_t d, std::vector<index_t> lengths, std::uint32_t seed, index_t total)
      : dim(d), to(at(total), prim::unlinked), likeness(at(total), NAN), wk(at(total)), wv(at(total)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (const index_t n : lengths) {
      offset.push_back(offset.back() + n);
      targets.push_back({0, 0, n});
      for (auto* all : {&key, &value}) {
        all->emplace_back(at(n * d));
        for (float& x : all->back()) x = normal(random);
      }
    }
  }
  prim::MergeLinks links() {
    const auto view = [&](auto& x) { return RaggedView<std::remove_reference_t<decltype(*x.data())>>{x.data(), offset.data(), static_cast<index_t>(key.size())}; };
    return {view(to), view(likeness), view(wk), view(wv)};
  }
  double cosine(const std::vector<float>& rows, index_t a, index_t b) const {
    double ab = 0, aa = 0, bb = 0;
    for (index_t c = 0; c < dim; ++c) {
      const double x = rows[at(a * dim + c)], y = rows[at(b * dim + c)];
      ab += x * y, aa += x * x, bb += y * y;
    }
    return aa == 0 || bb == 0 ? 0 : ab / std::sqrt(aa * bb);
  }
  bool ok() const { return to.ok() && likeness.ok() && wk.ok() && wv.ok(); }
};

}  // namespace

TEST_CASE("row similarity: the nearest target of every slot that leaves, by keys, in chunks, by keys and values", "[prim][row_similarity]") {
  for (const index_t dim : {1, 8, 20, 64, 80, 96, 112, 128, 256})
    for (const index_t chunk : {0, 7}) {
      const std::vector<index_t> lengths{0, 1, 130, 47};
      for (const bool both : {false, true}) {
        CAPTURE(dim, chunk, both);
        Rig r(dim, lengths, static_cast<std::uint32_t>(dim + chunk), 178);
        const auto links = r.links();
        for (index_t h = 0; h < 4; ++h)
          for (index_t j = 0; j < lengths[at(h)]; ++j) links.to.row(h)[j] = j % 3 == 0 ? static_cast<std::int32_t>(j) : j % 7 == 1 ? prim::dropped : prim::unlinked;
        r.targets[2] = {9, 20, 120};
        const std::vector<std::int32_t> before(r.to.begin(), r.to.end());
        const Rig::Rows keys(r.key, dim), values(r.value, dim);
        Context<Cpu> ctx;
        REQUIRE(prim::RowSimilarity<Cpu>::nearest(ctx, keys, both ? &values : nullptr, r.targets.data(), chunk, links) == Status::ok);
        REQUIRE(r.ok());
        for (index_t h = 0; h < 4; ++h)
          for (index_t j = 0; j < lengths[at(h)]; ++j) {
            if (before[at(r.offset[at(h)] + j)] != prim::unlinked) {
              REQUIRE(links.to.row(h)[j] == before[at(r.offset[at(h)] + j)]);
              continue;
            }
            double best = -2;
            for (index_t t = 0; t < lengths[at(h)]; ++t) {
              const prim::SlotRange range = r.targets[at(h)];
              if (t % 3 != 0 || !range.has(t)) continue;
              if (chunk > 0 && t < range.begin) continue;
              if (chunk > 0 && (j < range.begin || (t - range.begin) / chunk != (j - range.begin) / chunk)) continue;
              double c = r.cosine(r.key[at(h)], j, t);
              if (both) {
                const double v = r.cosine(r.value[at(h)], j, t);
                c = c > 0 && v > 0 ? c * v : 0;
              }
              best = std::max(best, c);
            }
            const index_t got = links.to.row(h)[j];
            if (best == -2) {
              REQUIRE(got == prim::unlinked);
              continue;
            }
            REQUIRE(got >= 0);
            REQUIRE(got % 3 == 0);
            REQUIRE(r.targets[at(h)].has(got));
            REQUIRE(links.likeness.row(h)[j] == Approx(best).margin(1e-5));
          }
      }
    }
}

TEST_CASE("row similarity: equal cosines take the smaller slot, rows of zeros are like nothing, bad ones take no part", "[prim][row_similarity]") {
  Rig r(2, {6}, 1, 6);
  r.key[0] = {1, 0, 2, 0, 0, 0, NAN, 1, 3, 0, INFINITY, 0};
  const auto links = r.links();
  for (const index_t j : {0, 1, 2, 3}) links.to.row(0)[j] = static_cast<std::int32_t>(j);
  const Rig::Rows keys(r.key, 2);
  Context<Cpu> ctx;
  REQUIRE(prim::RowSimilarity<Cpu>::nearest(ctx, keys, nullptr, r.targets.data(), 0, links) == Status::ok);
  REQUIRE(links.to.row(0)[4] == 0);
  REQUIRE(links.to.row(0)[5] == prim::unlinked);
  r.key[0][8] = 0.0f;  // a row of zeros leaves
  links.to.row(0)[4] = prim::unlinked;
  REQUIRE(prim::RowSimilarity<Cpu>::nearest(ctx, keys, nullptr, r.targets.data(), 0, links) == Status::ok);
  REQUIRE(links.to.row(0)[4] == 0);
  REQUIRE(links.likeness.row(0)[4] == 0.0f);
}

TEST_CASE("row similarity: cosines of neighbours", "[prim][row_similarity]") {
  for (const index_t dim : {3, 64, 96}) {
    Rig r(dim, {33, 1, 16, 0, 17}, 5, 67);
    const Rig::Rows keys(r.key, dim);
    Context<Cpu> ctx;
    REQUIRE(prim::RowSimilarity<Cpu>::adjacent(ctx, keys, r.links().likeness) == Status::ok);
    REQUIRE(r.ok());
    for (index_t h = 0; h < 5; ++h) {
      const index_t n = r.offset[at(h + 1)] - r.offset[at(h)];
      for (index_t j = 0; j < n; ++j)
        REQUIRE(r.links().likeness.row(h)[j] == Approx(j + 1 < n ? r.cosine(r.key[at(h)], j, j + 1) : 0.0).margin(1e-5));
    }
  }
}

TEST_CASE("row similarity: a Gaussian of the distance to the target, as wide as its set", "[prim][row_similarity]") {
  Rig r(2, {5}, 1, 5);
  r.key[0] = {0, 0, 3, 4, 0, 1, 7, 7, 7, 7};
  const auto links = r.links();
  const std::int32_t to[] = {0, 0, 0, 3, 3};
  std::copy_n(to, 5, r.to.data());
  const Rig::Rows keys(r.key, 2);
  Context<Cpu> ctx;
  REQUIRE(prim::RowSimilarity<Cpu>::gaussian(ctx, keys, 0.0f, links) == Status::ok);
  const double sigma = (5.0 + 1.0) / 3.0 / std::sqrt(2.0);
  REQUIRE(links.likeness.row(0)[1] == Approx(std::exp(-25 / (2 * sigma * sigma))));
  REQUIRE(links.likeness.row(0)[2] == Approx(std::exp(-1 / (2 * sigma * sigma))));
  REQUIRE(links.likeness.row(0)[4] == 1.0f);
  REQUIRE(prim::RowSimilarity<Cpu>::gaussian(ctx, keys, 2.0f, links) == Status::ok);
  REQUIRE(links.likeness.row(0)[1] == Approx(std::exp(-25.0 / 8)));
}
