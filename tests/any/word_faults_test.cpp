// What refused memory, sinks that stop and tokens that are taken back may do to a cache of any word of the registry.

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <support/byte_list.hpp>
#include <support/catalogue.hpp>
#include <support/memory.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/saved.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;
using test::saved;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

const any::ModelFacts& facts() {
  static const test::RandomModel model(shape);
  return model.facts();
}

/// The small setting of a word, with what it cannot be without.
std::string recipe_of(const any::Entry& e) {
  std::string text = test::settings.at(std::string(e.word)).text;
  if (e.word == "minicache") text = "sink_window(sinks=2, recent=20) + " + text;
  else if (e.room == Stage::merge) text = "h2o(heavy=12, recent=10) + " + text;
  std::vector<std::string> tries;
  for (const char* policy : {"h2o(heavy=12, recent=10)", "knorm(tokens=20, recent=8)"}) {
    std::string with = text;
    if (const auto at = with.find("POLICY"); at != with.npos) with.replace(at, 6, policy);
    for (const char* rest : {"", " + rerotate"}) tries.push_back(with + rest);
  }
  for (const std::string& t : tries)
    if (any::make(t, shape, any::on<Cpu>, heap_memory(), facts())) return t;
  FAIL("no recipe for " << e.word);
  return {};
}

/// A cache of a word and what is done to it.
struct Run {
  test::CountingMemory memory;
  any::AnyCache cache;
  Workspace work;
  Context<Cpu> ctx;
  std::mt19937 random{5};
  long refusals = 0;

  explicit Run(const std::string& text) : cache(make(text, memory)) {
    REQUIRE(work.reserve(cache.workspace_bytes(256, 48)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }
  static any::AnyCache make(const std::string& text, MemoryResource<Cpu>& memory) {
    auto made = any::make(text, shape, any::on<Cpu>, memory, facts());
    REQUIRE(made);
    return std::move(*made);
  }

  /// `f` with its n-th request refused, for every n: out_of_memory and nothing changed, until it is ok.
  template <class F>
  void refused(F&& f, bool may_be_half_done = false) {
    const auto before = saved(cache);
    for (long n = 0;; ++n) {
      memory.refuse_from = memory.requests + n;
      const Status s = f();
      memory.refuse_from = -1;
      if (s == Status::ok) return;
      REQUIRE(s == Status::out_of_memory);
      if (!may_be_half_done) REQUIRE((saved(cache) == before));
      ++refusals;
      REQUIRE(n < 1000);
    }
  }

  /// Tokens through every layer; drafts are not stepped.
  template <class Around>
  void feed(index_t n, bool draft, Around&& around) {
    for (index_t l = 0; l < shape.layers; ++l) {
      const test::Tokens t(shape, n, random);
      around([&] { return cache.append(ctx, l, t.keys(shape), t.values(shape), {}, t.queries(shape)); });
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim)), mass(static_cast<std::size_t>(cache.total_slots(l)));
      const auto view = cache.ragged(l, mass.data());
      REQUIRE(cache.attend(ctx, l, t.queries(shape), dense_view(out.data(), shape.q_heads, n, shape.head_dim), {.mass = view}) == Status::ok);
      if (draft) continue;
      const test::StepData data(shape, n, random);
      StepInputs inputs = data.inputs({view, cache.mass_rows(n)});
      inputs.queries = t.queries(shape);
      around([&] { return cache.step(ctx, l, inputs, n > 20 ? Phase::prefill_end : Phase::decode); });
    }
  }
  void feed(index_t n, bool draft = false) {
    feed(n, draft, [](auto&& f) { REQUIRE(f() == Status::ok); });
  }
};

}  // namespace

TEST_CASE("faults: in a cache of any word every refused request changes nothing, and works when memory is back", "[any][faults]") {
  long refusals = 0;
  for (const any::Entry* e : any::builtin().entries()) {
    const std::string text = recipe_of(*e);
    CAPTURE(text);
    for (long n = 0;; ++n) {  // making one
      test::CountingMemory memory;
      memory.refuse_from = n;
      const bool made = [&] {
        auto cache = any::make(text, shape, any::on<Cpu>, memory, facts());
        if (!cache) REQUIRE(cache.status() == Status::out_of_memory);
        return static_cast<bool>(cache);
      }();
      REQUIRE(memory.live_bytes == 0);
      if (made) break;
      ++refusals;
      REQUIRE(n < 1000);
    }
    Run a(text), b(text);
    a.feed(30), b.feed(3);
    const auto with_faults = [&](auto&& f) { a.refused(f); };
    a.feed(9, false, with_faults);
    {
      const auto twin = a.cache.fork();  // pages are shared now
      REQUIRE(twin);
      a.feed(1, false, with_faults);
    }
    a.refused([&] { return a.cache.fork().status(); });
    a.refused([&] { return a.cache.turn(a.ctx, 4); }, true);  // layers before the refused one keep their turn
    REQUIRE(a.cache.report().bytes() == a.memory.live_bytes);
    a.refused([&] { return a.cache.remove(a.ctx, 5, 9); });
    const auto file = saved(a.cache);
    a.refused([&] {
      test::ByteList sink;
      return a.cache.save(sink);
    });
    b.refused([&] { return b.cache.load(file); });
    REQUIRE((saved(b.cache) == file));
    for (std::size_t room = 0; room < file.size(); room += 997) {
      test::ByteList sink;
      sink.room = room;
      REQUIRE(a.cache.save(sink) == Status::io_error);
    }
    refusals += a.refusals + b.refusals;
    REQUIRE(a.memory.wrong_releases == 0);
  }
  REQUIRE(refusals > 5000);
}

TEST_CASE("faults: in a cache of any word a call whose workspace is too small, by whatever, changes nothing", "[any][faults]") {
  long refusals = 0;
  for (const any::Entry* e : any::builtin().entries()) {
    const std::string text = recipe_of(*e);
    CAPTURE(text);
    Run a(text);
    // `f` with all sizes from nothing to the first that will do, then what it left against one that had room at once.
    const auto squeezed = [&](auto&& f) {
      auto small = a.cache.fork(), large = a.cache.fork();
      REQUIRE((small && large));
      const auto all = a.work.bytes();
      const std::size_t asked = a.cache.workspace_bytes(64, 30);
      const std::size_t step = std::max<std::size_t>(asked / 150 / Scratch::align, 1) * Scratch::align;
      for (std::size_t bytes = static_cast<std::size_t>(refusals % 7) * Scratch::align;; bytes += step, ++refusals) {
        Context<Cpu> ctx(all.first(std::min(bytes, all.size())));
        const Status s = f(*small, ctx);
        if (s == Status::ok) break;
        REQUIRE(s == Status::workspace_too_small);
        REQUIRE(bytes < all.size());
      }
      REQUIRE(f(*large, a.ctx) == Status::ok);
      REQUIRE((saved(*small) == saved(*large)));
    };
    for (const index_t n : {30, 9, 1}) {
      const test::Tokens t(shape, n, a.random);
      const test::StepData data(shape, n, a.random);
      const Phase phase = n > 20 ? Phase::prefill_end : Phase::decode;
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim));
      const auto view = dense_view(out.data(), shape.q_heads, n, shape.head_dim);
      for (index_t l = 0; l < shape.layers; ++l) {
        StepInputs inputs = data.inputs();
        inputs.queries = t.queries(shape);
        const auto forward = [&](any::AnyCache& cache, Context<Cpu>& ctx) {
          return cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), view, {}, phase, inputs);
        };
        if (n == 9) squeezed(forward);
        // The parts by themselves: attention wants more than the step that follows, whose pieces would never be refused.
        REQUIRE(a.cache.append(a.ctx, l, t.keys(shape), t.values(shape), {}, t.queries(shape)) == Status::ok);
        std::vector<float> mass(static_cast<std::size_t>(a.cache.total_slots(l)));
        const auto masses = a.cache.ragged(l, mass.data());
        const auto attend = [&](any::AnyCache& cache, Context<Cpu>& ctx) { return cache.attend(ctx, l, t.queries(shape), view, {.mass = masses}); };
        squeezed(attend);
        REQUIRE(attend(a.cache, a.ctx) == Status::ok);
        inputs.attention = {masses, a.cache.mass_rows(n)};
        const auto step = [&](any::AnyCache& cache, Context<Cpu>& ctx) { return cache.step(ctx, l, inputs, phase); };
        squeezed(step);
        REQUIRE(step(a.cache, a.ctx) == Status::ok);
      }
    }
    squeezed([&](any::AnyCache& cache, Context<Cpu>& ctx) { return cache.remove(ctx, 5, 9); });
  }
  REQUIRE(refusals > 5000);
}

TEST_CASE("snapshot: drafts that were taken back leave nothing in the file of any word", "[any][snapshot]") {
  for (const any::Entry* e : any::builtin().entries()) {
    const std::string text = recipe_of(*e);
    CAPTURE(text);
    Run a(text);
    a.feed(37);
    const auto without = saved(a.cache);
    const index_t length = a.cache.length();
    a.feed(7, true);
    REQUIRE((saved(a.cache) != without));
    REQUIRE(a.cache.truncate(length) == Status::ok);
    REQUIRE((saved(a.cache) == without));
  }
}

TEST_CASE("snapshot: a file of any word that is cut or changed is refused, and what is taken can be used", "[any][snapshot]") {
  long refused = 0, taken = 0;
  std::mt19937 random(7);
  for (const any::Entry* e : any::builtin().entries()) {
    const std::string text = recipe_of(*e);
    CAPTURE(text);
    Run a(text);
    const std::size_t empty = a.memory.live_bytes;
    a.feed(30), a.feed(1), a.feed(3, true);
    const auto good = saved(a.cache);
    Run b(text);
    b.feed(5);
    const auto before = saved(b.cache);
    const auto load = [&](std::span<const std::byte> file) {
      const std::size_t held = b.memory.live_bytes;
      b.memory.peak_bytes = held;
      const Status s = b.cache.load(file);
      REQUIRE(b.memory.peak_bytes - held < empty + 16 * file.size() + 16384);  // an empty cache, and what the file can justify
      if (s != Status::ok) REQUIRE(b.memory.live_bytes == held);
      return s;
    };
    for (std::size_t at = random() % 97; at < good.size(); at += 211) {
      REQUIRE(load(std::span(good).first(at)) == Status::corrupt_data);
      auto bad = good;
      bad[at] ^= static_cast<std::byte>(1u << random() % 8);
      REQUIRE(load(bad) == Status::corrupt_data);
    }
    REQUIRE((saved(b.cache) == before));
    for (int n = 0; n < 60; ++n) {  // under a right checksum, half of them near the front, where what is counted stands
      auto forged = good;
      const std::size_t most = n % 2 == 0 ? std::min<std::size_t>(good.size() - 8, 700) : good.size() - 8;
      constexpr unsigned edges[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
      forged[random() % most] = static_cast<std::byte>(n % 3 == 0 ? random() : edges[random() % 5]);
      Checksum sum;
      sum.add(std::span(forged).first(forged.size() - 8));
      const std::uint64_t s = sum.value();
      std::memcpy(forged.data() + forged.size() - 8, &s, 8);
      CAPTURE(n);
      const Status status = load(forged);
      if (status != Status::ok) {
        REQUIRE((status == Status::corrupt_data || status == Status::incompatible));
        ++refused;
        continue;
      }
      ++taken;
      REQUIRE(b.cache.report().bytes() == b.memory.live_bytes);
      for (index_t l = 0; l < shape.layers; ++l) {
        const test::Tokens t(shape, 1, b.random);
        const test::StepData data(shape, b.cache.pending(l) + 1, b.random);
        StepInputs inputs = data.inputs();
        inputs.queries = t.queries(shape);
        std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
        static_cast<void>(b.cache.forward(b.ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                                          dense_view(out.data(), shape.q_heads, 1, shape.head_dim), {}, Phase::automatic, inputs));
      }
      static_cast<void>(b.cache.truncate(b.cache.length() / 2));
      static_cast<void>(saved(b.cache));
      REQUIRE(b.cache.load(before) == Status::ok);
    }
    REQUIRE((saved(b.cache) == before));
  }
  REQUIRE(refused > 1000);
  REQUIRE(taken > 1000);
}

TEST_CASE("snapshot: what was taken back, removed or evicted is not in the file", "[any][snapshot]") {
  // Numbers that nothing else holds, as fp16 writes them.
  const float secret = 291.25f;
  const auto found = [&](const std::vector<std::byte>& file) {
    const half h(secret);
    std::vector<std::byte> pair(4);
    std::memcpy(pair.data(), &h, 2), std::memcpy(pair.data() + 2, &h, 2);
    return std::search(file.begin(), file.end(), pair.begin(), pair.end()) != file.end();
  };
  const CacheShape s{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 8, .page_slots = 32};
  for (const char* text : {"keep_all", "sink_window(sinks=1, recent=6)", "kivi(bits=4, group_size=4, residual_window=12, sinks=2)"})
    for (const char* how : {"truncated", "removed", "evicted"}) {
      if (std::string(how) == "evicted" && std::string(text).find("window(") == std::string::npos) continue;
      CAPTURE(text, how);
      auto cache = any::make(text, s, any::on<Cpu>);
      REQUIRE(cache);
      Workspace work;
      REQUIRE(work.reserve(cache->workspace_bytes(64, 16)) == Status::ok);
      Context<Cpu> ctx(work.bytes());
      const auto feed = [&](float number, index_t n) {
        const std::vector<float> rows(static_cast<std::size_t>(n * 8), number);
        const auto view = dense_view(rows.data(), 1, n, 8);
        REQUIRE(cache->append(ctx, 0, view, view) == Status::ok);
        REQUIRE(cache->step(ctx, 0) == Status::ok);
      };
      feed(1.0f, 3);
      feed(secret, 4);
      REQUIRE(found(saved(*cache)));
      if (std::string(how) == "truncated") REQUIRE(cache->truncate(3) == Status::ok);
      if (std::string(how) == "removed") {
        feed(1.0f, 2);
        REQUIRE(cache->remove(ctx, 3, 7) == Status::ok);
      }
      if (std::string(how) == "evicted") feed(1.0f, 8);
      const auto file = saved(*cache);
      REQUIRE_FALSE(found(file));
      auto again = any::make(text, s, any::on<Cpu>);
      REQUIRE(again->load(file) == Status::ok);
      REQUIRE((saved(*again) == file));
    }
}
