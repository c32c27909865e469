#include <support/byte_list.hpp>
#include <support/saved.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 8, .page_slots = 8};
constexpr auto kivi = recipe(quant::Kivi<2>{.group_size = 4, .residual_window = 8, .sinks = 2});

template <class R>
struct Rig : test::CacheRig<R> {
  using test::CacheRig<R>::cache, test::CacheRig<R>::ctx;
  std::mt19937 random{4};

  explicit Rig(const R& r, const CacheShape& s = shape) : test::CacheRig<R>(s, r, 256, 64) {}
  void feed(index_t n, bool step = true) {
    const test::Tokens t(cache.shape(), n, random);
    for (index_t l = 0; l < cache.shape().layers; ++l) {
      REQUIRE(cache.append(ctx, l, t.keys(cache.shape()), t.values(cache.shape())) == Status::ok);
      if (step) REQUIRE(cache.step(ctx, l) == Status::ok);
    }
  }
  std::vector<std::byte> saved() const { return test::saved(cache); }
};

}  // namespace

TEST_CASE("snapshot: a loaded cache is the saved one and goes on like it", "[cache][snapshot]") {
  const index_t tokens = GENERATE(0, 1, 7, 8, 9, 40);
  Rig a(kivi), b(kivi);
  if (tokens > 0) a.feed(tokens);
  if (tokens > 8) REQUIRE(a.cache.remove(a.ctx, 3, 6) == Status::ok);
  if (tokens > 1) a.feed(2, false);
  b.feed(13);
  REQUIRE(load(b.cache, a.saved()) == Status::ok);
  REQUIRE(b.saved() == a.saved());
  REQUIRE(b.cache.pending() == a.cache.pending());
  b.random = a.random;
  a.feed(5), b.feed(5);
  REQUIRE(b.saved() == a.saved());
  REQUIRE(b.cache.report().bytes() == b.memory.live_bytes);
}

TEST_CASE("snapshot: cut at any byte or with any bit flipped it is refused and the cache stays", "[cache][snapshot]") {
  Rig a(kivi), b(kivi);
  a.feed(11);
  b.feed(5);
  const std::vector<std::byte> good = a.saved(), mine = b.saved();
  const std::size_t bytes = b.memory.live_bytes;
  for (std::size_t n = 0; n < good.size(); ++n)
    REQUIRE(load(b.cache, std::span(good).first(n)) == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> bad = good;
      bad[i] ^= static_cast<std::byte>(1 << bit);
      REQUIRE(load(b.cache, bad) == Status::corrupt_data);
    }
  REQUIRE(b.saved() == mine);
  REQUIRE(b.memory.live_bytes == bytes);
}

TEST_CASE("snapshot: forged bytes with a right checksum never lead outside the file", "[cache][snapshot]") {
  Rig a(kivi), b(kivi);
  a.feed(11);
  const std::vector<std::byte> good = a.saved();
  const std::size_t most = 4 * good.size() + 65536;
  for (std::size_t i = 0; i + 8 < good.size(); ++i)
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      std::vector<std::byte> forged = good;
      forged[i] = static_cast<std::byte>(value);
      Checksum sum;
      sum.add(std::span(forged).first(forged.size() - 8));
      const std::uint64_t s = sum.value();
      std::memcpy(forged.data() + forged.size() - 8, &s, 8);
      b.memory.peak_bytes = 0;
      const Status status = load(b.cache, forged);
      REQUIRE((status == Status::ok || status == Status::corrupt_data || status == Status::incompatible));
      REQUIRE(b.memory.peak_bytes < most);
      if (status == Status::ok) b.feed(3);  // whatever was accepted must be usable
    }
}

TEST_CASE("snapshot: another shape or recipe is refused as incompatible", "[cache][snapshot]") {
  Rig a(kivi);
  a.feed(11);
  const auto file = a.saved();
  Rig four(recipe(quant::Kivi<4>{.group_size = 4, .residual_window = 8, .sinks = 2}));
  REQUIRE(load(four.cache, file) == Status::incompatible);
  Rig sinks(recipe(quant::Kivi<2>{.group_size = 4, .residual_window = 8, .sinks = 3}));
  REQUIRE(load(sinks.cache, file) == Status::incompatible);
  Rig exact(recipe());
  REQUIRE(load(exact.cache, file) == Status::incompatible);
  CacheShape wide = shape;
  wide.head_dim = 16;
  Rig other(kivi, wide);
  REQUIRE(load(other.cache, file) == Status::incompatible);
}

TEST_CASE("snapshot: a sink that stops at any byte is an io_error", "[cache][snapshot]") {
  Rig a(kivi);
  a.feed(11);
  const auto file = a.saved();
  for (std::size_t room = 0; room < file.size(); ++room) {
    test::ByteList sink;
    sink.room = room;
    REQUIRE(save(a.cache, sink) == Status::io_error);
  }
}

TEST_CASE("snapshot: a refused request while loading leaves the cache as it was", "[cache][snapshot][faults]") {
  Rig a(kivi), b(kivi);
  a.feed(40);
  b.feed(5);
  const auto file = a.saved(), mine = b.saved();
  for (long n = 0;; ++n) {
    b.memory.refuse_from = b.memory.requests + n;
    const Status s = load(b.cache, file);
    b.memory.refuse_from = -1;
    if (s == Status::ok) break;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE(b.saved() == mine);
  }
  REQUIRE(b.saved() == file);
}
