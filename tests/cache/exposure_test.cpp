// How many rows saw a slot, told by marks that are written once, in a cache whose tokens come in chunks, are taken back, forked and saved.

#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/byte_list.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

constexpr CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32};

struct Rows {
  CacheRig<decltype(recipe(evict::ObservedAttention{}))> r{shape, recipe(evict::ObservedAttention{.keep = 0.6, .sinks = 1, .recent = 2}), 128, 16};
  std::mt19937 random{3};
  std::vector<index_t> rows;  // by token: rows of steps that had it, one by one

  void append(index_t n) {
    const Tokens t(shape, n, random);
    REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    rows.resize(rows.size() + static_cast<std::size_t>(n), 0);
  }
  /// A step of all that is pending, with attention of so many rows; where it says 0, of as many as tokens.
  void step(index_t pending, Phase phase, index_t count = 0) {
    count = count == 0 ? pending : count;
    std::vector<float> mass(static_cast<std::size_t>(r.cache.total_slots(0)), 1.0f);
    for (index_t row = 0; row < count; ++row)
      for (std::size_t t = 0; t + static_cast<std::size_t>(count - 1 - row) < rows.size(); ++t) ++rows[t];
    StepInputs in;
    in.attention = {r.cache.ragged(0, mass.data()), count};
    REQUIRE(r.cache.step(r.ctx, 0, in, phase) == Status::ok);
  }
  void truncate(index_t tokens) {
    REQUIRE(r.cache.truncate(tokens) == Status::ok);
    rows.resize(static_cast<std::size_t>(tokens));
  }
  template <class C>
  void check(const C& cache) const {
    const auto& l = cache.layers()[0];
    for (index_t h = 0; h < shape.kv_heads; ++h)
      for (index_t j = 0; j < cache.slots(0, h) - l.counters.pending; ++j) {
        CAPTURE(h, j);
        REQUIRE(prim::exposed_rows(l.heads[h].lane[1][j], static_cast<std::uint32_t>(l.counters.stepped)) ==
                static_cast<std::uint32_t>(rows[static_cast<std::size_t>(cache.token(0, h, j))]));
      }
  }
  void check() const { check(r.cache); }
};

}  // namespace

TEST_CASE("exposure: chunks, tokens that are taken back before and after a step, forks and files", "[cache][observed_attention]") {
  Rows x;
  x.append(9), x.step(9, Phase::prefill_chunk), x.check();
  x.append(7), x.truncate(13), x.step(4, Phase::prefill_end), x.check();  // three of seven are taken back before
  REQUIRE(x.r.cache.slots(0, 0) < 13);
  for (int i = 0; i < 5; ++i) x.append(1), x.step(1, Phase::decode), x.check();
  x.append(4), x.step(4, Phase::decode), x.truncate(20), x.check();  // accepted by a step, and taken back after it
  x.append(2), x.step(2, Phase::decode), x.check();
  x.append(3), x.step(3, Phase::decode, 2), x.check();  // the newest rows alone were measured

  auto twin = x.r.cache.fork();
  REQUIRE(twin);
  x.check(*twin);
  ByteList file;
  REQUIRE(save(x.r.cache, file) == Status::ok);
  auto loaded = make_cache<Cpu>(shape, recipe(evict::ObservedAttention{.keep = 0.6, .sinks = 1, .recent = 2}));
  REQUIRE(loaded);
  REQUIRE(load(*loaded, file.bytes) == Status::ok);
  x.check(*loaded);
  x.r.cache = std::move(*loaded);
  x.append(2), x.step(2, Phase::prefill_end), x.check();
}

TEST_CASE("exposure: a file of the older meaning is refused", "[cache][snapshot]") {
  Rows x;
  x.append(9), x.step(9, Phase::prefill_end);
  ByteList file;
  REQUIRE(save(x.r.cache, file) == Status::ok);
  const std::uint32_t counts = 5;  // files before had counts instead of marks
  const std::size_t end = file.bytes.size() - sizeof(std::uint64_t);
  std::memcpy(file.bytes.data() + sizeof(std::uint32_t), &counts, sizeof counts);
  Checksum sum;
  sum.add(std::span(file.bytes).first(end));
  const std::uint64_t value = sum.value();
  std::memcpy(file.bytes.data() + end, &value, sizeof value);
  REQUIRE(load(x.r.cache, file.bytes) == Status::incompatible);
  x.check();
}
