#include <support/byte_list.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/query_mass.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/policy.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/group_int.hpp>

using namespace kvcondense;

namespace {

/// SnapKV's blocks with the attention of the window computed from its queries, at any step.
struct Peek {
  static constexpr Descriptor about{"peek", Stage::evict, "test"};
  static constexpr Inputs needs = Input::queries;
  index_t tokens = 32;
  index_t window = 8;

  constexpr auto pipeline() const {
    return evict::Pipeline{evict::QueryMass{window}, evict::Pooled{prim::Pool::maximum, 7}, evict::Window{window},
                           evict::Absolute{tokens},  evict::TopK{},                         evict::PrefillOnce{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};
static_assert(evict::check_eviction_policy<Peek, Cpu>());

const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32};

template <class R>
struct Rig : test::CacheRig<R> {
  using test::CacheRig<R>::cache, test::CacheRig<R>::ctx;
  std::mt19937 random{11};
  explicit Rig(const R& r) : test::CacheRig<R>(shape, r, 256, 128) {}

  Status forward(index_t n, Phase phase = Phase::automatic) {
    const test::Tokens t(shape, n, random);
    std::vector<float> out(t.q.size());
    return cache.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 6, n, 32), {}, phase);
  }
  std::vector<index_t> kept() const {
    std::vector<index_t> all;
    for (index_t h = 0; h < 2; ++h)
      for (index_t s = 0; s < cache.slots(0, h); ++s) all.push_back(cache.token(0, h, s));
    return all;
  }
};
template <class R>
Rig(const R&) -> Rig<R>;

}  // namespace

TEST_CASE("query window: at the end of a prompt, queries say what attention says", "[cache][queries]") {
  Rig peek(recipe(Peek{}));
  Rig snap(recipe(evict::SnapKV{.tokens = 32, .window = 8}));
  REQUIRE(peek.forward(100) == Status::ok);
  REQUIRE(snap.forward(100) == Status::ok);
  REQUIRE(peek.cache.slots(0, 0) == 32);
  REQUIRE(peek.kept() == snap.kept());
}

TEST_CASE("query window: one token at a time gives what one chunk gives", "[cache][queries]") {
  const index_t n = 60;
  std::mt19937 random(3);
  const test::Tokens t(shape, n, random);
  const auto run = [&](index_t chunk, const auto& position, const auto& quant) {
    test::CacheRig rig(shape, recipe(Peek{}, position, quant), 128, 64);
    std::vector<float> out(t.q.size());
    for (index_t at = 0; at < n; at += chunk) {
      const index_t m = std::min(chunk, n - at);
      const auto part = [&](TensorView<const float, 3> x) {
        x.data += at * x.stride[1], x.extent[1] = m;
        return x;
      };
      REQUIRE(rig.cache.forward(rig.ctx, 0, part(t.queries(shape)), part(t.keys(shape)), part(t.values(shape)),
                                dense_view(out.data(), 6, m, 32), {}, at + m < n ? Phase::prefill_chunk : Phase::prefill_end) ==
              Status::ok);
    }
    std::vector<index_t> all;
    for (index_t h = 0; h < 2; ++h)
      for (index_t s = 0; s < rig.cache.slots(0, h); ++s) all.push_back(rig.cache.token(0, h, s));
    return all;
  };
  const auto compare = [&](const auto& position, const auto& quant) {
    const auto want = run(60, position, quant);
    for (const index_t chunk : {1, 3, 7, 8, 13, 59}) REQUIRE(run(chunk, position, quant) == want);
  };
  compare(position::Absolute{}, KeepExact{});
  compare(position::Reindex{}, KeepExact{});
  compare(position::Rerotate{}, KeepExact{});
}

TEST_CASE("query window: rollback, fork and snapshot carry it", "[cache][queries]") {
  Rig a(recipe(Peek{}, quant::GroupInt<8>{.group_size = 16}));
  REQUIRE(a.forward(50, Phase::prefill_chunk) == Status::ok);
  for (int i = 0; i < 4; ++i) REQUIRE(a.forward(1, Phase::prefill_chunk) == Status::ok);
  auto copy = a.cache.fork();
  REQUIRE(copy.status() == Status::ok);
  test::ByteList file;
  REQUIRE(save(a.cache, file) == Status::ok);
  Rig loaded(recipe(Peek{}, quant::GroupInt<8>{.group_size = 16}));
  REQUIRE(load(loaded.cache, file.bytes) == Status::ok);
  Rig drafted(recipe(Peek{}, quant::GroupInt<8>{.group_size = 16}));
  REQUIRE(load(drafted.cache, file.bytes) == Status::ok);
  {  // drafts that are taken back leave no query behind
    std::mt19937 other(99);
    const test::Tokens t(shape, 5, other);
    REQUIRE(drafted.cache.append(drafted.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(drafted.cache.truncate(54) == Status::ok);
  }
  const auto end = [&](auto& cache, Context<Cpu>& ctx) {
    std::mt19937 same(7);
    const test::Tokens t(shape, 3, same);
    std::vector<float> out(t.q.size());
    REQUIRE(cache.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 6, 3, 32), {},
                          Phase::prefill_end) == Status::ok);
    std::vector<index_t> kept;
    for (index_t h = 0; h < 2; ++h)
      for (index_t s = 0; s < cache.slots(0, h); ++s) kept.push_back(cache.token(0, h, s));
    return kept;
  };
  const auto want = end(a.cache, a.ctx);
  REQUIRE(end(*copy, a.ctx) == want);
  REQUIRE(end(loaded.cache, loaded.ctx) == want);
  REQUIRE(end(drafted.cache, drafted.ctx) == want);
  for (std::size_t cut = 0; cut < file.bytes.size(); cut += 97)
    REQUIRE(load(loaded.cache, std::span(file.bytes).first(cut)) == Status::corrupt_data);
}

TEST_CASE("query window: steps without the queries they need are refused", "[cache][queries]") {
  Rig r(recipe(Peek{}));
  std::mt19937 random(3);
  const test::Tokens t(shape, 20, random);
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{}) == Status::missing_input);
  StepInputs few{.queries = t.queries(shape)};
  few.queries.extent[1] = 7;  // the window looks at eight
  REQUIRE(r.cache.step(r.ctx, 0, few) == Status::missing_input);
  StepInputs narrow{.queries = t.queries(shape)};
  narrow.queries.extent[0] = 5;
  REQUIRE(r.cache.step(r.ctx, 0, narrow) == Status::shape_mismatch);
  REQUIRE(r.cache.pending() == 20);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.queries = t.queries(shape)}) == Status::ok);
  REQUIRE(r.cache.capabilities().needs == Inputs(Input::queries));
  REQUIRE(r.cache.report().bytes() == r.memory.live_bytes);
}
