#include <kvcondense/lowrank/joint_heads.hpp>

#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/lowrank/fit/factor.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/eigen_json.hpp>
#include <support/oracle.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;
using lowrank::JointHeads;
namespace fit = lowrank::fit;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 8, .kv_heads = 4, .head_dim = 32, .page_slots = 16};

NamedBases named(const HeadBases& keys, const HeadBases& values) { return {"kv_heads_svd", keys, values}; }

}  // namespace

TEST_CASE("joint_heads: the oracle's shared keys, read by each head through its own rows, before rotation", "[lowrank][joint_heads]") {
  const auto o = test::load_oracle("lowrank.json", "kv_heads_svd");
  const fit::Matrix inputs = test::matrix(o["inputs"]["X"]), basis = test::matrix(o["expected"]["B"]), shared = test::matrix(o["expected"]["shared_K"]);
  fit::Matrix x(6, 4);  // keys of two heads side by side
  for (index_t h = 0; h < 2; ++h) x.middleCols(h * 2, 2) = inputs * test::matrix(o["inputs"]["W_k"][static_cast<std::size_t>(h)]).transpose();
  const auto found = fit::shared_head(x);
  REQUIRE(found);
  std::vector<float> columns;
  for (index_t i = 0; i < 4; ++i)
    for (index_t j = 0; j < 4; ++j) columns.push_back(static_cast<float>(found->columns(i, j)));
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 2, .dtype = DType::f32, .page_slots = 6};
  const HeadBases b{.encode = columns.data(), .layers = 1, .groups = 1, .dim = 4, .columns = 4, .keys = KeyForm::raw};
  const NamedBases all = named(b, b);
  test::CacheRig rig(s, recipe(JointHeads{.window = 0, .bases = {&all, 1}}, position::Reindex{}), 16, 16);
  std::vector<float> rows;  // [heads, tokens, dim]
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = 0; t < 6; ++t)
      for (index_t d = 0; d < 2; ++d) rows.push_back(static_cast<float>(x(t, h * 2 + d)));
  REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(rows.data(), 2, 6, 2), dense_view(rows.data(), 2, 6, 2)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  REQUIRE(rig.cache.report().across_part() == 1.0);
  const fit::Matrix want = shared * basis.transpose();
  for (index_t h = 0; h < 2; ++h) {
    std::vector<float> k(12), v(12);
    REQUIRE(rig.cache.read(0, h, 0, dense_view(k.data(), 6, 2), dense_view(v.data(), 6, 2)) == Status::ok);
    REQUIRE(k == v);
    for (index_t t = 0; t < 6; ++t)
      for (index_t d = 0; d < 2; ++d) REQUIRE(k[static_cast<std::size_t>(t * 2 + d)] == Approx(want(t, h * 2 + d)).margin(1e-5));
  }
}

TEST_CASE("joint_heads: any calls, raw keys and rotated ones", "[lowrank][joint_heads]") {
  const test::RandomBases two(2, 2, 64, 3, false), four(2, 1, 128, 4, false), pair(2, 2, 64, 5, false, true);
  std::uint32_t seed = 10;
  for (const auto* b : {&two, &four, &pair}) {
    const NamedBases raw = named(b->view(KeyForm::raw), b->view()), rotated = named(b->view(), b->view());
    test::exercise(shape, recipe(JointHeads{.window = 5, .bases = {&raw, 1}}, position::Rerotate{}), ++seed, 30, 20.0);
    test::exercise(shape, recipe(JointHeads{.columns = 20, .value_columns = 12, .window = 0, .bases = {&rotated, 1}}, position::Absolute{}), ++seed, 30, 20.0);
  }
}

TEST_CASE("joint_heads: heads with a subspace in common lose nothing in a share of the room", "[lowrank][joint_heads]") {
  CacheShape s = shape;
  s.dtype = DType::f32, s.layers = 1;
  constexpr index_t n = 64, share = 4, groups = 1;
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  test::Tokens t(s, n, random);
  std::vector<float> columns;
  // Rows of all heads are maps of 32 numbers of the token.
  fit::Matrix common = fit::Matrix::NullaryExpr(n, 32, [&] { return static_cast<double>(normal(random)); });
  fit::Matrix map = fit::Matrix::NullaryExpr(32, share * 32, [&] { return static_cast<double>(normal(random)) / 6; });
  const fit::Matrix rows = common * map;
  for (auto* x : {&t.k, &t.v})
    for (index_t h = 0; h < share; ++h)
      for (index_t i = 0; i < n; ++i)
        for (index_t d = 0; d < 32; ++d) (*x)[static_cast<std::size_t>((h * n + i) * 32 + d)] = static_cast<float>(rows(i, h * 32 + d));
  const auto found = fit::shared_head(rows);
  REQUIRE(found);
  for (index_t i = 0; i < share * 32; ++i)
    for (index_t j = 0; j < 32; ++j) columns.push_back(static_cast<float>(found->columns(i, j)));
  const HeadBases b{.encode = columns.data(), .layers = 1, .groups = groups, .dim = share * 32, .columns = 32, .keys = KeyForm::raw};
  const NamedBases all = named(b, b);
  test::CacheRig joint(s, recipe(JointHeads{.window = 0, .bases = {&all, 1}}, position::Reindex{}), n + 1, n);
  test::CacheRig less(s, recipe(JointHeads{.columns = 24, .value_columns = 24, .window = 0, .bases = {&all, 1}}, position::Reindex{}), n + 1, n);
  test::CacheRig whole(s, recipe(position::Reindex{}), n + 1, n);
  const auto feed = [&](auto& rig) {
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
  };
  feed(joint), feed(less), feed(whole);
  std::vector<float> out[2];
  const test::Tokens q(s, 1, random);
  for (int i = 0; i < 2; ++i) {
    out[i].resize(static_cast<std::size_t>(s.q_heads * 32));
    const auto to = dense_view(out[i].data(), s.q_heads, 1, 32);
    REQUIRE((i == 0 ? joint.cache.attend(joint.ctx, 0, q.queries(s), to) : whole.cache.attend(whole.ctx, 0, q.queries(s), to)) == Status::ok);
  }
  for (std::size_t i = 0; i < out[0].size(); ++i) REQUIRE(out[0][i] == Approx(out[1][i]).margin(2e-4));
  const Report r = joint.cache.report(), w = whole.cache.report();
  REQUIRE(r.across_part() == 1.0);
  REQUIRE(r.bytes() == joint.memory.live_bytes);
  // One row of 32 numbers for four heads: pages of rows, and a header more per page and head.
  const std::size_t pages = 2 * n / static_cast<std::size_t>(s.page_slots);
  REQUIRE(r.coded_bytes == pages * (5 * sizeof(cache::Page) + static_cast<std::size_t>(s.page_slots) * 32 * 4));
  REQUIRE(r.coded_bytes < w.exact_bytes / 3);
  REQUIRE(less.cache.report().coded_bytes < r.coded_bytes);
}

TEST_CASE("joint_heads: files, and what is refused", "[lowrank][joint_heads]") {
  const test::RandomBases two(2, 2, 64, 3, false), other(2, 2, 64, 8, false), centred(2, 2, 64, 3, true), four(2, 1, 128, 4, false), narrow(2, 2, 32, 5, false);
  const NamedBases raw = named(two.view(KeyForm::raw), two.view()), elsewhere = named(other.view(KeyForm::raw), other.view());
  test::check_snapshot(shape, recipe(JointHeads{.window = 3, .bases = {&raw, 1}}, position::Rerotate{}),
                       recipe(JointHeads{.window = 3, .bases = {&elsewhere, 1}}, position::Rerotate{}));
  const auto status = [](const JointHeads& j) { return make_cache<Cpu>(shape, recipe(j, position::Rerotate{})).status(); };
  const auto of = [&](const NamedBases& b) { return status({.bases = {&b, 1}}); };
  REQUIRE(of(raw) == Status::ok);
  REQUIRE(status({}) == Status::missing_input);
  REQUIRE(of(named(two.view(), two.view())) == Status::incompatible);
  REQUIRE(make_cache<Cpu>(shape, recipe(JointHeads{.bases = {&raw, 1}}, position::Absolute{})).status() == Status::incompatible);
  REQUIRE(of(named(centred.view(KeyForm::raw), two.view())) == Status::invalid_argument);
  REQUIRE(of(named(four.view(KeyForm::raw), two.view())) == Status::invalid_argument);
  REQUIRE(of(named(narrow.view(KeyForm::raw), narrow.view())) == Status::shape_mismatch);
  for (const JointHeads& bad : {JointHeads{.columns = 33}, JointHeads{.value_columns = -1}, JointHeads{.window = -1}, JointHeads{.sinks = -1},
                                JointHeads{.keys = false, .values = false}}) {
    JointHeads j = bad;
    j.bases = {&raw, 1};
    REQUIRE(status(j) == Status::invalid_argument);
  }
}
