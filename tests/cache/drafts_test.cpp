#include <support/byte_list.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/evict/h2o.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 64};

/// Outputs of `steps` single tokens, each preceded by `drafts` tokens that are taken back.
std::vector<float> decode(index_t drafts, index_t steps) {
  auto cache = make_cache<Cpu>(shape, recipe());
  REQUIRE(cache.has_value());
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(512, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(5), other(6);
  std::vector<float> all;
  const auto forward = [&](const test::Tokens& t, bool draft) {
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.head_dim));
    const auto view = dense_view(out.data(), shape.q_heads, t.n, shape.head_dim);
    if (!draft) {
      REQUIRE(cache->forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), view) == Status::ok);
      all.insert(all.end(), out.begin(), out.end());
      return;
    }
    REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(cache->attend(ctx, 0, t.queries(shape), view) == Status::ok);
  };
  forward(test::Tokens(shape, 60, random), false);
  for (index_t i = 0; i < steps; ++i) {
    const index_t length = cache->length();
    for (index_t d = 0; d < drafts; ++d) forward(test::Tokens(shape, 1, other), true);
    REQUIRE(cache->truncate(length) == Status::ok);
    REQUIRE(cache->next_position() == length);
    forward(test::Tokens(shape, 1, random), false);
  }
  return all;
}

constexpr CacheShape tiny{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 8, .page_slots = 8};

/// A cache, and where its next token stands as somebody says who remembers every append.
struct Counted {
  test::CacheRig<decltype(recipe())> rig{tiny, recipe(), 4096, 8};
  std::mt19937 random{9};
  index_t stepped = 0, base = 0;  ///< tokens that a step has seen, and the position behind them
  std::vector<index_t> behind;    ///< per pending token, the position behind it

  index_t next() const { return behind.empty() ? base : behind.back(); }
  void append(index_t n, std::span<const index_t> positions = {}) {
    const test::Tokens t(tiny, n, random);
    REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(tiny), t.values(tiny), positions) == Status::ok);
    for (index_t i = 0; i < n; ++i) behind.push_back((positions.empty() ? next() : positions[static_cast<std::size_t>(i)]) + 1);
    check();
  }
  void step() {
    if (behind.empty()) return;
    REQUIRE(rig.cache.step(rig.ctx, 0) == Status::ok);
    stepped += static_cast<index_t>(behind.size()), base = next();
    behind.clear();
    check();
  }
  void truncate(index_t tokens) {
    REQUIRE(rig.cache.truncate(tokens) == Status::ok);
    if (tokens < stepped) base = std::max<index_t>(0, base - (stepped - tokens)), stepped = tokens;
    behind.resize(static_cast<std::size_t>(tokens - stepped));
    check();
  }
  void check() const {
    REQUIRE(rig.cache.length() == stepped + static_cast<index_t>(behind.size()));
    REQUIRE(rig.cache.next_position() == next());
  }
};

}  // namespace

TEST_CASE("cache: drafts taken back leave no trace, bit for bit", "[cache][truncate]") {
  REQUIRE(decode(5, 12) == decode(0, 12));
}

TEST_CASE("cache: a tree of drafts that is partly taken back goes on behind what was kept", "[cache][truncate]") {
  Counted c;
  c.append(10), c.step();
  const index_t tree[] = {10, 11, 11, 12};
  c.append(4, tree);
  c.truncate(12);
  REQUIRE(c.rig.cache.next_position() == 12);
  c.truncate(10);
  REQUIRE(c.rig.cache.next_position() == 10);
}

TEST_CASE("cache: a forward that is refused restores the next position, wherever its tokens stood", "[cache][truncate]") {
  test::CacheRig rig(tiny, recipe(evict::H2O{.heavy = 4, .recent = 4}), 64, 16);
  std::mt19937 random(2);
  std::vector<float> out(static_cast<std::size_t>(tiny.q_heads * 10 * tiny.head_dim));
  const auto forward = [&](Context<Cpu>& ctx, index_t n, std::span<const index_t> positions) {
    const test::Tokens t(tiny, n, random);
    return rig.cache.forward(ctx, 0, t.queries(tiny), t.keys(tiny), t.values(tiny), dense_view(out.data(), tiny.q_heads, n, tiny.head_dim),
                             positions);
  };
  REQUIRE(forward(rig.ctx, 10, {}) == Status::ok);
  const index_t far[] = {50};
  Context<Cpu> none;
  REQUIRE(forward(none, 1, far) == Status::workspace_too_small);
  REQUIRE(rig.cache.next_position() == 10);
  REQUIRE(forward(rig.ctx, 1, far) == Status::ok);
  REQUIRE(rig.cache.next_position() == 51);
}

TEST_CASE("cache: positions that repeat never make the next one negative", "[cache][truncate]") {
  Counted c;
  const std::vector<index_t> same(100, 5);
  c.append(100, same), c.step();
  c.truncate(0);
  REQUIRE(c.rig.cache.next_position() == 0);
  c.append(3);
  REQUIRE(c.rig.cache.next_position() == 3);
}

TEST_CASE("cache: the next position is that of a count of every append, whatever is taken back", "[cache][truncate][model]") {
  const std::uint32_t seed = GENERATE(1u, 2u, 3u, 4u);
  Counted c;
  c.random.seed(seed);
  const auto draw = [&](index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(c.random); };
  for (int i = 0; i < 300; ++i) {
    const index_t length = c.rig.cache.length(), n = draw(1, 6);
    switch (draw(0, 8)) {
      case 0: case 1: c.append(n); break;
      case 2: case 3: {
        std::vector<index_t> positions;
        for (index_t k = 0; k < n; ++k) positions.push_back(draw(0, 60));
        c.append(n, positions);
        break;
      }
      case 4: c.step(); break;
      case 5: c.truncate(draw(c.stepped, length)); break;
      case 6: c.truncate(draw(std::max<index_t>(0, length - 12), length)); break;
      case 7: {
        auto fork = c.rig.cache.fork();
        REQUIRE(fork.status() == Status::ok);
        c.rig.cache = std::move(*fork);
        break;
      }
      default: {
        test::ByteList file;
        REQUIRE(save(c.rig.cache, file) == Status::ok);
        c.rig.cache.reset();
        REQUIRE(c.rig.cache.next_position() == 0);
        REQUIRE(load(c.rig.cache, file.bytes) == Status::ok);
      }
    }
    c.check();
  }
}
