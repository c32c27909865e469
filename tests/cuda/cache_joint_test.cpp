// Caches on CUDA whose heads store rows jointly, as coordinates in bases of groups of heads, beside those of the CPU.

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/group_int.hpp>

#include "cache_coordinates.hpp"
#include "cache_refused.hpp"

using namespace kvcondense;
using namespace cuda_cache;
using lowrank::JointHeads;

namespace {

constexpr CacheShape four{.q_heads = 4, .kv_heads = 4, .head_dim = 32, .value_dim = 24, .dtype = DType::f32, .page_slots = 8};
constexpr CacheShape more{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
constexpr CacheShape many{.layers = 2, .q_heads = 64, .kv_heads = 4, .head_dim = 96, .value_dim = 128, .dtype = DType::bf16, .page_slots = 16};

/// Bases of groups of `share` heads, of keys as they are attended; orthonormal or not.
struct Groups {
  Groups(const CacheShape& s, index_t share, bool pair = false)
      : keys(s.layers, s.kv_heads / share, share * s.head_dim, 3, false, pair), values(s.layers, s.kv_heads / share, share * s.values(), 5, false, pair),
        named{JointHeads::made, keys.view(), values.view()} {
    facts.bases = {&named, 1};
  }
  Groups(const Groups&) = delete;
  Groups& operator=(const Groups&) = delete;

  JointHeads stage(JointHeads s = {}) const { return s.bases = facts.bases, s; }

  test::RandomBases keys, values;
  NamedBases named;
  any::ModelFacts facts;
};

/// Part of the rows of a cache that heads store jointly.
template <class R>
double joint_part(Pair<R>& pair) {
  return pair.on_device().report(pair.device())->across_part();
}

}  // namespace

TEST_CASE("cuda cache: rows of several heads, of raw keys") {
  // Raw keys, in fewer columns than a head has numbers, behind a policy that leaves heads tokens of their own.
  const RandomModel model(more);
  live("h2o(heavy=20, recent=8) + joint_heads(columns=24, value_columns=20, window=3, sinks=3) + reindex", more, 3e-5f, model, heavy,
       JointHeads{.columns = 24, .value_columns = 20, .window = 3, .sinks = 3, .bases = model.facts().bases}, position::Reindex{});
}

TEST_CASE("cuda cache: rows of four heads, of keys as they are attended") {
  const Groups two(four, 2), all(four, 4, true);
  live_as("knorm(tokens=30, recent=6) + joint_heads(window=4, sinks=2)", four, made_again, 3e-5f, two.facts, evict::Knorm{.tokens = 30, .recent = 6},
          two.stage({.window = 4, .sinks = 2}));
  live_as("sink_window(recent=20, sinks=3) + joint_heads(window=0, keys=false)", four, made_again, 3e-5f, all.facts, ends, all.stage({.window = 0, .keys = false}));
}

TEST_CASE("cuda cache: rows of several heads become codes") {
  const Groups g(four, 2);
  live_as("h2o(heavy=20, recent=8) + joint_heads(window=4) + int4(group=8, residual=4)", four, 1e-4f, 2e-4f, g.facts, heavy, g.stage({.window = 4}),
          quant::GroupInt<4>{.group_size = 8, .residual_window = 4});
}

TEST_CASE("cuda cache: rows of several heads in other shapes", "[.][sweep]") {
  const Groups two(many, 2), all(many, 4), pair(wide_halves, 2);
  live_as("snapkv(tokens=30, window=8, kernel=5) + joint_heads(window=4)", many, made_again, 3e-5f, two.facts, evict::SnapKV{.tokens = 30, .window = 8, .kernel = 5}, two.stage({.window = 4}));
  live_as("joint_heads(columns=1, value_columns=128, window=0)", many, made_again, 3e-5f, all.facts, all.stage({.columns = 1, .value_columns = 128, .window = 0}));
  live_as("joint_heads(window=0)", wide_halves, made_again, 3e-5f, pair.facts, pair.stage({.window = 0}));
}

TEST_CASE("cuda cache: a row of several heads is stored once, until no head has it") {
  const CacheShape& shape = four;
  const Groups g(shape, 4);
  Pair pair(recipe(evict::Knorm{.tokens = 40, .recent = 30}, g.stage({.window = 0})), "knorm(tokens=40, recent=30) + joint_heads(window=0)", shape, g.facts);
  pair.allow(made_again);
  pair.forward(40);
  CHECK(joint_part(pair) == 1.0);
  const auto coded = [](auto& cache, auto& device) { return cache.report(device)->coded_bytes; };
  const std::size_t page = 8 * (32 + 24) * sizeof(float);  // keys and values of all heads, in f32
  CHECK(coded(pair.on_device(), pair.device()) == 5 * page);
  Pair twin = pair.fork();
  CHECK(coded(twin.on_device(), twin.device()) == 5 * page);
  for (int i = 0; i < 6; ++i) pair.forward(5);
  pair.compare_reports();
  CHECK(joint_part(pair) > 0.3);  // heads keep tokens of their own among the ten oldest: pages that they join are each head's
  CHECK(joint_part(pair) < 1.0);
  CHECK(pair.on_device().report(pair.device())->dead_bytes > 0);
  twin.forward(3), twin.exchange();
  pair.truncate(0);
  CHECK(joint_part(pair) == 0.0);
  CHECK(pair.on_device().report(pair.device())->dead_bytes == 0);
  pair.forward(16);
  CHECK(joint_part(pair) == 1.0);
}

TEST_CASE("cuda cache: rows of several heads of which one is not finite") {
  CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  const Groups g(shape, 2);
  {
    Pair pair(recipe(g.stage({.window = 0})), "joint_heads(window=0)", shape, g.facts);
    Context<Cuda> ctx = pair.device().with_workspace(pair.on_device().workspace_bytes(8, 8));
    std::vector<float> rows(2 * 4 * 16, 0.5f);
    rows[7] = NAN;
    test::OnDevice<float> there(pair.device(), rows);
    const auto view = dense_view(static_cast<const float*>(there.data()), 2, 4, 16);
    REQUIRE(pair.on_device().append(ctx, 0, view, view) == Status::ok);
    REQUIRE(pair.on_device().step(ctx, 0) == Status::ok);
    CHECK(joint_part(pair) == 1.0);
    CHECK(pair.on_device().report(pair.device())->repaired_numbers == 2);  // one of keys, one of values, as they came
  }
}

TEST_CASE("cuda cache: a file of rows of several heads that cannot be is refused") {
  const Groups g(four, 4);
  Pair pair(recipe(g.stage({.window = 0})), "joint_heads(window=0)", four, g.facts);
  pair.allow(made_again);
  pair.forward(16);
  test::ByteList file;
  REQUIRE(save(pair.device(), pair.on_device(), file) == Status::ok);
  // Whatever number of the file is another one: no read is out of bounds, and what is refused changes nothing.
  int refused = 0;
  for (std::size_t at = 24; at + 12 < file.bytes.size(); at += 4) {
    std::vector<std::byte> other = file.bytes;
    other[at] ^= std::byte{7};
    Checksum sum;
    sum.add(std::span<const std::byte>(other).first(other.size() - sizeof(std::uint64_t)));
    const std::uint64_t value = sum.value();
    std::memcpy(other.data() + other.size() - sizeof value, &value, sizeof value);
    const Status s = load(pair.device(), pair.on_device(), other);
    REQUIRE((s == Status::ok || s == Status::corrupt_data || s == Status::incompatible));
    test::ByteList now;
    if (s == Status::ok) REQUIRE(load(pair.device(), pair.on_device(), file.bytes) == Status::ok);
    else ++refused;
    REQUIRE(save(pair.device(), pair.on_device(), now) == Status::ok);
    REQUIRE((now.bytes == file.bytes));
    if (at > 600) at += 124;  // numbers of rows: any will do
  }
  CHECK(refused > 30);
}
