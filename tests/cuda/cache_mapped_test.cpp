// Coordinates in a cache on CUDA: rows that are not finite, attention in several pieces of a head, refused memory.

#include <cmath>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/quant/group_int.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

constexpr CacheShape one_head{.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32};
constexpr CacheShape little{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 12, .dtype = DType::f32, .page_slots = 16};

/// One slot of `one_head` with these numbers as key and as value.
template <class P>
void store(P& pair, Context<Cuda>& ctx, const std::vector<float>& row) {
  test::OnDevice<float> there(pair.device(), row);
  const auto view = dense_view(static_cast<const float*>(there.data()), 1, 1, 64);
  REQUIRE(pair.on_device().append(ctx, 0, view, view) == Status::ok);
  REQUIRE(pair.on_device().step(ctx, 0) == Status::ok);
}

/// Rows whose coordinates are not finite count as on the CPU; a NaN, which the CPU refuses, once. `repaired`: of the coordinates of a large row some
/// have to be brought into range.
template <class R>
void not_finite(const R& method, std::string_view text, bool repaired, const any::ModelFacts& facts) {
  INFO(text);
  Pair pair(method, text, one_head, facts);
  std::vector<std::byte> scratch(pair.on_host().workspace_bytes(128, 128));
  Context<Cpu> cpu(scratch);
  Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(8, 8));
  std::vector<float> row(64, 3e38f);  // sums of such are not finite
  const auto view = dense_view(static_cast<const float*>(row.data()), 1, 1, 64);
  REQUIRE(pair.on_host().append(cpu, 0, view, view) == Status::ok);
  REQUIRE(pair.on_host().step(cpu, 0) == Status::ok);
  store(pair, ctx, row);
  pair.compare_reports();
  const auto count = [&] { return pair.on_device().report(pair.device())->repaired_numbers; };
  const index_t before = count();
  CHECK((before > 0) == repaired);
  row.assign(64, 0.5f), row[7] = NAN;
  store(pair, ctx, row);
  CHECK(count() == before + 2);  // one of keys, one of values
}

}  // namespace

TEST_CASE("cuda cache: coordinates of a row that is not finite are counted once") {
  const RandomModel model(one_head);
  const lowrank::Pca pca{.window = 0, .bases = model.facts().bases};
  not_finite(recipe(pca), "pca(window=0)", false, model.facts());
  not_finite(recipe(pca, quant::GroupInt<4>{.group_size = 32, .residual_window = 0}), "pca(window=0) + int4(group=32, residual=0)", true, model.facts());
}

TEST_CASE("cuda cache: memory for too little of coordinates is refused, and so are halves") {
  const RandomModel model(one_head);
  auto cache = make_cache<Cuda>(one_head, recipe(lowrank::Pca{.window = 0, .bases = model.facts().bases}));
  REQUIRE(cache);
  test::Device device;
  Context<Cuda> ctx = device.with_workspace(cache->workspace_bytes(8, 8)), small_room = ctx.with_workspace(ctx.workspace().first(64));
  test::OnDevice<float> rows(device, std::vector<float>(128, 0.5f)), out(device, std::vector<float>(128));
  const auto view = [&](index_t heads) { return dense_view(static_cast<const float*>(rows.data()), heads, 1, 64); };
  REQUIRE(cache->append(ctx, 0, view(1), view(1)) == Status::ok);
  REQUIRE(cache->step(ctx, 0) == Status::ok);
  CHECK(cache->attend(small_room, 0, view(2), dense_view(out.data(), 2, 1, 64)) == Status::workspace_too_small);
  CHECK(cache->attend(ctx, 0, view(2), dense_view(out.data(), 2, 1, 64), {}, prim::AttendMath::halves) == Status::not_supported);
  CHECK(ctx.wait() == Status::ok);  // the step writes into what goes before the cache does
}

TEST_CASE("cuda cache: a channel that think drops is not looked at, and one that is not finite stays alone") {
  const lowrank::Think think{.ratio = 0.5, .recent = 0, .least = 8};
  // Channels 0..31 stay, each of another size; 40 is dropped, whatever is there.
  const auto rows_of = [&](float dropped, float kept) {
    Pair pair(recipe(think), "think(ratio=50%, recent=0, least=8)", one_head);
    constexpr index_t tokens = 9;
    std::vector<float> rows;
    for (index_t t = 0; t < tokens; ++t)
      for (index_t c = 0; c < 64; ++c) rows.push_back(c == 40 && t == 3 ? dropped : c == 5 && t == 6 ? kept : c < 32 ? 1.0f + static_cast<float>(c + t) / 64 : 0.01f);
    test::OnDevice<float> there(pair.device(), rows), queries(pair.device(), std::vector<float>(2 * at(tokens) * 64, 1.0f)), out(pair.device(), std::vector<float>(2 * at(tokens) * 64));
    const auto view = dense_view(static_cast<const float*>(there.data()), 1, tokens, 64);
    Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(16, 16));
    REQUIRE(pair.on_device().forward(ctx, 0, dense_view(static_cast<const float*>(queries.data()), 2, tokens, 64), view, view, dense_view(out.data(), 2, tokens, 64)) == Status::ok);
    test::OnDevice<float> keys(pair.device(), std::vector<float>(rows.size())), values(pair.device(), std::vector<float>(rows.size()));
    REQUIRE(pair.on_device().read(ctx, 0, 0, 0, dense_view(keys.data(), tokens, 64), dense_view(values.data(), tokens, 64)) == Status::ok);
    return keys.read();
  };
  const std::vector<float> expected = rows_of(0.01f, 0.0f);
  for (index_t c = 0; c < 64; ++c) CHECK((expected[at(3 * 64 + c)] != 0.0f) == (c < 32));
  CHECK(rows_of(NAN, 0.0f) == expected);
  CHECK(rows_of(INFINITY, 0.0f) == expected);
  std::vector<float> with_one = rows_of(0.01f, INFINITY);
  CHECK(std::isinf(with_one[6 * 64 + 5]));
  with_one[6 * 64 + 5] = 0.0f;
  CHECK(with_one == expected);
}

TEST_CASE("cuda cache: attention over coordinates in several pieces of a head") {
  const RandomModel model(little);
  const lowrank::Pca pca{.window = 5, .bases = model.facts().bases};
  const auto live_long = [&](auto& pair) {
    pair.allow(made_again);
    for (const index_t tokens : {300, 1, 2}) pair.forward(tokens, prim::AttendMath::f32, 3e-5f);
    pair.look(3e-5f);  // with mass and lse
    REQUIRE(pair.on_device().slots(0, 1) > 256);
  };
  SECTION("alone") {
    Pair pair(recipe(pca), "pca(window=5)", little, model.facts());
    live_long(pair);
  }
  SECTION("with the mean of what left") {
    Pair pair(recipe(evict::Compensate{evict::SinkWindow{.recent = 280, .sinks = 3}}, pca), "compensate(sink_window(sinks=3, recent=280)) + pca(window=5)", little, model.facts());
    live_long(pair);
  }
  SECTION("with mass") {
    Pair pair(recipe(evict::H2O{.heavy = 270, .recent = 12}, pca), "h2o(heavy=270, recent=12) + pca(window=5)", little, model.facts());
    live_long(pair);
  }
}

TEST_CASE("cuda cache: a refused step gives back the room of sums of first rows") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(2 * 20 * 64, random)), out(device, std::vector<float>(2 * 20 * 64));
  int refused = 0;
  for (int left = 0;; ++left) {
    REQUIRE(left < 100);
    test::RefusingMemory memory(1 << 20);
    auto c = make_cache<Cuda>(shape, recipe(lowrank::OnlinePca{.window = 2, .least = 14}), memory);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 20));
    const auto feed = [&](index_t first, index_t n) {
      const TensorView<const float, 3> rows{x.data() + first * 64, {2, n, 64}, {20 * 64, 64, 1}};
      return c->forward(ctx, 0, rows, rows, rows, dense_view(out.data(), 2, n, 64));
    };
    const auto side_bytes = [&] {
      const auto report = c->report(ctx);
      REQUIRE(report);
      return report->side_bytes;
    };
    REQUIRE(feed(0, 12) == Status::ok);
    const auto before = side_bytes();
    memory.left = left;
    const Status s = feed(12, 8);
    memory.left = 1 << 20;
    if (s == Status::ok) break;
    REQUIRE(s == Status::out_of_memory);
    ++refused;
    CHECK(side_bytes() < before + 2 * 64 * 64 * sizeof(float));
  }
  CHECK(refused > 3);
}
