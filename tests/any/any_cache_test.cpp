#include <cstring>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <support/saved.hpp>
#include <support/catalogue.hpp>
#include <support/memory.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

using test::saved;

namespace {

/// Drives a cache made from text and the cache of the same recipe as a type with the same calls.
template <class R>
struct Twins {
  CacheShape shape;
  any::AnyCache text;
  Cache<Cpu, R> type;
  Workspace work{};
  std::mt19937 random{3};

  Twins(const CacheShape& s, any::AnyCache a, Cache<Cpu, R> t)
      : shape(s), text(std::move(a)), type(std::move(t)) {
    REQUIRE(text.workspace_bytes(512, 128) == type.workspace_bytes(512, 128));
    REQUIRE(work.reserve(type.workspace_bytes(512, 128)) == Status::ok);
  }

  void forward(index_t n) {
    Context<Cpu> ctx(work.bytes());
    for (index_t l = 0; l < shape.layers; ++l) {
      const test::Tokens t(shape, n, random);
      std::vector<float> out[2];
      const auto run = [&](auto& cache, std::vector<float>& o) {
        o.resize(static_cast<std::size_t>(shape.q_heads * n * shape.values()));
        REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                              dense_view(o.data(), shape.q_heads, n, shape.values())) ==
                Status::ok);
      };
      run(text, out[0]), run(type, out[1]);
      REQUIRE(std::memcmp(out[0].data(), out[1].data(), out[0].size() * sizeof(float)) == 0);
    }
    REQUIRE(saved(text) == saved(type));
  }

  /// A token whose attention the text's cache counts in calls of their own, where it does.
  void counted() {
    Context<Cpu> ctx(work.bytes());
    REQUIRE(text.counts_attention(0) == type.counts_attention(0));
    for (index_t l = 0; type.counts_attention(0) && l < shape.layers; ++l) {
      const test::Tokens t(shape, 1, random);
      std::vector<float> room(static_cast<std::size_t>(shape.q_heads * shape.values()));
      const auto out = dense_view(room.data(), shape.q_heads, 1, shape.values());
      REQUIRE(text.append(ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      REQUIRE(text.attend_counted(ctx, l, t.queries(shape), out) == Status::ok);
      REQUIRE(text.step(ctx, l, StepInputs{}) == Status::ok);
      REQUIRE(type.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), out) == Status::ok);
    }
    REQUIRE(saved(text) == saved(type));
  }

  void truncate(index_t tokens) {
    REQUIRE(text.truncate(tokens) == Status::ok);
    REQUIRE(type.truncate(tokens) == Status::ok);
    REQUIRE(saved(text) == saved(type));
  }
  void remove(index_t first, index_t last) {
    Context<Cpu> ctx(work.bytes());
    REQUIRE(text.remove(ctx, first, last) == Status::ok);
    REQUIRE(type.remove(ctx, first, last) == Status::ok);
    REQUIRE(saved(text) == saved(type));
  }
};

template <class R>
void require_equal(const char* words, const R& recipe, const CacheShape& shape) {
  CAPTURE(words);
  auto a = any::make(words, shape, any::on<Cpu>);
  CAPTURE(std::string(a.message()));
  REQUIRE(a);
  auto b = make_cache<Cpu>(shape, recipe);
  REQUIRE(b.status() == Status::ok);
  Twins<R> twins(shape, std::move(*a), std::move(*b));
  REQUIRE(twins.text.capabilities().changes_length == twins.type.capabilities().changes_length);
  REQUIRE(twins.text.capabilities().needs == twins.type.capabilities().needs);
  REQUIRE(twins.text.capabilities().raw_keys == twins.type.capabilities().raw_keys);
  twins.forward(100);
  for (int i = 0; i < 40; ++i) twins.forward(1);
  twins.forward(17);
  twins.remove(50, 70);
  twins.truncate(150);
  for (int i = 0; i < 9; ++i) twins.forward(1);
  for (int i = 0; i < 3; ++i) twins.counted();

  // Snapshots are exchanged both ways.
  auto fresh_text = any::make(words, shape, any::on<Cpu>);
  auto fresh_type = make_cache<Cpu>(shape, recipe);
  REQUIRE((fresh_text && fresh_type));
  const auto file = saved(twins.type);
  REQUIRE(fresh_text->load(file) == Status::ok);
  REQUIRE(load(*fresh_type, saved(twins.text)) == Status::ok);
  REQUIRE(saved(*fresh_text) == file);
  REQUIRE(saved(*fresh_type) == file);

  auto fork = twins.text.fork();
  REQUIRE(fork);
  REQUIRE(saved(*fork) == file);
  twins.forward(3);
  REQUIRE(saved(*fork) == file);
  twins.text.reset();
  REQUIRE(twins.text.length() == 0);
}

}  // namespace

TEST_CASE("any cache: equals the cache of the same recipe as a type, bit for bit",
          "[any][any_cache]") {
  CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  require_equal("kivi4(group=16, residual=32)",
                recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32}), shape);
  require_equal("h2o(heavy=24, recent=16) + kivi2(group=16, residual=16, sinks=3)",
                recipe(evict::H2O{.heavy = 24, .recent = 16},
                       quant::Kivi<2>{.group_size = 16, .residual_window = 16, .sinks = 3}),
                shape);
  require_equal(
      "sink_window(sinks=2, recent=40) + reindex(theta=5000, pairing=interleaved)",
      recipe(evict::SinkWindow{.recent = 40, .sinks = 2},
             position::Reindex{{.pairing = prim::RopePairing::interleaved, .base = 5000.0}}),
      shape);
  shape.value_dim = 32;
  shape.dtype = DType::bf16;
  require_equal(
      "ada(snapkv(tokens=40, window=8), floor=0.3) + int4(key_axis=channel, group=16, residual=16)",
      recipe(budget::Ada{evict::SnapKV{.tokens = 40, .window = 8}, 0.3},
             quant::GroupInt<4>{
                 .key_axis = prim::GroupAxis::channel, .group_size = 16, .residual_window = 16}),
      shape);
  require_equal("pyramid(knorm(tokens=40, recent=8), beta=4) + int8 + rerotate",
                recipe(budget::Pyramid{evict::Knorm{.tokens = 40, .recent = 8}, 4.0},
                       quant::GroupInt<8>{}, position::Rerotate{}),
                shape);
}

TEST_CASE("any cache: a step without the attention that the recipe needs is refused",
          "[any][any_cache]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 32};
  Workspace work;
  REQUIRE(work.reserve(1 << 20) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(1);
  const test::Tokens t(shape, 4, random);
  for (const auto& [words, want] :
       {std::pair{"h2o", Status::missing_input}, std::pair{"sliding_window", Status::ok}}) {
    auto cache = any::make(words, shape, any::on<Cpu>);
    REQUIRE(cache);
    REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(cache->step(ctx, 0) == want);
    REQUIRE(cache->pending() == (want == Status::ok ? 0 : 4));
  }
}

TEST_CASE("any cache: a recipe that cannot be made says why in a sentence", "[any][any_cache]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const auto why = [&](const char* words, const CacheShape& s) {
    auto made = any::make(words, s, any::on<Cpu>);
    REQUIRE_FALSE(made);
    REQUIRE(made.status() != Status::ok);
    return std::string(made.message());
  };
  CHECK(why("h2o(heavi=3)", shape) == "at byte 4: h2o has no field 'heavi'; did you mean 'heavy'?");
  CHECK(why("h2o", CacheShape{.page_slots = 512}) ==
        "the shape of the cache is impossible: page_slots is at most 256");
  CHECK(why("ada(tova)", shape) ==
        "ada: incompatible; it cannot be combined with the policy that it wraps");
  CHECK(why("hadamard(kivi)", shape) ==
        "hadamard: incompatible; it cannot be combined with the quantizer that it wraps");
  CHECK(why("hadamard(hadamard(int4))", shape) ==
        "hadamard: incompatible; it cannot be combined with the quantizer that it wraps");
  CHECK(why("rerotate(scaling=dynamic_ntk)", shape) ==
        "rerotate: not_supported; it cannot serve this combination of fields");
  CHECK(why("h2o", CacheShape{.q_heads = 3, .kv_heads = 2}) ==
        "the shape of the cache is impossible");
}

TEST_CASE("any cache: a recipe whose numbers do not fit says which field it is",
          "[any][any_cache]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const std::string cache =
      " or this cache (head_dim 64, value_dim 64, 4 query heads, 2 kv heads, 1 layers)";
  const struct {
    const char *text, *said;
  } cases[] = {
      {"snapkv(tokens=16)",
       "snapkv: invalid_argument; tokens=16 does not fit its other fields (window=32, kernel=7, "
       "pool=maximum)"},
      {"kivi2(group_size=33)",
       "kivi: invalid_argument; group_size=33 does not fit its other fields (bits=2, "
       "residual_window=128, sinks=0, keep_window=0, math=int16)"},
      // Of two that are wrong no single one can be blamed.
      {"snapkv(tokens=16, kernel=4)",
       "snapkv: invalid_argument; its fields (tokens=16, window=32, kernel=4, pool=maximum) do not "
       "fit together"},
      // Inside wrappers, and beside a second stage that is wrong.
      {"boundary_layers(kivi(group=33), first=1)",
       "kivi: invalid_argument; group_size=33 does not fit its other fields (bits=2, "
       "residual_window=128, sinks=0, keep_window=0, math=int16)"},
      {"ada(snapkv(tokens=16)) + kivi(group=33)",
       "snapkv: invalid_argument; tokens=16 does not fit its other fields (window=32, kernel=7, "
       "pool=maximum)"},
      // Rows of 64 would do; half of them does not.
      {"online_pca(keep=50%) + kivi(group=64)",
       "kivi: invalid_argument; group_size=64 does not fit its other fields (bits=2, "
       "residual_window=128, sinks=0, keep_window=0, math=int16), "
       "other stages"},
  };
  for (const auto& c : cases) {
    const auto read = any::parse(c.text);
    REQUIRE(read);
    for (const auto& made :
         {any::make(c.text, shape, any::on<Cpu>), any::make(*read, shape, any::on<Cpu>)}) {
      CHECK(made.status() == Status::invalid_argument);
      CHECK(std::string(made.message()) == c.said + cache);
    }
  }
  // Where no field was given it is the cache.
  const auto made =
      any::make("kivi", CacheShape{.q_heads = 4, .kv_heads = 2, .head_dim = 40}, any::on<Cpu>);
  CHECK(std::string(made.message())
            .starts_with("kivi: invalid_argument; its fields (bits=2, group_size=32, "));
}

TEST_CASE("any cache: memory comes from the resource, all of it is reported and returned",
          "[any][any_cache]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  test::CountingMemory memory;
  {
    auto made = any::make("h2o(heavy=8, recent=8) + kivi2(group=8, residual=8)", shape,
                          any::on<Cpu>, memory);
    REQUIRE(made);
    any::AnyCache cache = std::move(*made);
    REQUIRE(cache.text() == "h2o(heavy=8, recent=8) + kivi(group_size=8, residual_window=8)");
    REQUIRE(cache.report().bytes() == memory.live_bytes);
    any::AnyCache caches[2] = {std::move(*cache.fork()), std::move(*cache.fork())};
    const index_t map[] = {1, 1};
    REQUIRE(any::reorder(caches, map) == Status::ok);
    REQUIRE(memory.live_bytes == 3 * cache.report().bytes());
  }
  REQUIRE(memory.live_bytes == 0);
  REQUIRE(memory.wrong_releases == 0);
  for (long n = 0; n < 100; ++n) {
    test::CountingMemory scarce;
    scarce.refuse_from = n;
    auto made = any::make("h2o + kivi2 + reindex", shape, any::on<Cpu>, scarce);
    if (made) return;
    REQUIRE(made.status() == Status::out_of_memory);
    REQUIRE(scarce.live_bytes == 0);
  }
  FAIL("never enough memory");
}

TEST_CASE("any cache: half and bfloat16 rows enter like the floats they stand for",
          "[any][any_cache]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32};
  const index_t n = 5;
  std::mt19937 random(2);
  const test::Tokens t(shape, n, random);
  const auto check = [&]<class T>(T) {
    std::vector<T> narrow(t.k.size());
    std::vector<float> wide(t.k.size());
    for (std::size_t i = 0; i < narrow.size(); ++i)
      narrow[i] = T(t.k[i]), wide[i] = static_cast<float>(narrow[i]);
    auto a = any::make("keep_all", shape, any::on<Cpu>),
         b = any::make("keep_all", shape, any::on<Cpu>);
    REQUIRE((a && b));
    Context<Cpu> ctx;
    const TensorView<const T, 3> x = dense_view(static_cast<const T*>(narrow.data()), 1, n, 16);
    const TensorView<const float, 3> y =
        dense_view(static_cast<const float*>(wide.data()), 1, n, 16);
    REQUIRE(a->append(ctx, 0, x, x) == Status::ok);
    REQUIRE(b->append(ctx, 0, y, y) == Status::ok);
    REQUIRE(saved(*a) == saved(*b));
  };
  check(half{});
  check(bfloat16{});
}

TEST_CASE("any cache: a provider is told what a call reads, and what is likely to be read", "[any][any_cache]") {
  struct Counting final : PageProvider<Cpu> {
    index_t calls = 0, brought = 0, expected = 0;
    void begin() noexcept override { ++calls; }
    Status bring(const PageUse&) noexcept override { return ++brought, Status::ok; }
    const std::byte* find(const PageUse& page) const noexcept override { return page.data; }
    void expect(const PageUse&) noexcept override { ++expected; }
  } pages;
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .page_slots = 16};
  const auto parsed = any::parse("quest(page=16, tokens=48, dense_layers=0, heads=group_sum)");
  REQUIRE(parsed);
  auto cache = any::AnyCache::make(parsed->stages, "", shape);
  REQUIRE(cache);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(128, 100)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(1);
  const test::Tokens prompt(shape, 96, random), one(shape, 1, random);
  REQUIRE(cache->append(ctx, 0, prompt.keys(shape), prompt.values(shape)) == Status::ok);
  REQUIRE(cache->step(ctx, 0) == Status::ok);
  std::vector<float> out(128);
  std::vector<SlotRun> runs(2 * 100);
  index_t count[2];
  REQUIRE(cache->attend(ctx, 0, one.queries(shape), dense_view(out.data(), 2, 1, 64), {.runs = {runs.data(), 100, count}, .pages = &pages}) == Status::ok);
  REQUIRE(pages.calls == 1);
  REQUIRE(pages.brought == 6);  // of keys and of values three pages of sixteen
  REQUIRE(cache->expect(0, {runs.data(), 100, count}, pages) == Status::ok);
  REQUIRE(pages.expected == 6);
}

TEST_CASE("any cache: rows of several heads or layers are stored together behind text too, and in files", "[any]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const test::RandomModel model(shape);
  for (const std::string word : {"minicache", "xkv", "joint_heads"}) {
    CAPTURE(word);
    const std::string text = test::settings.at(word).text;
    any::ParseResult recipe = any::parse(text, model.facts());
    REQUIRE(recipe);
    const auto make = [&](test::CountingMemory& memory) {
      auto cache = any::AnyCache::make(recipe->stages, recipe->text.view(), shape, memory);
      if (cache.status() == Status::incompatible) {  // bases of keys before rotation
        recipe = any::parse(text + " + rerotate", model.facts());
        REQUIRE(recipe);
        cache = any::AnyCache::make(recipe->stages, recipe->text.view(), shape, memory);
      }
      REQUIRE(cache.status() == Status::ok);
      return std::move(*cache);
    };
    test::CountingMemory memory, other;
    any::AnyCache cache = make(memory);
    Workspace work;
    REQUIRE(work.reserve(cache.workspace_bytes(512, 128)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    std::mt19937 random(5);
    for (const index_t n : {90, 1, 1}) {
      const test::Tokens t(shape, n, random);
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim));
      for (index_t l = 0; l < shape.layers; ++l)
        REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), shape.q_heads, n, shape.head_dim)) ==
                Status::ok);
    }
    REQUIRE(cache.report().across_rows > 0);
    REQUIRE(cache.report().bytes() == memory.live_bytes);
    const std::vector<std::byte> file = saved(cache);
    any::AnyCache loaded = make(other);
    REQUIRE(loaded.load(file) == Status::ok);
    REQUIRE(loaded.report().across_rows == cache.report().across_rows);
    REQUIRE(saved(loaded) == file);
  }
}
