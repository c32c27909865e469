// Slots that leave and live on as the mean of what left a head: a cache on CUDA beside the one on the CPU.

#include <cmath>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/merge/cam.hpp>
#include <kvcondense/merge/lookm.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

/// Every way by which slots leave or come back. `within`: of outputs.
template <class R>
void means(const R& recipe, std::string_view text, const CacheShape& shape, float stored, float within, prim::AttendMath math = prim::AttendMath::f32) {
  INFO(text << ", head_dim " << shape.head_dim);
  Pair pair(recipe, text, shape);
  pair.allow(stored);
  const auto feed = [&](auto& to, index_t n) { to.forward(n, math, within); };
  feed(pair, 9);  // nothing left yet
  pair.exchange();
  feed(pair, 40);
  for (int i = 0; i < 5; ++i) feed(pair, 1);
  pair.exchange();
  {
    Pair other = pair.fork();
    feed(other, 3);
    feed(pair, 1);
    other.exchange();
    feed(other, 1);
  }
  pair.truncate(pair.on_device().length() - 4);  // fewer have left than there were
  feed(pair, 1);
  pair.remove(pair.on_device().length() - 6, pair.on_device().length() - 3);  // what is removed does not enter the mean
  feed(pair, 2);
  pair.turn(5);
  feed(pair, 5);
  pair.truncate(2);
  feed(pair, 1);
  pair.truncate(0);
  feed(pair, 60);
  feed(pair, 1);
  pair.compare_reports();
}

constexpr evict::SinkWindow ends{.recent = 20, .sinks = 3};

}  // namespace

TEST_CASE("cuda cache: the mean of what left, as tokens leave, are taken back and removed") {
  for (const CacheShape& shape : cuda_cache::shapes())
    means(recipe(evict::Compensate{ends}), "compensate(sink_window(sinks=3, recent=20))", shape, 0.0f, 2e-5f);
  means(recipe(evict::Compensate{evict::H2O{.heavy = 10, .recent = 8}}), "compensate(h2o(heavy=10, recent=8))",
        {.layers = 2, .q_heads = 16, .kv_heads = 1, .head_dim = 96, .value_dim = 112, .page_slots = 7}, 0.0f, 2e-5f);
}

TEST_CASE("cuda cache: the mean of what left of codes, by token and in groups that lose slots") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 32};
  means(recipe(evict::Compensate{ends}, quant::Fp8{.residual_window = 4}), "compensate(sink_window(sinks=3, recent=20)) + fp8(residual=4)", shape, 0.0f, 1e-4f);
  means(recipe(evict::Compensate{ends}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}),
        "compensate(sink_window(sinks=3, recent=20)) + kivi4(group=8, residual=8)", shape, 0.0f, 4e-4f);
}

TEST_CASE("cuda cache: the mean of what left beside attention on tensor cores") {
  means(recipe(evict::Compensate{ends}), "compensate(sink_window(sinks=3, recent=20))", {.layers = 1, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 64}, 0.0f,
        4e-3f, prim::AttendMath::halves);
}

TEST_CASE("cuda cache: what folds into another slot is not in the mean of what left") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  means(recipe(evict::Compensate{ends}, merge::LookM{}), "compensate(sink_window(sinks=3, recent=20)) + lookm", shape, 2e-5f, 6e-5f);
  means(recipe(evict::Compensate{ends}, merge::CaM{.targets = 3}), "compensate(sink_window(sinks=3, recent=20)) + cam(targets=3)", shape, 2e-5f, 6e-5f);
}

TEST_CASE("cuda cache: a step that is refused memory leaves the mean of what left as it was") {
  cuda_cache::refuse_a_step(recipe(evict::Compensate{evict::SinkWindow{.recent = 6, .sinks = 2}}), 5, {-1, 0, 1, 3, 5, 7}, 2, [](const auto&...) {});
}

TEST_CASE("cuda cache: a file with a mean of more slots than have left is refused") {
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .page_slots = 4};
  const auto method = recipe(evict::Compensate{evict::SinkWindow{.recent = 6, .sinks = 2}});
  test::Device device;
  std::mt19937 random(5);
  const auto x = cuda_cache::normal_numbers(20 * 16, random);
  test::OnDevice<float> rows(device, x), out(device, x);
  auto c = make_cache<Cuda>(shape, method);
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 20));
  const auto all = dense_view(static_cast<const float*>(rows.data()), 1, 20, 16);
  REQUIRE(c->forward(ctx, 0, all, all, all, dense_view(out.data(), 1, 20, 16)) == Status::ok);
  test::ByteList file;
  REQUIRE(save(ctx, *c, file) == Status::ok);
  const std::size_t sum = file.bytes.size() - sizeof(std::uint64_t), means = sum - 32 * sizeof(float), count = means - sizeof(std::int64_t);
  const auto forged = [&](std::size_t at, auto value) {
    std::vector<std::byte> bytes = file.bytes;
    std::memcpy(bytes.data() + at, &value, sizeof value);
    Checksum check;
    check.add({bytes.data(), sum});
    const std::uint64_t own = check.value();
    std::memcpy(bytes.data() + sum, &own, sizeof own);
    return load(ctx, *c, bytes);
  };
  CHECK(forged(count, std::int64_t{12}) == Status::ok);  // as it is
  CHECK(forged(count, std::int64_t{13}) == Status::corrupt_data);
  CHECK(forged(count, std::int64_t{-1}) == Status::corrupt_data);
  CHECK(forged(means + 8, NAN) == Status::corrupt_data);
}

TEST_CASE("cuda cache: rows with numbers that are none leave a mean of what left that is finite") {
  const auto [type, large] = GENERATE(table<DType, float>({{DType::f16, 1e6f}, {DType::f16, 6e4f}, {DType::bf16, 3.3e38f}, {DType::f32, 3.3e38f}}));
  INFO(to_string(type) << ", " << large);
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .dtype = type, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  const auto x = cuda_cache::normal_numbers(13 * 16, random);
  auto v = x;
  const auto value = [&](index_t token, index_t c) -> float& { return v[cuda_cache::at(token * 16 + c)]; };
  value(2, 0) = -large, value(3, 0) = large, value(4, 1) = NAN, value(5, 2) = -INFINITY;  // tokens 2 to 5 leave in the first step
  test::OnDevice<float> rows(device, x), values(device, v), out(device, x);
  auto c = make_cache<Cuda>(shape, recipe(evict::Compensate{evict::SinkWindow{.recent = 6, .sinks = 2}}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 20));
  const auto feed = [&](index_t first, index_t n) {
    const auto part = [&](test::OnDevice<float>& from) { return dense_view(static_cast<const float*>(from.data()) + first * 16, 1, n, 16); };
    return c->forward(ctx, 0, part(rows), part(rows), part(values), dense_view(out.data(), 1, n, 16));
  };
  REQUIRE(feed(0, 12) == Status::ok);
  const auto came = type == DType::f16 && large > 65504.0f ? 4 : 2;
  const auto report = c->report(device);
  REQUIRE(report);
  CHECK(report->repaired_numbers >= 2 * came);  // as they came, and as they left
  test::ByteList file;
  REQUIRE(save(ctx, *c, file) == Status::ok);
  std::vector<float> mean(16);  // of values: the last of the file
  std::memcpy(mean.data(), file.bytes.data() + file.bytes.size() - sizeof(std::uint64_t) - 16 * sizeof(float), 16 * sizeof(float));
  for (const float m : mean) CHECK(std::isfinite(m));
  CHECK(std::fabs(mean[1] - (value(2, 1) + value(3, 1) + value(5, 1)) / 4.0f) < 1e-2f);  // NaN is 0
  REQUIRE(load(ctx, *c, file.bytes) == Status::ok);
  auto host = *any::make("compensate(sink_window(sinks=2, recent=6))", shape, any::on<Cpu>);
  REQUIRE(host.load(file.bytes) == Status::ok);
  if (type != DType::f16) return;
  REQUIRE(feed(12, 1) == Status::ok);
  const std::vector<float> outs = out.read();
  for (std::size_t i = 0; i < 16; ++i) CHECK(std::isfinite(outs[i]));
}
