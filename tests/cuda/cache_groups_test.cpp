// Caches on CUDA whose codes share parameters along slots, and slots that leave them: tombstones, and pages that are joined, as on the CPU.

#include <string_view>
#include <vector>

#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {
constexpr prim::GroupAxis channel = prim::GroupAxis::channel;

/// A prompt in two parts, single tokens, several at once, files that change sides, and a turn. `again`: whether slots are coded again.
template <class R>
void goes_as_on_the_host(const R& method, std::string_view text, const CacheShape& shape, bool again = true, const any::ModelFacts& facts = {}) {
  INFO(text << ", head_dim " << shape.head_dim);
  Pair<R> pair(method, text, shape, facts);
  pair.forward(30, prim::AttendMath::f32, pair.near, Phase::prefill_chunk);
  pair.forward(50, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  for (int i = 0; i < 12; ++i) pair.forward(i % 7 == 3 ? 5 : 1);
  pair.exchange();
  for (int i = 12; i < 24; ++i) pair.forward(i % 7 == 3 ? 5 : 1);
  pair.turn(4);
  pair.forward(4);
  pair.compare_reports();
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->evicted_slots > 0);
  CHECK((report->coded_again > 0) == again);
}
}  // namespace

TEST_CASE("cuda cache: slots leave keys of kivi as on the host", "[ways]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16};
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 30, .recent = 10}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}),
                      "h2o(heavy=30, recent=10) + kivi4(group=8, residual=8)", shape);
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 40, .recent = 10}, quant::Kivi<2>{.group_size = 8, .residual_window = 8, .sinks = 5}),
                      "h2o(heavy=40, recent=10) + kivi2(group=8, residual=8, sinks=5)", {.q_heads = 7, .kv_heads = 1, .head_dim = 128, .dtype = DType::bf16, .page_slots = 16});
  // Without scores: which slots leave the host knows, and nobody waits.
  goes_as_on_the_host(recipe(evict::SinkWindow{.recent = 37, .sinks = 3}, quant::Kivi<4>{.group_size = 4, .residual_window = 8, .keep_window = 6}),
                      "sink_window(recent=37, sinks=3) + kivi4(group=4, residual=8, keep_window=6)", {.q_heads = 2, .kv_heads = 2, .head_dim = 80, .page_slots = 8});
  goes_as_on_the_host(recipe(evict::SnapKV{.tokens = 40, .window = 8, .kernel = 5}, quant::Kivi<2>{.group_size = 16, .residual_window = 16}),
                      "snapkv(tokens=40, window=8, kernel=5) + kivi2(group=16, residual=16)", {.q_heads = 4, .kv_heads = 2, .head_dim = 96, .page_slots = 16}, false);
}

TEST_CASE("cuda cache: slots leave groups of any kind as on the host") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  goes_as_on_the_host(recipe(budget::Ratio{evict::Knorm{.recent = 6}, 0.4}, quant::GroupInt<8>{.key_axis = channel, .value_axis = channel, .group_size = 4}),
                      "ratio(knorm(recent=6), keep=40%) + int8(key_axis=channel, value_axis=channel, group=4)", shape);
  // Codes that straddle bytes, other forms, parameters and roundings; values of a row, alone and in groups.
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 24, .recent = 8}, quant::GroupInt<3>{.key_axis = channel, .group_size = 8, .residual_window = 8, .form = prim::GroupForm::symmetric, .params = prim::ParamType::f32}),
                      "h2o(heavy=24, recent=8) + group_int(bits=3, key_axis=channel, group=8, residual=8, form=symmetric, params=f32)", shape);
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 24, .recent = 8}, quant::GroupInt<5>{.value_axis = channel, .group_size = 8, .form = prim::GroupForm::float_zero, .params = prim::ParamType::bf16, .rounding = prim::Rounding::half_away, .sinks = 2}),
                      "h2o(heavy=24, recent=8) + group_int(bits=5, value_axis=channel, group=8, form=float_zero, params=bf16, rounding=half_away, sinks=2)", {.q_heads = 4, .kv_heads = 2, .head_dim = 256, .dtype = DType::f32, .page_slots = 24});
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 24, .recent = 8}, quant::GroupInt<4>{.key_axis = channel, .group_size = 1}),
                      "h2o(heavy=24, recent=8) + int4(key_axis=channel, group=1)", shape, false);
  // Heads of their own lengths.
  const std::vector<float> shares{0.5f, 0.1f, 0.4f};
  const HeadTable table{shares.data(), 1, 3};
  any::ModelFacts facts;
  facts.shares = table;
  goes_as_on_the_host(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 20, .recent = 8}, 1.5, table}, quant::Kivi<4>{.group_size = 8, .residual_window = 8, .sinks = 3}),
                      "head_table(h2o(heavy=20, recent=8), beta=1.5) + kivi4(group=8, residual=8, sinks=3)", {.q_heads = 12, .kv_heads = 3, .head_dim = 32, .page_slots = 8}, true, facts);
}

TEST_CASE("cuda cache: groups lose slots at ends and nobody waits") {
  Pair pair(recipe(evict::SinkWindow{.recent = 37, .sinks = 3}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}), "sink_window(recent=37, sinks=3) + kivi4(group=8, residual=8)",
            {.q_heads = 2, .kv_heads = 2, .head_dim = 32, .page_slots = 16});
  pair.forward(80);
  pair.burst(40);  // tables have grown, pages go round
  const auto before = pair.on_device().report(pair.device());
  pair.burst(10);
  CHECK(pair.waits() == 0);
  pair.burst(40);
  CHECK(pair.waits() == 0);
  const auto after = pair.on_device().report(pair.device());
  REQUIRE((before && after));
  CHECK(after->evicted_slots == before->evicted_slots + 100);
  CHECK(after->coded_again > before->coded_again);  // pages were joined meanwhile
}

TEST_CASE("cuda cache: groups lose slots in pages that have lanes on the host, and on tensor cores") {
  // Pages of whole blocks of 64 slots have lanes in files and on the host: in keys a word has codes of several slots, in values of several channels.
  Pair lanes(recipe(evict::H2O{.heavy = 120, .recent = 40}, quant::GroupInt<4>{.key_axis = channel, .value_axis = channel, .group_size = 16}),
             "h2o(heavy=120, recent=40) + int4(key_axis=channel, value_axis=channel, group=16)", {.q_heads = 3, .kv_heads = 1, .head_dim = 64, .page_slots = 64});
  CHECK(lanes.on_device().plan().keys.filed.layout == prim::CodeLayout::slot_lanes);
  CHECK(lanes.on_device().plan().values.filed.layout == prim::CodeLayout::channel_lanes);
  lanes.forward(220, prim::AttendMath::f32, 4e-4f);  // of codes that the CPU multiplies as integers
  for (int i = 0; i < 14; ++i) lanes.forward(10, prim::AttendMath::f32, 4e-4f);
  lanes.compare_reports();
  lanes.exchange();  // tombstones and all
  lanes.forward(10, prim::AttendMath::f32, 4e-4f);
  CHECK(lanes.on_device().report(lanes.device())->coded_again > 0);
  // Tokens are removed amid them, and forks join apart.
  Pair kivi(recipe(evict::H2O{.heavy = 90, .recent = 30}, quant::Kivi<2>{.group_size = 32, .residual_window = 32, .sinks = 3}),
            "h2o(heavy=90, recent=30) + kivi2(group=32, residual=32, sinks=3)", {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .page_slots = 64});
  CHECK(kivi.on_device().plan().keys.filed.layout == prim::CodeLayout::slot_lanes);
  kivi.forward(200, prim::AttendMath::f32, 4e-4f);
  for (int i = 0; i < 6; ++i) kivi.forward(10, prim::AttendMath::f32, 4e-4f);
  Pair twin = kivi.fork();
  kivi.remove(20, 150);
  twin.forward(9, prim::AttendMath::f32, 4e-4f);
  for (int i = 0; i < 8; ++i) kivi.forward(12, prim::AttendMath::halves, 1e-2f);
  twin.compare();
  twin.exchange();
  kivi.compare_reports();
  CHECK(kivi.on_device().report(kivi.device())->coded_again > 0);
  Pair rows(recipe(evict::H2O{.heavy = 30, .recent = 10}, quant::Kivi<4>{.group_size = 16, .residual_window = 16}), "h2o(heavy=30, recent=10) + kivi4(group=16, residual=16)",
            {.q_heads = 16, .kv_heads = 1, .head_dim = 112, .page_slots = 16});
  rows.forward(60);
  for (int i = 0; i < 20; ++i) rows.forward(i % 4 == 0 ? 3 : 1, prim::AttendMath::halves, 4e-3f);
  rows.compare_reports();
}

namespace {
/// Tokens are taken back and removed amid groups, files change sides there, before and after others have left.
template <class R>
void cut_amid_groups(const R& method, std::string_view text, const CacheShape& shape) {
  INFO(text);
  Pair<R> pair(method, text, shape);
  pair.forward(61);
  pair.truncate(50);
  pair.forward(1);
  pair.remove(9, 30);
  pair.exchange();
  pair.turn(0);
  pair.forward(40);
  pair.remove(1, 3);
  pair.truncate(pair.on_device().length() - 23);
  pair.exchange();
  pair.turn(0);  // joins what is half dead since
  for (int i = 0; i < 20; ++i) pair.forward(1);
  pair.remove(0, pair.on_device().length() - 1);
  pair.forward(30);
  pair.truncate(2);
  pair.truncate(0);
  pair.forward(33);
  pair.forward(2);
  pair.compare_reports();
  REQUIRE(pair.on_device().reset(pair.device()) == Status::ok);
  CHECK(pair.on_device().total_slots(0) == 0);
  CHECK(pair.on_device().report(pair.device())->coded_bytes == 0);
}

/// Both sides of forks go on; what one does the other does not see.
template <class R>
void fork_amid_groups(const R& method, std::string_view text, const CacheShape& shape) {
  INFO(text);
  Pair<R> first(method, text, shape);
  first.forward(70);
  for (int i = 0; i < 5; ++i) first.forward(1);
  Pair<R> second = first.fork();
  second.forward(10);
  first.compare();
  for (int i = 0; i < 14; ++i) first.forward(2);
  second.compare();
  {
    Pair<R> third = second.fork(), fourth = third.fork();
    third.truncate(third.on_device().length() - 19);
    third.exchange();
    third.forward(9);
    fourth.remove(20, 70);
    second.compare();
    fourth.forward(25);
    third.compare();
    third.turn(0);
    second.forward(3);
    fourth.compare();
    fourth.compare_reports();
  }
  second.compare();
  second.exchange();
  for (int i = 0; i < 9; ++i) second.forward(3);
  first.compare();
  first.forward(20);
  second.compare();
  first.compare_reports();
  second.compare_reports();
}
}  // namespace

TEST_CASE("cuda cache: tokens are taken back and removed amid groups") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  cut_amid_groups(recipe(quant::Kivi<4>{.group_size = 8, .residual_window = 8}), "kivi4(group=8, residual=8)", shape);
  cut_amid_groups(recipe(quant::Kivi<2>{.group_size = 16, .residual_window = 32, .sinks = 3}), "kivi2(group=16, residual=32, sinks=3)", shape);
  cut_amid_groups(recipe(quant::GroupInt<4>{.key_axis = channel, .value_axis = channel, .group_size = 4}), "int4(key_axis=channel, value_axis=channel, group=4)", shape);
  cut_amid_groups(recipe(evict::H2O{.heavy = 30, .recent = 12}, quant::Kivi<4>{.group_size = 8, .residual_window = 8, .sinks = 2}),
                  "h2o(heavy=30, recent=12) + kivi4(group=8, residual=8, sinks=2)", shape);
}

TEST_CASE("cuda cache: forks share groups and go on apart") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  fork_amid_groups(recipe(quant::Kivi<4>{.group_size = 8, .residual_window = 8}), "kivi4(group=8, residual=8)", shape);
  fork_amid_groups(recipe(evict::H2O{.heavy = 40, .recent = 12}, quant::Kivi<4>{.group_size = 8, .residual_window = 8, .sinks = 2}),
                   "h2o(heavy=40, recent=12) + kivi4(group=8, residual=8, sinks=2)", shape);
  fork_amid_groups(recipe(evict::SinkWindow{.recent = 41, .sinks = 3}, quant::GroupInt<8>{.key_axis = channel, .value_axis = channel, .group_size = 4}),
                   "sink_window(recent=41, sinks=3) + int8(key_axis=channel, value_axis=channel, group=4)", shape);
}

TEST_CASE("cuda cache: steps behind each other, of which each waits for the lists of those that stay") {
  Pair pair(recipe(evict::H2O{.heavy = 30, .recent = 10}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}), "h2o(heavy=30, recent=10) + kivi4(group=8, residual=8)",
            {.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16});
  pair.forward(60);
  pair.burst(40);
  if (test::stream_waits() > 0) CHECK(pair.waits() >= 40);
  pair.compare_reports();
}
