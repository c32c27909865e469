#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cache/batch.hpp>
#include <kvcondense/cpu.hpp>
#include <support/memory.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

constexpr const char* texts[] = {"exact", "kivi2(group=16, residual=16)", "h2o(heavy=40, recent=24) + kivi4(group=8, residual=16)",
                                 "sink_window(sinks=4, recent=60) + reindex", "ada(snapkv(tokens=64, window=8)) + int8",
                                 "rkv(tokens=40, window=4, kernel=3, slack=8)", "kivi4(group=16, residual=16) + quest(tokens=32, dense_layers=0)",
                                 "h2o(heavy=40, recent=24) + d2o + int8"};

struct Threads final : Executor {
  index_t workers() const noexcept override { return 3; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    std::atomic<index_t> next{0};
    std::array<std::thread, 3> team;
    for (std::size_t w = 0; w < team.size(); ++w)
      team[w] = std::thread([&, w] {
        for (index_t t = next++; t < tasks; t = next++) body(state, t, static_cast<index_t>(w));
      });
    for (std::thread& t : team) t.join();
  }
};

any::AnyCache make(const std::string& text, MemoryResource<Cpu>& memory) {
  auto made = any::make(text, shape, any::on<Cpu>, memory);
  CAPTURE(text, std::string(made.message()));
  REQUIRE(made);
  return std::move(*made);
}

using Any = Batch<any::AnyCache>;

/// The tokens of one request, step by step, and what its cache makes of them alone.
struct Alone {
  any::AnyCache cache;
  std::mt19937 random;
  Workspace work{};
  std::vector<float> out{};  ///< of the last step, [layer][q_head, token, dim]

  Alone(const std::string& text, std::uint32_t seed) : cache(make(text, heap_memory())), random(seed) {}

  test::Tokens next(index_t n) { return test::Tokens(shape, n, random); }
  void forward(const test::Tokens& t, Phase phase) {
    REQUIRE(work.reserve(cache.workspace_bytes(std::max(cache.slots(0, 0), cache.slots(1, 1)) + t.n + 64, t.n)) == Status::ok);
    out.assign(static_cast<std::size_t>(2 * 4 * t.n * 32), 0.0f);
    for (index_t l = 0; l < 2; ++l) {
      Context<Cpu> ctx(work.bytes());
      REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data() + l * 4 * t.n * 32, 4, t.n, 32), {},
                            phase) == Status::ok);
    }
  }
};

/// Rows of several requests, packed.
struct Packed {
  index_t total = 0;
  std::vector<float> q, k, v, out;
  explicit Packed(const std::vector<test::Tokens>& parts) {
    for (const auto& t : parts) total += t.n;
    const auto pack = [&](index_t heads, std::vector<float>& to, auto which) {
      to.resize(static_cast<std::size_t>(heads * total * 32));
      index_t first = 0;
      for (const auto& t : parts) {
        for (index_t h = 0; h < heads; ++h)
          std::copy_n((t.*which).data() + h * t.n * 32, t.n * 32, to.data() + (h * total + first) * 32);
        first += t.n;
      }
    };
    pack(4, q, &test::Tokens::q), pack(2, k, &test::Tokens::k), pack(2, v, &test::Tokens::v);
    out.resize(q.size());
  }
  Status forward(Any& batch, index_t layer, Executor* executor) {
    return batch.forward(layer, dense_view<const float>(q.data(), 4, total, 32), dense_view<const float>(k.data(), 2, total, 32),
                         dense_view<const float>(v.data(), 2, total, 32), dense_view(out.data(), 4, total, 32), {}, executor);
  }
  /// Whether rows from `first` on are the layer's outputs of a request alone.
  void require(index_t first, const Alone& a, index_t layer) const {
    const index_t n = static_cast<index_t>(a.out.size()) / (2 * 4 * 32);
    for (index_t h = 0; h < 4; ++h)
      REQUIRE(std::memcmp(out.data() + (h * total + first) * 32, a.out.data() + ((layer * 4 + h) * n) * 32, static_cast<std::size_t>(n * 32) * sizeof(float)) == 0);
  }
};

/// All that a cache would answer from: tokens, what their slots say, and where the next one stands.
std::vector<float> state(const any::AnyCache& c) {
  std::vector<float> all;
  for (index_t l = 0; l < 2; ++l) {
    for (const index_t n : {c.length(l), c.pending(l), c.next_position(l)}) all.push_back(static_cast<float>(n));
    for (index_t h = 0; h < 2; ++h) {
      const index_t n = c.slots(l, h);
      for (index_t s = 0; s < n; ++s) all.push_back(static_cast<float>(c.token(l, h, s)));
      std::vector<float> rows(static_cast<std::size_t>(2 * n * 32));
      REQUIRE(c.read(l, h, 0, dense_view(rows.data(), n, 32), dense_view(rows.data() + n * 32, n, 32)) == Status::ok);
      all.insert(all.end(), rows.begin(), rows.end());
    }
  }
  return all;
}
bool same(const std::vector<float>& a, const std::vector<float>& b) { return a == b; }

/// One step of several requests, each beside its run alone.
void step(Any& batch, const std::vector<BatchRows>& rows, const std::vector<Alone*>& alone, Executor* executor) {
  std::vector<test::Tokens> tokens;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    tokens.push_back(alone[i]->next(rows[i].tokens));
    alone[i]->forward(tokens.back(), rows[i].phase);
  }
  Packed packed(tokens);
  REQUIRE(batch.begin_step(rows) == Status::ok);
  for (index_t l = 0; l < 2; ++l) {
    REQUIRE(packed.forward(batch, l, executor) == Status::ok);
    index_t first = 0;
    for (std::size_t i = 0; i < rows.size(); first += rows[i++].tokens) packed.require(first, *alone[i], l);
  }
  REQUIRE(batch.end_step(executor) == Status::ok);
  for (std::size_t i = 0; i < rows.size(); ++i) REQUIRE(batch.status(static_cast<index_t>(i)) == Status::ok);
}

}  // namespace

TEST_CASE("engine failures: a batch of lengths 1, 7, 4096 equals three single runs", "[any][batch]") {
  Threads threads;
  for (Executor* executor : {static_cast<Executor*>(nullptr), static_cast<Executor*>(&threads)})
    for (const char* text : {"kivi2(group=16, residual=16)", "h2o(heavy=40, recent=24) + kivi4(group=8, residual=16)"}) {
      CAPTURE(text);
      test::CountingMemory memory;
      {
        auto batch = Any::make(make(text, memory), 3, memory, 3);
        REQUIRE(batch);
        std::vector<Alone> alone;
        std::vector<BatchRows> rows;
        for (const index_t n : {1, 7, 4096}) {
          alone.emplace_back(text, static_cast<std::uint32_t>(n));
          rows.push_back({*batch->begin_request(), n, Phase::prefill_end});
        }
        const std::vector<Alone*> each{&alone[0], &alone[1], &alone[2]};
        step(*batch, rows, each, executor);
        for (BatchRows& r : rows) r = {r.request, 1, Phase::decode};
        for (int i = 0; i < 20; ++i) step(*batch, rows, each, executor);
        for (std::size_t i = 0; i < 3; ++i) REQUIRE(same(state(batch->cache(rows[i].request)), state(alone[i].cache)));
      }
      REQUIRE(memory.live_bytes == 0);
      REQUIRE(memory.wrong_releases == 0);
    }
}

TEST_CASE("batch: requests come and go, prompts in chunks beside generated tokens, and nothing is left behind", "[any][batch]") {
  Threads threads;
  for (const char* text : texts) {
    CAPTURE(text);
    test::CountingMemory memory;
    {
      auto made = Any::make(make(text, memory), 4, memory, 3);
      REQUIRE(made);
      Any& batch = *made;
      {  // Scratch for the largest step stays; nothing else does.
        Alone first(text, 99);
        const index_t id = *batch.begin_request();
        step(batch, {{id, 60, Phase::prefill_end}}, {&first}, nullptr);
        REQUIRE(batch.end_request(id) == Status::ok);
      }
      const std::size_t idle = memory.live_bytes;
      std::mt19937 random(1);
      struct Running {
        index_t id, prompt, steps;
        Alone alone;
      };
      std::vector<std::unique_ptr<Running>> running;
      std::uint32_t arrived = 0;
      for (int round = 0; round < 60; ++round) {
        while (arrived < 12 && running.size() < 4 && random() % 2 == 0) {
          const auto id = batch.begin_request();
          REQUIRE(id);
          running.push_back(std::make_unique<Running>(Running{*id, 1 + static_cast<index_t>(random() % 150), 3 + static_cast<index_t>(random() % 12), Alone(text, ++arrived)}));
        }
        if (running.size() == 4) REQUIRE(batch.begin_request().status() == Status::out_of_memory);
        std::vector<BatchRows> rows;
        std::vector<Alone*> alone;
        for (auto& r : running) {
          if (random() % 4 == 0) continue;  // not every request has a place in every step
          const index_t n = r->prompt > 0 ? std::min<index_t>(r->prompt, 60) : 1;
          const bool prompt = r->prompt > 0;
          r->prompt -= prompt ? n : 0, r->steps -= prompt ? 0 : 1;
          rows.push_back({r->id, n, !prompt ? Phase::decode : r->prompt > 0 ? Phase::prefill_chunk : Phase::prefill_end});
          alone.push_back(&r->alone);
        }
        step(batch, rows, alone, round % 2 == 0 ? &threads : nullptr);
        std::erase_if(running, [&](const auto& r) {
          if (r->steps > 0) return false;
          REQUIRE(same(state(batch.cache(r->id)), state(r->alone.cache)));
          REQUIRE(batch.end_request(r->id) == Status::ok);
          REQUIRE_FALSE(batch.running(r->id));
          return true;
        });
      }
      REQUIRE(arrived == 12);
      for (auto& r : running) REQUIRE(batch.end_request(r->id) == Status::ok);
      REQUIRE(batch.begin_step({}) == Status::ok);
      REQUIRE(batch.end_step() == Status::ok);
      REQUIRE(memory.live_bytes == idle);
    }
    REQUIRE(memory.live_bytes == 0);
  }
}

TEST_CASE("batch: a shared prompt is never altered, whatever its requests evict or code", "[any][batch]") {
  for (const char* text : texts) {
    CAPTURE(text);
    test::CountingMemory memory;
    auto made = Any::make(make(text, memory), 4, memory);
    REQUIRE(made);
    Any& batch = *made;
    Alone prompt(text, 9);
    const index_t shared = *batch.begin_request();
    step(batch, {{shared, 200, Phase::prefill_end}}, {&prompt}, nullptr);
    const auto before = state(batch.cache(shared));
    const std::size_t one = memory.live_bytes;
    std::vector<Alone> alone;
    std::vector<BatchRows> rows;
    for (std::uint32_t i = 0; i < 3; ++i) {
      const auto id = batch.begin_request(shared);
      REQUIRE(id);
      rows.push_back({*id, 1 + 20 * static_cast<index_t>(i), Phase::decode});
      alone.emplace_back(text, 20 + i);
      alone.back().cache = std::move(*prompt.cache.fork());
    }
    REQUIRE(batch.cache(rows[0].request).report().shared_bytes > 0);
    REQUIRE(memory.live_bytes < 4 * one);
    for (int i = 0; i < 50; ++i) {
      step(batch, rows, {&alone[0], &alone[1], &alone[2]}, nullptr);
      for (BatchRows& r : rows) r.tokens = 1;
      if (i == 10) REQUIRE(same(state(batch.cache(shared)), before));
    }
    REQUIRE(same(state(batch.cache(shared)), before));
    // The prompt may go before those that began with it.
    REQUIRE(batch.end_request(shared) == Status::ok);
    step(batch, rows, {&alone[0], &alone[1], &alone[2]}, nullptr);
    for (std::size_t i = 0; i < 3; ++i) REQUIRE(same(state(batch.cache(rows[i].request)), state(alone[i].cache)));
  }
}

TEST_CASE("batch: memory that is refused at any request loses nothing", "[any][batch]") {
  bool refused_forward = false, refused_end = false;
  for (const char* text : {"kivi2(group=16, residual=16)", "h2o(heavy=40, recent=24) + kivi4(group=8, residual=16)", "exact"}) {
    CAPTURE(text);
    test::CountingMemory memory;
    {
      auto made = Any::make(make(text, memory), 2, memory);
      REQUIRE(made);
      Any& batch = *made;
      Alone a(text, 1), b(text, 2);
      const index_t x = *batch.begin_request(), y = *batch.begin_request();
      step(batch, {{x, 70, Phase::prefill_end}, {y, 33, Phase::prefill_end}}, {&a, &b}, nullptr);
      for (long n = 0;; ++n) {
        const auto before_x = state(batch.cache(x)), before_y = state(batch.cache(y));
        std::mt19937 random_a = a.random, random_b = b.random;
        const std::vector<test::Tokens> tokens{test::Tokens(shape, 30, random_a), test::Tokens(shape, 1, random_b)};
        Packed packed(tokens);
        const std::vector<BatchRows> rows{{x, 30, Phase::decode}, {y, 1, Phase::decode}};
        memory.refuse_from = memory.requests + n;
        Status s = batch.begin_step(rows);
        if (s != Status::ok) {
          memory.refuse_from = -1;
          REQUIRE(s == Status::out_of_memory);
          REQUIRE(batch.end_step() == Status::order_violation);
          continue;
        }
        bool out = false;
        for (index_t l = 0; l < 2; ++l) out = packed.forward(batch, l, nullptr) != Status::ok || out;
        refused_forward = refused_forward || out;
        s = batch.end_step();
        memory.refuse_from = -1;
        if (out) {
          REQUIRE(s == Status::out_of_memory);
          for (const int i : {0, 1}) {
            if (batch.owed()) REQUIRE(batch.end_step() != Status::order_violation);
            const bool went = batch.status(i) == Status::ok;
            // One that was refused is as it was; the other one went on, and takes its tokens back here.
            const index_t id = i == 0 ? x : y;
            if (!went) REQUIRE(same(state(batch.cache(id)), (i == 0 ? before_x : before_y)));
            else (i == 0 ? a : b).forward(tokens[static_cast<std::size_t>(i)], Phase::decode), (i == 0 ? a : b).random = i == 0 ? random_a : random_b;
            REQUIRE(batch.cache(id).pending() == 0);
          }
          REQUIRE(same(state(batch.cache(x)), state(a.cache)));
          REQUIRE(same(state(batch.cache(y)), state(b.cache)));
          continue;
        }
        const bool done = s == Status::ok;
        if (!done) {
          refused_end = true;
          REQUIRE(batch.owed());
          REQUIRE(batch.begin_step(rows) == Status::order_violation);
          REQUIRE(batch.end_step() == Status::ok);
        }
        a.forward(tokens[0], Phase::decode), b.forward(tokens[1], Phase::decode);
        a.random = random_a, b.random = random_b;
        REQUIRE(same(state(batch.cache(x)), state(a.cache)));
        REQUIRE(same(state(batch.cache(y)), state(b.cache)));
        if (done && n > 3) break;
      }
      for (int i = 0; i < 20; ++i) step(batch, {{x, 3, Phase::decode}, {y, 1, Phase::decode}}, {&a, &b}, nullptr);
    }
    REQUIRE(memory.live_bytes == 0);
  }
  REQUIRE(refused_forward);
  REQUIRE(refused_end);
}

TEST_CASE("batch: calls out of order and wrong shapes are refused and change nothing", "[any][batch]") {
  test::CountingMemory memory;
  REQUIRE(Any::make(make("sirllm", memory), 2, memory).status() == Status::missing_input);
  REQUIRE(Any::make(make("exact", memory), 0, memory).status() == Status::invalid_argument);
  auto made = Any::make(make("h2o(heavy=8, recent=8)", memory), 2, memory);
  REQUIRE(made);
  Any& batch = *made;
  Alone a("h2o(heavy=8, recent=8)", 1);
  const index_t x = *batch.begin_request();
  REQUIRE(batch.end_step() == Status::order_violation);
  REQUIRE(batch.end_request(7) == Status::out_of_range);
  REQUIRE(batch.begin_request(1).status() == Status::out_of_range);
  const BatchRows twice[] = {{x, 1}, {x, 1}}, nobody[] = {{1, 1}}, none[] = {{x, 0}}, good[] = {{x, 5}};
  REQUIRE(batch.begin_step(twice) == Status::shape_mismatch);
  REQUIRE(batch.begin_step(nobody) == Status::out_of_range);
  REQUIRE(batch.begin_step(none) == Status::shape_mismatch);
  REQUIRE(batch.begin_step(good) == Status::ok);
  REQUIRE(batch.begin_step(good) == Status::order_violation);
  REQUIRE(batch.begin_request().status() == Status::order_violation);
  REQUIRE(batch.end_request(x) == Status::order_violation);
  Packed four({test::Tokens(shape, 4, a.random)}), five({test::Tokens(shape, 5, a.random)});
  REQUIRE(four.forward(batch, 0, nullptr) == Status::shape_mismatch);
  REQUIRE(five.forward(batch, 2, nullptr) == Status::out_of_range);
  REQUIRE(five.forward(batch, 0, nullptr) == Status::ok);
  Threads threads;
  REQUIRE(five.forward(batch, 1, &threads) == Status::workspace_too_small);
  // Layer 1 never came: the tokens are taken back.
  REQUIRE(batch.end_step() == Status::order_violation);
  REQUIRE(batch.status(0) == Status::order_violation);
  REQUIRE_FALSE(batch.owed());
  REQUIRE(batch.cache(x).length() == 0);
  step(batch, {{x, 40, Phase::prefill_end}}, {&a}, nullptr);
  REQUIRE(batch.cache(x).slots(0, 0) == 16);
}

TEST_CASE("batch: rows of other heads or sizes are refused before any is read", "[any][batch]") {
  test::CountingMemory memory;
  const char* text = "rkv(tokens=40, window=4, kernel=3, slack=8)";
  auto made = Any::make(make(text, memory), 1, memory);
  REQUIRE(made);
  Any& batch = *made;
  Alone a(text, 1);
  const index_t x = *batch.begin_request();
  const test::Tokens t = a.next(5);
  a.forward(t, Phase::prefill_end);
  const BatchRows rows[] = {{x, 5, Phase::prefill_end}};
  REQUIRE(batch.begin_step(rows) == Status::ok);
  Packed good({t});
  // [kv_heads, rows, dim] where [q_heads, rows, dim] belongs, and no more memory than that.
  const std::vector<float> few(2 * 5 * 32);
  std::vector<float> out(4 * 5 * 32);
  const auto q = dense_view<const float>(good.q.data(), 4, 5, 32), k = dense_view<const float>(good.k.data(), 2, 5, 32);
  const auto o = dense_view(out.data(), 4, 5, 32);
  REQUIRE(batch.forward(0, dense_view<const float>(few.data(), 2, 5, 32), k, k, o) == Status::shape_mismatch);
  REQUIRE(batch.forward(0, dense_view<const float>(few.data(), 4, 5, 16), k, k, o) == Status::shape_mismatch);
  REQUIRE(batch.forward(0, q, dense_view<const float>(few.data(), 1, 5, 32), k, o) == Status::shape_mismatch);
  REQUIRE(batch.forward(0, q, k, dense_view<const float>(few.data(), 2, 5, 16), o) == Status::shape_mismatch);
  REQUIRE(batch.forward(0, q, k, k, dense_view(out.data(), 4, 5, 16)) == Status::shape_mismatch);
  REQUIRE(batch.status(0) == Status::ok);
  for (index_t l = 0; l < 2; ++l) {
    REQUIRE(good.forward(batch, l, nullptr) == Status::ok);
    good.require(0, a, l);
  }
  REQUIRE(batch.end_step() == Status::ok);
  REQUIRE(same(state(batch.cache(x)), state(a.cache)));
}

TEST_CASE("batch: tokens that are pending in any layer are seen, and who is owed nothing holds up nobody", "[any][batch]") {
  test::CountingMemory memory;
  const char* text = "kivi2(group=16, residual=16)";
  auto made = Any::make(make(text, memory), 3, memory);
  REQUIRE(made);
  Any& batch = *made;
  const auto begin = [&](index_t x, index_t y, std::uint32_t seed) {
    const BatchRows rows[] = {{x, 70, Phase::prefill_end}, {y, 33, Phase::prefill_end}};
    std::mt19937 random(seed);
    Packed packed({test::Tokens(shape, 70, random), test::Tokens(shape, 33, random)});
    REQUIRE(batch.begin_step(rows) == Status::ok);
    for (index_t l = 0; l < 2; ++l) REQUIRE(packed.forward(batch, l, nullptr) == Status::ok);
  };

  // Memory that is refused to a step of layer 1.
  bool between = false;
  for (long n = 0; !between; ++n) {
    REQUIRE(n < 200);
    const index_t x = *batch.begin_request(), y = *batch.begin_request();
    begin(x, y, 1);
    memory.refuse_from = memory.requests + n;
    (void)batch.end_step();
    memory.refuse_from = -1;
    between = batch.cache(x).pending(0) == 0 && batch.cache(x).pending(1) != 0;
    if (between) {
      REQUIRE(batch.owed());
      REQUIRE(batch.begin_request(x).status() == Status::order_violation);
      REQUIRE(batch.end_step() == Status::ok);
      const auto like = batch.begin_request(x);
      REQUIRE(like);
      REQUIRE(same(state(batch.cache(*like)), state(batch.cache(x))));
      REQUIRE(batch.end_request(*like) == Status::ok);
    }
    for (const index_t id : {x, y}) REQUIRE(batch.end_request(id) == Status::ok);
  }

  // A caller's own append to one layer.
  const index_t z = *batch.begin_request();
  std::mt19937 random(3);
  const test::Tokens own(shape, 2, random);
  Workspace work;
  REQUIRE(work.reserve(batch.cache(z).workspace_bytes(64, 2)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  REQUIRE(batch.cache(z).append(ctx, 1, own.keys(shape), own.values(shape)) == Status::ok);
  const BatchRows one[] = {{z, 1}};
  REQUIRE(batch.begin_step(one) == Status::order_violation);
  REQUIRE(batch.begin_request(z).status() == Status::order_violation);
  REQUIRE(batch.end_request(z) == Status::ok);

  // One that ends while it is owed memory leaves the step, its refusal too.
  index_t x = *batch.begin_request(), y = *batch.begin_request();
  begin(x, y, 4);
  memory.refuse_from = memory.requests;
  REQUIRE(batch.end_step() == Status::out_of_memory);
  REQUIRE(batch.status(0) == Status::out_of_memory);
  REQUIRE(batch.status(1) == Status::out_of_memory);
  memory.refuse_from = -1;
  REQUIRE(batch.end_request(x) == Status::ok);
  REQUIRE(batch.owed());
  REQUIRE(batch.status(0) == Status::ok);
  REQUIRE(batch.end_step() == Status::ok);
  REQUIRE_FALSE(batch.owed());
  REQUIRE(batch.end_step() == Status::order_violation);

  // One that was refused keeps its status, of which `end_step` goes on speaking while there is nothing left to do.
  x = *batch.begin_request();
  const BatchRows rows[] = {{x, 70, Phase::prefill_end}, {y, 33, Phase::decode}};
  std::vector<test::Tokens> tokens{test::Tokens(shape, 70, random), test::Tokens(shape, 33, random)};
  tokens[0].k[0] = std::numeric_limits<float>::quiet_NaN();
  Packed packed(tokens);
  REQUIRE(batch.begin_step(rows) == Status::ok);
  for (index_t l = 0; l < 2; ++l) REQUIRE(packed.forward(batch, l, nullptr) == Status::invalid_argument);
  memory.refuse_from = memory.requests;
  REQUIRE(batch.end_step() != Status::ok);
  memory.refuse_from = -1;
  REQUIRE(batch.owed());
  REQUIRE(batch.end_step() == Status::invalid_argument);
  REQUIRE_FALSE(batch.owed());
  REQUIRE(batch.status(0) == Status::invalid_argument);
  REQUIRE(batch.status(1) == Status::ok);
  REQUIRE(batch.cache(x).length() == 0);
  REQUIRE(batch.end_request(x) == Status::ok);
  REQUIRE(batch.status(0) == Status::invalid_argument);
}
