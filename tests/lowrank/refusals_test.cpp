// What low-rank stages refuse before a cache is made: one thing wrong at a time, in bases and in numbers.

#include <limits>
#include <type_traits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/kv_heads_svd.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/shadowkv.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/lowrank/xkv.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;
using lowrank::JointHeads, lowrank::KvHeadsSvd, lowrank::OnlinePca, lowrank::Pca, lowrank::RankRule, lowrank::ShadowKV, lowrank::Think, lowrank::XKv;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 8, .kv_heads = 4, .head_dim = 32, .page_slots = 16};
constexpr double none = std::numeric_limits<double>::quiet_NaN();

/// `change` makes `good` bad.
template <class Stage, class Change>
Status changed(const Stage& good, Change&& change) {
  REQUIRE(good.validate(shape) == Status::ok);
  Stage bad = good;
  change(bad);
  return bad.validate(shape);
}

/// A stage whose bases are called `name`, with the bases that `change` makes of good ones: of keys, then of values.
template <class Stage, class Change>
void refuses_bases(const Stage& stage, const char* name, const HeadBases& good, Status why, Change&& change) {
  HeadBases bad = good;
  change(bad);
  for (const bool keys : {true, false}) {
    const NamedBases b = keys ? NamedBases{name, bad, good} : NamedBases{name, good, bad};
    Stage s = stage;
    s.bases = {&b, 1};
    CHECK(s.validate(shape) == why);
    (keys ? s.keys : s.values) = false;  // what is not used may be anything
    CHECK(s.validate(shape) == Status::ok);
  }
}

/// Wrong sizes of bases, whatever the stage.
template <class Stage>
void refuses_sizes(const Stage& stage, const char* name, const HeadBases& good) {
  const auto mismatch = [&](auto&& change) { refuses_bases(stage, name, good, Status::shape_mismatch, change); };
  mismatch([](HeadBases& b) { b.layers = 3; });
  mismatch([](HeadBases& b) { b.dim = 24; });
}

}  // namespace

TEST_CASE("lowrank: a stage with known bases refuses what they cannot be", "[lowrank][refusals]") {
  const test::RandomBases random(2, 4, 32, 3, true);
  const HeadBases good = random.view();
  const NamedBases both{"pca", good, good};
  const Pca pca{.bases = {&both, 1}};
  refuses_sizes(pca, "pca", good);
  refuses_bases(pca, "pca", good, Status::shape_mismatch, [](HeadBases& b) { b.groups = 3; });
  refuses_bases(pca, "pca", good, Status::shape_mismatch, [](HeadBases& b) { b.columns = 0; });
  refuses_bases(pca, "pca", good, Status::shape_mismatch, [](HeadBases& b) { b.columns = 33; });
  refuses_bases(pca, "pca", good, Status::missing_input, [](HeadBases& b) { b.encode = nullptr; });
  for (const RankRule rule : {RankRule::energy, RankRule::spread}) {
    Pca p = pca;
    p.rule = rule;
    REQUIRE(p.validate(shape) == Status::ok);
    refuses_bases(p, "pca", good, Status::missing_input, [](HeadBases& b) { b.energy = nullptr; });
  }
  Pca table = pca;
  table.rule = RankRule::table;
  REQUIRE(table.validate(shape) == Status::ok);
  refuses_bases(table, "pca", good, Status::missing_input, [](HeadBases& b) { b.ranks = nullptr; });
  for (const float rank : {0.0f, 33.0f, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> ranks(8, 8.0f);
    ranks[7] = rank;
    refuses_bases(table, "pca", good, Status::invalid_argument, [&](HeadBases& b) { b.ranks = ranks.data(); });
  }
  const std::vector<float> infinite(2 * 4 * 32, std::numeric_limits<float>::infinity());
  refuses_bases(pca, "pca", good, Status::invalid_argument, [&](HeadBases& b) { b.mean = infinite.data(); });
  refuses_bases(pca, "pca", good, Status::invalid_argument, [&](HeadBases& b) { b.energy = infinite.data(); });

  for (const double part : {0.0, -0.5, 1.5, none}) {
    CHECK(changed(pca, [&](Pca& p) { p.keep = part; }) == Status::invalid_argument);
    CHECK(changed(pca, [&](Pca& p) { p.value_keep = part; }) == Status::invalid_argument);
  }
  CHECK(changed(pca, [](Pca& p) { p.tile = 0; }) == Status::invalid_argument);
  CHECK(changed(pca, [](Pca& p) { p.window = -1; }) == Status::invalid_argument);
  CHECK(changed(pca, [](Pca& p) { p.sinks = -1; }) == Status::invalid_argument);
  CHECK(changed(pca, [](Pca& p) { p.keys = p.values = false; }) == Status::invalid_argument);
  CHECK(changed(pca, [](Pca& p) { p.bases = {}; }) == Status::missing_input);
}

TEST_CASE("lowrank: bases of one side are enough where only that side is projected", "[lowrank][refusals]") {
  const test::RandomBases random(2, 4, 32, 3, false), joint(2, 2, 64, 3, false);
  const auto sides = [](auto stage, const char* name, const HeadBases& b) {
    for (const bool keys : {true, false}) {
      const NamedBases one = keys ? NamedBases{name, b, {}} : NamedBases{name, {}, b};
      stage.bases = {&one, 1};
      stage.keys = keys, stage.values = !keys;
      CHECK(stage.missing() == nullptr);
      CHECK(stage.validate(shape) == Status::ok);
      CHECK((stage.key_transform(shape, {1, 3}).rank > 0) == keys);
      CHECK((stage.value_transform(shape, {1, 3}).rank > 0) == !keys);
      CHECK((stage.key_flush().block > 0) == keys);
      CHECK((stage.value_flush().block > 0) == !keys);
      stage.keys = !keys, stage.values = keys;  // the other side's are missing
      CHECK(stage.missing() != nullptr);
      CHECK(stage.validate(shape) == Status::missing_input);
    }
  };
  sides(Pca{}, "pca", random.view());
  sides(JointHeads{}, "kv_heads_svd", joint.view());
}

TEST_CASE("lowrank: shared heads refuse bases of other models and rows that are too wide", "[lowrank][refusals]") {
  const test::RandomBases two(2, 2, 64, 3, false), four(2, 4, 32, 4, false);
  const HeadBases good = two.view();
  const NamedBases both{"kv_heads_svd", good, good};
  const JointHeads joint{.bases = {&both, 1}};
  refuses_sizes(joint, "kv_heads_svd", good);
  for (const index_t groups : {0, 3}) {
    HeadBases bad = good;
    bad.groups = groups;
    const NamedBases b{"kv_heads_svd", bad, bad};
    CHECK(changed(joint, [&](JointHeads& j) { j.bases = {&b, 1}; }) == Status::shape_mismatch);
  }
  CHECK(changed(joint, [](JointHeads& j) { j.columns = 33; }) == Status::invalid_argument);
  CHECK(changed(joint, [](JointHeads& j) { j.columns = -1; }) == Status::invalid_argument);
  CHECK(changed(joint, [](JointHeads& j) { j.value_columns = 33; }) == Status::invalid_argument);
  const std::vector<float> mean(2 * 2 * 64, 0.0f);
  refuses_bases(joint, "kv_heads_svd", good, Status::invalid_argument, [&](HeadBases& b) { b.mean = mean.data(); });
  refuses_bases(joint, "kv_heads_svd", good, Status::invalid_argument, [](HeadBases& b) { b.columns = 8; });  // fewer than are stored
  const NamedBases unlike{"kv_heads_svd", good, four.view()};
  CHECK(changed(joint, [&](JointHeads& j) { j.bases = {&unlike, 1}; }) == Status::invalid_argument);

  const KvHeadsSvd svd{.keys = good, .values = good};
  for (HeadBases KvHeadsSvd::*const side : {&KvHeadsSvd::keys, &KvHeadsSvd::values}) {
    const auto bad = [&](auto&& change) { return changed(svd, [&](KvHeadsSvd& m) { change(m.*side); }); };
    CHECK(bad([](HeadBases& b) { b.encode = nullptr; }) == Status::missing_input);
    CHECK(bad([](HeadBases& b) { b.layers = 3; }) == Status::shape_mismatch);
    CHECK(bad([](HeadBases& b) { b.groups = 4; }) == Status::shape_mismatch);
    CHECK(bad([](HeadBases& b) { b.dim = 32; }) == Status::shape_mismatch);
    CHECK(bad([](HeadBases& b) { b.columns = 65; }) == Status::invalid_argument);
    CHECK(bad([](HeadBases& b) { b.columns = 31; }) == Status::invalid_argument);
  }
  CHECK(changed(svd, [](KvHeadsSvd& m) { m.keys.groups = m.values.groups = 0; }) == Status::shape_mismatch);
  CHECK(changed(svd, [](KvHeadsSvd& m) { m.keys.groups = m.values.groups = 3; }) == Status::shape_mismatch);
  CHECK(changed(svd, [](KvHeadsSvd& m) { m.value_columns = 65; }) == Status::invalid_argument);
}

TEST_CASE("lowrank: stages that find their own directions refuse numbers that are none", "[lowrank][refusals]") {
  const auto refuses = [](const auto& good) {
    using Stage = std::decay_t<decltype(good)>;
    for (const double part : {0.0, -0.5, 1.5, none}) {
      CHECK(changed(good, [&](Stage& s) { s.keep = part; }) == Status::invalid_argument);
      CHECK(changed(good, [&](Stage& s) { s.value_keep = part; }) == Status::invalid_argument);
    }
    CHECK(changed(good, [](Stage& s) { s.tile = 0; }) == Status::invalid_argument);
    CHECK(changed(good, [](Stage& s) { s.window = -1; }) == Status::invalid_argument);
    CHECK(changed(good, [](Stage& s) { s.least = -1; }) == Status::invalid_argument);
    CHECK(changed(good, [](Stage& s) { s.sinks = -1; }) == Status::invalid_argument);
    CHECK(changed(good, [](Stage& s) { s.keys = s.values = false; }) == Status::invalid_argument);
    for (bool Stage::*const side : {&Stage::keys, &Stage::values})
      CHECK(changed(good, [&](Stage& s) { s.*side = false; }) == Status::ok);
  };
  refuses(OnlinePca{});
  refuses(XKv{});
  for (const index_t bad : {index_t{0}, index_t{-1}, max_row_group + 1}) {
    CHECK(changed(XKv{}, [&](XKv& x) { x.layers = bad; }) == Status::invalid_argument);
    CHECK(changed(XKv{}, [&](XKv& x) { x.heads = bad; }) == Status::invalid_argument);
  }
  CHECK(changed(XKv{}, [](XKv& x) { x.layers = x.heads = 1; }) == Status::invalid_argument);
  CHECK(changed(XKv{}, [](XKv& x) { x.layers = x.heads = max_row_group; }) == Status::invalid_argument);
  for (const double ratio : {-0.1, 1.0, none}) CHECK(changed(Think{}, [&](Think& t) { t.ratio = ratio; }) == Status::invalid_argument);
  for (index_t Think::*const number : {&Think::observe, &Think::recent, &Think::least, &Think::sinks})
    CHECK(changed(Think{}, [&](Think& t) { t.*number = -1; }) == Status::invalid_argument);
  CHECK(changed(Think{}, [](Think& t) { t.observe = (1 << 20) + 1; }) == Status::invalid_argument);
  for (const double part : {0.0, 1.5, none}) CHECK(changed(ShadowKV{}, [&](ShadowKV& s) { s.keep = part; }) == Status::invalid_argument);
  for (index_t ShadowKV::*const number : {&ShadowKV::chunk, &ShadowKV::local_chunks, &ShadowKV::least, &ShadowKV::sinks})
    CHECK(changed(ShadowKV{}, [&](ShadowKV& s) { s.*number = -1; }) == Status::invalid_argument);
}
