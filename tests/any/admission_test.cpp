#include <functional>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <any/settings.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/critical.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 64};

const any::ModelFacts& facts() {
  static const test::RandomModel model(shape);
  return model.facts();
}

/// Has and does everything that a recipe may want.
const EngineFacts generous{.gives = Inputs::all(), .probes = true, .output_weights = true, .calibration = true, .trained = true};

any::Admission ask(const std::string& text, const EngineFacts& engine = generous, const CacheShape& of = shape) {
  return any::admit(text, of, engine, any::on<Cpu>, facts());
}
std::string said(const any::Admission& a) { return std::string(to_string(a.status)) + ": " + std::string(a.message.view()); }

/// Every word of the registry in a recipe that a cache runs.
std::vector<std::string> recipes() {
  std::vector<std::string> all;
  for (const any::Entry* e : any::builtin().entries()) {
    std::string text = test::with_fields(*e, test::stages_to_vary(*e).front());
    if (!ask(text)) text += " + rerotate";
    all.push_back(text);
  }
  return all;
}

struct Change {
  const char* fact;
  std::function<void(EngineFacts&)> make;
  std::vector<std::string> refuses, warns;  ///< some whose answer changes; what is not named may change too
};

EngineFacts with(const Change& c) {
  EngineFacts e = generous;
  c.make(e);
  return e;
}

std::vector<Change> changes() {
  const auto without = [](Input i) { return [i](EngineFacts& e) { e.gives = Inputs::all().without(i); }; };
  return {
      {"attention", without(Input::attention), {"h2o", "tova + kivi4", "ada(snapkv)", "mikv"}, {}},
      {"queries", without(Input::queries), {"rkv", "finch", "zipcache", "dmc", "knorm + lserve"}, {}},
      {"projections", without(Input::projections), {"locret"}, {}},
      {"moments", without(Input::moments), {"expected_attention"}, {}},
      {"gates", without(Input::gates), {"dms", "dms + kivi2"}, {}},
      {"surprise", without(Input::surprise), {"sirllm"}, {}},
      {"classes", without(Input::classes), {"fastgen"}, {}},
      {"hidden_norms", without(Input::hidden_norms), {"kvzip(weighted=true)", "global_top(kvzip(weighted=true))"}, {}},
      {"raw_rows", [](EngineFacts& e) { e.raw_rows = false; }, {"sink_window + reindex"}, {}},
      {"probes", [](EngineFacts& e) { e.probes = false; }, {"kvzip"}, {}},
      {"output_weights", [](EngineFacts& e) { e.output_weights = false; }, {"critical(snapkv)", "critical(ada(snapkv))", "kvzip(weighted=true)"}, {}},
      {"calibration", [](EngineFacts& e) { e.calibration = false; }, {"pca", "kvquant", "duo_attention", "qfilters", "loki", "head_table(snapkv)", "h2o + hadamard(kvquant)"}, {}},
      {"trained", [](EngineFacts& e) { e.trained = false; }, {}, {"dms", "dmc", "landmark", "locret"}},
      {"drafts", [](EngineFacts& e) { e.drafts = 4; }, {}, {"sparq", "landmark", "h2o", "compensate(snapkv)", "dmc", "tome(tokens=50)", "kivi4"}},
      {"long drafts", [](EngineFacts& e) { e.drafts = 40; }, {}, {"quest", "kivi4 + quest"}},
      {"shares_prefixes", [](EngineFacts& e) { e.shares_prefixes = true; },
       {"h2o", "sliding_window", "xkv", "online_pca", "think", "zipcache", "mikv", "smooth_attention(kivi4)", "shadowkv + rerotate", "online_pca + kivi4"}, {"kivi4", "fp8"}},
      {"fixed_tables", [](EngineFacts& e) { e.fixed_tables = true; }, {"h2o", "tome(tokens=50)", "sink_window + kivi4"}, {}},
      {"axes", [](EngineFacts& e) { e.positions = PositionKind::axes; }, {"kivi4 + reindex", "rerotate", "dmc", "expected_attention", "ada(expected_attention)", "h2o + d2o(place=pivot)", "tome(place=latest)"}, {}},
      {"embedded", [](EngineFacts& e) { e.positions = PositionKind::embedded; }, {"reindex", "dmc", "expected_attention", "h2o + keepkv(place=pivot)"}, {}},
      {"biased", [](EngineFacts& e) { e.positions = PositionKind::biased; }, {"keep_all", "kivi4"}, {}},
      {"sliding_layers", [](EngineFacts& e) { e.sliding_layers = 1; }, {"keep_all", "sliding_window"}, {}},
      {"qk_norm", [](EngineFacts& e) { e.qk_norm = true; }, {"knorm", "ada(knorm)", "every(uniform(knorm)) + kivi4"}, {"weight_svd + rerotate", "lorc + rerotate"}},
      {"sink_logits", [](EngineFacts& e) { e.sink_logits = true; }, {}, {"h2o", "keep_all"}},
      {"capped_logits", [](EngineFacts& e) { e.capped_logits = true; }, {"keep_all", "int4"}, {}},
      {"latent", [](EngineFacts& e) { e.latent = true; }, {"keep_all", "int4"}, {}},
  };
}

}  // namespace

TEST_CASE("admission: what an engine does not have is refused, and the array that it would have to bring is named", "[any][admission]") {
  EngineFacts plain = generous;
  plain.calibration = false;
  for (const auto& [text, name] : {std::pair{"duo_attention + kivi4", "(duo_attention: ModelFacts::gates)"}, {"h2o + loki", "(loki: ModelFacts::key_axes)"}}) {
    const auto refused = any::admit(text, shape, plain, any::on<Cpu>, {});
    REQUIRE(refused.status == Status::missing_input);
    REQUIRE_THAT(std::string(refused.message.view()), Catch::Contains("which the engine does not have") && Catch::EndsWith(name));
    REQUIRE_THAT(said(ask(text, plain)), !Catch::Contains("ModelFacts"));  // it is there, and made for nothing
  }
}

TEST_CASE("admission: every word of the registry is served by an engine that has everything", "[any][admission]") {
  for (const std::string& text : recipes()) {
    CAPTURE(text);
    const any::Admission a = ask(text);
    CHECK(said(a) == "ok: ");
  }
}

TEST_CASE("admission: an engine with nothing to give is refused what is needed, and served the rest", "[any][admission]") {
  const EngineFacts bare{.gives = {}, .raw_rows = false, .trained = true};
  for (const any::Entry* e : any::builtin().entries()) {
    const std::string text = test::with_fields(*e, test::stages_to_vary(*e).front());
    if (!ask(text)) continue;  // wants raw keys besides
    CAPTURE(text);
    auto made = any::make(text, shape, any::on<Cpu>, heap_memory(), facts());
    REQUIRE(made);
    const Capabilities can = made->capabilities();
    const bool wants = !can.needs.empty() || can.joins_tokens || can.probes || can.wants.calibrated || can.wants.output_weights || !can.rotated_input;
    const any::Admission a = ask(text, bare);
    CHECK(a.status == (wants ? Status::missing_input : Status::ok));
    CHECK(a.message.empty() == !wants);
    CHECK(a.message.complete());
  }
}

TEST_CASE("admission: each fact of an engine changes the answers it should, and says why", "[any][admission]") {
  for (const Change& c : changes()) {
    const EngineFacts engine = with(c);
    for (const std::string& text : c.refuses) {
      CAPTURE(c.fact, text);
      CHECK(ask(text));
      const any::Admission a = ask(text, engine);
      CHECK_FALSE(a);
      CHECK((a.status == Status::missing_input || a.status == Status::not_supported));
      CHECK(a.message.size() > 20);
    }
    for (const std::string& text : c.warns) {
      CAPTURE(c.fact, text, said(ask(text, engine)));
      CHECK_FALSE(ask(text).warns());
      CHECK(ask(text, engine).warns());
    }
  }
  // What a fact has nothing to do with is answered as before.
  for (const auto& [fact, text] : {std::pair{"attention", "knorm + kivi4"}, {"queries", "h2o"}, {"qk_norm", "keydiff"}, {"calibration", "critical(snapkv)"},
                                   {"output_weights", "pca"}, {"output_weights", "kvzip"}, {"hidden_norms", "kvzip"}, {"fixed_tables", "kivi4"}, {"shares_prefixes", "keep_all"}, {"axes", "h2o + kivi4"},
                                   {"axes", "h2o + d2o"}, {"embedded", "dmc(rotated=false)"}, {"embedded", "think"},
                                   {"raw_rows", "rerotate"}, {"drafts", "quest"}, {"trained", "snapkv"}, {"probes", "expected_attention"}}) {
    for (const Change& c : changes())
      if (std::string(c.fact) == fact) {
        CAPTURE(fact, text);
        CHECK(said(ask(text, with(c))) == "ok: ");
      }
  }
}

TEST_CASE("admission: sentences name what is missing", "[any][admission]") {
  EngineFacts e;
  CHECK(said(ask("dms", e)) == "missing_input: the recipe needs the gates of a trained model, which the engine does not hand over");
  CHECK(said(ask("pca", e)) == "missing_input: the recipe needs arrays that are made from the model beforehand, which the engine does not have");
  CHECK(said(ask("sliding_window", {.drafts = 3})) ==
        "ok: what a step evicts, folds or codes is not undone when drafts are taken back: append and attend them, take back what was refused, and step "
        "after that");
  CHECK(said(ask("xkv", {.shares_prefixes = true})) ==
        "not_supported: what is stored of a prompt is read through bases or factors found from its own sequence, which another request does not have: "
        "share prompts by forks of a cache, not by their pages");
  e.fixed_tables = true;
  CHECK(said(ask("h2o", e)) == "not_supported: slots leave, and the engine's tables hold every token in its place");
  CHECK(said(ask("knorm", {.qk_norm = true})) ==
        "not_supported: the model normalises its keys, and the recipe tells tokens apart by nothing but the length of their keys");
  // An engine that could have the array, but did not bring it; a text, a shape, a pair of stages that no cache takes.
  CHECK(said(any::admit("kvquant", shape, generous, any::on<Cpu>)) == "missing_input: kvquant needs what it was not given: ModelFacts::key_lower");
  const any::Admission text = ask("h2o + nonsense");
  CHECK(text.status == Status::invalid_argument);
  CHECK(text.position == 6);
  CHECK(ask("kivi4(group=32)", generous, {.head_dim = 40}).status == Status::invalid_argument);
  CHECK(ask("kivi4(group=32)", generous, {.q_heads = 3, .kv_heads = 2}).status == Status::invalid_argument);
  CHECK(ask("int4(group=32)", generous, {.q_heads = 16, .kv_heads = 1, .head_dim = 576}).status == Status::invalid_argument);
  CHECK(ask("ada(tova)").status == Status::incompatible);
}

TEST_CASE("admission: a recipe as a type is answered like its text", "[any][admission]") {
  const auto same = [](const kvcondense::Admission& a, const any::Admission& b) {
    CHECK(a.status == b.status);
    CHECK(std::string(a.sentence) == std::string(b.message.view()));
  };
  const auto coded = recipe(evict::Knorm{}, quant::Kivi<4>{});
  for (const Change& c : changes()) {
    CAPTURE(c.fact);
    same(admit(coded, shape, with(c)), ask("knorm + kivi4", with(c)));
  }
  using Critical = evict::Critical<evict::SnapKV>;
  STATIC_REQUIRE(stage_traits<Critical>().output_weights);
  STATIC_REQUIRE_FALSE(stage_traits<Critical>().calibrated);
  STATIC_REQUIRE(stage_traits<evict::Critical<evict::Knorm>>().key_norms);
  same(admit(recipe(Critical{}), shape, {}), ask("critical(snapkv)", {}));
  REQUIRE(admit(recipe(Critical{}), shape, generous).status == Status::missing_input);  // it was given no weights
  REQUIRE(admit(recipe(quant::Kivi<4>{.group_size = 7}), shape, generous).status == Status::invalid_argument);
}

TEST_CASE("admission: steps that are taken back leave a trace where capabilities say so, and pending tokens never", "[any][admission]") {
  const CacheShape one{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  for (const auto& [text, exact] : {std::pair{"exact", true}, {"rerotate", true}, {"quest(tokens=32, dense_layers=0)", true}, {"h2o(heavy=24, recent=24)", false},
                                    {"compensate(snapkv(tokens=32, window=8))", false}, {"tome(tokens=48, recent=8, slack=1)", false}, {"dmc(init=0)", false},
                                    {"kivi2(group=16, residual=16)", false}}) {
    for (const bool steps : {true, false}) {
      CAPTURE(text, steps);
      std::mt19937 random(5);
      auto drafting = any::make(text, one, any::on<Cpu>, heap_memory()), plain = any::make(text, one, any::on<Cpu>, heap_memory());
      REQUIRE((drafting && plain));
      CHECK(drafting->capabilities().rollback_exact == exact);
      Workspace work;
      REQUIRE(work.reserve(plain->workspace_bytes(256, 64)) == Status::ok);
      Context<Cpu> ctx(work.bytes());
      const auto outputs = [&](any::AnyCache& c, const test::Tokens& t, Phase phase) {
        std::vector<float> out(static_cast<std::size_t>(4 * t.n * 32));
        REQUIRE(c.forward(ctx, 0, t.queries(one), t.keys(one), t.values(one), dense_view(out.data(), 4, t.n, 32), {}, phase) == Status::ok);
        return out;
      };
      const test::Tokens prompt(one, 60, random), drafts(one, 40, random), next(one, 1, random);
      REQUIRE(outputs(*drafting, prompt, Phase::prefill_end) == outputs(*plain, prompt, Phase::prefill_end));
      if (steps) (void)outputs(*drafting, drafts, Phase::prefill_end);
      else REQUIRE(drafting->append(ctx, 0, drafts.keys(one), drafts.values(one), {}, drafts.queries(one)) == Status::ok);
      REQUIRE(drafting->truncate(60) == Status::ok);
      CHECK((outputs(*drafting, next, Phase::decode) == outputs(*plain, next, Phase::decode)) == (exact || !steps));
    }
  }
}
