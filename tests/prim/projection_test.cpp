#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/oracle.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

namespace {

/// q . (x as it comes back), in double.
double product(const std::vector<float>& q, const std::vector<float>& x) {
  double sum = 0;
  for (std::size_t i = 0; i < q.size(); ++i) sum += static_cast<double>(q[i]) * static_cast<double>(x[i]);
  return sum;
}

}  // namespace

TEST_CASE("projection: absorbed scores are those of reconstructed rows", "[prim][projection]") {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  using Map = prim::RowTransform<Cpu, prim::Projection>;
  for (const index_t dim : {1, 7, 64, 80, 96, 112, 128, 256})
    for (const bool pair : {false, true}) {
      const test::RandomBases bases(1, 1, dim, static_cast<std::uint32_t>(dim), false, pair);
      const HeadBases b = bases.view();
      for (const index_t rank : {index_t{1}, (dim + 1) / 2, dim}) {
        const prim::Projection p{b.encoder(0, 0), b.decoder(0, 0), nullptr, static_cast<std::int32_t>(rank),
                                 static_cast<std::int32_t>(dim), static_cast<std::int32_t>(dim)};
        REQUIRE(p.valid(dim));
        REQUIRE(p.stored_dim(dim) == rank);
        std::vector<float> x(static_cast<std::size_t>(dim)), q(x.size());
        for (float& e : x) e = normal(random);
        for (float& e : q) e = normal(random);
        std::vector<float> z = x, mapped = q;
        Map::forward(p, dim, {z.data(), 1, dim});
        Map::query(p, dim, {mapped.data(), 1, dim});
        std::vector<float> back = z;
        Map::backward(p, dim, {back.data(), 1, dim});
        double absorbed = 0;
        for (std::size_t i = 0; i < static_cast<std::size_t>(rank); ++i) absorbed += static_cast<double>(mapped[i]) * static_cast<double>(z[i]);
        REQUIRE(absorbed == Approx(product(q, back)).margin(1e-4 * std::sqrt(static_cast<double>(dim))));
        if (rank < dim) continue;
        for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(back[i] == Approx(x[i]).margin(2e-5));
      }
    }
}

TEST_CASE("projection: what it is says what it was made of", "[prim][projection]") {
  const test::RandomBases one(1, 1, 16, 1, true), two(1, 1, 16, 2, true);
  const auto make = [](const HeadBases& b, std::int32_t rank, bool mean) {
    return prim::Projection{b.encoder(0, 0), b.decoder(0, 0), mean ? b.mean_of(0, 0) : nullptr, rank, 16, 16};
  };
  const std::int64_t print = make(one.view(), 8, true).fingerprint();
  REQUIRE(make(one.view(), 8, true).fingerprint() == print);
  REQUIRE(make(one.view(), 9, true).fingerprint() != print);
  REQUIRE(make(one.view(), 8, false).fingerprint() != print);
  REQUIRE(make(two.view(), 8, true).fingerprint() != print);
  REQUIRE_FALSE(make(one.view(), 17, true).valid(16));
  REQUIRE_FALSE(make(one.view(), 0, true).valid(16));
  REQUIRE_FALSE(make(one.view(), 8, true).valid(32));
  REQUIRE(prim::Projection{}.identity());
  REQUIRE(prim::Projection{}.stored_dim(16) == 16);
}

TEST_CASE("projection: a basis does not commute with RoPE, whole pairs do", "[prim][projection]") {
  const auto oracle = test::load_oracle("lowrank.json", "rope_projection_commutation");
  const auto& want = oracle["expected"];
  const auto k = test::floats(oracle["inputs"]["k"]), columns = test::floats(oracle["inputs"]["P"]);
  const auto position = oracle["inputs"]["position"].get<index_t>();
  auto table = prim::RopeTable::make({}, 4, heap_memory());
  REQUIRE(table);
  REQUIRE(table->reserve(16) == Status::ok);
  const prim::Projection p{columns.data(), columns.data(), nullptr, 2, 2, 4};
  using Map = prim::RowTransform<Cpu, prim::Projection>;
  const auto project = [&](std::vector<float> x) {
    Map::forward(p, 4, {x.data(), 1, 4});
    Map::backward(p, 4, {x.data(), 1, 4});
    return x;
  };
  const auto rotate = [&](std::vector<float> x) {
    table->rotate(x.data(), position);
    return x;
  };
  const auto first = rotate(project(k)), second = project(rotate(k));
  double apart = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    REQUIRE(static_cast<double>(first[i]) == Approx(want["project_then_rope"][i].get<double>()).margin(1e-6));
    REQUIRE(static_cast<double>(second[i]) == Approx(want["rope_then_project"][i].get<double>()).margin(1e-6));
    apart = std::max(apart, std::fabs(static_cast<double>(first[i] - second[i])));
  }
  REQUIRE(apart == Approx(want["max_abs_difference"].get<double>()).margin(1e-6));

  // Channels 0 and 2, a pair.
  const prim::ChannelList pair{.kept = 2, .pairs = true};
  float state[8] = {1, 0, 1, 0};
  const std::vector<float> asks{1, 1, 1, 1};
  using List = prim::RowTransform<Cpu, prim::ChannelList>;
  List::settle(pair, 4, {dense_view(asks.data(), 1, 1, 4), 0, 1}, state);
  const auto choose = [&](std::vector<float> x) {
    List::forward(pair, state, 4, {x.data(), 1, 4});
    List::backward(pair, state, 4, {x.data(), 1, 4});
    return x;
  };
  REQUIRE(rotate(choose(k)) == choose(rotate(k)));
}

TEST_CASE("found_basis: eigenvectors of small, large, flat and repeated spectra", "[prim][projection]") {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  for (const index_t n : {1, 2, 3, 16, 64, 128}) {
    for (int kind = 0; kind < 5; ++kind) {
      std::vector<float> a(static_cast<std::size_t>(n * n), 0.0f), value(static_cast<std::size_t>(n)), side(value);
      for (index_t s = 0; kind < 3 && s < (kind == 1 ? (n + 1) / 2 : 2 * n); ++s) {
        std::vector<float> x(static_cast<std::size_t>(n));
        for (index_t i = 0; i < n; ++i)
          x[static_cast<std::size_t>(i)] = normal(random) * (kind == 2 ? std::pow(0.8f, static_cast<float>(i)) * 1e3f : 1.0f);
        for (index_t i = 0; i < n * n; ++i)
          a[static_cast<std::size_t>(i)] += x[static_cast<std::size_t>(i / n)] * x[static_cast<std::size_t>(i % n)];
      }
      for (index_t i = 0; kind == 4 && i < n * n; ++i)  // rows that are all parallel: all but one direction is rounding, again and again
        a[static_cast<std::size_t>(i)] = static_cast<float>(i / n - 15) / 8.0f * (static_cast<float>(i % n - 15) / 8.0f);
      const std::vector<float> matrix = a;
      prim::symmetric_eigen(a.data(), n, value.data(), side.data());
      const auto row = [&](index_t i) { return std::vector<float>(a.begin() + i * n, a.begin() + (i + 1) * n); };
      for (index_t i = 0; i < n; ++i) {
        for (index_t j = 0; j <= i; ++j) REQUIRE(product(row(i), row(j)) == Approx(i == j ? 1.0 : 0.0).margin(2e-5));
        if (i > 0) REQUIRE(value[static_cast<std::size_t>(i)] <= value[static_cast<std::size_t>(i) - 1]);
        const auto x = row(i);
        REQUIRE(*std::max_element(x.begin(), x.end()) >= -*std::min_element(x.begin(), x.end()));
        double wrong = 0;
        for (index_t r = 0; r < n; ++r)
          wrong = std::max(wrong, std::fabs(product({matrix.begin() + r * n, matrix.begin() + (r + 1) * n}, x) -
                                            static_cast<double>(value[static_cast<std::size_t>(i)]) * static_cast<double>(x[static_cast<std::size_t>(r)])));
        REQUIRE(wrong <= 2e-5 * std::max(static_cast<double>(value[0]), 1e-30));
      }
    }
  }
}

TEST_CASE("chained transforms: one after the other, back in turn", "[prim][projection]") {
  const test::RandomBases bases(1, 1, 32, 4, true);
  const HeadBases b = bases.view();
  const prim::Projection p{b.encoder(0, 0), b.decoder(0, 0), b.mean_of(0, 0), 16, 32, 32};
  const prim::Chained both{p, prim::Hadamard{16, 3}};
  REQUIRE(both.valid(32));
  REQUIRE(both.stored_dim(32) == 16);
  REQUIRE(both.centred());
  std::vector<float> x(32), one(32), two(32);
  for (std::size_t i = 0; i < 32; ++i) x[i] = one[i] = two[i] = static_cast<float>(i % 5) - 2.0f;
  using Map = prim::MapOf<Cpu, std::remove_cv_t<decltype(both)>>;
  Map::forward(both, nullptr, 32, {one.data(), 1, 32});
  prim::RowTransform<Cpu, prim::Projection>::forward(p, 32, {two.data(), 1, 32});
  prim::RowTransform<Cpu, prim::Hadamard>::forward(both.second, 16, {two.data(), 1, 32});
  for (std::size_t i = 0; i < 16; ++i) REQUIRE(one[i] == two[i]);
  // What would be found from rows that are not mapped yet, or from queries that the first one maps.
  REQUIRE_FALSE(prim::Chained{prim::FoundBasis{16}, prim::ChannelScale{prim::ChannelScale::Rule::root_max}}.valid(32));
  REQUIRE_FALSE(prim::Chained{p, prim::ChannelScale{prim::ChannelScale::Rule::balance}}.valid(32));
  REQUIRE(prim::Chained{p, prim::ChannelScale{prim::ChannelScale::Rule::root_max}}.valid(32));
}
