// Tokens that join the newest slot of their head before they are attended: a cache on CUDA beside the one on the CPU.

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/merge/dmc.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_joins.hpp"

using namespace kvcondense;
using cuda_cache::joins;
using cuda_cache::Pair;
using cuda_cache::some;
using merge::Dmc;

TEST_CASE("cuda cache method: dmc", "[ways]") {
  const CacheShape& shape = cuda_cache::shapes()[static_cast<std::size_t>(GENERATE(0, 1, 2, 3))];
  joins(recipe(some), "keep_all + dmc(window=4, init=0.3)", shape);
}

TEST_CASE("cuda cache: tokens join without a window, by the first component, in another rotation or none") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .value_dim = 24, .dtype = DType::f32, .page_slots = 8};
  joins(recipe(Dmc{.window = 0, .init = -0.2f, .first = true}), "keep_all + dmc(window=0, init=-0.2, first=true)", shape);
  joins(recipe(Dmc{.window = 1, .init = -0.5f, .slack = 0.0f, .rotated = false}), "keep_all + dmc(window=1, init=-0.5, slack=0, rotated=false)", shape);
}

TEST_CASE("cuda cache: tokens join behind what lets others go") {
  const CacheShape& shape = cuda_cache::shapes()[1];
  joins(recipe(evict::H2O{.heavy = 8, .recent = 8}, some), "h2o(heavy=8, recent=8) + dmc(window=4, init=0.3)", shape);
  joins(recipe(evict::SinkWindow{.recent = 14, .sinks = 2}, some), "sink_window(recent=14, sinks=2) + dmc(window=4, init=0.3)", cuda_cache::shapes()[0]);
}

TEST_CASE("cuda cache: columns of attention see a slot that tokens joined once") {
  joins(recipe(evict::SnapKV{.tokens = 14, .window = 6, .kernel = 3}, some), "snapkv(tokens=14, window=6, kernel=3) + dmc(window=4, init=0.3)", cuda_cache::shapes()[3]);
}

TEST_CASE("cuda cache: tokens join slots beside codes") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  joins(recipe(some, quant::Fp8{.residual_window = 4}), "keep_all + dmc(window=4, init=0.3) + fp8(residual=4)", shape, 1e-3f);
  joins(recipe(some, quant::Kivi<4>{.group_size = 8, .residual_window = 8}), "keep_all + dmc(window=4, init=0.3) + kivi4(group=8, residual=8)", shape, 1e-3f);
}

TEST_CASE("cuda cache: tokens join slots beside coordinates") {
  const CacheShape& shape = cuda_cache::small;
  const test::RandomModel model(shape);
  joins(recipe(some, lowrank::Pca{.window = 4, .sinks = 2, .bases = model.facts().bases}), "keep_all + dmc(window=4, init=0.3) + pca(window=4, sinks=2)", shape, 2e-3f, model.facts());
  joins(recipe(some, lowrank::Think{.ratio = 0.5, .recent = 4, .least = 8}), "keep_all + dmc(window=4, init=0.3) + think(ratio=50%, recent=4, least=8)", shape, 2e-3f);
}

TEST_CASE("cuda cache: a step of tokens that join and is refused memory leaves all as it was, and a fork does not see it") {
  cuda_cache::refuse_a_step(recipe(Dmc{.window = 3, .init = 0.0f}), 5, {-1, 0, 1, 2, 4, 6, 8}, 3,
                            [](auto& ctx, const auto& cache, const auto& fork) { CHECK(fork.report(ctx)->merged_slots > cache.report(ctx)->merged_slots); });
}

TEST_CASE("cuda cache: rows and queries that are not finite join, and what is stored is finite") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .page_slots = 4};
  const Dmc method{.window = 4, .init = -10.0f, .rotated = false};  // all join
  constexpr index_t tokens = 6;
  test::Device device;
  std::mt19937 random(5);
  std::vector<float> q = cuda_cache::normal_numbers(2 * tokens * 16, random), k = cuda_cache::normal_numbers(tokens * 16, random), v = k;
  k[2] = std::numeric_limits<float>::quiet_NaN(), k[3 * 16 + 15] = std::numeric_limits<float>::quiet_NaN();  // the second is a component that does not join
  v[16 + 1] = std::numeric_limits<float>::infinity(), v[2 * 16] = -1e30f;
  q[4 * 16 + 15] = std::numeric_limits<float>::quiet_NaN();
  test::OnDevice<float> dq(device, q), dk(device, k), dv(device, v), out(device, q);
  auto c = make_cache<Cuda>(shape, recipe(method));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, tokens));
  const auto rows = [](const float* x) { return dense_view(x, 1, tokens, 16); };
  REQUIRE(c->forward(ctx, 0, dense_view(static_cast<const float*>(dq.data()), 2, tokens, 16), rows(dk.data()), rows(dv.data()), dense_view(out.data(), 2, tokens, 16)) == Status::ok);
  REQUIRE(c->slots(0, 0) == 2);
  test::OnDevice<float> keys(device, std::vector<float>(32)), values(device, std::vector<float>(32));
  REQUIRE(c->read(ctx, 0, 0, 0, dense_view(keys.data(), 2, 16), dense_view(values.data(), 2, 16)) == Status::ok);
  for (const auto& numbers : {keys.read(), values.read()})
    for (const float x : numbers) REQUIRE(std::isfinite(x));
  const auto report = c->report(ctx);
  REQUIRE(report);
  CHECK(report->repaired_numbers == 5);
  test::ByteList file;
  REQUIRE(save(ctx, *c, file) == Status::ok);
  auto host = *any::make("keep_all + dmc(window=4, init=-10, rotated=false)", shape, any::on<Cpu>);
  CHECK(host.load(file.bytes) == Status::ok);
}

TEST_CASE("cuda cache: means that overflow as they are summed are stored as the nearest numbers there are, on either backend") {
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  std::vector<float> rows(2 * 16, -1.0f);  // tokens that join
  rows[1] = 3e38f, rows[16 + 1] = -3e38f;  // a distance of Inf
  test::Device device;
  test::OnDevice<float> x(device, rows), out(device, rows);
  const Dmc method{.window = 4, .init = -10.0f, .rotated = false};
  auto c = make_cache<Cuda>(shape, recipe(method));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(8, 2));
  const auto all = [](const float* from) { return dense_view(from, 1, 2, 16); };
  REQUIRE(c->forward(ctx, 0, all(x.data()), all(x.data()), all(x.data()), dense_view(out.data(), 1, 2, 16)) == Status::ok);
  auto host = *any::make("keep_all + dmc(window=4, init=-10, rotated=false)", shape, any::on<Cpu>);
  std::vector<std::byte> scratch(host.workspace_bytes(8, 2));
  Context<Cpu> cpu(scratch);
  std::vector<float> heard(rows.size()), keys(16), values(16);
  REQUIRE(host.forward(cpu, 0, all(rows.data()), all(rows.data()), all(rows.data()), dense_view(heard.data(), 1, 2, 16)) == Status::ok);
  REQUIRE(host.read(0, 0, 0, dense_view(keys.data(), 1, 16), dense_view(values.data(), 1, 16)) == Status::ok);
  test::OnDevice<float> k(device, keys), v(device, values);
  REQUIRE(c->read(ctx, 0, 0, 0, dense_view(k.data(), 1, 16), dense_view(v.data(), 1, 16)) == Status::ok);
  CHECK(v.read() == values);
  CHECK(k.read() == keys);
  for (const float y : values) CHECK(std::isfinite(y));
  CHECK(host.report().repaired_numbers == 2);
  CHECK(c->report(ctx)->repaired_numbers == 2);
}

namespace {

/// A cache of one layer into which the same random rows are fed, queries and keys alike.
struct Fed {
  static constexpr index_t most = 300;

  explicit Fed(const Dmc& method, MemoryResource<Cuda>& memory = cuda::device_memory())
      : x(device, numbers()), out(device, numbers()), cache(make(method, memory)), ctx(device.with_workspace(cache.workspace_bytes(2 * most, most))) {}

  Status feed(index_t n) {
    const auto rows = dense_view(static_cast<const float*>(x.data()), 2, n, 16);
    return cache.forward(ctx, 0, rows, rows, rows, dense_view(out.data(), 2, n, 16));
  }
  std::vector<std::byte> file() {
    test::ByteList list;
    REQUIRE(save(ctx, cache, list) == Status::ok);
    return list.bytes;
  }
  std::size_t side_bytes() {
    const auto report = cache.report(ctx);
    REQUIRE(report);
    return report->side_bytes;
  }

  test::Device device;
  test::OnDevice<float> x, out;
  using Joined = Cache<Cuda, decltype(recipe(some))>;
  Joined cache;
  Context<Cuda> ctx;

 private:
  static std::vector<float> numbers() {
    std::mt19937 random(5);
    return cuda_cache::normal_numbers(2 * most * 16, random);
  }
  static Joined make(const Dmc& method, MemoryResource<Cuda>& memory) {
    auto c = make_cache<Cuda>({.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 64}, recipe(method), memory);
    REQUIRE(c);
    return std::move(*c);
  }
};
constexpr Dmc all_join{.window = 4, .init = -10.0f, .rotated = false};
/// Rows of a prompt of 300 tokens, as they came.
constexpr std::size_t rows_of_prompt = 300 * 2 * (16 + 16 + 2) * sizeof(float);

/// Tokens of which no step has seen any, on both sides; then a step.
template <class R>
void append(Pair<R>& pair, const CacheShape& shape, index_t n, std::mt19937& random) {
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    const std::vector<float> q = cuda_cache::normal_numbers(shape.q_heads * n * shape.head_dim, random), k = cuda_cache::normal_numbers(shape.kv_heads * n * shape.head_dim, random);
    const std::vector<float> v = cuda_cache::normal_numbers(shape.kv_heads * n * shape.values(), random);
    const auto rows = [n](const float* x, index_t heads, index_t dim) { return dense_view(x, heads, n, dim); };
    std::vector<std::byte> scratch(pair.on_host().workspace_bytes(512, n));
    Context<Cpu> cpu(scratch);
    REQUIRE(pair.on_host().append(cpu, layer, rows(k.data(), shape.kv_heads, shape.head_dim), rows(v.data(), shape.kv_heads, shape.values()), {}, rows(q.data(), shape.q_heads, shape.head_dim)) == Status::ok);
    test::OnDevice<float> dq(pair.device(), q), dk(pair.device(), k), dv(pair.device(), v);
    Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(512, n));
    REQUIRE(pair.on_device().append(ctx, layer, rows(dk.data(), shape.kv_heads, shape.head_dim), rows(dv.data(), shape.kv_heads, shape.values()), {}, rows(dq.data(), shape.q_heads, shape.head_dim)) == Status::ok);
    pair.device().wait();
  }
  pair.compare();
}
template <class R>
void step(Pair<R>& pair, const CacheShape& shape) {
  for (index_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<std::byte> scratch(pair.on_host().workspace_bytes(512, 16));
    Context<Cpu> cpu(scratch);
    REQUIRE(pair.on_host().step(cpu, layer) == Status::ok);
    Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(512, 16));
    REQUIRE(pair.on_device().step(ctx, layer) == Status::ok);
  }
  pair.compare();
}

}  // namespace

TEST_CASE("cuda cache: tokens that no step has seen are read, copied, written and taken back while they pass their slots on") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .value_dim = 24, .dtype = DType::f32, .page_slots = 8};
  Pair<decltype(recipe(some))> pair(recipe(Dmc{.window = 5, .init = -10.0f}), "keep_all + dmc(window=5, init=-10)", shape);
  pair.allow(2e-6f);
  std::mt19937 random(3);
  const auto goes_on = [&](auto& side) {
    side.truncate(side.on_device().length() - 1);
    side.look(2e-5f);
    step(side, shape);
    CHECK(side.on_device().slots(0, 0) == 1);
    side.forward(3, prim::AttendMath::f32, 2e-5f);
  };
  pair.forward(300, prim::AttendMath::f32, 2e-5f);
  append(pair, shape, 7, random);
  append(pair, shape, 4, random);
  pair.look(2e-5f);
  auto twin = pair.fork();
  goes_on(pair);
  twin.exchange();
  goes_on(twin);
  append(pair, shape, 130, random);  // more than one launch has room for
  pair.look(2e-5f);
  pair.truncate(pair.on_device().length() - 129);
  step(pair, shape);
  pair.compare_reports();
}

TEST_CASE("cuda cache: a slot is the mean of more tokens than there will ever be") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 8};
  joins(recipe(Dmc{.window = 1'000'000, .init = -0.4f}), "keep_all + dmc(window=1000000, init=-0.4)", shape);
  Fed fed(Dmc{.window = 1'000'000'000, .init = -10.0f, .rotated = false});
  REQUIRE(fed.feed(8) == Status::ok);
  REQUIRE(fed.feed(1) == Status::ok);
  CHECK(fed.cache.slots(0, 0) == 1);
  CHECK(fed.side_bytes() < rows_of_prompt);
}

TEST_CASE("cuda cache: what tokens that join needed until their step is given back") {
  Fed fed(all_join);
  REQUIRE(fed.feed(8) == Status::ok);
  const std::size_t before = fed.side_bytes();
  REQUIRE(fed.feed(300) == Status::ok);
  CHECK(fed.side_bytes() < before + rows_of_prompt / 4);  // numbers of slots, which are reserved once
  REQUIRE(fed.feed(1) == Status::ok);
  CHECK(fed.cache.slots(0, 0) == 1);
  const auto rows = dense_view(static_cast<const float*>(fed.x.data()), 2, 300, 16);
  REQUIRE(fed.cache.append(fed.ctx, 0, rows, rows, {}, rows) == Status::ok);
  const std::size_t pending = fed.side_bytes();
  CHECK(pending > before + rows_of_prompt / 2);
  REQUIRE(fed.cache.truncate(fed.ctx, fed.cache.length() - 300) == Status::ok);
  CHECK(fed.side_bytes() < pending - rows_of_prompt / 2);
  REQUIRE(fed.cache.append(fed.ctx, 0, rows, rows, {}, rows) == Status::ok);
  REQUIRE(fed.cache.reset(fed.ctx) == Status::ok);
  CHECK(fed.side_bytes() < before + rows_of_prompt / 4);
}

TEST_CASE("cuda cache: rows of tokens that join stay where memory to give them back is refused") {
  std::vector<std::byte> expected;
  int requests = 0, refused = 0, stayed = 0;
  for (int left = -1; left < requests; left = left == 2 ? std::max(3, requests - 4) : left + 1) {  // first without refusing any, then the first and the last ones
    test::RefusingMemory memory(1 << 20);
    {
      Fed fed(all_join, memory);
      REQUIRE(fed.feed(8) == Status::ok);
      const auto before = fed.file();
      const std::size_t side = fed.side_bytes();
      memory.left = left < 0 ? 1 << 20 : left;
      const Status s = fed.feed(300);
      if (left < 0) requests = (1 << 20) - memory.left;
      memory.left = 1 << 20;
      if (s != Status::ok) {
        ++refused;
        CHECK(s == Status::out_of_memory);
        REQUIRE((fed.file() == before));
        REQUIRE(fed.feed(300) == Status::ok);
      } else {
        stayed += static_cast<int>(fed.side_bytes() > side + rows_of_prompt / 2);
      }
      REQUIRE(fed.feed(1) == Status::ok);
      if (expected.empty()) expected = fed.file();
      REQUIRE((fed.file() == expected));
    }
    CHECK(memory.out == 0);
  }
  CHECK(refused > 0);
  CHECK(stayed > 0);
}

#if defined(KVCONDENSE_CUDA_FIBERS)
TEST_CASE("cuda cache: a removal of the newest slot that is refused leaves what may join it") {
  std::vector<std::byte> expected;
  int refused = 0;
  bool failed = true;
  for (int k = -1; failed; ++k) {
    Fed fed(some);
    REQUIRE(fed.feed(12) == Status::ok);
    const auto before = fed.file();
    const auto remove = [&] { return fed.cache.remove(fed.ctx, fed.cache.length() - 1, fed.cache.length()); };
    if (k >= 0) cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls + k, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;
    const Status s = remove();
    failed = k < 0 || cuda_fibers::runtime.calls > cuda_fibers::runtime.fail_at;
    cuda_fibers::runtime.fail_at = -1;
    if (s != Status::ok) {
      test::ByteList list;
      if (save(fed.ctx, fed.cache, list) == Status::device_error) continue;  // torn, and says so
      ++refused;
      REQUIRE((list.bytes == before));
      REQUIRE(remove() == Status::ok);
    }
    if (expected.empty()) expected = fed.file();
    REQUIRE((fed.file() == expected));
  }
  CHECK(refused > 2);
}
#endif

TEST_CASE("cuda cache: a mean that overflows as it is kept, and a key as it turns, leave a file that can be read") {
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  std::vector<float> rows(3 * 16, 3e38f);
  for (const bool rotated : {false, true}) {
    std::fill(rows.begin() + 16, rows.begin() + 32, rotated ? 3e38f : -3e38f);  // a distance of Inf
    for (index_t i = 7; i < 3 * 16; i += 8) rows[test::at(i)] = 0.0f;  // the component lets all join, turned or not
    test::Device device;
    test::OnDevice<float> x(device, rows), out(device, rows);
    const auto make = [&] { return make_cache<Cuda>(shape, recipe(Dmc{.window = 0, .init = -10.0f, .rotated = rotated})); };
    auto c = make(), copy = make();
    REQUIRE(c);
    REQUIRE(copy);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(8, 2));
    const auto feed = [&](auto& to, index_t first, index_t n) {
      const auto all = dense_view(static_cast<const float*>(x.data()) + first * 16, 1, n, 16);
      return to.forward(ctx, 0, all, all, all, dense_view(out.data(), 1, n, 16));
    };
    REQUIRE(feed(*c, 0, 1) == Status::ok);
    REQUIRE(feed(*c, 1, 2) == Status::ok);
    REQUIRE(c->slots(0, 0) == 1);
    CHECK(c->report(ctx)->repaired_numbers > 0);
    test::ByteList file, again;
    REQUIRE(save(ctx, *c, file) == Status::ok);
    REQUIRE(load(ctx, *copy, file.bytes) == Status::ok);
    REQUIRE(save(ctx, *copy, again) == Status::ok);
    REQUIRE((again.bytes == file.bytes));
    auto host = *any::make(rotated ? "keep_all + dmc(window=0, init=-10)" : "keep_all + dmc(window=0, init=-10, rotated=false)", shape, any::on<Cpu>);
    CHECK(host.load(file.bytes) == Status::ok);
  }
}

TEST_CASE("cuda cache: tokens join where it cannot be, or nobody asks") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .page_slots = 4};
  CHECK(make_cache<Cuda>(shape, recipe(Dmc{.window = -1})).status() == Status::invalid_argument);
  test::Device device;
  test::OnDevice<float> x(device, std::vector<float>(64, 1.0f));
  auto c = make_cache<Cuda>(shape, recipe(some));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(8, 2));
  const auto rows = [&](index_t heads, index_t n) { return dense_view(static_cast<const float*>(x.data()), heads, n, 16); };
  CHECK(c->append(ctx, 0, rows(1, 2), rows(1, 2)) == Status::missing_input);
  CHECK(c->append(ctx, 0, rows(1, 2), rows(1, 2), {}, rows(2, 1)) == Status::shape_mismatch);
  REQUIRE(c->append(ctx, 0, rows(1, 2), rows(1, 2), {}, rows(2, 2)) == Status::ok);
  CHECK(c->attend(ctx, 0, rows(2, 2), dense_view(x.data(), 2, 2, 16), {}, prim::AttendMath::halves) == Status::not_supported);
}
