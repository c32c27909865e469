// What is known to go wrong in engines that condense their caches, each as a test that fails where this library does it.
// docs/engine_failures.md lists them with the tests of other rooms that say more.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <any/settings.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <support/memory.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/saved.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;

namespace {

constexpr const char* quantized[] = {"kivi2(group=16, residual=16)", "int4(group=32, residual=24)", "q8_0",
                                     "h2o(heavy=40, recent=24) + kivi4(group=8, residual=16)"};

/// A cache from text, with scratch for all that these tests do.
struct Session {
  CacheShape shape;
  any::AnyCache cache;
  Workspace work{};

  Session(const std::string& text, const CacheShape& s, const any::ModelFacts& facts = {}, index_t slots = 512, index_t tokens = 256,
          MemoryResource<Cpu>& memory = heap_memory())
      : shape(s), cache(make(text, s, facts, memory)) {
    REQUIRE(work.reserve(cache.workspace_bytes(slots, tokens)) == Status::ok);
  }
  static any::AnyCache make(const std::string& text, const CacheShape& shape, const any::ModelFacts& facts, MemoryResource<Cpu>& memory) {
    auto made = any::make(text, shape, any::on<Cpu>, memory, facts);
    CAPTURE(text, std::string(made.message()));
    REQUIRE(made);
    return std::move(*made);
  }
  Context<Cpu> context() { return Context<Cpu>(work.bytes()); }

  /// The same numbers in every layer; the outputs of all of them.
  std::vector<float> forward(const test::Tokens& t, Phase phase = Phase::automatic) {
    std::vector<float> all;
    for (index_t l = 0; l < shape.layers; ++l) {
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.values()));
      auto ctx = context();
      REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), shape.q_heads, t.n, shape.values()),
                            {}, phase) == Status::ok);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
  std::vector<float> attend(const test::Tokens& t, index_t layer = 0) {
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.values()));
    auto ctx = context();
    REQUIRE(cache.attend(ctx, layer, t.queries(shape), dense_view(out.data(), shape.q_heads, t.n, shape.values())) == Status::ok);
    return out;
  }
  void append(const test::Tokens& t) {
    for (index_t l = 0; l < shape.layers; ++l) {
      auto ctx = context();
      REQUIRE(cache.append(ctx, l, t.keys(shape), t.values(shape), {}, t.queries(shape)) == Status::ok);
    }
  }
  /// Keys, then values, of a head's first slots as its codes say.
  std::vector<float> rows(index_t layer, index_t head, index_t n) const {
    std::vector<float> x(static_cast<std::size_t>(n * (shape.head_dim + shape.values())));
    REQUIRE(cache.read(layer, head, 0, dense_view(x.data(), n, shape.head_dim), dense_view(x.data() + n * shape.head_dim, n, shape.values())) ==
            Status::ok);
    return x;
  }
  std::vector<float> all_rows() const {
    std::vector<float> all;
    for (index_t l = 0; l < shape.layers; ++l)
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        const auto x = rows(l, h, cache.slots(l, h));
        all.insert(all.end(), x.begin(), x.end());
      }
    return all;
  }
  std::vector<index_t> kept() const {
    std::vector<index_t> all;
    for (index_t l = 0; l < shape.layers; ++l)
      for (index_t h = 0; h < shape.kv_heads; ++h)
        for (index_t s = 0; s < cache.slots(l, h); ++s) all.push_back(cache.token(l, h, s));
    return all;
  }
  std::vector<std::byte> saved() const { return test::saved(cache); }
};

/// Attention of one query over what a head's slots say, in double.
std::vector<double> over_rows(const Session& s, index_t layer, index_t q_head, const float* query) {
  const index_t head = q_head / s.shape.group(), n = s.cache.slots(layer, head), dim = s.shape.head_dim, wide = s.shape.values();
  const auto x = s.rows(layer, head, n);
  std::vector<test::NaiveSlot> slots(static_cast<std::size_t>(n));
  for (index_t j = 0; j < n; ++j) {
    auto& slot = slots[static_cast<std::size_t>(j)];
    slot.k.assign(x.begin() + j * dim, x.begin() + (j + 1) * dim);
    slot.v.assign(x.begin() + n * dim + j * wide, x.begin() + n * dim + (j + 1) * wide);
  }
  return test::naive_attention({query, query + dim}, slots, n, 1.0 / std::sqrt(static_cast<double>(dim)), static_cast<std::size_t>(wide));
}

void require_attention_over_rows(Session& s, std::mt19937& random, double margin) {
  const test::Tokens t(s.shape, 1, random);
  for (index_t l = 0; l < s.shape.layers; ++l) {
    const auto got = s.attend(t, l);
    for (index_t h = 0; h < s.shape.q_heads; ++h) {
      const auto want = over_rows(s, l, h, t.q.data() + h * s.shape.head_dim);
      for (index_t d = 0; d < s.shape.values(); ++d)
        REQUIRE(static_cast<double>(got[static_cast<std::size_t>(h * s.shape.values() + d)]) == Approx(want[static_cast<std::size_t>(d)]).margin(margin));
    }
  }
}

/// A stream of tokens of a model with this rope through a cache that lets old ones go: every query must see every key at the
/// distance that the position stage promises, however many tokens a call brings and wherever pages and evictions cut them.
void require_positions(const std::string& text, const prim::RopeConfig& rope) {
  CAPTURE(text);
  constexpr CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 32, .dtype = DType::f32, .page_slots = 8};
  const auto angles = prim::rope_angles(rope, shape.head_dim);
  REQUIRE(angles);
  Session s(text, shape, {.rope = rope});
  const Capabilities can = s.cache.capabilities();
  const auto turned = [&](const float* row, index_t position) {
    std::vector<double> x(row, row + shape.head_dim), y = x;
    for (index_t t = 0; t < angles->pairs; ++t) {
      const bool split = angles->pairing == prim::RopePairing::half_split;
      const auto a = static_cast<std::size_t>(split ? t : 2 * t), b = static_cast<std::size_t>(split ? t + angles->pairs : 2 * t + 1);
      const double angle = static_cast<double>(position) * static_cast<double>(angles->frequency[t]);
      y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle), y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
    }
    return y;
  };
  // The library multiplies logits by the scaling's factor where it rotates itself; an engine that rotates does it in its rows.
  const double factor = can.rotated_input ? 1.0 : static_cast<double>(angles->attention_factor);
  std::mt19937 random(3);
  std::vector<std::vector<float>> raw_keys, values;
  for (const index_t n : {9, 3, 1, 1, 7, 2, 5, 1, 11, 1, 1, 1, 4, 13, 1, 2, 6, 1, 1, 3, 8, 1}) {
    const test::Tokens raw(shape, n, random);
    test::Tokens given = raw;
    const index_t first = s.cache.next_position();
    for (index_t i = 0; i < n; ++i) {
      raw_keys.emplace_back(raw.k.begin() + i * 32, raw.k.begin() + (i + 1) * 32);
      values.emplace_back(raw.v.begin() + i * 32, raw.v.begin() + (i + 1) * 32);
      const auto turn = [&](std::vector<float>& to, index_t row) {
        const auto y = turned(to.data() + row * 32, first + i);
        std::copy(y.begin(), y.end(), to.begin() + row * 32);
      };
      if (!can.rotated_input) continue;
      turn(given.k, i);
      for (index_t h = 0; h < shape.q_heads; ++h) turn(given.q, h * n + i);
    }
    s.append(given);
    const auto got = s.attend(given);
    const index_t slots = s.cache.slots(0, 0);
    for (index_t h = 0; h < shape.q_heads; ++h)
      for (index_t i = 0; i < n; ++i) {
        const index_t mine = slots - n + i;
        const auto place = [&](index_t slot) { return can.raw_keys ? slot : s.cache.token(0, 0, slot); };
        const auto q = turned(raw.q.data() + (h * n + i) * 32, place(mine));
        std::vector<test::NaiveSlot> seen;
        for (index_t j = 0; j <= mine; ++j) {
          const auto token = static_cast<std::size_t>(s.cache.token(0, 0, j));
          seen.push_back({0, turned(raw_keys[token].data(), place(j)), {values[token].begin(), values[token].end()}});
        }
        const auto want = test::naive_attention(q, seen, mine + 1, factor * factor / std::sqrt(32.0), 32);
        for (std::size_t d = 0; d < 32; ++d)
          REQUIRE(static_cast<double>(got[static_cast<std::size_t>((h * n + i) * 32) + d]) == Approx(want[d]).margin(5e-5));
      }
    auto ctx = s.context();
    REQUIRE(s.cache.step(ctx, 0) == Status::ok);
    if (n == 11 || n == 6) REQUIRE(s.cache.remove(ctx, 0, s.cache.token(0, 0, 3)) == Status::ok);  // a prefix goes by hand
  }
  REQUIRE(s.cache.slots(0, 0) < s.cache.length());
}

}  // namespace

TEST_CASE("engine failures: relative positions after evicting a prefix with partial ring writes", "[any][engine_failures]") {
  for (const char* evict : {"sliding_window(window=21)", "sink_window(sinks=3, recent=18)"})
    for (const char* position : {"", " + reindex", " + rerotate"})
      for (const prim::RopeConfig& rope : {prim::RopeConfig{}, prim::RopeConfig{.pairing = prim::RopePairing::interleaved, .rotary_dim = 16}})
        require_positions(std::string(evict) + position, rope);
}

TEST_CASE("engine failures: ten successive evictions against one", "[any][engine_failures]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  for (const char* position : {"", " + reindex", " + rerotate"}) {
    CAPTURE(position);
    Session ten(std::string("sink_window(sinks=2, recent=30)") + position, shape), one(std::string(ten.cache.text()), shape);
    std::mt19937 random(4);
    const test::Tokens prompt(shape, 40, random), more(shape, 10, random), probe(shape, 1, random);
    ten.forward(prompt), one.forward(prompt);
    for (index_t i = 0; i < 10; ++i) {
      test::Tokens t = more;
      t.n = 1, t.k.clear(), t.v.clear(), t.q.clear();
      const auto pick = [&](const std::vector<float>& all, index_t heads, std::vector<float>& to) {
        for (index_t h = 0; h < heads; ++h) to.insert(to.end(), all.begin() + (h * 10 + i) * 32, all.begin() + (h * 10 + i + 1) * 32);
      };
      pick(more.k, 2, t.k), pick(more.v, 2, t.v), pick(more.q, 4, t.q);
      ten.forward(t);
    }
    one.forward(more);
    REQUIRE(ten.cache.report().evictions == one.cache.report().evictions + 2 * 9);
    REQUIRE(ten.kept() == one.kept());
    REQUIRE(ten.all_rows() == one.all_rows());
    for (index_t l = 0; l < 2; ++l) {
      const auto a = ten.attend(probe, l), b = one.attend(probe, l);
      for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(b[i]).margin(2e-6));
    }
    // The same ten by hand, from the middle.
    auto ctx = ten.context(), other = one.context();
    for (index_t i = 0; i < 10; ++i) REQUIRE(ten.cache.remove(ctx, 25 + i, 26 + i) == Status::ok);
    REQUIRE(one.cache.remove(other, 25, 35) == Status::ok);
    REQUIRE(ten.all_rows() == one.all_rows());
    const auto a = ten.attend(probe), b = one.attend(probe);
    for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(b[i]).margin(2e-6));
  }
}

TEST_CASE("engine failures: scaled RoPE tables", "[any][engine_failures]") {
  using prim::RopeScaling;
  float divisors[16], longer[16], table[16];
  for (int i = 0; i < 16; ++i) divisors[i] = 1.0f + 0.1f * static_cast<float>(i), longer[i] = 1.5f + 0.3f * static_cast<float>(i), table[i] = 1.0f / (1.5f + static_cast<float>(i));
  const prim::RopeConfig ropes[] = {
      {.base = 500000.0, .scaling = RopeScaling::llama3, .factor = 8.0, .original_length = 64},
      {.scaling = RopeScaling::linear, .factor = 4.0},
      {.scaling = RopeScaling::yarn, .factor = 4.0, .original_length = 64},
      {.scaling = RopeScaling::longrope, .factor = 4.0, .original_length = 64, .length = 200, .table = divisors, .long_table = longer},
      {.scaling = RopeScaling::table, .table = table},
  };
  for (const prim::RopeConfig& rope : ropes)
    for (const char* position : {" + reindex", " + rerotate"}) require_positions(std::string("sink_window(sinks=3, recent=18)") + position, rope);
  require_positions("sink_window(sinks=3, recent=18) + reindex", {.scaling = RopeScaling::dynamic_ntk, .factor = 2.0, .original_length = 64, .length = 200});
}

TEST_CASE("engine failures: roll back n drafted tokens then append again, bit for bit", "[any][engine_failures]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  for (const char* text : {"kivi2(group=16, residual=16)", "int4(group=32, residual=24) + reindex", "sink_window(sinks=2, recent=40) + rerotate",
                           "h2o(heavy=40, recent=24) + kivi4(group=8, residual=16)", "kivi4(group=16, residual=16) + quest(tokens=32, dense_layers=0)"}) {
    CAPTURE(text);
    Session drafting(text, shape), plain(text, shape);
    std::mt19937 random(5), drafts(6);
    const test::Tokens prompt(shape, 61, random);
    drafting.forward(prompt), plain.forward(prompt);
    for (const index_t n : {1, 2, 5, 17, 40, 3, 9}) {
      const index_t before = drafting.cache.length();
      const auto rows = drafting.all_rows();
      const test::Tokens guess(shape, n, drafts);
      drafting.append(guess);
      (void)drafting.attend(guess);
      REQUIRE(drafting.cache.truncate(before) == Status::ok);
      REQUIRE(drafting.cache.next_position() == before);
      REQUIRE(drafting.all_rows() == rows);
      const test::Tokens real(shape, n, random);
      REQUIRE(drafting.forward(real, Phase::decode) == plain.forward(real, Phase::decode));
      REQUIRE(drafting.kept() == plain.kept());
    }
  }
}

TEST_CASE("engine failures: mixed K and V codecs run on the kernel that report names", "[any][engine_failures]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64};
  const float widths[2][4] = {{8, 8, 3, 3}, {2, 2, 4, 4}};  // keys and values of head 0, then of head 1, by test
  const auto facts = [&](int of) {
    any::ModelFacts f;
    f.key_widths = {widths[0] + 2 * of, 1, 2}, f.value_widths = {widths[1] + 2 * of, 1, 2};
    return f;
  };
  const std::string rows_kernel = prim::cpu::row_ops().name;
  const bool has_codes = prim::cpu::code_ops() != nullptr;
  const std::string codes_kernel = has_codes ? prim::cpu::code_ops()->name : rows_kernel;
  struct Case {
    std::string text;
    int facts;
    bool key_codes, value_codes;  ///< whether codes are multiplied as they are stored
  };
  const Case cases[] = {{"kivi2(group=32, residual=32)", 0, true, true},        {"kivi(bits=3, group=32, residual=32)", 0, false, false},
                        {"bit_allocation(layout=kivi)", 0, false, false},       {"bit_allocation(layout=kivi)", 1, false, false},
                        {"int8(group=32)", 0, true, true},                      {"kivi4(group=32, residual=32) + reindex", 0, false, true},
                        {"polar", 0, false, false},                             {"q8_0", 0, false, false},
                        {"gear(bits=4, layout=kivi, group=32, chunk=32, rank=0)", 0, false, false}};
  for (const Case& c : cases) {
    CAPTURE(c.text, c.facts);
    Session s(c.text, shape, facts(c.facts));
    std::mt19937 random(7);
    s.forward(test::Tokens(shape, 256, random));
    const Report r = s.cache.report();
    REQUIRE(std::string(r.kernel) == rows_kernel);
    CHECK(std::string(r.key_kernel) == (c.key_codes ? codes_kernel : rows_kernel));
    CHECK(std::string(r.value_kernel) == (c.value_codes ? codes_kernel : rows_kernel));
    if (!s.cache.capabilities().raw_keys) require_attention_over_rows(s, random, 5e-3);
    // Rows of the first page as its codec multiplies them: products with stored codes round the multipliers to 1 / 32512,
    // which loops over floats do not.
    const auto& head = s.cache.full().layers()[0].heads[0];
    const auto error = [&](const auto& column, bool sums) {
      const auto& coded = column.coded();
      if (coded.pages().empty()) return 0.0;
      using Codec = std::remove_cvref_t<decltype(coded.codec())>;
      using Page = prim::PageCodec<Cpu, Codec>;
      const index_t n = 32;
      const auto page = coded.span(coded.pages()[0]);
      std::vector<float> x(static_cast<std::size_t>(n * 64)), q(64), w(32), got(64, 0.0f);
      Page::decode(coded.codec(), page, 0, n, {x.data(), n, 64});
      std::normal_distribution<float> normal;
      for (float& e : q) e = normal(random);
      for (float& e : w) e = std::abs(normal(random));
      if (sums) Page::accumulate(coded.codec(), page, 0, n, {w.data(), 1, n}, {got.data(), 1, 64});
      else Page::scores(coded.codec(), page, 0, n, {q.data(), 1, 64}, {got.data(), 1, 64});
      double worst = 0, size = 0;
      for (index_t i = 0; i < (sums ? 64 : n); ++i) {
        double want = 0;
        for (index_t j = 0; j < (sums ? n : 64); ++j)
          want += static_cast<double>(x[static_cast<std::size_t>(sums ? j * 64 + i : i * 64 + j)]) * static_cast<double>(sums ? w[static_cast<std::size_t>(j)] : q[static_cast<std::size_t>(j)]);
        worst = std::max(worst, std::abs(want - static_cast<double>(got[static_cast<std::size_t>(i)]))), size = std::max(size, std::abs(want));
      }
      return worst / size;
    };
    const auto rounds = [](double e) { return e > 2e-6; };
    const double keys = error(head.keys, false), values = error(head.values, true);
    CAPTURE(keys, values);
    REQUIRE((keys < 1e-3 && values < 1e-3));
    if (c.text.find("reindex") == std::string::npos) CHECK(rounds(keys) == (r.key_kernel != rows_kernel));
    CHECK(rounds(values) == (r.value_kernel != rows_kernel));
  }
}

TEST_CASE("engine failures: head size 96", "[any][engine_failures]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 96};
  for (const char* text : {"kivi4(group=32, residual=32)", "kivi2(group=16, residual=16)", "int8(group=96)", "int4(group=32)", "q4_0", "q8_0", "fp8",
                           "mxfp4", "nvfp4", "bfp", "turboquant", "polar", "gear(layout=kivi, group=32, chunk=32)", "qserve", "skvq", "rotatekv", "hadamard(int4)", "exact"}) {
    CAPTURE(text);
    const auto made = any::make(text, shape, any::on<Cpu>);
    CAPTURE(std::string(made.message()));
    CHECK(made);
    if (!made) continue;
    Session s(text, shape);
    std::mt19937 random(8);
    s.forward(test::Tokens(shape, 150, random));
    for (int i = 0; i < 4; ++i) s.forward(test::Tokens(shape, 1, random));
    require_attention_over_rows(s, random, 1e-2);
  }
}

TEST_CASE("engine failures: a snapshot of another rotation is refused and the cache stays usable", "[any][engine_failures]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32};
  const char* turns[] = {"reindex", "reindex(theta=500000)", "reindex(pairing=interleaved)", "reindex(scaling=linear, factor=4)", "reindex(rotary_dim=16)",
                         "rerotate", "absolute"};
  for (const char* a : turns)
    for (const char* b : turns) {
      CAPTURE(a, b);
      const std::string codes = "sink_window(sinks=2, recent=30) + int8 + ";
      Session from(codes + a, shape), into(codes + b, shape), twin(codes + b, shape);
      std::mt19937 random(9);
      from.forward(test::Tokens(shape, 70, random));
      const test::Tokens own(shape, 50, random), next(shape, 1, random);
      into.forward(own), twin.forward(own);
      const auto before = into.saved();
      const Status s = into.cache.load(from.saved());
      REQUIRE(s == (std::string(a) == b ? Status::ok : Status::incompatible));
      if (s == Status::ok) continue;
      REQUIRE(into.saved() == before);
      REQUIRE(into.forward(next) == twin.forward(next));
    }
}

TEST_CASE("engine failures: an fp16 page inside an int4 chain is refused", "[any][engine_failures]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 32, .page_slots = 16};
  Session int4("int4(group=32, residual=16)", shape), int8("int8(group=32, residual=16)", shape);
  std::mt19937 random(10);
  const test::Tokens prompt(shape, 100, random), next(shape, 1, random);
  int4.forward(prompt), int8.forward(prompt);
  const auto& keys = int4.cache.full().layers()[0].heads[0].keys;
  REQUIRE(keys.coded().pages().size() > 1);
  for (const auto& ref : keys.coded().pages()) REQUIRE(ref.page->format == keys.coded().format());
  for (const auto& ref : keys.window().pages()) REQUIRE(ref.page->format == keys.window().format());
  REQUIRE(keys.coded().format() != keys.window().format());
  REQUIRE(keys.coded().format() != int8.cache.full().layers()[0].heads[0].keys.coded().format());

  // A file whose second page of codes says that it holds 16-bit floats, with a right checksum.
  auto file = int4.saved();
  const auto bytes_of = [](std::uint64_t x) { return std::bit_cast<std::array<std::byte, 8>>(x); };
  const auto mark = bytes_of(keys.coded().format()), other = bytes_of(keys.window().format());
  auto at = std::search(file.begin(), file.end(), mark.begin(), mark.end());
  REQUIRE(at != file.end());
  at = std::search(at + 8, file.end(), mark.begin(), mark.end());
  REQUIRE(at != file.end());
  std::copy(other.begin(), other.end(), at);
  Checksum sum;
  sum.add(std::span(file).first(file.size() - 8));
  const auto right = bytes_of(sum.value());
  std::copy(right.begin(), right.end(), file.end() - 8);
  const auto before = int4.saved();
  REQUIRE(int4.cache.load(file) == Status::incompatible);
  REQUIRE(int4.saved() == before);
  (void)int4.forward(next);

  // In memory: a chain of one form takes no pages of another.
  using Exact = cache::Segment<prim::ExactRows>;
  Exact half({DType::f16}, prim::ExactRows{DType::f16}.fingerprint(), 32, 16, heap_memory());
  Exact full({DType::f32}, prim::ExactRows{DType::f32}.fingerprint(), 32, 16, heap_memory());
  Exact wider({DType::f16}, prim::ExactRows{DType::f16}.fingerprint(), 32, 32, heap_memory());
  Exact same({DType::f16}, prim::ExactRows{DType::f16}.fingerprint(), 32, 16, heap_memory());
  REQUIRE(half.reserve(3) == Status::ok);
  (void)half.append({prompt.k.data(), 3, 32});
  REQUIRE(half.fork(full) == Status::incompatible);
  REQUIRE(half.fork(wider) == Status::incompatible);
  REQUIRE(full.live() + wider.live() == 0);
  REQUIRE(half.fork(same) == Status::ok);
  REQUIRE(same.live() == 3);
}

TEST_CASE("engine failures: beam reorder and crop on quantized storage", "[any][engine_failures]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  for (const char* text : quantized) {
    CAPTURE(text);
    test::CountingMemory memory;
    {
      Session prompt(text, shape, {}, 512, 256, memory);
      std::mt19937 random(11);
      prompt.forward(test::Tokens(shape, 90, random));
      const auto shared = prompt.all_rows();
      std::vector<Session> beams;
      std::vector<any::AnyCache> caches;
      for (int b = 0; b < 3; ++b) beams.emplace_back(text, shape, any::ModelFacts{}, 512, 256, memory), beams.back().cache = std::move(*prompt.cache.fork());
      for (int i = 0; i < 40; ++i)
        for (Session& b : beams) b.forward(test::Tokens(shape, 1, random), Phase::decode);
      REQUIRE(prompt.all_rows() == shared);
      std::vector<std::vector<float>> rows;
      std::vector<std::vector<index_t>> kept;
      for (Session& b : beams) rows.push_back(b.all_rows()), kept.push_back(b.kept()), caches.push_back(std::move(b.cache));
      const index_t map[] = {2, 0, 0};
      REQUIRE(any::reorder(caches, map) == Status::ok);
      for (std::size_t b = 0; b < 3; ++b) beams[b].cache = std::move(caches[b]);
      for (std::size_t b = 0; b < 3; ++b) {
        REQUIRE(beams[b].all_rows() == rows[static_cast<std::size_t>(map[b])]);
        REQUIRE(beams[b].kept() == kept[static_cast<std::size_t>(map[b])]);
      }
      // Behind the last step, into codes: what stays is what it was, and the other copy does not notice.
      REQUIRE(beams[1].cache.truncate(100) == Status::ok);
      REQUIRE(beams[2].all_rows() == rows[0]);
      REQUIRE(beams[1].cache.length() == 100);
      for (index_t l = 0; l < 2; ++l)
        for (index_t h = 0; h < 2; ++h) {
          const index_t n = beams[1].cache.slots(l, h);
          for (index_t s = 0; s < n; ++s) REQUIRE(beams[1].cache.token(l, h, s) < 100);
          REQUIRE(beams[1].rows(l, h, n) == beams[2].rows(l, h, n));
        }
      for (int i = 0; i < 40; ++i) beams[1].forward(test::Tokens(shape, 1, random), Phase::decode);
      require_attention_over_rows(beams[1], random, 5e-3);
      REQUIRE(beams[2].all_rows() == rows[0]);
    }
    REQUIRE(memory.live_bytes == 0);
  }
}

TEST_CASE("engine failures: a prompt longer than the residual window keeps its sinks exact", "[any][engine_failures]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32};
  for (const char* text : {"kivi2(group=16, residual=16, sinks=5)", "int4(group=32, residual=8, sinks=5)", "gear(layout=kivi, group=16, chunk=16, sinks=5)", "turboquant(sinks=5)",
                           "fp8(residual=4, sinks=5)"})
    for (const index_t chunk : {200, 3, 64}) {
      CAPTURE(text, chunk);
      Session s(text, shape);
      std::mt19937 random(12);
      std::vector<float> first[2];  // keys, then values, of the sinks of each head
      for (index_t at = 0; at < 200; at += chunk) {
        const test::Tokens t(shape, std::min(chunk, 200 - at), random);
        for (index_t h = 0; h < 2; ++h)
          for (index_t i = 0; i < t.n && at + i < 5; ++i)
            for (const std::vector<float>* x : {&t.k, &t.v})
              first[h].insert(first[h].end(), x->begin() + (h * t.n + i) * 32, x->begin() + (h * t.n + i + 1) * 32);
        s.forward(t, at + t.n == 200 ? Phase::prefill_end : Phase::prefill_chunk);
      }
      for (index_t h = 0; h < 2; ++h) {
        const auto x = s.rows(0, h, 200);
        for (index_t i = 0; i < 5; ++i)
          for (index_t d = 0; d < 32; ++d) {
            REQUIRE(x[static_cast<std::size_t>(i * 32 + d)] == first[h][static_cast<std::size_t>(i * 64 + d)]);
            REQUIRE(x[static_cast<std::size_t>((200 + i) * 32 + d)] == first[h][static_cast<std::size_t>(i * 64 + 32 + d)]);
          }
      }
      REQUIRE(s.cache.report().coded_bytes > 0);
    }
}

TEST_CASE("engine failures: a changed budget changes bytes held and tokens kept", "[any][engine_failures]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const auto half = {std::pair{"h2o(heavy=96, recent=32)", "h2o(heavy=48, recent=16)"}, std::pair{"sink_window(sinks=4, recent=124)", "sink_window(sinks=4, recent=60)"},
                     std::pair{"snapkv(tokens=128, window=16)", "snapkv(tokens=64, window=16)"}, std::pair{"knorm(tokens=128)", "knorm(tokens=64)"},
                     std::pair{"uniform(tova, tokens=128)", "uniform(tova, tokens=64)"}, std::pair{"ada(snapkv(tokens=128, window=16))", "ada(snapkv(tokens=64, window=16))"}};
  for (const auto& [wide, narrow] : half)
    for (const char* codes : {"", " + kivi2(group=16, residual=16)"}) {
      CAPTURE(wide, codes);
      test::CountingMemory memory;
      std::size_t bytes[2];
      index_t slots[2];
      for (const int i : {0, 1}) {
        Session s(std::string(i == 0 ? wide : narrow) + codes, shape, {}, 512, 256, memory);
        std::mt19937 random(13);
        s.forward(test::Tokens(shape, 256, random));
        const Report r = s.cache.report();
        bytes[i] = memory.live_bytes - r.fixed_bytes, slots[i] = r.slots;
        REQUIRE(r.bytes() == memory.live_bytes);
        REQUIRE(r.budget_asked == 2 * (i == 0 ? 128 : 64));
      }
      REQUIRE(slots[0] == 256);
      REQUIRE(slots[1] == 128);
      REQUIRE(static_cast<double>(bytes[1]) < 0.85 * static_cast<double>(bytes[0]));
    }
}

TEST_CASE("engine failures: 128K-token accumulation in fp32", "[any][engine_failures]") {
  constexpr index_t tokens = 131072;
  // Attention over that many equal logits is the mean; in 16 bits, sums would stand still long before their end.
  for (const char* text : {"exact", "int8(group=16)"}) {
    CAPTURE(text);
    const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .page_slots = 256};
    Session s(text, shape, {}, tokens, 4096);
    std::vector<float> zeros(4096 * 16, 0.0f), ones(4096 * 16, 1.0f), out(16);
    auto ctx = s.context();
    for (index_t at = 0; at < tokens; at += 4096) {
      REQUIRE(s.cache.append(ctx, 0, dense_view<const float>(zeros.data(), 1, 4096, 16), dense_view<const float>(ones.data(), 1, 4096, 16)) == Status::ok);
      REQUIRE(s.cache.step(ctx, 0, Phase::decode) == Status::ok);
    }
    float lse = 0.0f;
    REQUIRE(s.cache.attend(ctx, 0, dense_view<const float>(ones.data(), 1, 1, 16), dense_view(out.data(), 1, 1, 16),
                           {.lse = dense_view(&lse, 1, 1)}) == Status::ok);
    for (const float x : out) REQUIRE(x == Approx(1.0).epsilon(1e-5));
    REQUIRE(std::exp(static_cast<double>(lse)) == Approx(static_cast<double>(tokens)).epsilon(2e-5));
  }
  // What a policy counts: the first of nine tokens draws a ninth of every query.
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 8};
  Session s("h2o(heavy=4, recent=4)", shape, {}, 16, 1);
  std::vector<float> zeros(8, 0.0f), out(8);
  auto ctx = s.context();
  const auto row = dense_view<const float>(zeros.data(), 1, 1, 8);
  double want = 0;
  for (index_t i = 0; i < tokens; ++i) {
    REQUIRE(s.cache.forward(ctx, 0, row, row, row, dense_view(out.data(), 1, 1, 8), {}, Phase::decode) == Status::ok);
    want += 1.0 / static_cast<double>(std::min<index_t>(i + 1, 9));
  }
  REQUIRE(s.cache.token(0, 0, 0) == 0);
  REQUIRE(static_cast<double>(s.cache.full().layers()[0].heads[0].lane[0][0]) == Approx(want).epsilon(2e-3));
}

// A sanitizer sees one word of four; the release build tries them all.
#if defined(KVCONDENSE_TEST_SANITIZED)
constexpr int marked_one_of = 4;
#else
constexpr int marked_one_of = 1;
#endif

TEST_CASE("engine failures: the workspace's high-water mark equals the size that was asked", "[any][engine_failures]") {
  int number = 0;
  const CacheShape shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const test::RandomModel model(shape);
  for (const any::Entry* e : any::builtin().entries()) {
    if (number++ % marked_one_of != 0) continue;
    std::string text = test::with_fields(*e, test::stages_to_vary(*e).front());
    auto made = any::make(text, shape, any::on<Cpu>, heap_memory(), model.facts());
    if (!made) made = any::make(text += " + rerotate", shape, any::on<Cpu>, heap_memory(), model.facts());
    CAPTURE(text, std::string(made.message()));
    REQUIRE(made);
    // Columns of attention do without the logits that they ask for room to keep: more slowly.
    const any::ParseResult parsed = any::parse(text, model.facts());
    REQUIRE(parsed);
    const auto& stages = parsed->stages;
    const auto policy = stages.evict.pipeline();
    const bool columns = policy.probes() || policy.queries().rows != AttentionNeed::Rows::none || stages.quant.has_saliency();
    using Columns = prim::AttendColumns<Cpu>;
    std::mt19937 random(14);
    Workspace big;
    REQUIRE(big.reserve(made->workspace_bytes(512, 160)) == Status::ok);
    std::vector<float> out(static_cast<std::size_t>(4 * 150 * 64));
    std::size_t gap = big.bytes().size();  // the least that was left over in a call
    for (const index_t n : {150, 1, 20}) {
      const test::Tokens t(shape, n, random);
      const test::StepData data(shape, n, random);
      StepInputs inputs = data.inputs();
      inputs.queries = t.queries(shape);
      const auto view = dense_view(out.data(), 4, n, 64);
      const Phase phase = n == 150 ? Phase::prefill_end : Phase::decode;
      for (index_t l = 0; l < 3; ++l) {
        index_t most = 0;
        for (index_t h = 0; h < 2; ++h) most = std::max(most, made->slots(l, h) + n);
        const std::size_t asked = made->workspace_bytes(most, n);
        const auto works = [&](std::size_t bytes) {
          auto copy = made->fork();
          REQUIRE(copy);
          Context<Cpu> ctx(big.bytes().first(bytes));
          const Status s = copy->forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), view, {}, phase, inputs);
          REQUIRE((s == Status::ok || s == Status::workspace_too_small));
          if (s != Status::ok) REQUIRE(copy->length(l) == made->length(l));
          return s == Status::ok;
        };
        REQUIRE(works(asked));
        std::size_t low = 0, high = asked;
        while (high - low > 1) (works((low + high) / 2) ? high : low) = (low + high) / 2;
        const std::size_t kept = columns ? Columns::workspace_bytes(1, shape, n, 0, most) - Columns::workspace_bytes(1, shape, n) : 0;
        // A mass may be asked of attention besides; a policy that wants none does without its room.
        const auto attend = [&](bool mass) { return prim::Attend<Cpu>::workspace_bytes(1, 2, 2 * n, most, 64, 64, mass); };
        const std::size_t spare = kept + (policy.attention().rows == AttentionNeed::Rows::none ? attend(true) - attend(false) : 0);
        gap = std::min(gap, asked - high - std::min(asked - high, spare));
        Context<Cpu> ctx(big.bytes());
        REQUIRE(made->forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), view, {}, phase, inputs) == Status::ok);
      }
    }
    // What a retrieval stage may read depends on its index, which these calls do not drive to its worst.
    if (e->room != Stage::retrieve) REQUIRE(gap <= 1024);
  }
}

TEST_CASE("engine failures: a missing scale pointer does not compile or is refused", "[any][engine_failures]") {
  // Scales of codes lie in the page with them: a view of codes without any cannot be written down. What comes by pointer is what a
  // recipe knows of the model, and a recipe without it is refused by name, all of them.
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  const test::RandomModel model(shape);
  const auto refused = [&](const any::ModelFacts& facts, const char* text, const char* fact) {
    CAPTURE(text, fact);
    test::CountingMemory memory;
    const auto made = any::make(text, shape, any::on<Cpu>, memory, facts);
    REQUIRE_FALSE(made);
    REQUIRE(made.status() == Status::missing_input);
    REQUIRE(std::string(made.message()).ends_with(std::string("ModelFacts::") + fact));
    REQUIRE(memory.live_bytes == 0);
  };
  refused({}, "commvq", "key_books");
  any::ModelFacts no_upper = model.facts();
  no_upper.key_upper = {};
  refused(no_upper, "kvquant", "key_upper");
  any::ModelFacts no_lower = model.facts();
  no_lower.key_lower = {};
  refused(no_lower, "kvquant", "key_lower");
  any::ModelFacts no_values = model.facts();
  no_values.value_books = {};
  refused(no_values, "commvq", "value_books");
  refused({}, "pca", "bases");
  REQUIRE(make_cache<Cpu>(shape, any::AnyRecipe{.quant = any::parse("kvquant")->stages.quant}).status() == Status::missing_input);
  // A scale that is no number, or none, is no scale.
  for (const char* text : {"fp8(scale=tensor, key_scale=0)", "fp8(scale=tensor, value_scale=-1)", "fp8(scale=tensor, key_scale=nan)"}) {
    CAPTURE(text);
    REQUIRE_FALSE(any::make(text, shape, any::on<Cpu>));
  }
}

TEST_CASE("engine failures: every test that the page names is there", "[any][engine_failures]") {
  const std::string root = KVCONDENSE_SOURCE_DIR;
  const auto text_of = [](const std::filesystem::path& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string page = text_of(root + "/docs/engine_failures.md");
  std::string tests;
  for (const char* room : {"any", "cache", "position", "prim"})
    for (const auto& file : std::filesystem::directory_iterator(root + "/tests/" + room)) tests += text_of(file.path());
  int names = 0, rows = 0;
  for (std::size_t at = page.find("`"); at != std::string::npos; at = page.find("`", at + 1)) {
    const std::size_t end = page.find("`", at + 1);
    const std::string name = page.substr(at + 1, end - at - 1);
    CAPTURE(name);
    CHECK(tests.find("TEST_CASE(\"" + name + "\"") != std::string::npos);
    ++names, rows += name.starts_with("engine failures: ");
    at = end;
  }
  REQUIRE(rows == 15);
  REQUIRE(names > rows);
}
