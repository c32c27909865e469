#include <algorithm>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/check_snapshot.hpp>
#include <support/oracle.hpp>
using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("think: any calls", "[lowrank][think]") {
  std::uint32_t seed = 200;
  lowrank::Think think{.recent = 5, .least = 9};
  test::exercise(shape, recipe(think), ++seed, 30, 12.0);
  test::exercise(shape, recipe(think, quant::Kivi<4>{.group_size = 8, .residual_window = 16}), ++seed, 30, 12.0);
  think.pairs = true;
  test::exercise(shape, recipe(think, position::Rerotate{}), ++seed, 30, 12.0);
}

TEST_CASE("think: channels and logits of a worked case", "[lowrank][think]") {
  const auto oracle = test::load_oracle("lowrank.json", "think");
  const auto& want = oracle["expected"];
  const auto k = test::floats(oracle["inputs"]["K"]), window = test::floats(oracle["inputs"]["Q_window"]);
  // Scores of a prompt whose every key is looked at.
  const prim::ChannelList list{.kept = 2, .window = 2};
  float state[8] = {};
  std::vector<float> rows = k;
  using Map = prim::RowTransform<Cpu, prim::ChannelList>;
  Map::observe(list, 4, {rows.data(), 6, 4}, state);
  const float energy[] = {7.25f, 0.1f, 11.0f, 0.14f};
  for (int c = 0; c < 4; ++c) REQUIRE(state[c] == Approx(energy[c]));
  Map::settle(list, 4, {dense_view(window.data(), 1, 2, 4), 0, 1}, state);
  Map::forward(list, state, 4, {rows.data(), 6, 4});
  for (std::size_t i = 0; i < 6; ++i) REQUIRE((rows[i * 4] == k[i * 4] && rows[i * 4 + 1] == k[i * 4 + 2]));
  Map::backward(list, state, 4, {rows.data(), 6, 4});
  for (std::size_t i = 0; i < 24; ++i) REQUIRE(rows[i] == (i % 2 == 0 ? k[i] : 0.0f));

  CacheShape s{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 4, .value_dim = 6, .dtype = DType::f32};
  test::CacheRig rig(s, recipe(lowrank::Think{.ratio = 0.5, .observe = 2, .recent = 2, .least = 1}), 64, 16);
  std::vector<float> unit(36, 0.0f), out(6);
  for (std::size_t i = 0; i < 6; ++i) unit[i * 7] = 1.0f;
  REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(k.data(), 1, 6, 4), dense_view(unit.data(), 1, 6, 6)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{}) == Status::missing_input);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = dense_view(window.data(), 1, 2, 4)}) == Status::ok);
  const auto q = test::floats(oracle["inputs"]["q_decode"]);
  REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 1, 1, 4), dense_view(out.data(), 1, 1, 6)) == Status::ok);
  double sum = 0;
  for (const auto& l : want["logits"]) sum += std::exp(l.get<double>());
  for (std::size_t i = 0; i < 6; ++i)
    REQUIRE(static_cast<double>(out[i]) == Approx(std::exp(want["logits"][i].get<double>()) / sum).margin(1e-6));
}

TEST_CASE("think: a group of query heads chooses together", "[lowrank][think]") {
  const auto oracle = test::load_oracle("lowrank.json", "think");
  auto k = test::floats(oracle["inputs"]["K"]);
  const auto group = test::floats(oracle["inputs"]["Q_window_group"]);
  const auto pruned = oracle["expected"]["group_pruned"].get<std::vector<index_t>>();
  const prim::ChannelList list{.kept = 2};
  float state[8] = {};
  using Map = prim::RowTransform<Cpu, prim::ChannelList>;
  Map::observe(list, 4, {k.data(), 6, 4}, state);
  Map::settle(list, 4, {dense_view(group.data(), 2, 2, 4), 0, 2}, state);
  std::vector<float> row{1, 1, 1, 1};
  Map::forward(list, state, 4, {row.data(), 1, 4});
  Map::backward(list, state, 4, {row.data(), 1, 4});
  for (index_t c = 0; c < 4; ++c)
    REQUIRE(row[static_cast<std::size_t>(c)] == (std::count(pruned.begin(), pruned.end(), c) > 0 ? 0.0f : 1.0f));
  // Only the newest queries of the window.
  float newest[8] = {};
  const prim::ChannelList one{.kept = 1, .window = 1};
  Map::observe(one, 4, {k.data(), 6, 4}, newest);
  const std::vector<float> asks{9, 0, 0, 0, 0, 0, 0, 9};  // the older one is not looked at
  Map::settle(one, 4, {dense_view(asks.data(), 1, 2, 4), 0, 1}, newest);
  std::vector<float> four{1, 2, 3, 4};
  Map::forward(one, newest, 4, {four.data(), 1, 4});
  REQUIRE(four[0] == 4.0f);
}

TEST_CASE("think: bytes of a worked case", "[lowrank][think]") {
  const auto oracle = test::load_oracle("lowrank.json", "think_bytes");
  const auto tokens = oracle["inputs"]["T"].get<index_t>();
  CacheShape s{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = oracle["inputs"]["d"].get<index_t>()};
  test::CacheRig rig(s, recipe(lowrank::Think{}), tokens, 512);
  std::mt19937 random(2);
  for (index_t done = 0; done < tokens; done += 512) {
    const test::Tokens t(s, 512, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(s), t.values(s)) == Status::ok);
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = t.queries(s)}) == Status::ok);
  }
  const auto& keys = rig.cache.layers()[0].heads[0].keys;
  const auto& values = rig.cache.layers()[0].heads[0].values;
  REQUIRE(keys.coded().dim() == s.head_dim - oracle["expected"]["pruned_channels"].get<index_t>());
  const auto payload = [](const auto& segment) {
    return static_cast<std::size_t>(segment.live()) * segment.page_payload() / static_cast<std::size_t>(segment.page_slots());
  };
  const std::size_t heads = oracle["inputs"]["H_kv"].get<std::size_t>();
  REQUIRE(heads * (payload(keys.coded()) + payload(keys.window()) + keys.map().state().size_bytes()) ==
          oracle["expected"]["K_bytes"].get<std::size_t>());
  REQUIRE(heads * payload(values.window()) == oracle["expected"]["V_bytes"].get<std::size_t>());
  REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
  // What is beyond the payload: page headers, one page that is not full at each end, tables.
  const std::size_t all = payload(keys.coded()) + payload(keys.window()) + payload(values.window());
  REQUIRE(static_cast<double>(rig.cache.report().bytes()) < 1.03 * static_cast<double>(all));
}

TEST_CASE("think: pairs of a rotation leave together", "[lowrank][think]") {
  std::mt19937 random(4);
  for (const bool interleaved : {false, true}) {
    lowrank::Think think{.ratio = 0.4, .recent = 0, .least = 1, .pairs = true};
    if (interleaved) think.rope.pairing = prim::RopePairing::interleaved;
    const auto list = think.key_transform(shape, {});
    REQUIRE(list.kept == 20);  // of 16 pairs 6 leave
    float state[64] = {};
    using Map = prim::RowTransform<Cpu, prim::ChannelList>;
    const test::Tokens t(shape, 9, random);
    std::vector<float> rows(t.k.begin(), t.k.begin() + 9 * 32);
    Map::observe(list, 32, {rows.data(), 9, 32}, state);
    Map::settle(list, 32, {t.queries(shape), 0, 3}, state);
    REQUIRE(Map::good_state(list, 32, state));
    std::vector<float> ones(32, 1.0f);
    Map::forward(list, state, 32, {ones.data(), 1, 32});
    Map::backward(list, state, 32, {ones.data(), 1, 32});
    for (std::size_t p = 0; p < 16; ++p)
      REQUIRE(ones[interleaved ? 2 * p : p] == ones[interleaved ? 2 * p + 1 : p + 16]);
  }
  lowrank::Think partly{.pairs = true};
  partly.rope.rotary_dim = 16;
  REQUIRE(make_cache<Cpu>(shape, recipe(partly)).status() == Status::invalid_argument);
}

TEST_CASE("think: refused fields, raw keys without pairs, and files", "[lowrank][think]") {
  const auto status = [&](const lowrank::Think& t, auto... more) { return make_cache<Cpu>(shape, recipe(t, more...)).status(); };
  REQUIRE(status({.ratio = 1.0}) == Status::invalid_argument);
  REQUIRE(status({.observe = -1}) == Status::invalid_argument);
  REQUIRE(status({.recent = -1}) == Status::invalid_argument);
  REQUIRE(status({}, position::Rerotate{}) == Status::incompatible);
  REQUIRE(status({.pairs = true}, position::Rerotate{}) == Status::ok);
  test::check_snapshot(shape, recipe(lowrank::Think{.recent = 3, .least = 4}), recipe(lowrank::Think{.ratio = 0.5, .recent = 3, .least = 4}));
}
