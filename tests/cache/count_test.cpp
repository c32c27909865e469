// Attention that is added to a policy's sums where it is computed: a cache that does so holds, byte for byte, what one does whose
// mass is written and read again, whatever is refused in between.

#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/budget/ada.hpp>
#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <support/byte_list.hpp>
#include <support/saved.hpp>
#include <support/memory.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

/// Tasks in turn, dealt to `n` workers.
class Dealt : public Executor {
 public:
  explicit Dealt(index_t n) : n_(n) {}
  index_t workers() const noexcept override { return n_; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    for (index_t i = tasks; i-- > 0;) body(state, i, i % n_);
  }

 private:
  index_t n_;
};

/// The same policy, whose source counts the steps that got a mass, and whose steps may want a number per token besides.
template <class Source>
struct Watched : Source {
  static inline int masses = 0;
  static inline bool asks = false;
  Inputs inputs() const { return asks ? Inputs(Input::surprise) : Inputs{}; }
  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, evict::LaneViews lanes) const {
    ++masses;
    return Source::observe(ctx, view, lanes);
  }
};
template <class P>
struct Seen : P {
  auto pipeline() const {
    const auto p = P::pipeline();
    return evict::Pipeline{Watched<decltype(p.source)>{p.source}, p.pool, p.protect, p.allocate, p.select, p.trigger, p.residual};
  }
};
template <class P>
using WatchedOf = Watched<decltype(std::declval<P>().pipeline().source)>;

constexpr index_t most = 4096, longest = 96;

template <class P, class... Others>
struct Rig {
  using Recipe = decltype(recipe(std::declval<Seen<P>>(), std::declval<Others>()...));
  CacheShape shape;
  test::CountingMemory memory;
  Cache<Cpu, Recipe> cache;
  Workspace work;
  Dealt executor;
  std::vector<float> out, mass;

  Rig(const CacheShape& s, index_t workers, const P& policy, const Others&... others)
      : shape(s), cache(std::move(*make_cache<Cpu>(s, recipe(Seen<P>{policy}, others...), memory))), executor(workers) {
    REQUIRE(work.reserve(cache.workspace_bytes(most, longest, workers)) == Status::ok);
  }
  Context<Cpu> context() { return Context<Cpu>(work.bytes(), &executor); }
  TensorView<float, 3> room(index_t n) {
    out.assign(static_cast<std::size_t>(shape.q_heads * n * shape.values()), 0.0f);
    return dense_view(out.data(), shape.q_heads, n, shape.values());
  }
  void append(const test::Tokens& t) {
    auto ctx = context();
    REQUIRE(cache.append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  }
  Status attend_counted(const test::Tokens& t) {
    auto ctx = context();
    return cache.attend_counted(ctx, 0, t.queries(shape), room(t.n));
  }
  Status step(const StepInputs& inputs = {}) {
    auto ctx = context();
    return cache.step(ctx, 0, inputs);
  }
  Status forward(const test::Tokens& t, const StepInputs& inputs = {}) {
    auto ctx = context();
    return cache.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), room(t.n), {}, Phase::automatic, inputs);
  }
  /// A prompt that nobody attended to.
  void prompt(const test::Tokens& t) {
    append(t);
    auto ctx = context();
    mass.assign(static_cast<std::size_t>(cache.total_slots(0)), 0.25f);
    REQUIRE(cache.step(ctx, 0, StepInputs{.attention = {cache.ragged(0, mass.data()), cache.mass_rows(t.n)}}) == Status::ok);
  }
  /// With a mass that is written and read.
  void written(const test::Tokens& t) {
    append(t);
    auto ctx = context();
    mass.assign(static_cast<std::size_t>(cache.total_slots(0)), 7.0f);
    const auto view = cache.ragged(0, mass.data());
    REQUIRE(cache.attend(ctx, 0, t.queries(shape), room(t.n), {.mass = view}) == Status::ok);
    REQUIRE(cache.step(ctx, 0, StepInputs{.attention = {view, cache.mass_rows(t.n)}}) == Status::ok);
  }
  /// Which tokens are there, and the policy's numbers of them.
  std::vector<float> numbers() const {
    std::vector<float> all;
    for (const auto& head : cache.layers()[0].heads)
      for (index_t i = 0; i < head.slots(); ++i) {
        all.push_back(static_cast<float>(head.ids[i]));
        for (index_t l = 0; l < head.lanes; ++l) all.push_back(head.lane[l][i]);
      }
    return all;
  }
  std::vector<std::byte> file() const { return test::saved(cache); }
};

/// Prompt and tokens, with a mass that is written, by `forward` and in two calls: outputs and files are the same. Chunks of
/// more rows than one block of attention are not counted, and change nothing.
template <class P, class... Others>
void counts_the_same(const CacheShape& shape, index_t workers, index_t prompt, index_t chunk, const P& policy, const Others&... others) {
  CAPTURE(shape.q_heads, shape.kv_heads, shape.head_dim, workers, prompt, chunk);
  Rig<P, Others...> plain(shape, workers, policy, others...), whole(shape, workers, policy, others...), apart(shape, workers, policy, others...);
  std::mt19937 random(11);
  const test::Tokens first(shape, prompt, random);
  plain.prompt(first), whole.prompt(first), apart.prompt(first);
  for (int i = 0; i < 12; ++i) {
    const test::Tokens t(shape, i % 5 == 4 ? chunk : 1, random);
    const bool counts = shape.group() * t.n <= 32;
    plain.written(t);
    int& masses = WatchedOf<P>::masses;
    masses = 0;
    REQUIRE(whole.forward(t) == Status::ok);
    REQUIRE(masses == (counts ? 0 : 1));
    REQUIRE((whole.out == plain.out));
    REQUIRE((whole.file() == plain.file()));
    apart.append(t);
    REQUIRE(apart.cache.wants_mass(0));
    REQUIRE(apart.cache.counts_attention(0, t.n) == counts);
    if (counts) {
      REQUIRE(apart.attend_counted(t) == Status::ok);
      REQUIRE((apart.out == plain.out));
      REQUIRE(!apart.cache.wants_mass(0));
      REQUIRE(apart.cache.missing(0, {}) == nullptr);
      REQUIRE(apart.step() == Status::ok);
      REQUIRE(masses == 0);
      REQUIRE((apart.file() == plain.file()));
    } else {
      REQUIRE(apart.attend_counted(t) == Status::not_supported);
      REQUIRE(apart.cache.truncate(apart.cache.length() - t.n) == Status::ok);
      apart.written(t);
    }
  }
}

CacheShape shape_of(index_t group, index_t heads, index_t dim) {
  return {.layers = 1, .q_heads = heads * group, .kv_heads = heads, .head_dim = dim, .page_slots = 16};
}
const CacheShape small = shape_of(4, 2, 16);
const evict::H2O some{.heavy = 20, .recent = 12};
const quant::Kivi<4> codes{.group_size = 16, .residual_window = 16};

/// `forward` with every size of scratch, and with memory refused at one request after the other: what is refused leaves
/// nothing, and the same call later gives what it would have given.
template <class P, class... Others>
void survives(const CacheShape& shape, const P& policy, const Others&... others) {
  Rig<P, Others...> rig(shape, 1, policy, others...);
  std::mt19937 random(12);
  rig.prompt(test::Tokens(shape, 60, random));
  int refusals = 0, counted = 0;
  for (int round = 0; round < 20; ++round) {
    const test::Tokens t(shape, 1, random);
    const auto before = rig.file();
    auto start = rig.cache.fork();
    REQUIRE(start);
    REQUIRE(rig.forward(t) == Status::ok);
    // Where memory is refused, rows that left may lie in their pages longer than they would.
    const auto after = rig.numbers();
    const auto again = [&](std::size_t bytes, auto&& refuse) {
      auto copy = start->fork();
      REQUIRE(copy);
      rig.cache = std::move(*copy);
      WatchedOf<P>::masses = 0;
      refuse();
      Context<Cpu> ctx(rig.work.bytes().first(bytes));
      const Status s = rig.cache.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), rig.room(1));
      rig.memory.refuse_from = -1;
      counted += s == Status::ok && WatchedOf<P>::masses == 0;
      if (s != Status::ok) {
        ++refusals;
        REQUIRE((rig.file() == before));
        REQUIRE(rig.forward(t) == Status::ok);
      }
      REQUIRE((rig.numbers() == after));
      return s;
    };
    Status s = Status::out_of_memory;
    for (long n = 0; s != Status::ok; ++n) {
      s = again(rig.work.bytes().size(), [&] { rig.memory.refuse_from = rig.memory.requests + n; });
      REQUIRE((s == Status::ok || s == Status::out_of_memory));
      REQUIRE(n < 1000);
    }
    const std::size_t full = rig.cache.workspace_bytes(80, 1);
    for (std::size_t bytes = 0; round % 10 == 0 && bytes < full; bytes += 64) {
      s = again(bytes, [] {});
      REQUIRE((s == Status::ok || s == Status::workspace_too_small));
    }
    REQUIRE(again(full, [] {}) == Status::ok);
  }
  REQUIRE(refusals > 20);
  REQUIRE(counted > 20);
}

}  // namespace

TEST_CASE("cache: attention that is counted where it is computed, groups and widths", "[cache][count]") {
  for (const index_t group : {1, 4, 7})
    for (const index_t dim : {64, 80, 128})
      for (const index_t workers : {1, 2}) counts_the_same(shape_of(group, 2, dim), workers, 50, 32 / group, some);
  counts_the_same(shape_of(16, 1, 96), 1, 50, 2, some);
}

TEST_CASE("cache: counted attention over parts of a head, chunks and codes", "[cache][count]") {
  const evict::H2O large{.heavy = 2000, .recent = 600};
  counts_the_same(shape_of(4, 1, 64), 2, 2650, 3, large);    // two workers share a head
  counts_the_same(shape_of(4, 1, 64), 2, 2650, 3, evict::H2O{.heavy = 2000, .recent = 900});  // and nothing leaves
  counts_the_same(shape_of(4, 2, 64), 1, 600, 9, evict::H2O{.heavy = 500, .recent = 90});     // 36 rows are two blocks
  for (const index_t group : {1, 4, 7}) counts_the_same(shape_of(group, 2, 64), 2, 70, 3, some, codes);
  // One worker, and more slots than it weighs at once.
  counts_the_same(shape_of(1, 2, 64), 1, 1100, 3, evict::H2O{.heavy = 900, .recent = 90});
}

TEST_CASE("cache: counted attention of policies over the same sums", "[cache][count]") {
  for (const index_t group : {3, 4, 7})  // a third and a seventh of a sum are rounded
    counts_the_same(shape_of(group, 2, 16), 1, 50, 3, evict::ObservedAttention{.keep = 0.5, .sinks = 2, .recent = 8});
  counts_the_same(small, 2, 50, 3, budget::Ada{some, 0.2});  // heads of different lengths
  counts_the_same(small, 1, 50, 3, some, position::Rerotate{});
  counts_the_same(small, 1, 50, 3, evict::Every{some, 5});
  Rig<evict::Tova> other(small, 1, evict::Tova{.tokens = 40});
  std::mt19937 random(13);
  other.prompt(test::Tokens(small, 50, random));
  const test::Tokens t(small, 1, random);
  other.append(t);
  REQUIRE(!other.cache.counts_attention(0));
  REQUIRE(other.attend_counted(t) == Status::not_supported);
  Rig<evict::H2O, retrieve::Quest> part(small, 1, some, retrieve::Quest{.tokens = 32, .dense_layers = 0});
  part.prompt(test::Tokens(small, 50, random));
  part.append(t);
  REQUIRE(!part.cache.counts_attention(0));
}

TEST_CASE("cache: what is refused counts no attention", "[cache][count][faults]") {
  survives(small, some);
  survives(shape_of(1, 8, 16), some);  // a step takes more workspace than attention
  survives(small, some, codes);
  survives(small, evict::Every{some, 3}, codes);
}

TEST_CASE("cache: a step that misses an input counts no attention in forward", "[cache][count][faults]") {
  using W = WatchedOf<evict::H2O>;
  Rig<evict::H2O> rig(small, 1, some);
  std::mt19937 random(14);
  rig.prompt(test::Tokens(small, 50, random));
  W::asks = true, W::masses = 0;
  const test::Tokens t(small, 1, random);
  const float surprise[] = {1.0f};
  auto twin = rig.cache.fork();
  REQUIRE(twin);
  const auto before = rig.file();
  REQUIRE(rig.forward(t) == Status::missing_input);
  REQUIRE((rig.file() == before));
  REQUIRE(rig.forward(t, {.surprise = surprise}) == Status::ok);
  REQUIRE(W::masses == 0);
  const auto after = rig.file();
  std::swap(rig.cache, *twin);
  // In two calls the step is refused, and called again.
  rig.append(t);
  REQUIRE(rig.attend_counted(t) == Status::ok);
  REQUIRE(std::string(rig.cache.missing(0, {})) == "surprise");
  REQUIRE(rig.step() == Status::missing_input);
  REQUIRE(rig.step({.surprise = surprise}) == Status::ok);
  W::asks = false;
  REQUIRE((rig.file() == after));
}

TEST_CASE("cache: a step whose inputs no step takes counts no attention in forward", "[cache][count][faults]") {
  Rig<evict::H2O> rig(small, 1, some);
  std::mt19937 random(16);
  rig.prompt(test::Tokens(small, 50, random));
  const test::Tokens t(small, 1, random);
  const auto before = rig.file();
  REQUIRE(rig.forward(t, {.incoming = -1}) == Status::invalid_argument);
  REQUIRE((rig.file() == before));
  REQUIRE(rig.forward(t) == Status::ok);
}

TEST_CASE("cache: no layer loses tokens while attention of another is counted", "[cache][count][faults]") {
  CacheShape two = small;
  two.layers = 2;
  Rig<evict::H2O> rig(two, 1, some), plain(two, 1, some);
  std::mt19937 random(17);
  const test::Tokens first(two, 50, random), t(two, 1, random);
  for (auto* r : {&rig, &plain})
    for (const index_t layer : {0, 1}) {
      auto ctx = r->context();
      REQUIRE(r->cache.forward(ctx, layer, first.queries(two), first.keys(two), first.values(two), r->room(50)) == Status::ok);
    }
  auto ctx = rig.context(), other = plain.context();
  for (const index_t layer : {0, 1}) {
    REQUIRE(plain.cache.forward(other, layer, t.queries(two), t.keys(two), t.values(two), plain.room(1)) == Status::ok);
    REQUIRE(rig.cache.append(ctx, layer, t.keys(two), t.values(two)) == Status::ok);
  }
  for (const index_t layer : {1, 0}) {
    REQUIRE(rig.cache.attend_counted(ctx, layer, t.queries(two), rig.room(1)) == Status::ok);
    REQUIRE(rig.cache.truncate(50) == Status::order_violation);
    REQUIRE(rig.cache.step(ctx, layer, StepInputs{}) == Status::ok);
  }
  REQUIRE((rig.file() == plain.file()));
}

TEST_CASE("cache: between counted attention and its step", "[cache][count][faults]") {
  const auto check = [](const evict::H2O& policy, const auto&... stages) {
    using H = Rig<evict::H2O, std::remove_cvref_t<decltype(stages)>...>;
    H rig(small, 1, policy, stages...), plain(small, 1, policy, stages...);
    std::mt19937 random(15);
    const test::Tokens first(small, 60, random);
    rig.prompt(first), plain.prompt(first);
    int refused = 0;
    for (int i = 0; i < 40; ++i) {
      const test::Tokens t(small, 1, random);
      auto ctx = rig.context();
      REQUIRE(rig.attend_counted(t) == Status::order_violation);  // nothing is pending
      rig.append(t), plain.written(t);
      const auto before = rig.file();
      Context<Cpu> none;
      REQUIRE(rig.cache.attend_counted(none, 0, t.queries(small), rig.room(1)) == Status::workspace_too_small);
      REQUIRE(rig.cache.attend_counted(ctx, 1, t.queries(small), rig.room(1)) == Status::out_of_range);
      rig.mass.resize(static_cast<std::size_t>(rig.cache.total_slots(0)));
      REQUIRE(rig.cache.attend_counted(ctx, 0, t.queries(small), rig.room(1), {.mass = rig.cache.ragged(0, rig.mass.data())}) == Status::not_supported);
      rig.memory.refuse_from = rig.memory.requests;
      const Status asked = rig.attend_counted(t);
      rig.memory.refuse_from = -1;
      refused += asked == Status::out_of_memory;
      if (asked != Status::ok) {
        REQUIRE(asked == Status::out_of_memory);
        REQUIRE((rig.file() == before));
        REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
        REQUIRE(rig.cache.attend_counted(ctx, 0, t.queries(small), rig.room(2)) == Status::shape_mismatch);  // room that was made goes back
        REQUIRE((rig.file() == before));
        REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
        REQUIRE(rig.attend_counted(t) == Status::ok);
      }
      REQUIRE((rig.out == plain.out));

      REQUIRE(rig.attend_counted(t) == Status::order_violation);
      REQUIRE(rig.cache.append(ctx, 0, t.keys(small), t.values(small)) == Status::order_violation);
      REQUIRE(rig.forward(t) == Status::order_violation);
      REQUIRE(rig.cache.truncate(rig.cache.length() - 1) == Status::order_violation);
      REQUIRE(rig.cache.truncate(0) == Status::order_violation);
      REQUIRE(rig.cache.truncate(rig.cache.length()) == Status::ok);
      REQUIRE(rig.cache.remove(ctx, 0, 3) == Status::order_violation);
      REQUIRE(rig.cache.turn(ctx) == Status::order_violation);
      REQUIRE(rig.cache.step(ctx, 0, StepInputs{}, Phase::probe) == Status::order_violation);
      test::ByteList sink;
      REQUIRE(save(rig.cache, sink) == Status::order_violation);
      REQUIRE(sink.bytes.empty());
      REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
      REQUIRE(rig.cache.attend(ctx, 0, t.queries(small), rig.room(1)) == Status::ok);
      REQUIRE((rig.out == plain.out));
      REQUIRE(rig.cache.step(none, 0, StepInputs{}) == Status::workspace_too_small);

      // Memory is made already; the two of a fork may need some, and go on alike, in whatever order.
      if (i % 3 == 0) {
        rig.memory.refuse_from = rig.memory.requests;
        REQUIRE(rig.step() == Status::ok);
        rig.memory.refuse_from = -1;
      } else {
        auto twin = rig.cache.fork();
        REQUIRE(twin);
        if (i % 3 == 1) std::swap(rig.cache, *twin);
        REQUIRE(rig.step() == Status::ok);
        REQUIRE((rig.file() == plain.file()));
        std::swap(rig.cache, *twin);
        rig.memory.refuse_from = rig.memory.requests;
        const Status s = rig.step();
        rig.memory.refuse_from = -1;
        if (s != Status::ok) {
          REQUIRE(s == Status::out_of_memory);
          REQUIRE(rig.step() == Status::ok);
        }
      }
      REQUIRE((rig.file() == plain.file()));
      REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
    }
    REQUIRE((refused > 0) == (sizeof...(stages) > 0));  // only codes ask for memory
    const test::Tokens t(small, 1, random);
    rig.append(t);
    REQUIRE(rig.attend_counted(t) == Status::ok);
    rig.cache.reset();
    rig.prompt(first);
    H fresh(small, 1, policy, stages...);
    fresh.prompt(first);
    REQUIRE((rig.file() == fresh.file()));
  };
  check(some);
  check(evict::H2O{.heavy = 200, .recent = 12}, codes);
}
