#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>

#include <engine/sampling.hpp>
#include <eval/evaluate.hpp>
#include <eval/evaluate_model.hpp>
#include <eval/json_report.hpp>
#include <eval/table.hpp>

#include "dump_files.hpp"

using namespace eval;
using eval::test::TempFile;

namespace {

/// The shipped model, shortened so that a test takes seconds.
Options tiny(std::vector<std::string> recipes) {
  Options o;
  o.model = KVCONDENSE_SOURCE_DIR "/examples/models/tinylm";
  o.recipes = std::move(recipes);
  o.context = 192;
  o.prefill = 96;
  o.windows = 1;
  o.documents = 0;
  o.rounds = 0;
  o.jobs = 1;
  o.quiet = true;
  return o;
}

/// Attention over the newest `keep` tokens before a chunk and the chunk itself, spelled out.
class PlainCache {
 public:
  PlainCache(const CacheShape& shape, std::size_t keep)
      : shape_(shape), keep_(keep), layers_(static_cast<std::size_t>(shape.layers)) {}

  kvcondense::Status operator()(const engine::LayerChunk& c, TensorView<float, 3> out) {
    auto& rows = layers_[static_cast<std::size_t>(c.layer)];
    for (index_t t = 0; t < c.k.extent[1]; ++t) {
      rows.emplace_back();
      for (index_t h = 0; h < shape_.kv_heads; ++h)
        for (index_t d = 0; d < shape_.head_dim; ++d)
          rows.back().insert(rows.back().end(), {c.k(h, t, d), c.v(h, t, d)});
      for (index_t h = 0; h < shape_.q_heads; ++h) attend(rows, c, h, t, out);
    }
    if (rows.size() > keep_) rows.erase(rows.begin(), rows.end() - static_cast<long>(keep_));
    return kvcondense::Status::ok;
  }

 private:
  using Rows = std::vector<std::vector<float>>;  ///< per token: per head and channel key, value

  void attend(const Rows& rows, const engine::LayerChunk& c, index_t h, index_t t,
              TensorView<float, 3> out) const {
    const auto at = static_cast<std::size_t>(2 * (h / shape_.group()) * shape_.head_dim);
    std::vector<double> sum(static_cast<std::size_t>(shape_.head_dim), 0.0);
    double all = 0;
    for (const auto& row : rows) {
      double dot = 0;
      for (std::size_t d = 0; d < sum.size(); ++d)
        dot += static_cast<double>(c.q(h, t, static_cast<index_t>(d))) *
               static_cast<double>(row[at + 2 * d]);
      const double weight = std::exp(dot / std::sqrt(static_cast<double>(shape_.head_dim)));
      all += weight;
      for (std::size_t d = 0; d < sum.size(); ++d)
        sum[d] += weight * static_cast<double>(row[at + 2 * d + 1]);
    }
    for (std::size_t d = 0; d < sum.size(); ++d)
      out(h, t, static_cast<index_t>(d)) = static_cast<float>(sum[d] / all);
  }

  CacheShape shape_;
  std::size_t keep_;
  std::vector<Rows> layers_;
};

double plain_kl(const std::vector<float>& full, const std::vector<float>& other) {
  long double p = 0, q = 0, kl = 0;
  for (const float l : full) p += std::exp(static_cast<long double>(l));
  for (const float l : other) q += std::exp(static_cast<long double>(l));
  for (std::size_t i = 0; i < full.size(); ++i) {
    const auto a = std::exp(static_cast<long double>(full[i])) / p,
               b = std::exp(static_cast<long double>(other[i])) / q;
    kl += a * std::log(a / b);
  }
  return static_cast<double>(kl);
}

}  // namespace

TEST_CASE("model: recipes with room for everything equal the full cache bit for bit",
          "[eval][model]") {
  Options o = tiny({"keep_all", "sliding_window(window=192)", "sink_window(sinks=4, recent=188)",
                    "h2o(heavy=96, recent=96)", "tova(tokens=192)", "knorm(tokens=192)",
                    "snapkv(tokens=192)", "ada(snapkv(tokens=192))", "ratio(h2o, keep=1.0)"});
  Kept kept;
  const Results results = evaluate(o, &kept);
  for (std::size_t i = 0; i < results.recipes.size(); ++i) {
    const RecipeResult& r = results.recipes[i];
    CAPTURE(r.recipe);
    REQUIRE(r.text.predictions == 96);
    REQUIRE(r.text.kl == 0.0);
    REQUIRE(r.text.agreement() == 1.0);
    REQUIRE(r.text.bits == results.recipes[0].text.bits);
    REQUIRE(kept.outputs[i] == kept.outputs[0]);
    REQUIRE(r.slots == std::vector<std::vector<index_t>>(4, {192, 192}));
  }
}

TEST_CASE("model: KL and bits are those of a plain cache that drops the oldest, token for token",
          "[eval][model]") {
  const Options o = tiny({"sliding_window(window=40)"});
  Setting setting;
  const ModelTask task = load_task(o, setting);
  const auto window = task.window(0);
  std::vector<std::vector<float>> full, short_sighted;
  for (const bool all : {true, false}) {
    PlainCache cache(task.shape, all ? 1000 : 40);
    engine::Decoder decoder(task.model);
    REQUIRE(decoder.forward(window.first(96), 0, std::ref(cache)));
    for (index_t at = 96; at < 192; ++at) {
      const auto out =
          decoder.forward(window.subspan(static_cast<std::size_t>(at), 1), at, std::ref(cache));
      REQUIRE(out);
      (all ? full : short_sighted).emplace_back(out->begin(), out->end());
    }
  }
  double bits = 0, kl = 0;
  int agree = 0;
  for (std::size_t i = 0; i < 96; ++i) {
    bits += engine::bits(short_sighted[i], window[96 + i + 1]);
    kl += plain_kl(full[i], short_sighted[i]);
    agree += engine::greedy(full[i]) == engine::greedy(short_sighted[i]);
  }
  // The library's exact caches hold 16-bit numbers, the plain one 32: hence the tolerances.
  const TextSums text = evaluate(o).recipes[1].text;
  REQUIRE(text.predictions == 96);
  REQUIRE(text.mean_bits() == Approx(bits / 96).epsilon(2e-3));
  REQUIRE(text.mean_kl() == Approx(kl / 96).epsilon(2e-2));
  REQUIRE(std::abs(static_cast<int>(text.agreements) - agree) <= 1);
}

TEST_CASE("model: the demo's report names no folder of this machine", "[eval][model]") {
  Options o = tiny({"int8"});
  o.documents = 1;
  o.context = 256;
  o.model_name = "examples/models/tinylm";
  const Results results = evaluate(o);
  REQUIRE(results.setting.source == "examples/models/tinylm");
  REQUIRE(results.setting.text == "examples/models/tinylm/heldout.txt");
  REQUIRE(results.setting.recall == "examples/models/tinylm/recall.jsonl");
  REQUIRE(to_json(results).dump().find(KVCONDENSE_SOURCE_DIR) == std::string::npos);
  REQUIRE(heading(results).find(KVCONDENSE_SOURCE_DIR) == std::string::npos);
}

TEST_CASE("model: int8 stays within 0.001 nats of the full cache, fewer bits cost more",
          "[eval][model]") {
  const Results results = evaluate(tiny({"int8", "int4", "group_int(bits=2)"}));
  const auto kl = [&](std::size_t i) { return results.recipes[i].text.mean_kl(); };
  REQUIRE(kl(1) > 0.0);
  REQUIRE(kl(1) <= 0.001);
  REQUIRE(kl(1) < kl(2));
  REQUIRE(kl(2) < kl(3));
  for (std::size_t i = 1; i < 4; ++i) {
    REQUIRE(results.recipes[i].mean_error() > results.recipes[i - 1].mean_error());
    REQUIRE(results.recipes[i].bytes_per_token() < results.recipes[i - 1].bytes_per_token());
  }
}

TEST_CASE("model: the same options give the same numbers on any number of threads",
          "[eval][model]") {
  Options o = tiny({"h2o(heavy=24, recent=24) + kivi2(residual=32)",
                    "sink_window(sinks=4, recent=44) + reindex"});
  o.windows = 2;
  o.documents = 1;
  o.context = 256;
  o.prefill = 200;
  const Results one = evaluate(o);
  o.jobs = 3;
  const Results three = evaluate(o);
  for (std::size_t i = 0; i < one.recipes.size(); ++i) {
    const RecipeResult &a = one.recipes[i], &b = three.recipes[i];
    CAPTURE(a.recipe);
    REQUIRE(a.text.predictions == 112);
    REQUIRE(a.text.kl == b.text.kl);
    REQUIRE(a.text.bits == b.text.bits);
    REQUIRE(a.layer_error == b.layer_error);
    REQUIRE(a.recall.right[0] == b.recall.right[0]);
    REQUIRE(a.report.bytes() == b.report.bytes());
    REQUIRE(a.slots == b.slots);
    REQUIRE(a.recall.asked_all() > 0);
  }
  o.seed = 2;
  REQUIRE(evaluate(o).recipes[0].text.bits != one.recipes[0].text.bits);
}

TEST_CASE("model: its dump gives the errors that the model gave", "[eval][model]") {
  const TempFile file("model.safetensors");
  Options o = tiny({"h2o(heavy=24, recent=24)", "kivi4(residual=32)",
                    "sink_window(sinks=4, recent=44) + rerotate"});
  const Results direct = evaluate(o);
  o.dump_qkv = file.path();
  OutputFile(file.path()).write(dump_qkv(o));
  Options from;
  from.qkv = file.path();
  from.recipes = o.recipes;
  from.prefill = o.prefill;
  from.rounds = 0;
  from.quiet = true;
  const Results again = evaluate(from);
  for (std::size_t i = 0; i < again.recipes.size(); ++i) {
    REQUIRE(again.recipes[i].layer_error == direct.recipes[i].layer_error);
    REQUIRE(again.recipes[i].slots == direct.recipes[i].slots);
  }
}

TEST_CASE("model: the timing has one speed per recipe, the full cache's ratio is 1",
          "[eval][model]") {
  Options o = tiny({"sliding_window(window=32)"});
  o.rounds = 2;
  const Results results = evaluate(o);
  REQUIRE(results.recipes[0].speed.of_full == 1.0);
  REQUIRE(results.recipes[1].speed.tokens_per_second > 0.0);
  REQUIRE(results.recipes[1].slots[0][0] == 32);  // described before the timing moved the cache on
}

TEST_CASE("model: what a method needs of the model is given, or the recipe is refused by name", "[eval][model]") {
  const Results r = evaluate(tiny({"h2o(heavy=24, recent=24)", "critical(h2o(heavy=24, recent=24))"}));
  REQUIRE(r.recipes[2].text.kl > 0.0);
  REQUIRE(r.recipes[2].text.kl != r.recipes[1].text.kl);
  REQUIRE(r.recipes[2].slots == r.recipes[1].slots);
  const auto [recipe, why] = GENERATE(table<std::string, std::string>(
      {{"dms", "needs the gates of a trained model, which the engine does not hand over"},
       {"duo_attention", "ModelFacts::gates; give --heads FILE"},
       {"locret", "ModelFacts::retain_in; it is trained: --bases FILE gives its tensor \"retain.in\""}}));
  REQUIRE_THROWS_WITH(evaluate(tiny({recipe})), Catch::Contains("recipe '" + recipe + "'") && Catch::Contains(why));
}

TEST_CASE("model: a recipe that repeats its context is condensed after the prefill", "[eval][model]") {
  Options o = tiny({"kvzip(keep=0.5)", "kvzip(keep=1)"});
  const Results r = evaluate(o);
  index_t slots = 0;
  for (const auto& layer : r.recipes[1].slots)
    for (const index_t n : layer) slots += n;
  REQUIRE(slots >= 4 * 2 * (96 + 48));  // half of the prefill and what is protected, and what came later
  REQUIRE(slots <= 4 * 2 * (96 + 48 + 4));
  REQUIRE(r.recipes[1].text.kl > 0.0);
  REQUIRE(r.recipes[1].layer_error.empty());
  REQUIRE(r.recipes[2].text.kl == 0.0);
  REQUIRE(table(r).find(" -  ") != std::string::npos);
  REQUIRE(to_json(r)["recipes"][1]["attention_error"].is_null());
  Kept kept;
  REQUIRE_THROWS_WITH(evaluate(o, &kept), Catch::Contains("wants the model to repeat its context") && Catch::Contains("--model without --dump gives more"));
}

TEST_CASE("model: what tokens are and how surprising is given where a model runs, and no attention error is made up",
          "[eval][model]") {
  Options o = tiny({"sirllm(sinks=4, memory=40, recent=16)", "fastgen(recovery=0.6, profile=96)", "fastgen(recovery=1)"});
  const Results r = evaluate(o);
  for (const auto& layer : r.recipes[1].slots)
    for (const index_t n : layer) REQUIRE(n == 4 + 40 + 16 + 96);  // after the prompt's turn, and what came later
  REQUIRE(r.recipes[1].text.kl > 0.0);
  REQUIRE(r.recipes[2].text.kl > 0.0);
  REQUIRE(r.recipes[3].text.kl == 0.0);
  for (std::size_t i = 1; i < 4; ++i) REQUIRE(r.recipes[i].layer_error.empty());
  Kept kept;
  REQUIRE_THROWS_WITH(evaluate(o, &kept), Catch::Contains("needs the surprise of every token") && Catch::Contains("--model without --dump gives more"));
}

TEST_CASE("model: what a recipe reads is a part of the slots and more of the attention", "[eval][model]") {
  Options o = tiny({"quest(page=8, tokens=48, dense_layers=0)", "quest(page=8, tokens=1000, dense_layers=0)",
                    "infllm(block=8, blocks=3, init=4, local=20) + rerotate", "h2o(heavy=40, recent=20) + sparq(tokens=24)"});
  o.documents = 0;
  const Results r = evaluate(o);
  REQUIRE(r.recipes[0].reads.rows == 0);
  const auto& some = r.recipes[1].reads;
  const index_t singles = r.setting.context - r.setting.prefill;
  REQUIRE(some.rows == r.setting.layers * r.setting.q_heads * singles);
  REQUIRE(some.slot_share() > 0.2);
  REQUIRE(some.slot_share() < 0.5);
  REQUIRE(some.mass_share() > some.slot_share());
  REQUIRE(some.mass_share() < 1.0);
  REQUIRE(r.recipes[2].reads.slot_share() == Approx(1));
  REQUIRE(r.recipes[2].reads.mass_share() == Approx(1));
  REQUIRE(r.recipes[3].reads.slot_share() < 0.6);
  REQUIRE(r.recipes[3].reads.mass_share() > r.recipes[3].reads.slot_share());
  REQUIRE(r.recipes[4].reads.slot_share() < 0.3);
  REQUIRE(r.recipes[4].layer_error.size() == 4);
}

TEST_CASE("model: a question inside the prefill and later is the same question", "[eval][model]") {
  Options o = tiny({"snapkv(tokens=24, window=8)"});
  o.context = 512, o.documents = 1, o.ask = Ask::inside;
  const Results inside = evaluate(o);
  o.ask = Ask::later;
  const Results later = evaluate(o);
  REQUIRE(inside.setting.documents > 0);
  REQUIRE(inside.setting.documents == later.setting.documents);
  REQUIRE(inside.recipes[1].recall.asked_all() == later.recipes[1].recall.asked_all());
  REQUIRE(inside.recipes[0].recall.all() == later.recipes[0].recall.all());  // nothing left
  REQUIRE(inside.recipes[1].recall.all() != later.recipes[1].recall.all());
  REQUIRE(heading(later).find("one by one behind all that is before") != std::string::npos);
  o.question = 600;
  REQUIRE_THROWS_WITH((o.recall = o.model + "/recall.jsonl", evaluate(o)), Catch::Contains("asks a question of 600 tokens"));
}

TEST_CASE("model: text and ids that do not fit are refused", "[eval][model]") {
  const TempFile ids("ids.txt");
  Options o = tiny({"int8"});
  std::ofstream(ids.path()) << "1, 2, 300";
  o.ids = ids.path();
  REQUIRE_THROWS_WITH(evaluate(o), ids.path() + ": at byte 6: expected token ids from 0 to 255");
  std::ofstream(ids.path()) << "1, 2, 3";
  REQUIRE_THROWS_WITH(evaluate(o),
                      "the text has 3 tokens, 1 windows need 193: lower --windows or --context");
}

TEST_CASE("model: the last tokens of a prefill may be a pass of their own, by which a question chooses", "[eval][model]") {
  using Ends = std::vector<index_t>;
  REQUIRE(Feeding{.prefill = 96, .chunk = 64}.ends() == Ends{48, 96});
  REQUIRE(Feeding{.prefill = 96, .chunk = 64, .last = 10}.ends() == Ends{43, 86, 96});
  REQUIRE(Feeding{.prefill = 96, .chunk = 8, .last = 12}.ends().back() == 96);
  REQUIRE(Feeding{.prefill = 5, .chunk = 64, .last = 10}.ends() == Ends{5});
  const Feeding f{.prefill = 96, .chunk = 64, .last = 10};
  REQUIRE(f.phase(43) == kvcondense::Phase::prefill_chunk);
  REQUIRE(f.phase(86) == kvcondense::Phase::prefill_end);
  REQUIRE(f.phase(96) == kvcondense::Phase::decode);

  Options o = tiny({"rekv(frame=8, frames=2, init=4, question=16) + rerotate", "sink_window(sinks=4, recent=40)"});
  const Results whole = evaluate(o);
  o.last_pass = 12;
  const Results asked = evaluate(o);
  REQUIRE(asked.recipes[1].text.kl != whole.recipes[1].text.kl);
  REQUIRE(asked.recipes[1].reads.mass_share() != whole.recipes[1].reads.mass_share());
  REQUIRE(asked.recipes[1].reads.slot_share() < 1);
  REQUIRE(asked.recipes[0].text.bits == Approx(whole.recipes[0].text.bits).epsilon(1e-3));
  REQUIRE(heading(asked).find(": 84 at once, 12 behind them, then 96 one by one") != std::string::npos);
  REQUIRE(to_json(asked)["setting"]["last_pass"] == 12);
  REQUIRE_FALSE(to_json(whole)["setting"].contains("last_pass"));
}
