#include <external/rig.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <support/memory.hpp>
#include <support/model_facts.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;
using external::Sharing;
using test::at;
using test::AnyCondenser;
using test::EngineMemory;
using test::Layout;
using test::Tokens;

namespace {

/// An engine with its own memory and a cache, side by side, on the same tokens with the same recipe.
struct Beside {
  CacheShape shape;
  Expected<any::AnyCache> cache;
  Expected<AnyCondenser> condenser;
  std::vector<EngineMemory> memory;  // of each layer
  Workspace work, own;
  Context<Cpu> ctx, own_ctx;
  index_t seen = 0;

  Beside(const CacheShape& s, const std::string& text, Layout layout, index_t room, const any::ModelFacts& facts, external::CondenserOptions options = {})
      : shape(s), cache(any::AnyCache::make(test::stages(text, facts), text, s)),
        condenser(AnyCondenser::make(s, test::stages(text, facts), options)) {
    INFO(text);
    REQUIRE(cache.status() == Status::ok);
    REQUIRE(condenser.status() == Status::ok);
    for (index_t l = 0; l < s.layers; ++l) memory.emplace_back(s, layout, room, static_cast<unsigned>(l + 1));
    REQUIRE(work.reserve(cache->workspace_bytes(room, room)) == Status::ok);
    REQUIRE(own.reserve(condenser->workspace_bytes(room, room, memory[0].pages)) == Status::ok);
    ctx = Context<Cpu>(work.bytes()), own_ctx = Context<Cpu>(own.bytes());
  }

  std::vector<index_t> lengths(index_t layer) const {
    std::vector<index_t> n;
    for (index_t h = 0; h < shape.kv_heads; ++h) n.push_back(condenser->slots(layer, h));
    return n;
  }

  void pass(index_t n, Phase phase, std::uint64_t seed) {
    const index_t before = seen;
    seen += n;
    for (index_t l = 0; l < shape.layers; ++l) {
      CAPTURE(l, before);
      std::mt19937 random(static_cast<unsigned>(seed) + static_cast<unsigned>(100 * l));
      const test::StepData data(shape, n, random);
      const StepInputs inputs = data.inputs();
      const auto& q = inputs.queries;
      CacheShape rows = shape;
      rows.q_heads = shape.kv_heads;
      const Tokens t(rows, n, seed + static_cast<std::uint64_t>(7 * l));
      std::vector<float> want(at(shape.q_heads * n * shape.values())), got(want.size(), -1.0f);
      REQUIRE(cache->forward(ctx, l, q, t.keys(), t.values(), dense_view(want.data(), shape.q_heads, n, shape.values()), {}, phase, inputs) == Status::ok);

      EngineMemory& m = memory[at(l)];
      m.write(lengths(l), t.keys(), t.values());
      REQUIRE(condenser->attend(own_ctx, l, m.borrow(), n, q, dense_view(got.data(), shape.q_heads, n, shape.values())) == Status::ok);
      float worst = 0.0f;
      for (std::size_t i = 0; i < want.size(); ++i) {
        const float diff = std::abs(got[i] - want[i]) / (1.0f + std::abs(want[i]));
        if (!(diff <= worst)) worst = diff;
      }
      REQUIRE(worst < 2e-4f);
      REQUIRE(condenser->step(own_ctx, l, m.borrow(), n, inputs, phase) == Status::ok);
      if (condenser->leaves(l)) REQUIRE(condenser->compact(own_ctx, l, m.borrow()) == Status::ok);
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        REQUIRE(condenser->slots(l, h) == cache->slots(l, h));
        index_t wrong = 0;
        for (index_t j = 0; j < cache->slots(l, h); ++j) wrong += condenser->token(l, h, j) != cache->token(l, h, j);
        REQUIRE(wrong == 0);
      }
    }
  }
};

}  // namespace

TEST_CASE("condenser: every policy and every fold decides over an engine's memory as in a cache", "[external]") {
  const char* texts[] = {"keep_all", "sliding_window(window=40)", "sink_window(sinks=3, recent=30)", "h2o(heavy=20, recent=20)", "tova(tokens=36)",
                         "snapkv(tokens=40, window=8, kernel=5)", "knorm(tokens=40, recent=8)", "keydiff(tokens=40, recent=8)",
                         "finch(keep=50%, window=6)", "nacl(tokens=40, window=8, sinks=2, recent=8)", "qfilters(keep=50%, recent=8)",
                         "simlayerkv(threshold=50%, sinks=2, recent=20)",
                         "observed_attention(keep=50%, sinks=2, recent=8)", "lagkv(sinks=2, lag=8, keep=50%)",
                         "sirllm(sinks=2, memory=30, recent=8, decay=0.6)", "locret(tokens=40, stabilizers=12, local=8)",
                         "dms(window=30, scale=10, offset=2)", "razor_attention(induction_part=20%, sinks=2, least=16, divisor=4, compensate=false)",
                         "expected_attention(keep=50%, sinks=2, horizon=16)", "exit_threshold(h2o, window=25, least=0.01)",
                         "chunkkv(tokens=40, window=8, chunk=5)", "chunkkv(tokens=40, window=8, chunk=5, reuse=2)", "rkv(tokens=40, window=6, kernel=3, slack=8)",
                         "duo_attention(sparsity=50%, sinks=2, recent=20)", "strided_blocks(block=4, local=5, every=3)",
                         "prefixkv(sinks=2, recent=5, distance=8)", "paged_h2o(page=4, start=4, evictable=24, recent=8)",
                         "scissorhands(tokens=40, drop=10, history=20, recent=6, sinks=2)", "keyformer(tokens=40, recent=8, generation=30)",
                         "alisa(ratio=40%, history=8)", "fastgen(recovery=60%, frequent=20%, local=20%, profile=20)",
                         "layer_pattern(h2o(heavy=10, recent=10), full=50%)", "head_table(snapkv(tokens=40, window=8), beta=1.5)",
                         "prefix_mass(h2o(heavy=20, recent=20))", "variance(h2o(heavy=20, recent=20), least=5%)",
                         "ada(snapkv(tokens=40, window=8), floor=0.2)", "pyramid(snapkv(tokens=40, window=8), beta=4)",
                         "uniform(tova, tokens=37)", "ratio(knorm, keep=60%)", "skip_layers(tova(tokens=30), layers=1)",
                         "caote(h2o(heavy=20, recent=20))", "critical(snapkv(tokens=40, window=8), first=40%)",
                         "kvcrush(snapkv(tokens=40, window=8), share=40%, block=3)", "chunked(h2o(heavy=20, recent=20), chunk=5)",
                         "page_round(h2o(heavy=20, recent=20), page=8)", "every(h2o(heavy=20, recent=20), tokens=7)",
                         "block_prefill(h2o(heavy=20, recent=20), block=30)",
                         "h2o(heavy=20, recent=20) + d2o(mass=log_count)", "h2o(heavy=20, recent=20) + cam(targets=3)",
                         "h2o(heavy=20, recent=20) + ems(window=8, least=0.02, place=pivot)",
                         "sink_window(sinks=3, recent=30) + elastic_cache(sinks=2, mass=value_scale)",
                         "snapkv(tokens=40, window=8) + lookm(kernel=average, alike_only=true)", "h2o(heavy=20, recent=20) + keepkv(window=5, least=0.1, mass=exact)",
                         "h2o(heavy=20, recent=20) + weightedkv", "knorm(tokens=40, recent=8) + value_merge(part=80%)",
                         "kvmerger(least=0.2, heavy=10%, window=6)", "tome(tokens=30, slack=4, sinks=2, recent=6)",
                         "centroid(tokens=30, chunk=8, slack=4, sinks=2, recent=6, place=latest)"};
  struct Form {
    index_t group, dim;
    DType dtype;
  };
  const Form forms[] = {{1, 128, DType::f32}, {4, 80, DType::f16}, {16, 64, DType::f32}, {7, 64, DType::f16}, {2, 80, DType::bf16}, {3, 128, DType::f16}};
  std::size_t i = 0;
  for (const char* text : texts) {
    const Form f = forms[i % 6];
    const Layout layout = test::layouts[(i + i / 6) % 6];
    ++i;
    CAPTURE(text, f.group, f.dim, static_cast<int>(layout));
    const CacheShape shape{.layers = 2, .q_heads = 2 * f.group, .kv_heads = 2, .head_dim = f.dim, .dtype = f.dtype};
    const test::RandomModel model(shape);
    Beside both(shape, text, layout, 96, model.facts());
    both.pass(38, Phase::prefill_chunk, 10 * i);
    both.pass(33, Phase::prefill_end, 20 * i + 1);
    for (std::uint64_t step = 0; step < 5; ++step) both.pass(step == 3 ? 3 : 1, Phase::decode, 30 * i + 7 * step);
  }
  // Words that no list above has are those a condenser refuses, or that need questions about the context.
  std::string all;
  for (const char* text : texts) all += std::string(" ") + text + " ";
  const auto named = [&](std::string_view word) {
    for (std::size_t p = all.find(word); p != std::string::npos; p = all.find(word, p + 1))
      if ((all[p - 1] == ' ' || all[p - 1] == '(') && std::string_view(" (,)").find(all[p + word.size()]) != std::string_view::npos) return true;
    return false;
  };
  for (const any::Entry* e : any::builtin().entries())
    if (e->room == Stage::evict || e->room == Stage::budget || e->room == Stage::merge) {
      const bool other = e->word == "global_top" || e->word == "compensate" || e->word == "dmc" || e->word == "minicache" || e->word == "kvzip";
      CAPTURE(e->word);
      CHECK(named(e->word) != other);
    }
}

TEST_CASE("condenser: a prompt in chunks keeps what the same prompt keeps as a whole", "[external]") {
  constexpr index_t n = 83, window = 16;
  struct Case {
    const char* text;
    Sharing sharing;
    Layout layout;
    DType dtype;
    index_t group, dim;
  };
  const Case cases[] = {{"snapkv(tokens=40, window=16, kernel=5)", Sharing::per_head, Layout::nhd, DType::f16, 4, 64},
                        {"ada(snapkv(tokens=40, window=16, kernel=3), floor=0.2)", Sharing::per_head, Layout::cells, DType::f32, 1, 80},
                        {"chunkkv(tokens=40, window=16, chunk=5)", Sharing::per_head, Layout::vllm, DType::bf16, 7, 64},
                        {"pyramid(snapkv(tokens=40, window=16), beta=4)", Sharing::per_layer, Layout::hnd, DType::f32, 3, 96},
                        {"snapkv(tokens=40, window=16)", Sharing::per_sequence, Layout::cell_channels, DType::f16, 2, 128},
                        {"snapkv(tokens=40, window=16) + d2o(mass=log_count)", Sharing::per_head, Layout::contiguous, DType::f32, 2, 64}};
  for (const Case& k : cases) {
    const CacheShape shape{.layers = 2, .q_heads = 2 * k.group, .kv_heads = 2, .head_dim = k.dim, .dtype = k.dtype};
    const auto part = [](TensorView<const float, 3> all, index_t first, index_t count) {
      all.data += first * all.stride[1], all.extent[1] = count;
      return all;
    };
    const Tokens tokens[] = {Tokens(shape, n, 5), Tokens(shape, n, 6)};
    // `chunk` tokens at a time; the slots that stay, of all layers and heads.
    enum class How { plain, forked, taken_back, with_mass };
    const auto run = [&](index_t chunk, How how) {
      test::CountingMemory memory;
      auto made = AnyCondenser::make(shape, test::stages(k.text), {k.sharing}, memory);
      REQUIRE(made);
      AnyCondenser c = *std::move(made);
      std::vector<EngineMemory> rows;
      for (index_t l = 0; l < 2; ++l) rows.emplace_back(shape, k.layout, n + 2, static_cast<unsigned>(l + 1));
      std::vector<std::byte> scratch(c.workspace_bytes(n + 2, std::max<index_t>(chunk, 1), rows[0].pages));
      Context<Cpu> ctx(scratch);
      const auto pass = [&](index_t first, index_t count, Phase phase) {
        for (index_t l = 0; l < 2; ++l) {
          EngineMemory& m = rows[at(l)];
          const Tokens& t = tokens[l];
          m.write({c.slots(l, 0), c.slots(l, 1)}, part(t.keys(), first, count), part(t.values(), first, count));
          StepInputs in{.queries = part(t.queries(), first, count)};
          const index_t offset[] = {0, first + count, 2 * (first + count)};
          const std::vector<float> mass(at(2 * (first + count)), 1.0f);
          if (how == How::with_mass && phase == Phase::prefill_chunk) in = {.attention = {{mass.data(), offset, 2}, count}};
          CHECK(c.attention_rows(l, count, phase) == std::min(window, count));
          CHECK(c.missing(l, count, in, phase) == nullptr);
          const StepInputs none;
          CHECK(std::string(c.missing(l, count, none, phase)) == "queries");
          CHECK(c.step(ctx, l, m.borrow(), count, none, phase) == Status::missing_input);
          REQUIRE(c.step(ctx, l, m.borrow(), count, in, phase) == Status::ok);
          CHECK(c.bytes() == memory.live_bytes);
        }
        REQUIRE(c.settle(ctx) == Status::ok);
      };
      const std::size_t before = c.bytes();
      index_t first = 0;
      for (; first + chunk < n; first += chunk) {
        pass(first, chunk, Phase::prefill_chunk);
        CHECK_FALSE(c.leaves(0));
        CHECK(c.bytes() >= before + 2 * at(window * shape.q_heads * shape.head_dim) * sizeof(float));
        if (how == How::taken_back) {  // and written again
          REQUIRE(c.truncate(first) == Status::ok);
          pass(first, chunk, Phase::prefill_chunk);
        }
        if (how == How::forked) {
          auto copy = c.fork();
          REQUIRE(copy);
          c = *std::move(copy);
        }
      }
      pass(first, n - first, Phase::prefill_end);
      std::vector<std::vector<std::int32_t>> kept;
      for (index_t l = 0; l < 2; ++l)
        for (index_t h = 0; h < 2; ++h) {
          const auto list = c.kept(l).of(h);
          kept.emplace_back(list.begin(), list.end());
        }
      // The queries go when the first token comes.
      const std::size_t held = c.bytes();
      for (index_t l = 0; l < 2; ++l) {
        REQUIRE(c.compact(ctx, l, rows[at(l)].borrow()) == Status::ok);
        rows[at(l)].write({c.slots(l, 0), c.slots(l, 1)}, part(tokens[l].keys(), 0, 1), part(tokens[l].values(), 0, 1));
        REQUIRE(c.step(ctx, l, rows[at(l)].borrow(), 1, {.queries = part(tokens[l].queries(), 0, 1)}) == Status::ok);
      }
      CHECK(c.bytes() == memory.live_bytes);
      if (chunk < n) CHECK(c.bytes() < held);
      else CHECK(held < before + 2 * at(window * shape.q_heads * shape.head_dim) * sizeof(float));
      return kept;
    };
    CAPTURE(k.text);
    const auto whole = run(n, How::plain);
    if (k.sharing == Sharing::per_head) {  // as a cache decides of the whole
      auto cache = any::AnyCache::make(test::stages(k.text), k.text, shape);
      REQUIRE(cache.status() == Status::ok);
      Workspace work;
      REQUIRE(work.reserve(cache->workspace_bytes(n, n)) == Status::ok);
      Context<Cpu> ctx(work.bytes());
      for (index_t l = 0; l < 2; ++l) {
        const Tokens& t = tokens[l];
        std::vector<float> out(t.q.size());
        REQUIRE(cache->forward(ctx, l, t.queries(), t.keys(), t.values(), dense_view(out.data(), shape.q_heads, n, k.dim)) == Status::ok);
        for (index_t h = 0; h < 2; ++h) {
          const auto& kept = whole[at(2 * l + h)];
          REQUIRE(cache->slots(l, h) == static_cast<index_t>(kept.size()));
          for (std::size_t j = 0; j < kept.size(); ++j) REQUIRE(cache->token(l, h, static_cast<index_t>(j)) == kept[j]);
        }
      }
    }
    for (const index_t chunk : {index_t{1}, index_t{7}, window - 1, window, window + 1}) {
      CAPTURE(chunk);
      CHECK((run(chunk, How::plain) == whole));
    }
    CHECK((run(7, How::forked) == whole));
    CHECK((run(7, How::taken_back) == whole));
    // An engine that measures attention itself and leaves out queries of a chunk has only those behind it.
    CHECK_FALSE((run(window - 1, How::with_mass) == whole));
  }
}

TEST_CASE("condenser: questions about the context leave nothing behind but what they taught", "[external]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  const test::RandomModel model(shape);
  const bool weighted = GENERATE(false, true);
  Beside both(shape, weighted ? "kvzip(keep=60%, sinks=2, weighted=true)" : "kvzip(keep=60%, sinks=2)", Layout::nhd, 96, model.facts());
  both.pass(50, Phase::prefill_end, 3);
  const Tokens t(shape, 10, 9);
  StepInputs asks{.queries = t.queries(), .probe_first = 0, .probe_last = 50};
  std::vector<float> out(t.q.size()), norms;
  for (index_t i = 0; i < 10; ++i) norms.push_back(1.0f + static_cast<float>(i % 3));
  REQUIRE(both.cache->append(both.ctx, 0, t.keys(), t.values()) == Status::ok);
  REQUIRE(both.cache->attend(both.ctx, 0, t.queries(), dense_view(out.data(), 6, 10, 64)) == Status::ok);
  if (weighted) {
    CHECK(both.cache->step(both.ctx, 0, asks, Phase::probe) == Status::missing_input);
    CHECK(std::string_view(both.condenser->missing(0, 10, asks, Phase::probe)) == "hidden_norms");
    CHECK(both.condenser->missing(0, 10, asks, Phase::decode) == nullptr);
    asks.hidden_norms = norms;
  }
  REQUIRE(both.cache->step(both.ctx, 0, asks, Phase::probe) == Status::ok);
  REQUIRE(both.cache->truncate(50) == Status::ok);
  both.memory[0].write(both.lengths(0), t.keys(), t.values());
  REQUIRE(both.condenser->step(both.own_ctx, 0, both.memory[0].borrow(), 10, asks, Phase::probe) == Status::ok);
  CHECK(both.condenser->length() == 50);
  REQUIRE(both.cache->turn(both.ctx, 0) == Status::ok);
  REQUIRE(both.condenser->step(both.own_ctx, 0, both.memory[0].borrow(), 0, {}, Phase::turn) == Status::ok);
  REQUIRE(both.condenser->leaves(0));
  REQUIRE(both.condenser->compact(both.own_ctx, 0, both.memory[0].borrow()) == Status::ok);
  CHECK(both.condenser->slots(0, 0) == both.cache->slots(0, 0));
  both.pass(1, Phase::decode, 77);
}

TEST_CASE("condenser: a layer that takes over a choice needs no queries, waits for the other layer, and is declined with it", "[external]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  Beside both(shape, "chunkkv(tokens=30, window=8, chunk=5, reuse=2)", Layout::nhd, 128, {});
  auto& c = *both.condenser;
  CHECK(c.attention_rows(0, 50, Phase::prefill_end) == 8);
  CHECK(c.attention_rows(1, 50, Phase::prefill_end) == 0);
  CHECK(c.attention_rows(0, 50, Phase::prefill_chunk) == 8);
  CHECK(c.attention_rows(1, 50, Phase::prefill_chunk) == 0);
  CHECK(c.missing(1, 50, {}, Phase::prefill_end) == nullptr);
  std::mt19937 random(4);
  const auto step = [&](index_t layer, index_t n) {
    const test::StepData data(shape, n, random);
    CacheShape rows = shape;
    rows.q_heads = shape.kv_heads;
    const Tokens t(rows, n, static_cast<std::uint64_t>(layer + 1));
    both.memory[at(layer)].write(both.lengths(layer), t.keys(), t.values());
    return c.step(both.own_ctx, layer, both.memory[at(layer)].borrow(), n, layer == 0 ? data.inputs() : StepInputs{}, Phase::prefill_end);
  };
  const auto stay = [&](index_t layer) {
    std::vector<index_t> tokens;
    for (index_t i = 0; i < c.kept(layer).count[0]; ++i) tokens.push_back(c.token(layer, 0, c.kept(layer).slots.row(0)[i]));
    return tokens;
  };
  CHECK(step(1, 50) == Status::order_violation);
  REQUIRE(step(0, 50) == Status::ok);
  REQUIRE(step(1, 50) == Status::ok);  // what the first one has decided, though nothing has moved yet
  CHECK(stay(0).size() < 31);
  CHECK(stay(1) == stay(0));
  REQUIRE(c.decline(0) == Status::ok);
  REQUIRE(c.decline(1) == Status::ok);
  REQUIRE(step(0, 9) == Status::ok);
  REQUIRE(c.compact(both.own_ctx, 0, both.memory[0].borrow()) == Status::ok);
  REQUIRE(step(1, 9) == Status::ok);  // what it holds now
  REQUIRE(c.compact(both.own_ctx, 1, both.memory[1].borrow()) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    REQUIRE(c.slots(1, h) == c.slots(0, h));
    for (index_t s = 0; s < c.slots(0, h); ++s) CHECK(c.token(1, h, s) == c.token(0, h, s));
  }
  // One that lost what the other one still has.
  REQUIRE(step(0, 20) == Status::ok);
  REQUIRE(step(1, 20) == Status::ok);
  REQUIRE(c.decline(0) == Status::ok);
  REQUIRE(c.compact(both.own_ctx, 1, both.memory[1].borrow()) == Status::ok);
  REQUIRE(step(0, 9) == Status::ok);
  const index_t before = c.slots(1, 0);
  CHECK(step(1, 9) == Status::incompatible);
  CHECK(c.slots(1, 0) == before);
  CHECK(AnyCondenser::make(shape, test::stages("exit_threshold(chunkkv(reuse=2))", {}), {}).status() == Status::incompatible);
}

TEST_CASE("condenser: drafts that are taken back, and a sequence that goes on from another", "[external]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  Beside both(shape, "keyformer(tokens=40, recent=8, generation=30) + d2o(mass=log_count)", Layout::cells, 96, {});
  both.pass(60, Phase::prefill_end, 3), both.pass(1, Phase::decode, 5);
  auto copy = both.condenser->fork();
  REQUIRE(copy);
  EngineMemory m = both.memory[0];
  both.pass(3, Phase::decode, 8);
  {  // The same tokens for the copy, over a copy of the rows.
    std::mt19937 random(8);
    const test::StepData data(shape, 3, random);
    const Tokens t({.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32}, 3, 8);
    m.write({copy->slots(0, 0), copy->slots(0, 1)}, t.keys(), t.values());
    REQUIRE(copy->step(both.own_ctx, 0, m.borrow(), 3, data.inputs(), Phase::decode) == Status::ok);
    REQUIRE(copy->leaves(0));
    REQUIRE(copy->compact(both.own_ctx, 0, m.borrow()) == Status::ok);
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(copy->slots(0, h) == both.condenser->slots(0, h));
      for (index_t j = 0; j < copy->slots(0, h); ++j) {
        REQUIRE(copy->token(0, h, j) == both.condenser->token(0, h, j));
        REQUIRE(m.key(h, j) == both.memory[0].key(h, j));
        REQUIRE(copy->scalars(0, h).bias[j] == both.condenser->scalars(0, h).bias[j]);
      }
    }
  }
  REQUIRE(both.cache->truncate(62) == Status::ok);
  REQUIRE(both.condenser->truncate(62) == Status::ok);
  CHECK(both.condenser->truncate(63) == Status::out_of_range);
  both.seen = 62;
  both.pass(1, Phase::decode, 9), both.pass(2, Phase::decode, 10);
  CHECK(copy->length() == 64);
  CHECK(copy->slots(0, 1) == 40);
}

TEST_CASE("condenser: rows that saw a slot are told on in a fork behind tokens that were taken back", "[external]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  Beside both(shape, "observed_attention(keep=50%, sinks=2, recent=8)", Layout::nhd, 96, {});
  both.pass(30, Phase::prefill_end, 3), both.pass(5, Phase::decode, 5);
  REQUIRE(both.cache->truncate(31) == Status::ok);  // behind steps that counted them
  REQUIRE(both.condenser->truncate(31) == Status::ok);
  both.seen = 31;
  auto copy = both.condenser->fork();
  REQUIRE(copy);
  both.condenser = std::move(copy);
  both.pass(2, Phase::decode, 8), both.pass(9, Phase::prefill_end, 9);
  CHECK(both.condenser->slots(0, 0) == 21);
}

TEST_CASE("condenser: heads that share one list agree, within the budget or on all they keep", "[external]") {
  const CacheShape shape{.layers = 3, .q_heads = 12, .kv_heads = 4, .head_dim = 64, .dtype = DType::f32};
  for (const Sharing sharing : {Sharing::per_layer, Sharing::per_sequence})
    for (const external::Agreement how : {external::Agreement::votes, external::Agreement::any}) {
      auto c = AnyCondenser::make(shape, test::stages("snapkv(tokens=30, window=8, kernel=1)"), {sharing, how});
      auto each = AnyCondenser::make(shape, test::stages("snapkv(tokens=30, window=8, kernel=1)"));
      REQUIRE(c);
      REQUIRE(each);
      Workspace work;
      REQUIRE(work.reserve(c->workspace_bytes(90, 80, 40)) == Status::ok);
      Context<Cpu> ctx(work.bytes());
      std::vector<EngineMemory> memory;
      std::vector<std::vector<int>> votes(3, std::vector<int>(80, 0));
      std::vector<int> all(80, 0);
      for (index_t l = 0; l < 3; ++l) {
        memory.emplace_back(shape, Layout::hnd, 90);
        const Tokens t(shape, 80, static_cast<std::uint64_t>(3 * l + 1));
        memory.back().write({0, 0, 0, 0}, t.keys(), t.values());
        for (auto* x : {&*c, &*each}) REQUIRE(x->step(ctx, l, memory.back().borrow(), 80, {.queries = t.queries()}) == Status::ok);
        for (index_t h = 0; h < 4; ++h)
          for (const std::int32_t j : each->kept(l).of(h)) ++votes[at(l)][at(j)], ++all[at(j)];
      }
      if (sharing == Sharing::per_sequence) {
        CHECK(c->compact(ctx, 0, memory[0].borrow()) == Status::order_violation);  // not settled yet
        CHECK(c->relist(ctx, 0, memory[0].borrow()) == Status::order_violation);
        REQUIRE(c->settle(ctx) == Status::ok);
        CHECK(c->settle(ctx) == Status::order_violation);
      } else {
        CHECK(c->settle(ctx) == Status::ok);
      }
      for (index_t l = 0; l < 3; ++l) {
        const auto& v = sharing == Sharing::per_layer ? votes[at(l)] : all;
        REQUIRE(c->kept(l).alike());
        const auto kept = c->kept(l).of(0);
        std::vector<bool> stays(80, false);
        for (const std::int32_t j : kept) stays[at(j)] = true;
        int most_left = 0, least_kept = 99;
        for (std::size_t j = 0; j < 80; ++j) (stays[j] ? least_kept : most_left) = stays[j] ? std::min(least_kept, v[j]) : std::max(most_left, v[j]);
        if (how == external::Agreement::any) {
          CHECK(most_left == 0);
          CHECK(least_kept > 0);
        } else {
          CHECK(kept.size() == 30);
          CHECK(most_left <= least_kept);
        }
        CHECK(stays[72]);  // every head keeps the window
        // Numbers beside the slots go with them; the same for all heads, as positions are, and one per head.
        EngineMemory& m = memory[at(l)];
        const index_t places = m.pages * m.page_slots;
        std::vector<std::int64_t> position(at(places), -1);
        std::vector<float> scale(at(places * 4), -1.0f);  // [pages, heads, slots]
        for (index_t s = 0; s < 80; ++s) {
          const index_t p = m.table[at(s / 5)];
          position[at(p * 5 + s % 5)] = s;
          for (index_t h = 0; h < 4; ++h) scale[at((p * 4 + h) * 5 + s % 5)] = static_cast<float>(100 * h + s);
        }
        const external::SlotBytes numbers[] = {external::slot_bytes(position.data(), 5),
                                               {reinterpret_cast<std::byte*>(scale.data()), 4, 4 * 5 * 4, 5 * 4, 4}};
        std::vector<std::vector<float>> rows;
        std::vector<std::int32_t> list(kept.begin(), kept.end());
        for (const std::int32_t j : list) rows.push_back(m.key(3, j)), rows.push_back(m.value(3, j));
        REQUIRE(c->compact(ctx, l, m.borrow(), {}, numbers) == Status::ok);
        REQUIRE(c->longest(l) == static_cast<index_t>(list.size()));
        for (index_t i = 0; i < c->longest(l); ++i) {
          const index_t p = m.table[at(i / 5)], s = list[at(i)];
          REQUIRE(c->token(l, 2, i) == s);
          REQUIRE(position[at(p * 5 + i % 5)] == s);
          REQUIRE(scale[at((p * 4 + 3) * 5 + i % 5)] == static_cast<float>(300 + s));
          REQUIRE(m.key(3, i) == rows[at(2 * i)]);
          REQUIRE(m.value(3, i) == rows[at(2 * i + 1)]);
        }
      }
    }
}

TEST_CASE("condenser: a pass whose later layer was refused goes on there, or is taken back", "[external]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  EngineMemory m(shape, Layout::hnd, 60);
  const Tokens t(shape, 40, 4);
  m.write({0, 0}, t.keys(), t.values());
  for (const bool back : {false, true}) {
    auto c = AnyCondenser::make(shape, test::stages("h2o(heavy=10, recent=10)"), {Sharing::per_sequence});
    REQUIRE(c);
    std::vector<std::byte> scratch(c->workspace_bytes(40, 40, m.pages));
    Context<Cpu> ctx(scratch), none;
    const StepInputs in{.queries = t.queries()};
    REQUIRE(c->step(ctx, 0, m.borrow(), 40, in) == Status::ok);
    CHECK(c->step(none, 1, m.borrow(), 40, in) == Status::workspace_too_small);
    CHECK(c->settle(ctx) == Status::order_violation);
    CHECK(c->step(ctx, 0, m.borrow(), 40, in) == Status::order_violation);
    if (back) {
      REQUIRE(c->truncate(0) == Status::ok);
      CHECK(c->slots(0, 1) == 0);
      CHECK_FALSE(c->leaves(0));
      REQUIRE(c->step(ctx, 0, m.borrow(), 40, in) == Status::ok);
    }
    REQUIRE(c->step(ctx, 1, m.borrow(), 40, in) == Status::ok);
    REQUIRE(c->settle(ctx) == Status::ok);
    CHECK(c->kept(0).of(0).size() == 20);
    CHECK(c->truncate(0) == Status::order_violation);
    for (index_t l = 0; l < 2; ++l) REQUIRE(c->decline(l) == Status::ok);
    CHECK(c->truncate(30) == Status::ok);
    CHECK(c->slots(1, 0) == 30);
  }
}

TEST_CASE("condenser: a shared page is never written", "[external]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f16};
  for (const char* text : {"sink_window(sinks=7, recent=20)", "sink_window(sinks=7, recent=20) + d2o(mass=log_count)"}) {
    auto c = AnyCondenser::make(shape, test::stages(text), {Sharing::per_layer});
    REQUIRE(c);
    EngineMemory m(shape, Layout::nhd, 70);
    m.owners.assign(at(m.pages), 1);
    const index_t shared = 6;  // pages of the prompt's first 30 tokens
    for (index_t p = 0; p < shared; ++p) m.owners[at(m.table[at(p)])] = 2;
    Workspace work;
    REQUIRE(work.reserve(c->workspace_bytes(70, 60, m.pages)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    const Tokens t(shape, 60, 4);
    m.write({0, 0}, t.keys(), t.values());
    const auto keys = m.keys, values = m.values;
    REQUIRE(c->step(ctx, 0, m.borrow(), 60, {.queries = t.queries()}) == Status::ok);
    REQUIRE(c->kept(0).of(1).size() == 27);
    // The plan of a merge stage: slots that fold name a target of the sequence's own pages, and count for something.
    const prim::MergeLinks plan = c->links(0);
    index_t folds_planned = 0;
    for (index_t j = 0; plan.to.data != nullptr && j < 60; ++j)
      if (plan.folds(1, j)) {
        ++folds_planned;
        CHECK(plan.to.row(1)[j] >= 5 * shared);
        CHECK(plan.to.row(1)[plan.to.row(1)[j]] == plan.to.row(1)[j]);
        CHECK(plan.value.row(1)[j] > 0.0f);
      }
    CHECK((folds_planned > 0) == (std::string(text).find("d2o") != std::string::npos));
    CHECK(c->compact(ctx, 0, m.borrow()) == Status::invalid_argument);
    CHECK((m.keys == keys));
    // Page 0 stays where it is; of page 1 two slots stay and others come; 27 slots need six pages.
    index_t places[8];
    const index_t n = external::pages_to_own(m.borrow(), c->kept(0), places);
    REQUIRE(n == 5);
    CHECK(places[0] == 1);
    CHECK(places[4] == 5);
    std::vector<std::int32_t> to = m.table;
    for (index_t i = 0; i < n; ++i) to[at(places[i])] = m.table[at(shared + i)];  // not fresh: held by the sequence already
    CHECK(c->compact(ctx, 0, m.borrow(), to) == Status::invalid_argument);
    for (index_t i = 0; i < n; ++i) to[at(places[i])] = m.table[at(m.pages - 1 - i)];
    CHECK((m.keys == keys));
    CHECK((m.values == values));
    std::vector<std::vector<float>> rows;
    for (const std::int32_t j : c->kept(0).of(1)) rows.push_back(m.key(1, j));
    m.owners[at(m.table[0])] = 2;
    REQUIRE(m.pages - n >= 12);  // fresh ones lie beyond the sequence
    REQUIRE(c->compact(ctx, 0, m.borrow(), to) == Status::ok);
    const std::size_t page_bytes = at(5 * 2 * 64) * 2;
    for (index_t p = 0; p < shared; ++p) {
      const std::size_t from = at(m.table[at(p)]) * page_bytes;
      CHECK(std::equal(keys.begin() + static_cast<std::ptrdiff_t>(from), keys.begin() + static_cast<std::ptrdiff_t>(from + page_bytes),
                       m.keys.begin() + static_cast<std::ptrdiff_t>(from)));
      CHECK(std::equal(values.begin() + static_cast<std::ptrdiff_t>(from), values.begin() + static_cast<std::ptrdiff_t>(from + page_bytes),
                       m.values.begin() + static_cast<std::ptrdiff_t>(from)));
    }
    m.table = to;
    const bool folds = std::string(text).find("d2o") != std::string::npos;
    for (index_t i = 0; i < 7; ++i) CHECK(m.key(1, i) == rows[at(i)]);  // sinks lay in shared pages, so nothing folded into them
    index_t changed = 0;
    for (index_t i = 7; i < 27; ++i) changed += m.key(1, i) != rows[at(i)];
    CHECK((changed > 0) == folds);
  }
}

TEST_CASE("condenser: what cannot be is refused and leaves everything as it was", "[external]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  const auto refused = [&](const char* text, Status want, Sharing sharing = Sharing::per_head) {
    CAPTURE(text);
    CHECK(AnyCondenser::make(shape, test::stages(text), {sharing}).status() == want);
  };
  for (const char* text : {"kivi(bits=2)", "reindex", "quest", "compensate(h2o)", "global_top(knorm, keep=60%)", "dmc", "minicache(start=0%)", "online_pca"})
    refused(text, Status::not_supported);
  refused("d2o", Status::incompatible);
  refused("tome(tokens=30, slack=4, sinks=2, recent=6)", Status::incompatible, Sharing::per_layer);
  refused("h2o + d2o", Status::not_supported, Sharing::per_sequence);
  refused("h2o(heavy=0, recent=0)", Status::invalid_argument);

  test::CountingMemory memory;
  {
    auto c = AnyCondenser::make(shape, test::stages("h2o(heavy=10, recent=10)"), {}, memory);
    REQUIRE(c);
    EngineMemory m(shape, Layout::hnd, 60);
    const Tokens t(shape, 40, 4);
    m.write({0, 0}, t.keys(), t.values());
    Workspace work;
    const std::size_t bytes = c->workspace_bytes(40, 40, m.pages);
    REQUIRE(work.reserve(bytes) == Status::ok);
    Context<Cpu> ctx(work.bytes()), none, less(work.bytes().first(bytes / 3));
    const StepInputs in{.queries = t.queries()};
    const auto step = [&](const external::BorrowedLayer& b, Status want, index_t n = 40) {
      CHECK(c->step(ctx, 0, b, n, in) == want);
      CHECK(c->length() == 0);
      CHECK(c->slots(0, 1) == 0);
    };
    memory.refuse_from = memory.requests;
    step(m.borrow(), Status::out_of_memory);
    memory.refuse_from = -1;
    external::BorrowedLayer b = m.borrow();
    std::vector<std::int32_t> table = m.table;
    const auto with = [&](std::size_t i, std::int32_t page) {
      table = m.table, table[i] = page;
      b = m.borrow(), b.table = table;
      return b;
    };
    step(with(3, static_cast<std::int32_t>(m.pages)), Status::out_of_range);
    step(with(3, -1), Status::out_of_range);
    step(with(3, m.table[0]), Status::invalid_argument);  // a page named twice
    b = m.borrow(), b.table = b.table.first(7), step(b, Status::out_of_range);
    b = m.borrow(), b.heads = 4, step(b, Status::shape_mismatch);
    b = m.borrow(), b.keys.dim = 32, step(b, Status::shape_mismatch);
    b = m.borrow(), b.keys.layout.head = 8, step(b, Status::invalid_argument);  // heads lie over each other
    b = m.borrow(), b.keys.layout.page = -64, step(b, Status::invalid_argument);
    b = m.borrow(), b.values.layout.chunk = 0, step(b, Status::invalid_argument);
    b = m.borrow(), b.values.data = nullptr, step(b, Status::invalid_argument);
    b = m.borrow(), b.page_slots = 0, step(b, Status::invalid_argument);
    const std::int32_t one_owner[] = {1};
    b = m.borrow(), b.owners = one_owner, step(b, Status::shape_mismatch);
    step(m.borrow(), Status::order_violation, 0);
    step(m.borrow(), Status::invalid_argument, -1);
    CHECK(c->step(ctx, 2, m.borrow(), 40, in) == Status::out_of_range);
    CHECK(c->step(ctx, 0, m.borrow(), 40) == Status::missing_input);
    CHECK(std::string(c->missing(0, 40, {})) == "queries");
    const index_t offset[] = {0, 40, 80};
    const std::vector<float> mass(80, 1.0f);
    CHECK(std::string(c->missing(0, 40, {.attention = {{mass.data(), offset, 2}, 0}})) == "attention");
    CHECK(c->missing(0, 40, {.attention = {{mass.data(), offset, 2}, 40}}) == nullptr);
    CHECK(c->missing(0, 0, {}, Phase::turn) == nullptr);
    CHECK(c->missing(2, 40, {}) == nullptr);
    auto learned = AnyCondenser::make(shape, test::stages("sirllm(sinks=2, memory=30, recent=8)"));
    REQUIRE(learned);
    CHECK(std::string(learned->missing(1, 3, {})) == "surprise");
    const std::vector<float> surprise(3, 1.0f);
    CHECK(learned->missing(1, 3, {.surprise = surprise}) == nullptr);
    CHECK(c->step(ctx, 0, m.borrow(), 30, in) == Status::shape_mismatch);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    step(m.borrow(), Status::out_of_range, most);
    const index_t beyond[] = {most};
    CHECK(c->step(ctx, 0, m.borrow(), 1, in, Phase::automatic, beyond) == Status::invalid_argument);
    std::vector<float> nothing(t.q.size());
    CHECK(c->attend(ctx, 0, m.borrow(), most, t.queries(), dense_view(nothing.data(), 4, 40, 64)) == Status::out_of_range);
    const index_t negative[] = {-1};
    CHECK(c->step(ctx, 0, m.borrow(), 40, in, Phase::automatic, negative) == Status::shape_mismatch);
    CHECK(c->step(none, 0, m.borrow(), 40, in) == Status::workspace_too_small);
    CHECK(c->step(less, 0, m.borrow(), 40, in) == Status::workspace_too_small);
    CHECK(c->compact(ctx, 0, m.borrow()) == Status::order_violation);  // nothing was decided

    REQUIRE(c->step(ctx, 0, m.borrow(), 40, in) == Status::ok);
    CHECK(c->attention_rows(0, 1) == 1);
    CHECK(c->step(ctx, 0, m.borrow(), 1, in) == Status::order_violation);  // a decision waits
    CHECK(c->truncate(3) == Status::order_violation);
    CHECK_FALSE(c->fork());
    const auto keys = m.keys;
    CHECK(c->compact(ctx, 0, with(0, 900)) == Status::out_of_range);
    CHECK(c->compact(none, 0, m.borrow()) == Status::workspace_too_small);
    std::vector<float> number(at(m.pages * m.page_slots));
    const external::SlotBytes all_heads[] = {external::slot_bytes(number.data(), m.page_slots)};
    CHECK_FALSE(c->kept(0).alike());
    CHECK(c->compact(ctx, 0, m.borrow(), {}, all_heads) == Status::incompatible);
    CHECK(c->relist(ctx, 0, m.borrow()) == Status::incompatible);
    CHECK((m.keys == keys));
    CHECK(c->decline(2) == Status::out_of_range);
    CHECK(c->decline(1) == Status::order_violation);
    {  // The engine may leave all where it is; what folds has been counted.
      auto folds = AnyCondenser::make(shape, test::stages("h2o(heavy=10, recent=10) + d2o(mass=log_count)"));
      auto stays = AnyCondenser::make(shape, test::stages("h2o(heavy=10, recent=10)"));
      REQUIRE(folds);
      REQUIRE(stays);
      std::vector<std::byte> room(folds->workspace_bytes(40, 40, m.pages));
      Context<Cpu> own(room);
      for (auto* x : {&*folds, &*stays}) REQUIRE(x->step(own, 0, m.borrow(), 40, in) == Status::ok);
      CHECK(folds->decline(0) == Status::not_supported);
      CHECK(folds->leaves(0));
      REQUIRE(stays->decline(0) == Status::ok);
      CHECK_FALSE(stays->leaves(0));
      CHECK(stays->slots(0, 1) == 40);
      CHECK(stays->kept(0).of(1).size() == 40);
      CHECK(stays->compact(own, 0, m.borrow()) == Status::order_violation);
      const Tokens next(shape, 1, 6);
      m.write({40, 40}, next.keys(), next.values());
      REQUIRE(stays->step(own, 0, m.borrow(), 1, {.queries = next.queries()}) == Status::ok);  // and decides anew
      CHECK(stays->kept(0).of(1).size() == 20);
    }
    REQUIRE(c->compact(ctx, 0, m.borrow()) == Status::ok);
    CHECK(c->slots(0, 0) == 20);
    CHECK(c->step(ctx, 0, m.borrow(), most, in) == Status::out_of_range);
    CHECK(c->length() == 40);

    // NaN in the engine's rows ranks last and harms nothing else.
    auto k = AnyCondenser::make(shape, test::stages("knorm(tokens=20, recent=4)"));
    REQUIRE(k);
    std::vector<float> bad = t.k;
    bad[5 * 64] = NAN;  // head 0, token 5
    EngineMemory other(shape, Layout::contiguous, 60);
    other.write({0, 0}, dense_view(static_cast<const float*>(bad.data()), 2, 40, 64), t.values());
    REQUIRE(k->step(ctx, 0, other.borrow(), 40) == Status::ok);
    const auto kept = k->kept(0).of(0);
    CHECK(kept.size() == 20);
    CHECK(std::find(kept.begin(), kept.end(), 5) == kept.end());

    // One token, and none.
    auto one = AnyCondenser::make(shape, test::stages("h2o(heavy=10, recent=10)"));
    const Tokens first(shape, 1, 8);
    REQUIRE(one->step(ctx, 1, other.borrow(), 1, {.queries = first.queries()}) == Status::ok);
    CHECK_FALSE(one->leaves(1));
    CHECK(one->slots(1, 0) == 1);
    CHECK(one->truncate(1) == Status::out_of_range);  // layer 0 has none
    CHECK(one->truncate(0) == Status::ok);
    CHECK(one->slots(1, 0) == 0);
  }
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("condenser: a recipe as a type decides what the same text does", "[external]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};
  auto typed = external::make_condenser(shape, recipe(evict::Knorm{.tokens = 20, .recent = 4}));
  auto text = AnyCondenser::make(shape, test::stages("knorm(tokens=20, recent=4)"));
  REQUIRE(typed);
  REQUIRE(text);
  CHECK(typed->needs().empty());
  EngineMemory m(shape, Layout::contiguous, 40);
  const Tokens t(shape, 30, 4);
  m.write({0, 0}, t.keys(), t.values());
  std::vector<std::byte> scratch(std::max(typed->workspace_bytes(30, 30, 1), text->workspace_bytes(30, 30, 1)));
  Context<Cpu> ctx(scratch);
  REQUIRE(typed->step(ctx, 0, m.borrow(), 30) == Status::ok);
  REQUIRE(text->step(ctx, 0, m.borrow(), 30) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    const auto a = typed->kept(0).of(h), b = text->kept(0).of(h);
    CHECK(a.size() == 20);
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  }
}

TEST_CASE("condenser: attention that the engine measured does what attention measured here does", "[external]") {
  const CacheShape shape{.q_heads = 8, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .softmax_scale = 0.125f};
  EngineMemory m(shape, Layout::hnd, 60);
  const Tokens t(shape, 50, 4);
  m.write({0, 0}, t.keys(), t.values());
  auto given = AnyCondenser::make(shape, test::stages("h2o(heavy=12, recent=8)")), measured = AnyCondenser::make(shape, test::stages("h2o(heavy=12, recent=8)"));
  REQUIRE(given);
  REQUIRE(measured);
  std::vector<std::byte> scratch(given->workspace_bytes(50, 50, m.pages) + prim::Attend<Cpu>::workspace_bytes(1, 2, 4 * 50, 50, 64, 64, true));
  Context<Cpu> ctx(scratch);
  CHECK(given->needs() == Inputs(Input::attention));
  CHECK(given->attention_rows(0, 50) == 50);
  const index_t slots[] = {50, 50}, offset[] = {0, 50, 100};
  std::vector<float> mass(100), out(t.q.size());
  const external::BorrowedLayer rows = m.borrow();
  const prim::PagedSequence sequence = rows.sequence(slots);
  prim::AttendRequest request{t.queries(), dense_view(out.data(), 8, 50, 64), {}, {mass.data(), offset, 2}, 50, 0.125f};
  REQUIRE(prim::Attend<Cpu>::run(ctx, request, 2, [&](index_t h) { return prim::PagedHead{&sequence, h}; }) == Status::ok);
  const index_t shorter[] = {0, 50, 99};
  CHECK(given->step(ctx, 0, rows, 50, {.attention = {{mass.data(), shorter, 2}, 50}}) == Status::shape_mismatch);
  const index_t uneven[] = {0, 49, 100};  // as many in all, of other heads
  CHECK(given->step(ctx, 0, rows, 50, {.attention = {{mass.data(), uneven, 2}, 50}}) == Status::shape_mismatch);
  REQUIRE(given->step(ctx, 0, rows, 50, {.attention = {request.mass, 50}}) == Status::ok);
  REQUIRE(measured->step(ctx, 0, rows, 50, {.queries = t.queries()}) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    const auto a = given->kept(0).of(h), b = measured->kept(0).of(h);
    CHECK(a.size() == 20);
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  }
}
