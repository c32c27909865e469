#include <catch2/catch.hpp>

#include <kvcondense/lowrank/fit/ranks.hpp>
#include <support/eigen_json.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::lowrank;
using Ranks = std::vector<index_t>;

TEST_CASE("fit: Palu's ranks by Fisher information", "[lowrank][ranks]") {
  const auto oracle = test::load_oracle("lowrank.json", "palu_fisher_ranks");
  std::vector<double> fisher;
  Ranks whole, rounded;
  for (const char* matrix : {"k0", "k1"}) {
    for (const auto& f : oracle["inputs"]["fisher"][matrix]) fisher.push_back(f.get<double>());
    for (const auto& r : oracle["expected"]["ranks_before_rounding"][matrix]) whole.push_back(r.get<index_t>());
    for (const auto& r : oracle["expected"]["ranks"][matrix]) rounded.push_back(r.get<index_t>());
  }
  const auto got = fit::fisher_ranks(fisher, 128, 0.5, 32);
  REQUIRE(got);
  REQUIRE(got->whole == whole);
  REQUIRE(got->rounded == rounded);
  REQUIRE(fit::fisher_ranks({1, 1}, 64, 1.0, 16)->rounded == Ranks{64, 64});
  REQUIRE(fit::fisher_ranks({}, 64, 0.5, 16).status() == Status::invalid_argument);
  REQUIRE(fit::fisher_ranks({1, 0}, 64, 0.5, 16).status() == Status::invalid_argument);
  REQUIRE(fit::fisher_ranks({1, 1}, 64, 0.0, 16).status() == Status::invalid_argument);
  REQUIRE(fit::fisher_ranks({1, 1}, 64, 0.5, 65).status() == Status::invalid_argument);
}

TEST_CASE("fit: one greedy round of MatryoshkaKV", "[lowrank][ranks]") {
  const auto oracle = test::load_oracle("lowrank.json", "matryoshka_greedy_step");
  std::vector<double> error;
  Ranks rank, want;
  for (const char* kind : {"key", "value"})
    for (const char* what : {"err_", "rank_"})
      for (const auto& row : oracle["inputs"][std::string(what) + kind])
        for (const auto& x : row)
          if (*what == 'e') error.push_back(x.get<double>());
          else rank.push_back(x.get<index_t>());
  for (const char* kind : {"rank_key", "rank_value"})
    for (const auto& row : oracle["expected"][kind])
      for (const auto& x : row) want.push_back(x.get<index_t>());
  const auto chosen = fit::greedy_step(error, rank, 32, 4);
  REQUIRE(rank == want);
  for (std::size_t i = 0; i < 4; ++i) {
    const auto& c = oracle["expected"]["chosen"][i];
    REQUIRE(chosen[i] == c[0].get<std::size_t>() * 4 + c[1].get<std::size_t>() * 2 + c[2].get<std::size_t>());
  }
}

TEST_CASE("fit: ranks by condition numbers", "[lowrank][ranks]") {
  const auto oracle = test::load_oracle("lowrank.json", "lorc_ranks");
  const auto products = fit::condition_products(oracle["inputs"]["condition_per_layer"].get<std::vector<double>>());
  for (std::size_t l = 0; l < products.size(); ++l)
    REQUIRE(products[l] == Approx(oracle["expected"]["cumulative"][l].get<double>()).epsilon(1e-9));
  REQUIRE(fit::condition_ranks(products, 64, 128) == oracle["expected"]["ranks"].get<Ranks>());
  REQUIRE(fit::condition_ranks({2, 2}, 8, 16) == Ranks{16, 16});
  REQUIRE(fit::condition_ranks({}, 8, 16).empty());
}

TEST_CASE("fit: heads that are alike form groups", "[lowrank][ranks]") {
  const auto oracle = test::load_oracle("lowrank.json", "recalkv_cka");
  const auto& heads = oracle["inputs"]["W_heads"];
  fit::Matrix alike(4, 4);
  for (index_t a = 0; a < 4; ++a)
    for (index_t b = 0; b < 4; ++b)
      alike(a, b) = fit::alignment(test::matrix(heads[static_cast<std::size_t>(a)]).transpose(),
                                   test::matrix(heads[static_cast<std::size_t>(b)]).transpose());
  REQUIRE(test::farthest(alike, test::matrix(oracle["expected"]["cka"])) < 1e-8);
  const auto groups = fit::similar_groups(alike, 2);
  REQUIRE(groups);
  REQUIRE(*groups == oracle["expected"]["groups"].get<std::vector<Ranks>>());
  REQUIRE(*fit::similar_groups(alike, 4) == std::vector<Ranks>{{0, 1, 2, 3}});
  REQUIRE(*fit::similar_groups(alike, 1) == std::vector<Ranks>{{0}, {1}, {2}, {3}});
  REQUIRE(fit::similar_groups(alike, 3).status() == Status::invalid_argument);
  REQUIRE(fit::alignment(fit::Matrix::Ones(3, 2), fit::Matrix::Identity(3, 3)) == 0.0);
  // Pairs of three: the two nearest open a group, one joins it, the others make the second.
  fit::Matrix six = fit::Matrix::Zero(6, 6);
  const auto set = [&](index_t a, index_t b, double s) { six(a, b) = six(b, a) = s; };
  set(0, 3, 0.9), set(3, 5, 0.8), set(1, 2, 0.7), set(2, 5, 0.75), set(4, 2, 0.1);
  REQUIRE(*fit::similar_groups(six, 3) == std::vector<Ranks>{{0, 3, 5}, {1, 2, 4}});
}
