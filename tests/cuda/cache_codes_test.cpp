// Caches on CUDA that hold codes, beside those on the CPU.

#include <cmath>
#include <random>
#include <string_view>
#include <vector>

#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

TEST_CASE("cuda cache: kivi codes blocks of keys and single values, between exact ones", "[ways]") {
  Pair kivi(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32, .sinks = 3}), "kivi4(group=16, residual=32, sinks=3)",
            {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16});
  kivi.forward(2, prim::AttendMath::f32, kivi.near, Phase::prefill_chunk);  // fewer than first slots
  kivi.forward(51);
  for (int i = 0; i < 3; ++i) kivi.forward(15);
  kivi.forward(1);
  kivi.compare_reports();
  kivi.remove(1, 3);
  kivi.truncate(3 + 80);
  kivi.forward(4);
  kivi.truncate(1);
  kivi.forward(70);
  REQUIRE(kivi.on_device().reset(kivi.device()) == Status::ok);
  CHECK(kivi.on_device().total_slots(1) == 0);
  // Pages that have lanes on the host, and on tensor cores pages of another size.
  Pair lanes(recipe(quant::Kivi<4>{.group_size = 32, .residual_window = 32}), "kivi4(group=32, residual=32)", {.q_heads = 4, .kv_heads = 1, .head_dim = 32});
  lanes.forward(100);
  lanes.burst(20);
  Pair rows(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 16}), "kivi4(group=16, residual=16)", {.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16});
  rows.forward(50);
  rows.forward(2, prim::AttendMath::halves, 4e-3f);
  rows.forward(14, prim::AttendMath::halves, 4e-3f);
}

TEST_CASE("cuda cache: what stays is coded, what is coded leaves") {
  const std::vector<float> shares{0.5f, 0.1f, 0.4f};
  const HeadTable table{shares.data(), 1, 3};
  any::ModelFacts facts;
  facts.shares = table;
  const CacheShape shape{.q_heads = 6, .kv_heads = 3, .head_dim = 32};
  // Heads differ in how many of the slots that stay are first ones, codes, newest ones: only the device knows.
  Pair ragged(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 20, .recent = 8}, 1.5, table}, quant::GroupInt<8>{.residual_window = 12, .sinks = 5}),
              "head_table(h2o(heavy=20, recent=8), beta=1.5) + int8(residual=12, sinks=5)", shape, facts);
  ragged.forward(60);
  for (int i = 0; i < 6; ++i) ragged.forward(1);
  ragged.forward(3);
  ragged.compare_reports();
  ragged.remove(2, 45);
  ragged.burst(12);
  Pair ends(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 6, .sinks = 2}),
            "sink_window(recent=29, sinks=3) + int4(group=8, residual=6, sinks=2)", {.layers = 2, .q_heads = 7, .kv_heads = 1, .head_dim = 24, .dtype = DType::f32, .page_slots = 5});
  ends.forward(20);
  ends.truncate(12);
  ends.remove(1, 7);
  ends.forward(40);
  for (int i = 0; i < 9; ++i) ends.forward(i % 3 + 1);
  ends.turn(6);
  ends.forward(6);
  ends.compare_reports();
  Pair whole(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 0, .residual_window = 6, .whole_window = true}),
             "sink_window(recent=29, sinks=3) + int4(group=0, residual=6, whole_window=true)", {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 8});
  whole.forward(11);
  for (int i = 0; i < 30; ++i) whole.forward(1);
  // Scores are made from decoded keys.
  Pair norms(recipe(budget::Ratio{evict::Knorm{.recent = 6}, 0.5}, quant::GroupInt<8>{}), "ratio(knorm(recent=6), keep=50%) + int8", shape);
  norms.forward(40);
  for (int i = 0; i < 3; ++i) norms.forward(2);
}

TEST_CASE("cuda cache: a turn codes what a removal has left, and nothing that it has not") {
  // Behind the removal no codes are there, so whole windows become codes at once, though nothing is pending.
  Pair whole(recipe(quant::GroupInt<4>{.group_size = 0, .residual_window = 6, .whole_window = true}), "int4(group=0, residual=6, whole_window=true)",
             {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4});
  whole.forward(11);
  for (int i = 0; i < 3; ++i) whole.forward(1);
  whole.remove(0, 11);
  whole.turn(0);
  whole.forward(1);
  whole.forward(2);
  whole.remove(1, 3);
  whole.forward(1);
  for (int i = 0; i < 7; ++i) whole.forward(1);
  whole.compare_reports();
}

TEST_CASE("cuda cache: a loaded cache counts in a step before anything is appended") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32, .page_slots = 8};
  const auto method = recipe(evict::H2O{.heavy = 12, .recent = 4}, quant::GroupInt<4>{.group_size = 8, .residual_window = 4});
  constexpr std::string_view text = "h2o(heavy=12, recent=4) + int4(group=8, residual=4)";
  constexpr index_t tokens = 30;
  std::mt19937 random(41);
  std::vector<float> x = cuda_cache::normal_numbers(2 * tokens * 32, random), mass(2 * tokens, 1.0f);
  for (std::size_t i = 0; i < x.size(); i += 70) x[i] = 1e9f;  // beyond a scale of halves
  for (std::size_t i = 0; i < mass.size(); i += 9) mass[i] = NAN;
  const auto rows = [&](const float* at) { return dense_view(at, 2, tokens, 32); };
  test::Device device;
  test::OnDevice<float> on_device(device, x), device_mass(device, mass);
  const float* const there = on_device.data();
  auto host = *any::make(text, shape, any::on<Cpu>), fresh_host = *any::make(text, shape, any::on<Cpu>);
  auto first = *make_cache<Cuda>(shape, method);
  auto second = *make_cache<Cuda>(shape, method);
  std::vector<std::byte> scratch(host.workspace_bytes(64, 64));
  Context<Cpu> cpu(scratch);
  Context<Cuda> ctx = device.with_workspace(first.workspace_bytes(64, 64));
  REQUIRE(host.append(cpu, 0, rows(x.data()), rows(x.data())) == Status::ok);
  REQUIRE(first.append(ctx, 0, rows(there), rows(there)) == Status::ok);
  test::ByteList file;
  REQUIRE(save(ctx, first, file) == Status::ok);
  REQUIRE(load(ctx, second, file.bytes) == Status::ok);
  REQUIRE(host.step(cpu, 0, AttentionView{host.ragged(0, mass.data()), tokens}) == Status::ok);
  REQUIRE(second.step(ctx, 0, AttentionView{second.ragged(0, device_mass.data()), tokens}) == Status::ok);
  const auto compare = [&](const Report& b) {
    const Report a = host.report();
    CHECK(a.repaired_numbers > 0);
    CHECK(a.nan_scores > 0);
    CHECK(b.repaired_numbers == a.repaired_numbers);
    CHECK(b.nan_scores == a.nan_scores);
  };
  const auto report = [&](const auto& c) {
    auto r = c.report(ctx);
    REQUIRE(r);
    return *r;
  };
  compare(report(second));
  test::ByteList counted;
  REQUIRE(save(ctx, second, counted) == Status::ok);
  REQUIRE(fresh_host.load(counted.bytes) == Status::ok);
  compare(fresh_host.report());
  REQUIRE(load(ctx, first, counted.bytes) == Status::ok);
  compare(report(first));
  // What comes later adds to it, and a fork has it too.
  REQUIRE(host.append(cpu, 0, rows(x.data()), rows(x.data())) == Status::ok);
  REQUIRE(second.append(ctx, 0, rows(there), rows(there)) == Status::ok);
  compare(report(second));
  auto twin = second.fork(ctx);
  REQUIRE(twin);
  compare(report(*twin));
  REQUIRE(second.reset(ctx) == Status::ok);
  CHECK(report(second).repaired_numbers == 0);
  CHECK(report(second).nan_scores == 0);
  compare(report(*twin));
}
