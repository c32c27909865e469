#include <limits>

#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16};

struct Rig : test::CacheRig<decltype(recipe())> {
  std::mt19937 random{3};
  Rig() : CacheRig(shape, recipe(), 256, 64) {}
};

}  // namespace

TEST_CASE("cache: shapes that make no sense are refused before any memory is asked", "[cache]") {
  CacheShape bad = shape;
  switch (GENERATE(0, 1, 2, 3, 4, 5, 6, 7)) {
    case 0: bad.layers = 0; break;
    case 1: bad.q_heads = 3; break;
    case 2: bad.kv_heads = 0; break;
    case 3: bad.head_dim = 257; break;
    case 4: bad.head_dim = -1; break;
    case 5: bad.page_slots = 0; break;
    case 6: bad.page_slots = 257; break;
    case 7: bad.softmax_scale = std::numeric_limits<float>::quiet_NaN(); break;
  }
  test::CountingMemory memory;
  REQUIRE(make_cache<Cpu>(bad, recipe(), memory).status() == Status::invalid_argument);
  REQUIRE(memory.requests == 0);
}

TEST_CASE("cache: wrong shapes, layers and numbers are refused and lose nothing", "[cache]") {
  Rig r;
  const test::Tokens t(shape, 7, r.random);
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  const std::size_t bytes = r.cache.report().bytes();

  REQUIRE(r.cache.append(r.ctx, 2, t.keys(shape), t.values(shape)) == Status::out_of_range);
  REQUIRE(r.cache.append(r.ctx, -1, t.keys(shape), t.values(shape)) == Status::out_of_range);
  auto wide = t.keys(shape);
  wide.extent[2] = 15;
  REQUIRE(r.cache.append(r.ctx, 0, wide, t.values(shape)) == Status::shape_mismatch);
  auto few = t.values(shape);
  few.extent[1] = 6;
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), few) == Status::shape_mismatch);
  const index_t positions[] = {1, 2};
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape), positions) == Status::shape_mismatch);
  const index_t negative[] = {0, 1, 2, 3, 4, 5, -6};
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape), negative) == Status::invalid_argument);

  for (const float x : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -70000.0f}) {
    test::Tokens poisoned(shape, 7, r.random);
    poisoned.k[20] = x;
    REQUIRE(r.cache.append(r.ctx, 0, poisoned.keys(shape), poisoned.values(shape)) == Status::invalid_argument);
    poisoned.k[20] = 0;
    poisoned.v[100] = x;
    REQUIRE(r.cache.append(r.ctx, 0, poisoned.keys(shape), poisoned.values(shape)) == Status::invalid_argument);
  }
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * 8 * shape.head_dim));
  REQUIRE(r.cache.attend(r.ctx, 0, t.queries(shape), dense_view(out.data(), 4, 6, 16)) == Status::shape_mismatch);
  const test::Tokens more(shape, 8, r.random);
  REQUIRE(r.cache.attend(r.ctx, 0, more.queries(shape), dense_view(out.data(), 4, 8, 16)) == Status::order_violation);
  REQUIRE(r.cache.step(r.ctx, 1) == Status::order_violation);
  REQUIRE(r.cache.truncate(1) == Status::out_of_range);  // layer 1 has seen nothing
  REQUIRE(r.cache.remove(r.ctx, 0, 1) != Status::ok);

  REQUIRE(r.cache.report().bytes() == bytes);
  REQUIRE(r.cache.length(0) == 7);
  REQUIRE(r.cache.length(1) == 0);
  REQUIRE(r.cache.attend(r.ctx, 0, t.queries(shape), dense_view(out.data(), 4, 7, 16)) == Status::ok);
}

TEST_CASE("cache: one byte of workspace too few is refused, and the same call works with it", "[cache][workspace]") {
  Rig r;
  const test::Tokens t(shape, 33, r.random);
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.head_dim));
  const auto view = dense_view(out.data(), shape.q_heads, t.n, shape.head_dim);
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  // The exact need of attend is found by bisection; it must not exceed what was planned.
  std::size_t low = 0, high = r.cache.workspace_bytes(33, 33);
  const auto works = [&](std::size_t n) {
    Context<Cpu> ctx(r.work.bytes().first(n));
    const Status s = r.cache.attend(ctx, 0, t.queries(shape), view);
    REQUIRE((s == Status::ok || s == Status::workspace_too_small));
    return s == Status::ok;
  };
  REQUIRE(works(high));
  while (high - low > 1) (works((low + high) / 2) ? high : low) = (low + high) / 2;
  REQUIRE_FALSE(works(high - 1));
  Context<Cpu> none;
  REQUIRE(r.cache.step(none, 0) == Status::workspace_too_small);
  REQUIRE(r.cache.pending(0) == 33);
  REQUIRE(r.cache.step(r.ctx, 0) == Status::ok);
}

TEST_CASE("cache: a workspace may begin at any address", "[cache][workspace]") {
  std::mt19937 random(4);
  const test::Tokens t(shape, 40, random);
  for (const std::size_t offset : {0, 1, 16, 63}) {
    auto cache = make_cache<Cpu>(shape, recipe());
    REQUIRE(cache);
    const std::size_t bytes = cache->workspace_bytes(40, 40);
    Workspace work;
    REQUIRE(work.reserve(bytes + offset) == Status::ok);
    Context<Cpu> ctx(work.bytes().subspan(offset, bytes));
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * 40 * shape.values()));
    REQUIRE(cache->forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), shape.q_heads, 40, shape.values())) == Status::ok);
  }
}

TEST_CASE("cache: a forward whose queries are not its tokens takes back its own tokens and no others", "[cache]") {
  Rig r;
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * 9 * shape.head_dim));
  const test::Tokens first(shape, 5, r.random), few(shape, 2, r.random), many(shape, 9, r.random);
  REQUIRE(r.cache.forward(r.ctx, 0, first.queries(shape), first.keys(shape), first.values(shape),
                          dense_view(out.data(), shape.q_heads, 5, shape.head_dim)) == Status::ok);
  REQUIRE(r.cache.forward(r.ctx, 0, many.queries(shape), few.keys(shape), few.values(shape),
                          dense_view(out.data(), shape.q_heads, 9, shape.head_dim)) == Status::order_violation);
  REQUIRE(r.cache.length(0) == 5);
  REQUIRE(r.cache.slots(0, 0) == 5);
  REQUIRE(r.cache.slots(0, 1) == 5);
}

TEST_CASE("cache: positions end at 2^31 - 1, those that nobody gave too", "[cache]") {
  Rig r;
  const test::Tokens one(shape, 1, r.random), two(shape, 2, r.random);
  const index_t near[] = {cache::max_position - 2}, beyond[] = {cache::max_position + 1};
  REQUIRE(r.cache.append(r.ctx, 0, one.keys(shape), one.values(shape), beyond) == Status::invalid_argument);
  REQUIRE(r.cache.append(r.ctx, 0, one.keys(shape), one.values(shape), near) == Status::ok);
  REQUIRE(r.cache.append(r.ctx, 0, two.keys(shape), two.values(shape)) == Status::ok);
  REQUIRE(r.cache.next_position(0) == cache::max_position + 1);
  REQUIRE(r.cache.append(r.ctx, 0, one.keys(shape), one.values(shape)) == Status::out_of_range);
  REQUIRE(r.cache.length(0) == 3);
  REQUIRE(r.cache.step(r.ctx, 0) == Status::ok);
  REQUIRE(r.cache.append(r.ctx, 0, two.keys(shape), two.values(shape)) == Status::out_of_range);
  const index_t given[] = {7};
  REQUIRE(r.cache.append(r.ctx, 0, one.keys(shape), one.values(shape), given) == Status::ok);
  REQUIRE(r.cache.next_position(0) == 8);
}
