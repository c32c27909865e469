#include <kvcondense/merge/ems.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Attention of the newest rows, as a table says.
struct Columns final : QueryColumns<Cpu> {
  std::vector<std::vector<double>> a;
  mutable index_t asked = 0;
  index_t rows() const noexcept override { return static_cast<index_t>(a.size()); }
  Status run(Context<Cpu>&, const prim::ColumnRequest& r) const noexcept override {
    asked = r.rows;
    std::fill_n(r.out.data, r.out.size(), 0.0f);
    for (std::size_t i = a.size() - at(r.rows); i < a.size(); ++i)
      for (std::size_t j = 0; j < a[i].size(); ++j) r.out.data[j] += static_cast<float>(a[i][j]);
    return Status::ok;
  }
};

}  // namespace

TEST_CASE("ems: the oracle's scores, global ones brought to the mean of local ones", "[merge][ems]") {
  const auto o = merging_oracle("ems_score");
  Columns columns;
  columns.a = o["inputs"]["A"].get<std::vector<std::vector<double>>>();
  Floats glo(6), mass(6), score(6);
  for (const auto& row : columns.a)
    for (std::size_t j = 0; j < 6; ++j) mass[j] += static_cast<float>(row[j]);
  const Ints offset{0, 6};
  const auto view_of = [&](Floats& x) { return RaggedView<float>{x.data(), offset.data(), 1}; };
  const evict::GlobalLocalMass source{.window = o["params"]["w"].get<index_t>()};
  StepView<Cpu> view;
  view.shape = one_head(4), view.offset = offset.data(), view.columns = &columns;
  view.inputs.attention = {view_of(mass), 6};
  Context<Cpu> ctx;
  Scratch none;
  const RaggedView<float> lane[] = {view_of(glo)};
  REQUIRE(source.observe(ctx, view, lane) == Status::ok);
  REQUIRE(source.score(ctx, view, lane, view_of(score), none) == Status::ok);
  REQUIRE(columns.asked == 2);
  const auto want = o["expected"];
  for (std::size_t j = 0; j < 6; ++j) {
    REQUIRE(glo[j] == Approx(want["glo"][j].get<double>()));
    REQUIRE(score[j] == Approx(want["score"][j].get<double>()));
  }
}

TEST_CASE("ems: the oracle's classes, zero class and sums of directions", "[merge][ems]") {
  const auto o = merging_oracle("ems_merge");
  const auto& in = o["inputs"];
  FloatRows k = rows_of(in["K_center"]), v = rows_of(in["V_center"]);
  for (const auto& row : in["K_tbm"]) k.push_back(row.get<Floats>());
  for (const auto& row : in["V_tbm"]) v.push_back(row.get<Floats>());
  Columns columns;
  columns.a = {in["score_center"].get<std::vector<double>>()};
  for (const double s : in["score_tbm"]) columns.a[0].push_back(s);
  auto d = merge_driver(one_head(2), merge::Ems{.least = o["params"]["tau"].get<float>()});
  d.fill(0, k, v);
  d.head[0].kept = {0, 1};
  d.columns = &columns;
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 1, 0, 1, prim::dropped});
  require_rows(d.head[0].key, rows_of(o["expected"]["K_out"]));
  require_rows(d.head[0].value, rows_of(o["expected"]["V_out"]));
}

TEST_CASE("ems: only the best of what leaves may fold", "[merge][ems]") {
  const FloatRows alike(9, {1.0f, 0.5f});
  Columns columns;
  columns.a = {{9, 9, 1, 5, 2, 4, 3, 6, 0}};
  for (const double folds : {0.0, 1.0, 1.5, 10.0}) {
    auto d = merge_driver(one_head(2), merge::Ems{.folds = folds});
    d.fill(0, alike, alike);
    d.head[0].kept = {0, 1};
    d.columns = &columns;
    REQUIRE(d.step() == Status::ok);
    Ints folded;
    for (index_t j = 2; j < 9; ++j)
      if (d.head[0].to[at(j)] >= 0) folded.push_back(j);
    REQUIRE(folded == (folds == 0.0 ? Ints{} : folds == 1.0 ? Ints{3, 7} : folds == 1.5 ? Ints{3, 5, 7} : Ints{2, 3, 4, 5, 6, 7, 8}));
  }
}

TEST_CASE("ems: two negative cosines are no likeness, and opposite keys leave a length of nothing", "[merge][ems]") {
  auto d = merge_driver(one_head(2), merge::Ems{.least = 0.0f});
  d.fill(0, {{1, 0}, {-1, 0}}, {{1, 0}, {-1, 0}});
  d.head[0].kept = {0};
  Columns columns;
  columns.a = {{1, 1}};
  d.columns = &columns;
  REQUIRE(d.step() == Status::ok);
  // Redundancy 0 is not below a threshold of 0: the directions cancel out.
  REQUIRE(d.head[0].folded == 1);
  REQUIRE(d.head[0].key[0] == Floats{0, 0});
  auto strict = merge_driver(one_head(2), merge::Ems{.least = 0.01f});
  strict.fill(0, {{1, 0}, {-1, 0}}, {{1, 0}, {-1, 0}});
  strict.head[0].kept = {0};
  strict.columns = &columns;
  REQUIRE(strict.step() == Status::ok);
  REQUIRE(strict.head[0].folded == 0);
  for (const merge::Ems& m : {merge::Ems{.window = 0}, merge::Ems{.folds = -1}, merge::Ems{.least = 1.1f}})
    REQUIRE(m.validate(one_head(2)) == Status::invalid_argument);
}
