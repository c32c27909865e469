#include <cstddef>
#include <utility>
#include <vector>

#include <support/byte_list.hpp>
#include <support/saved.hpp>
#include <support/cache_model.hpp>

#include <kvcondense/budget/ada.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/dms.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/paged_h2o.hpp>
#include <kvcondense/evict/strided_blocks.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;
using evict::Touches;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 8};

/// The same source, which does not say what it touches, so that it gets copies.
template <class Source>
struct Quiet : Source {
  constexpr Touches touches() const { return Touches::any; }
};
/// The same source, which counts how often it is lent numbers.
template <class Source>
struct Watched : Source {
  static inline int lent = 0;
  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes) const {
    lent += lanes[0].rows != nullptr;
    return Source::observe(ctx, view, lanes);
  }
};
template <class P>
struct Lent : P {
  auto pipeline() const {
    const auto p = P::pipeline();
    return evict::Pipeline{Watched<decltype(p.source)>{p.source}, p.pool, p.protect, p.allocate, p.select, p.trigger, p.residual};
  }
};
template <class P>
struct Copied : P {
  auto pipeline() const {
    const auto p = P::pipeline();
    return evict::Pipeline{Quiet<decltype(p.source)>{p.source}, p.pool, p.protect, p.allocate, p.select, p.trigger, p.residual};
  }
};

/// A choice that is refused as often as `left` says.
struct RefusedTopK : evict::TopK {
  static inline int left = 0;
  constexpr bool asks_for_room_alone() const { return false; }
  template <class... Rest>
  Status run(Rest&&... rest) const {
    return left-- > 0 ? Status::not_supported : evict::TopK::run(std::forward<Rest>(rest)...);
  }
};
template <class P>
struct Refused : P {
  auto pipeline() const { return P::pipeline().with_select(RefusedTopK{}); }
};

/// A cache of a policy and what else there is.
template <class P, class... Others>
struct Rig {
  using Recipe = decltype(recipe(std::declval<P>(), std::declval<Others>()...));
  test::CountingMemory memory;
  Cache<Cpu, Recipe> cache;
  Workspace work;

  explicit Rig(const P& policy, const Others&... others) : cache(std::move(*make_cache<Cpu>(shape, recipe(policy, others...), memory))) {
    REQUIRE(work.reserve(cache.workspace_bytes(128, 64)) == Status::ok);
  }
  /// Steps of all layers, each called until it is not refused any more; how often it was.
  int feed(const test::Tokens& t, Phase phase) {
    int refusals = 0;
    Context<Cpu> ctx(work.bytes());
    for (index_t l = 0; l < shape.layers; ++l) {
      REQUIRE(cache.append(ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.head_dim)), mass(static_cast<std::size_t>(cache.total_slots(l)));
      const auto view = cache.ragged(l, mass.data());
      REQUIRE(cache.attend(ctx, l, t.queries(shape), dense_view(out.data(), shape.q_heads, t.n, shape.head_dim), {.mass = view}) == Status::ok);
      const auto before = file();
      const StepInputs inputs{.attention = {view, cache.mass_rows(t.n)}, .queries = t.queries(shape)};
      for (;; ++refusals) {
        const Status s = cache.step(ctx, l, inputs, phase);
        if (s == Status::ok) break;
        REQUIRE(s == Status::not_supported);
        REQUIRE((file() == before));
      }
    }
    return refusals;
  }
  std::vector<std::byte> file() const { return test::saved(cache); }
};

/// Whatever is lent, numbers are those that copies get.
template <class P, class... Others>
void lends(const P& policy, const Others&... others) {
  Rig<Lent<P>, Others...> lent(Lent<P>{policy}, others...);
  Rig<Copied<P>, Others...> copied(Copied<P>{policy}, others...);
  Watched<decltype(policy.pipeline().source)>::lent = 0;
  std::mt19937 random(7);
  const auto both = [&](index_t n, Phase phase) {
    const test::Tokens t(shape, n, random);
    lent.feed(t, phase), copied.feed(t, phase);
    REQUIRE((lent.file() == copied.file()));
  };
  both(20, Phase::prefill_chunk), both(11, Phase::prefill_end);
  for (int i = 0; i < 40; ++i) both(i % 9 == 8 ? 3 : 1, Phase::decode);
  REQUIRE(Watched<decltype(policy.pipeline().source)>::lent > 40);
  const auto twin = lent.cache.fork();
  REQUIRE(twin);
  test::ByteList before, after;
  REQUIRE(save(*twin, before) == Status::ok);
  both(1, Phase::decode);
  REQUIRE(save(*twin, after) == Status::ok);
  REQUIRE((before.bytes == after.bytes));
}

template <class P>
void survives(const P& policy) {
  Rig<Refused<P>> refused(Refused<P>{policy});
  Rig<P> plain(policy);
  std::mt19937 random(8);
  int refusals = 0;
  for (const index_t n : {30, 1, 1, 2, 1}) {
    const test::Tokens t(shape, n, random);
    const Phase phase = n > 20 ? Phase::prefill_end : Phase::decode;
    RefusedTopK::left = 3;
    refusals += refused.feed(t, phase);
    plain.feed(t, phase);
    REQUIRE((refused.file() == plain.file()));
  }
  REQUIRE(refusals > 10);
}

/// Steps that are refused memory, at one request after the other: numbers are those of a cache that never was.
template <class P, class... Others>
void survives_refused_memory(const P& policy, const Others&... others) {
  Rig<Lent<P>, Others...> refused(Lent<P>{policy}, others...);
  Rig<P, Others...> plain(policy, others...);
  Context<Cpu> ctx(refused.work.bytes());
  std::mt19937 random(10);
  int refusals = 0, copies = 0;
  for (int round = 0; round < 40; ++round) {
    const test::Tokens t(shape, round == 0 ? 30 : 1, random);
    const Phase phase = round == 0 ? Phase::prefill_end : Phase::decode;
    plain.feed(t, phase);
    for (index_t l = 0; l < shape.layers; ++l) {
      REQUIRE(refused.cache.append(ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.head_dim)), mass(static_cast<std::size_t>(refused.cache.total_slots(l)));
      const auto view = refused.cache.ragged(l, mass.data());
      REQUIRE(refused.cache.attend(ctx, l, t.queries(shape), dense_view(out.data(), shape.q_heads, t.n, shape.head_dim), {.mass = view}) == Status::ok);
      const StepInputs inputs{.attention = {view, refused.cache.mass_rows(t.n)}, .queries = t.queries(shape)};
      const auto before = refused.file();
      for (long n = 0;; ++n) {
        const int lent = Watched<decltype(policy.pipeline().source)>::lent;
        refused.memory.refuse_from = refused.memory.requests + n;
        const Status s = refused.cache.step(ctx, l, inputs, phase);
        refused.memory.refuse_from = -1;
        copies += phase == Phase::decode && Watched<decltype(policy.pipeline().source)>::lent == lent;
        if (s == Status::ok) break;
        REQUIRE(s == Status::out_of_memory);
        REQUIRE((refused.file() == before));
        ++refusals;
        REQUIRE(n < 1000);
      }
    }
    REQUIRE((refused.file() == plain.file()));
  }
  REQUIRE(refusals > 0);
  REQUIRE(copies > 0);  // where room cannot be made before the policy looks, it looks at copies
}

/// Steps with less and less scratch than they ask for: whichever piece is the one that is refused, numbers stay.
template <class P>
void survives_less_scratch(const P& policy) {
  Rig<P> rig(policy);
  std::mt19937 random(9);
  rig.feed(test::Tokens(shape, 30, random), Phase::prefill_end);
  const test::Tokens t(shape, 1, random);
  Context<Cpu> ctx(rig.work.bytes());
  REQUIRE(rig.cache.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim)), mass(static_cast<std::size_t>(rig.cache.total_slots(0)));
  const auto view = rig.cache.ragged(0, mass.data());
  REQUIRE(rig.cache.attend(ctx, 0, t.queries(shape), dense_view(out.data(), shape.q_heads, 1, shape.head_dim), {.mass = view}) == Status::ok);
  const StepInputs inputs{.attention = {view, rig.cache.mass_rows(1)}, .queries = t.queries(shape)};
  const auto before = rig.file();
  int refusals = 0;
  for (std::size_t bytes = 0; bytes <= rig.work.bytes().size(); bytes += 64) {
    Context<Cpu> less(rig.work.bytes().first(bytes));
    const Status s = rig.cache.step(less, 0, inputs, Phase::decode);
    if (s == Status::ok) break;
    REQUIRE(s == Status::workspace_too_small);
    REQUIRE((rig.file() == before));
    ++refusals;
  }
  REQUIRE(refusals > 2);
  REQUIRE_FALSE((rig.file() == before));
}

}  // namespace

TEST_CASE("touches: blocks say what a step may change, and wrappers pass it on", "[evict][touches]") {
  const evict::H2O h2o{.heavy = 8, .recent = 4};
  REQUIRE(evict::touches(h2o.pipeline().source) == Touches::whole);
  REQUIRE(h2o.pipeline().asks_for_room_alone());
  REQUIRE(budget::Ada{h2o}.pipeline().asks_for_room_alone());
  REQUIRE_FALSE(evict::Caote{h2o}.pipeline().asks_for_room_alone());
  REQUIRE(evict::touches(evict::Knorm{}.pipeline().source) == Touches::newest);
  REQUIRE(evict::touches(evict::PagedH2O{}.pipeline().source) == Touches::whole);
  REQUIRE(evict::touches(evict::Tova{}.pipeline().source) == Touches::any);
  REQUIRE(evict::touches(evict::Dms{.of_previous = false}.pipeline().source) == Touches::newest);
  REQUIRE(evict::touches(evict::Dms{.of_previous = true}.pipeline().source) == Touches::any);
  REQUIRE(evict::touches(evict::StridedBlocks{}.pipeline().source) == Touches::newest);
  REQUIRE(evict::touches(evict::LagKV{}.pipeline().source) == Touches::none);
  REQUIRE(evict::touches(evict::ObservedAttention{}.pipeline().source) == Touches::whole);
}

TEST_CASE("touches: numbers that are lent end as copies do, bit for bit", "[evict][touches]") {
  const evict::H2O h2o{.heavy = 8, .recent = 4};
  lends(h2o);
  lends(evict::Every{h2o, 5});
  lends(budget::Ada{h2o});
  lends(evict::Knorm{.tokens = 12, .recent = 4});
  lends(evict::Every{evict::Knorm{.tokens = 12, .recent = 4}, 5});
  lends(evict::PagedH2O{.page = 4, .start = 4, .evictable = 8, .recent = 4});
  lends(evict::StridedBlocks{.block = 2, .local = 3, .every = 2});
  lends(evict::LagKV{.sinks = 2, .lag = 4});
  lends(evict::ExitThreshold{h2o, 0.1f, 6});
  lends(evict::Every{evict::ObservedAttention{.keep = 0.5, .sinks = 1, .recent = 2}, 5});
  const auto kivi = quant::Kivi<4>{.group_size = 8, .residual_window = 8};
  lends(h2o, kivi);
  lends(evict::Every{h2o, 5}, kivi);
}

TEST_CASE("touches: a step that is refused when the policy has looked leaves its numbers", "[evict][touches]") {
  survives(evict::H2O{.heavy = 8, .recent = 4});
  survives(evict::Knorm{.tokens = 12, .recent = 4});
  survives_refused_memory(evict::H2O{.heavy = 40, .recent = 8}, quant::Kivi<4>{.group_size = 8, .residual_window = 8});
  survives_less_scratch(evict::H2O{.heavy = 8, .recent = 4});
  survives_less_scratch(evict::PagedH2O{.page = 4, .start = 4, .evictable = 8, .recent = 4});
  survives_less_scratch(evict::Knorm{.tokens = 12, .recent = 4});
}
