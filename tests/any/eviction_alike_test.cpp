#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <any/eviction_run.hpp>
#include <kvcondense/core/random.hpp>

using namespace kvcondense;

// What a composition has to do alike however it is called: with a budget for all, with heads or layers in another order,
// with slots that leave before attention is added up or after. Tried over the registry.

namespace {

using test::EvictionRoom;
using test::EvictionRun;

/// For every word a setting in which nothing leaves. A word without one fails the tests.
const std::map<std::string, std::string> roomy_settings{
    {"keep_all", "keep_all"},
    {"sliding_window", "sliding_window(window=500)"},
    {"sink_window", "sink_window(recent=500, sinks=4)"},
    {"h2o", "h2o(heavy=400, recent=100)"},
    {"tova", "tova(tokens=500)"},
    {"snapkv", "snapkv(tokens=500, window=8)"},
    {"finch", "finch(keep=100%)"},
    {"nacl", "nacl(tokens=500)"},
    {"knorm", "knorm(tokens=500, recent=8)"},
    {"keydiff", "keydiff(tokens=500, recent=8)"},
    {"qfilters", "qfilters(keep=100%)"},
    {"observed_attention", "observed_attention(keep=100%)"},
    {"lagkv", "lagkv(sinks=4, lag=16, keep=100%)"},
    {"sirllm", "sirllm(memory=500)"},
    {"locret", "locret(tokens=500, stabilizers=20, local=10)"},
    {"dms", "dms(window=500)"},
    {"razor_attention", "razor_attention(induction_part=100%)"},
    {"kvzip", "kvzip(keep=100%)"},
    {"expected_attention", "expected_attention(keep=100%)"},
    {"chunkkv", "chunkkv(tokens=500, window=8, chunk=7)"},
    {"rkv", "rkv(tokens=500, window=4)"},
    {"duo_attention", "duo_attention(sparsity=0%)"},
    {"simlayerkv", "simlayerkv(recent=500)"},
    {"strided_blocks", "strided_blocks(block=4, local=200, every=3)"},
    {"prefixkv", "prefixkv"},  // of a model whose layers are all to keep everything
    {"paged_h2o", "paged_h2o(page=4, start=4, evictable=400, recent=40, width=1)"},  // wider, slots add to those in front of them
    {"scissorhands", "scissorhands(tokens=500)"},
    {"keyformer", "keyformer(tokens=500, recent=8)"},
    {"fastgen", "fastgen(recovery=100%, frequent=100%, local=100%)"},
    {"global_top", "global_top(knorm, keep=100%)"},
    {"ratio", "ratio(snapkv(window=8), keep=100%)"},
    {"uniform", "uniform(snapkv(window=8), tokens=500)"},
    // Shares of a layer's or a model's slots: with enough of them the smallest share is enough.
    {"pyramid", "pyramid(snapkv(tokens=5000, window=8))"},
    {"variance", "variance(snapkv(tokens=50000, window=8))"},
    {"head_table", "head_table(snapkv(tokens=50000, window=8))"},
};

std::vector<std::string> roomy_recipes() {
  std::vector<std::string> all;
  for (const any::Entry* e : any::builtin().entries()) {
    if ((e->room != Stage::evict && e->room != Stage::budget) || e->word == "alisa") continue;  // which keeps an even number
    const auto set = roomy_settings.find(std::string(e->word));
    CAPTURE(std::string(e->word));
    REQUIRE((set != roomy_settings.end() || e->wraps));
    all.push_back(set != roomy_settings.end() ? set->second : std::string(e->word) + "(snapkv(tokens=500, window=8))");
  }
  return all;
}

/// The model of the other runs, measured to need everything in every layer.
const any::ModelFacts& needs_all() {
  static const std::vector<float> none(static_cast<std::size_t>(test::eviction_shape.layers), 0.0f);
  static const any::ModelFacts facts = [] {
    any::ModelFacts f = test::eviction_facts();
    f.evicted = {none.data(), test::eviction_shape.layers};
    return f;
  }();
  return facts;
}

EvictionRun ran(const std::string& text, const test::Dealt& dealt = {}, const any::ModelFacts& facts = test::eviction_facts()) {
  EvictionRun run(text, 9, DType::f32, facts);
  run.dealt = dealt;
  EvictionRoom room(run.cache);
  for (int pass = 0; pass < EvictionRun::passes; ++pass) run.advance(room.ctx, pass);
  return run;
}

/// A cache that is told what attention its slots drew: a number of layer, head and token, whatever else is there.
struct Fed {
  std::string text;
  any::AnyCache cache;
  EvictionRoom room;

  explicit Fed(const std::string& t) : text(t), cache(EvictionRun::make(t, DType::f32, needs_all())), room(cache) {}
  Fed(const Fed& o) : text(o.text), cache(std::move(*o.cache.fork())), room(cache) {}

  void feed(index_t n, Phase phase, std::uint32_t seed) {
    const CacheShape& shape = test::eviction_shape;
    std::mt19937 random(seed + static_cast<std::uint32_t>(cache.length()));
    for (index_t l = 0; l < shape.layers; ++l) {
      const test::Tokens t(shape, n, random);
      const test::StepData data(shape, n, random);
      REQUIRE(cache.append(room.ctx, l, t.keys(shape), t.values(shape), {}, t.queries(shape)) == Status::ok);
      std::vector<float> mass(static_cast<std::size_t>(cache.total_slots(l)));
      const RaggedView<float> view = cache.ragged(l, mass.data());
      for (index_t h = 0; h < shape.kv_heads; ++h)
        for (index_t s = 0; s < cache.slots(l, h); ++s)
          view.row(h)[s] = random_uniform(seed, static_cast<std::uint64_t>((l * 16 + h) * 4096 + cache.token(l, h, s)));
      StepInputs inputs = data.inputs({view, cache.mass_rows(n)});
      inputs.queries = t.queries(shape);
      REQUIRE(cache.step(room.ctx, l, inputs, phase) == Status::ok);
    }
  }
  void remove(index_t first, index_t last) { REQUIRE(cache.remove(room.ctx, first, last) == Status::ok); }

  /// Of every slot the token and what the policy knows of it.
  std::vector<float> numbers() const {
    std::vector<float> all;
    for (const auto& layer : cache.full().layers())
      for (const auto& head : layer.heads)
        for (index_t i = 0; i < head.slots(); ++i) {
          all.push_back(static_cast<float>(head.ids[i]));
          for (index_t n = 0; n < head.lanes; ++n) all.push_back(head.lane[n][i]);
        }
    return all;
  }
};

}  // namespace

TEST_CASE("eviction: with room for everything every recipe gives the outputs of keep_all, bit for bit", "[any][invariants]") {
  const EvictionRun all = ran("keep_all");
  for (const std::string& text : roomy_recipes()) {
    CAPTURE(text);
    const EvictionRun run = ran(text, {}, needs_all());
    REQUIRE(run.cache.report().evicted_slots == 0);
    REQUIRE((run.kept() == all.kept()));
    REQUIRE((run.outputs == all.outputs));
  }
}

TEST_CASE("eviction: methods of head roles with all heads full are dense attention, bit for bit", "[any][invariants]") {
  const EvictionRun dense = ran("keep_all");
  for (const char* text : {"duo_attention(sparsity=0%, sinks=1, recent=1)", "razor_attention(induction_part=100%, echo_part=0%, sinks=1, least=1)",
                           "razor_attention(induction_part=0%, echo_part=100%, sinks=1, least=1)",
                           "razor_attention(induction_part=100%, sinks=1, least=1, compensate=false)"}) {
    CAPTURE(text);
    const EvictionRun run = ran(text);
    REQUIRE(run.cache.report().slots == dense.cache.report().slots);
    REQUIRE((run.kept() == dense.kept()));
    REQUIRE((run.outputs == dense.outputs));
  }
  // The same roles with one head less are not.
  REQUIRE((ran("duo_attention(sparsity=20%, sinks=1, recent=1)").outputs != dense.outputs));
}

// Which words tell the heads of a layer apart, or layers, beside by what these hold: by numbers of the model, by noise of
// their own, by blocks and anchors that begin elsewhere, or because it is layers that they are about.
TEST_CASE("eviction: heads and layers in another order keep the same in every recipe that does not tell them apart", "[any][invariants]") {
  const std::set<std::string> own_heads{"locret", "nacl", "qfilters", "razor_attention", "duo_attention", "head_table", "critical", "keyformer", "strided_blocks", "kvcrush"};
  const std::set<std::string> own_layers{"locret", "nacl", "qfilters", "razor_attention", "duo_attention", "head_table", "critical", "keyformer", "prefixkv", "prefix_mass",
                                         "variance", "pyramid", "skip_layers", "layer_pattern"};
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    const std::string word = text.substr(0, text.find('('));
    const EvictionRun plain = ran(text), heads = ran(text, {.heads_reversed = true}), layers = ran(text, {.first_layer = 1});
    const index_t most = plain.shape.layers, last = plain.shape.kv_heads - 1;
    for (index_t l = 0; l < most; ++l)
      for (index_t h = 0; h <= last; ++h) {
        if (own_heads.count(word) == 0) REQUIRE((heads.kept(l, h) == plain.kept(l, last - h)));
        const bool follows = text.find("reuse=") != text.npos;  // a layer that takes over what another one chose
        if (!follows && own_layers.count(word) == 0) REQUIRE((layers.kept(l, h) == plain.kept((l + 1) % most, h)));
      }
  }
}

TEST_CASE("eviction: numbers of slots that move and are added to are those of slots that are added to and move, in every recipe", "[any][invariants]") {
  std::size_t with_numbers = 0;
  for (const std::string& text : roomy_recipes()) {
    if (text.starts_with("keyformer") || text.starts_with("fastgen")) continue;  // they measure attention themselves, over what is there
    CAPTURE(text);
    Fed moved(text);
    moved.feed(40, Phase::prefill_chunk, 1);
    Fed added(moved);
    for (const auto& [tokens, phase] : {std::pair{index_t{9}, Phase::prefill_end}, std::pair{index_t{1}, Phase::decode}}) {
      const index_t first = tokens == 9 ? 5 : 30;
      moved.remove(first, first + 7);
      moved.feed(tokens, phase, 2), added.feed(tokens, phase, 2);
      added.remove(first, first + 7);
      REQUIRE((moved.numbers() == added.numbers()));
    }
    moved.remove(0, 2);
    REQUIRE(moved.cache.turn(moved.room.ctx, 3) == Status::ok);
    REQUIRE(added.cache.turn(added.room.ctx, 3) == Status::ok);
    added.remove(0, 2);
    REQUIRE((moved.numbers() == added.numbers()));
    REQUIRE(moved.cache.slots(0, 0) == 50 - 16);
    with_numbers += moved.cache.full().layers()[0].heads[0].lanes > 0;
  }
  REQUIRE(with_numbers >= 10);
}
