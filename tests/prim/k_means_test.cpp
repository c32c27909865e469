#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>

using namespace kvcondense;

namespace {

struct Points {
  std::vector<float> x;
  index_t dim;
  index_t count() const { return static_cast<index_t>(x.size()) / dim; }
  std::vector<float> fit(const prim::KMeansPlan& plan) const {
    std::vector<float> centroids(static_cast<std::size_t>(plan.clusters * dim), -1.0f);
    std::vector<std::byte> work(prim::KMeans<Cpu>::fit_bytes(count(), dim, plan.clusters) + Scratch::align);
    Scratch scratch(work);
    prim::KMeans<Cpu>::fit(
        [&](index_t first, prim::RowBlock<float> out) {
          for (index_t i = 0; i < out.rows; ++i) std::copy_n(x.data() + (first + i) * dim, dim, out.data + i * out.step);
        },
        count(), dim, plan, centroids.data(), scratch);
    return centroids;
  }
  double error(const std::vector<float>& centroids) const {
    double sum = 0;
    for (index_t i = 0; i < count(); ++i) {
      std::int32_t label = 0;
      const auto clusters = static_cast<index_t>(centroids.size()) / dim;
      prim::KMeans<Cpu>::nearest({x.data() + i * dim, 1, dim}, dim, centroids.data(), clusters, &label);
      sum += static_cast<double>(prim::KMeans<Cpu>::distance(x.data() + i * dim, centroids.data() + label * dim, dim));
    }
    return sum;
  }
};

}  // namespace

TEST_CASE("k-means: clusters that lie apart are found, more rounds do not make it worse", "[prim][k_means]") {
  std::mt19937 random(2);
  std::normal_distribution<float> noise(0.0f, 0.1f);
  Points p{{}, 3};
  for (int i = 0; i < 400; ++i)
    for (int d = 0; d < 3; ++d) p.x.push_back((i % 5 == d ? 4.0f : i % 5 == d + 2 ? -4.0f : 0.0f) + noise(random));
  const double found = p.error(p.fit({.clusters = 5, .iterations = 30, .seed = 3}));
  REQUIRE(found < 400 * 3 * 0.01 * 1.2);
  double last = 1e30;
  for (const index_t rounds : {0, 1, 2, 5, 20}) {
    const double now = p.error(p.fit({.clusters = 4, .iterations = rounds, .seed = 1}));
    REQUIRE(now <= last * 1.0001);
    last = now;
  }
  REQUIRE(p.fit({.clusters = 6, .seed = 1}) == p.fit({.clusters = 6, .seed = 1}));
  REQUIRE(p.fit({.clusters = 6, .seed = 1}) != p.fit({.clusters = 6, .seed = 2}));
}

TEST_CASE("k-means: as many clusters as rows, more, and rows that are all the same", "[prim][k_means]") {
  const Points p{{1, 2, 3, 4, 5, 6}, 2};
  REQUIRE(p.fit({.clusters = 3}) == std::vector<float>{1, 2, 3, 4, 5, 6});
  REQUIRE(p.fit({.clusters = 4}) == std::vector<float>{1, 2, 3, 4, 5, 6, 1, 2});
  const Points same{std::vector<float>(20, 2.0f), 2};
  REQUIRE(same.fit({.clusters = 3}) == std::vector<float>(6, 2.0f));
  std::int32_t label = -1;
  const float row[] = {2.0f, 2.0f}, centroids[] = {2.0f, 2.0f, 2.0f, 2.0f};
  prim::KMeans<Cpu>::nearest({row, 1, 2}, 2, centroids, 2, &label);
  REQUIRE(label == 0);
}

TEST_CASE("code scores: one and two bytes, several parts and tables", "[prim][k_means]") {
  const std::byte narrow[] = {std::byte{1}, std::byte{0}, std::byte{2}, std::byte{1}};
  const float tables[] = {1, 2, 3, 10, 20, 30, 100, 200, 300, 1000, 2000, 3000};
  float out[4];
  prim::CodeScores<Cpu>::scores(narrow, 1, 2, 3, 0, 2, {tables, 2, 6}, {out, 2, 2});
  REQUIRE(std::vector<float>(out, out + 4) == std::vector<float>{12, 23, 1200, 2300});
  const std::byte wide[] = {std::byte{0}, std::byte{1}, std::byte{3}, std::byte{0}};
  std::vector<float> one(257);
  for (std::size_t i = 0; i < 257; ++i) one[i] = static_cast<float>(i);
  prim::CodeScores<Cpu>::scores(wide, 2, 1, 257, 0, 2, {one.data(), 1, 257}, {out, 1, 2});
  REQUIRE(out[0] == 256.0f);
  REQUIRE(out[1] == 3.0f);
}

TEST_CASE("k-means: too little scratch, or nothing to fit, leaves the centroids alone", "[prim][k_means]") {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const prim::KMeansPlan plan{.clusters = 2};
  const std::size_t enough = prim::KMeans<Cpu>::fit_bytes(6, 1, 2);
  const auto untouched = [&](index_t count, std::size_t bytes) {
    std::vector<float> centroids(2, -1.0f);
    Workspace work;
    REQUIRE(work.reserve(enough) == Status::ok);
    Scratch scratch(work.bytes().first(bytes));
    prim::KMeans<Cpu>::fit(
        [&](index_t first, prim::RowBlock<float> out) {
          for (index_t i = 0; i < out.rows; ++i) out.data[i * out.step] = x[static_cast<std::size_t>(first + i)];
        },
        count, 1, plan, centroids.data(), scratch);
    return centroids == std::vector<float>(2, -1.0f);
  };
  for (std::size_t bytes = 0; bytes < enough; bytes += Scratch::align) REQUIRE(untouched(6, bytes));
  REQUIRE(untouched(0, enough));
  REQUIRE_FALSE(untouched(6, enough));
}
