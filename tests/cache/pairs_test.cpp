#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <kvcondense/any/any_recipe.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <support/cache_model.hpp>
#include <support/catalogue.hpp>
#include <support/model_facts.hpp>

using namespace kvcondense;
using test::Setting;
using test::settings;

namespace {

/// The settings of a room's methods, or of all wrappers.
std::vector<Setting> room(std::optional<Stage> stage, std::vector<Setting> list = {}) {
  for (const any::Entry* e : any::builtin().entries()) {
    const bool around_policy = e->wraps && e->room != Stage::quant;  // others bring what they wrap
    if (stage ? e->room != *stage || around_policy : !around_policy) continue;
    CAPTURE(std::string(e->word));
    REQUIRE(settings.count(std::string(e->word)) == 1);
    list.push_back(settings.at(std::string(e->word)));
  }
  return list;
}

// A sanitizer takes five times as long, so that it sees one pair of twelve, and parses no other; the release build runs
// them all, and knows all that are refused.
#if defined(KVCONDENSE_TEST_SANITIZED)
constexpr std::uint32_t run_one_of = 12;
#else
constexpr std::uint32_t run_one_of = 1;
#endif
bool left_out(std::uint32_t seed) { return seed % run_one_of != 0; }
constexpr bool all_run = run_one_of == 1;

/// A pair is made, filled, condensed and read in its first calls. One of three, drawn by its seed, goes on: all of them would take twice as long.
int calls_of(std::uint32_t seed) { return std::mt19937(seed)() % 3 == 0 ? 14 : 5; }

/// False where the pair is refused, in words or as incompatible, before anything runs.
bool exercise_text(const std::string& text, double most_error, std::uint32_t seed) {
  CAPTURE(text);
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  static const test::RandomModel model(shape);
  const any::ParseResult parsed = any::parse(text, model.facts());
  if (!parsed) {
    REQUIRE_FALSE(parsed.message().empty());
    return false;
  }
  if (make_cache<Cpu>(shape, parsed->stages).status() == Status::incompatible) return false;
  test::exercise(shape, parsed->stages, seed, calls_of(seed), most_error);
  return true;
}

/// The setting with all coordinates, for quantizers whose blocks are longer than half a head.
std::string whole(std::string text) {
  for (std::size_t at; (at = text.find("ratio=50%")) != text.npos;) text.replace(at, 9, "ratio=0%");
  for (std::size_t at; (at = text.find("=50%")) != text.npos;) text.replace(at, 4, "=100%");
  return text;
}

bool takes_keys(const std::string& text, bool raw) {
  static const test::RandomModel model(CacheShape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32});
  const any::ParseResult parsed = any::parse(text, model.facts());
  REQUIRE(parsed);
  return parsed->stages.lowrank.takes_keys(raw);
}

Status made(const std::string& text) {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  static const test::RandomModel model(shape);
  const any::ParseResult parsed = any::parse(text, model.facts());
  REQUIRE(parsed);
  return make_cache<Cpu>(shape, parsed->stages).status();
}
std::string word_of(const std::string& text) { return text.substr(0, text.find('(')); }

bool reads_raw_keys(const std::string& retrieve) { return word_of(retrieve) == "a2ats" || word_of(retrieve) == "infllm" || word_of(retrieve) == "rekv"; }
bool chooses_once(const std::string& retrieve) { return word_of(retrieve) == "alisa_window" || (reads_raw_keys(retrieve) && word_of(retrieve) != "a2ats"); }  // for all heads

/// Policies that read keys as attention compares them, or sum them so.
bool reads_rotated_keys(const std::string& policy) {
  const std::string word = word_of(policy);
  return word == "expected_attention" || word == "razor_attention" || word == "qfilters";
}

bool measures_newest_rows(const std::string& policy) {
  static const test::RandomModel model(CacheShape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32});
  const any::ParseResult parsed = any::parse(policy, model.facts());
  REQUIRE(parsed);
  return parsed->stages.evict.pipeline().attention().rows == AttentionNeed::Rows::last;
}

}  // namespace

TEST_CASE("cache: every pair of policy and wrapper works under any calls", "[cache][pairs]") {
  std::uint32_t seed = 1;
  std::map<std::string, std::string> refused;  // wrapper: policies
  for (const Setting& policy : room(Stage::evict)) {
    if (!left_out(++seed)) exercise_text(policy.text, policy.most_error, seed);
    for (const Setting& wrapper : room(std::nullopt)) {
      if (left_out(++seed)) continue;
      std::string text = wrapper.text;
      text.replace(text.find("POLICY"), 6, policy.text);
      if (exercise_text(text, policy.most_error, seed)) continue;
      std::string& list = refused[word_of(text)];
      list += (list.empty() ? "" : " ") + word_of(policy.text);
    }
  }
  std::string said;
  for (const auto& [wrapper, policies] : refused) said += wrapper + ": " + policies + "\n";
  INFO(said);
  if (!all_run) return;
  REQUIRE(refused == std::map<std::string, std::string>{
                         // A wrapper needs something to decide.
                         {"compensate", "keep_all"},
                         {"layer_pattern", "keep_all"},
                         {"prefix_mass", "keep_all"},
                         {"variance", "keep_all"},
                         {"pyramid", "keep_all"},
                         {"ratio", "keep_all"},
                         {"skip_layers", "keep_all"},
                         {"uniform", "keep_all"},
                         // Sharing between heads needs scores.
                         {"ada", "keep_all sliding_window sink_window tova chunkkv sirllm razor_attention duo_attention prefixkv paged_h2o alisa"},
                         {"head_table", "keep_all tova chunkkv prefixkv paged_h2o alisa"},
                         {"exit_threshold", "keep_all sliding_window sink_window razor_attention duo_attention"},
                         // Scores of all layers at once, not those that a step measures.
                         {"global_top", "keep_all sliding_window sink_window tova snapkv finch nacl chunkkv rkv sirllm razor_attention expected_attention "
                                        "duo_attention simlayerkv prefixkv paged_h2o scissorhands keyformer alisa fastgen"},
                         // Tokens that are judged once, in the step in which they leave a window.
                         {"block_prefill", "keep_all dms"},
                         {"every", "keep_all dms"},
                         // Slots that are chosen one by one, by their scores; pages of a window, too.
                         {"chunked", "keep_all sliding_window sink_window nacl lagkv chunkkv sirllm razor_attention duo_attention simlayerkv prefixkv paged_h2o"},
                         {"page_round", "keep_all nacl lagkv chunkkv sirllm prefixkv paged_h2o"},
                         {"kvcrush", "keep_all sliding_window sink_window nacl lagkv chunkkv sirllm razor_attention duo_attention simlayerkv prefixkv paged_h2o"},
                         // The same, and scores that are shares of attention.
                         {"caote", "keep_all sliding_window sink_window nacl knorm keydiff qfilters lagkv chunkkv rkv sirllm locret dms razor_attention kvzip "
                                   "expected_attention "
                                   "duo_attention simlayerkv strided_blocks prefixkv paged_h2o scissorhands fastgen"},
                         {"critical", "keep_all sliding_window sink_window tova nacl knorm keydiff qfilters lagkv chunkkv rkv sirllm locret dms razor_attention kvzip "
                                   "expected_attention "
                                      "duo_attention simlayerkv strided_blocks prefixkv paged_h2o scissorhands alisa fastgen"},
                     });
}

TEST_CASE("cache: every pair of eviction, quantization and position works under any calls", "[cache][pairs]") {
  std::uint32_t seed = 1000;
  const auto positions = room(Stage::position);
  const auto quants = room(Stage::quant, {{"", 0.0025}});
  std::size_t row = 0;
  for (const Setting& policy : room(Stage::evict)) {
    // Each policy meets each quantizer once. Positions go round, so that each of them meets all of both.
    for (std::size_t column = 0; column < quants.size(); ++column) {
      if (left_out(++seed)) continue;
      const Setting &quant = quants[column], &position = positions[(row + column) % positions.size()];
      const std::string q = quant.text.empty() ? "" : " + " + quant.text;
      // What reads keys as attention compares them cannot live with raw ones.
      const bool rotated_only = reads_rotated_keys(policy.text);
      // One call of attend measures one set of rows: mikv's are all of them.
      const bool other_rows = q.find("mikv") != q.npos && measures_newest_rows(policy.text);
      const bool want = !other_rows && (!rotated_only || position.text == "absolute");
      REQUIRE(exercise_text(policy.text + q + " + " + position.text, std::max(quant.most_error, policy.most_error), seed) == want);
    }
    ++row;
  }
}

TEST_CASE("cache: every pair of a low-rank stage with eviction, quantization, position and retrieval works under any calls", "[cache][pairs]") {
  std::uint32_t seed = 5000;
  std::string refused;
  for (const Setting& lowrank : room(Stage::lowrank)) {
    const bool rotated = takes_keys(lowrank.text, false);
    const std::string keys = rotated ? "" : " + rerotate";
    for (const Setting& policy : room(Stage::evict)) {
      if (left_out(++seed)) continue;
      const bool rotated_only = reads_rotated_keys(policy.text);
      REQUIRE(exercise_text(policy.text + " + " + lowrank.text + keys, lowrank.most_error, seed) == (rotated || !rotated_only));
    }
    for (const Setting& position : room(Stage::position)) {
      if (left_out(++seed)) continue;
      REQUIRE(exercise_text(lowrank.text + " + " + position.text, lowrank.most_error, seed) ==
              takes_keys(lowrank.text, position.text != "absolute"));
    }
    for (const Setting& quant : room(Stage::quant)) {
      if (left_out(++seed)) continue;
      std::string text = lowrank.text + " + " + quant.text + keys;
      if (made(text) == Status::invalid_argument) text = whole(lowrank.text) + " + " + quant.text + keys;
      if (exercise_text(text, 20.0, seed)) continue;
      refused += lowrank.text.substr(0, lowrank.text.find('(')) + "+" + quant.text.substr(0, quant.text.find('(')) + " ";
    }
    for (const char* all : {"h2o(heavy=20, recent=20) + kivi4(group=8, residual=16)", "snapkv(tokens=40, window=8) + int8(group=8)"})
      if (!left_out(++seed)) REQUIRE(exercise_text(std::string(all) + " + " + lowrank.text + keys, 20.0, seed));
    for (const Setting& retrieve : room(Stage::retrieve)) {
      if (left_out(++seed)) continue;
      const bool raw = reads_raw_keys(retrieve.text);
      REQUIRE(exercise_text(lowrank.text + " + " + retrieve.text + (raw ? " + rerotate" : keys), std::max(6.0, retrieve.most_error), seed) ==
              (!raw || takes_keys(lowrank.text, true)));
    }
  }
  if (!all_run) return;
  // Both would be found from data, or the second one from queries that the first one maps.
  REQUIRE(refused == "pca+mikv online_pca+zipcache online_pca+mikv online_pca+smooth_attention think+mikv think+smooth_attention "
                     "shadowkv+mikv shadowkv+smooth_attention xkv+zipcache xkv+mikv xkv+smooth_attention "
                     "matryoshka+mikv cskv+mikv eigen_attention+mikv palu+mikv weight_svd+mikv joint_heads+zipcache joint_heads+mikv lorc+mikv recalkv+mikv ");
}

TEST_CASE("cache: every retrieval stage works with every policy, quantizer and position under any calls", "[cache][pairs]") {
  std::uint32_t seed = 9000;
  for (const Setting& retrieve : room(Stage::retrieve))
    for (const Stage stage : {Stage::evict, Stage::quant, Stage::position})
      for (const Setting& other : room(stage)) {
        if (left_out(++seed)) continue;
        // A prompt that is evicted from, coded, turned: each with the longest way round.
        const bool raw = reads_raw_keys(retrieve.text);
        const std::string snapkv = chooses_once(retrieve.text) ? "snapkv(tokens=40, window=8)" : "ada(snapkv(tokens=40, window=8))";
        const std::string rest = stage == Stage::evict   ? " + kivi(bits=4, group_size=8, residual_window=8)"
                                 : stage == Stage::quant ? " + h2o(heavy=30, recent=20)"
                                                         : " + " + snapkv + " + group_int(bits=8, group_size=16)";
        const std::string turned = raw && stage != Stage::position ? " + reindex" : "";
        const bool rotated_only = raw && (other.text == "absolute" || reads_rotated_keys(other.text));
        REQUIRE(exercise_text(retrieve.text + " + " + other.text + rest + turned, std::max(6.0, other.most_error), seed) == !rotated_only);
      }
}

TEST_CASE("cache: every merge stage works with every policy", "[cache][pairs][merge]") {
  std::uint32_t seed = 5000;
  std::map<std::string, std::string> refused;  // stage: policies
  for (const Setting& merge : room(Stage::merge))
    for (const Setting& policy : room(Stage::evict)) {
      if (left_out(++seed) || exercise_text(policy.text + " + " + merge.text, std::max(0.004, merge.most_error), seed)) continue;
      std::string& list = refused[word_of(merge.text)];
      list += (list.empty() ? "" : " ") + word_of(policy.text);
    }
  std::string said;
  for (const auto& [merge, policies] : refused) said += merge + ": " + policies + "\n";
  INFO(said);
  if (!all_run) return;
  // One call of attend measures one set of rows; these measure all of them.
  const std::string newest_rows = "tova snapkv nacl chunkkv simlayerkv paged_h2o";
  REQUIRE(refused == std::map<std::string, std::string>{
                         // What folds only what leaves needs something that leaves.
                         {"d2o", "keep_all"},
                         {"elastic_cache", "keep_all"},
                         {"lookm", "keep_all"},
                         {"keepkv", "keep_all"},
                         {"value_merge", "keep_all"},
                         {"cam", "keep_all " + newest_rows},
                         {"ems", "keep_all " + newest_rows},
                         {"weightedkv", "keep_all " + newest_rows},
                         // Sets of their own in each head, where a policy adds up all heads.
                         {"kvmerger", "tova snapkv nacl chunkkv simlayerkv prefixkv paged_h2o alisa"},
                         {"tome", "tova chunkkv prefixkv paged_h2o alisa"},
                         {"centroid", "tova chunkkv prefixkv paged_h2o alisa"},
                         {"dmc", "tova chunkkv prefixkv paged_h2o alisa"},
                     });
}

TEST_CASE("cache: every merge stage works with every quantizer and position", "[cache][pairs][merge]") {
  std::uint32_t seed = 6000;
  const auto positions = room(Stage::position);
  std::string refused;
  for (const Setting& merge : room(Stage::merge))
    for (const Setting& quant : room(Stage::quant, {{"", 0.004}})) {
      const std::string q = quant.text.empty() ? "" : " + " + quant.text;
      const char* policy = word_of(merge.text) == "minicache" ? "sink_window(sinks=2, recent=70)"
                           : seed % 2 == 0                    ? "h2o(heavy=20, recent=20)"
                                                              : "ada(h2o(heavy=30, recent=10))";
      // Sums of rows may be longer than rows, and coded with longer steps.
      const double error = std::max({2 * quant.most_error, 0.004, merge.most_error});
      if (!left_out(seed) && !exercise_text(policy + (" + " + merge.text) + q + " + " + positions[seed % positions.size()].text, error, seed))
        refused += word_of(merge.text) + "+" + word_of(quant.text) + " ";
      ++seed;
    }
  if (!all_run) return;
  // What is found from the rows of one layer, or tells its slots apart, is no code of two.
  REQUIRE(refused == "minicache+zipcache minicache+mikv minicache+smooth_attention ");
}

TEST_CASE("cache: ragged heads of an adaptive budget work with codes and positions", "[cache][pairs]") {
  for (const char* text : {"ada(snapkv(tokens=40, window=8)) + kivi2(group=8, residual=16)",
                           "ada(ratio(h2o(heavy=20, recent=20), keep=50%)) + int4(group=16) + reindex",
                           "pyramid(ada(snapkv(tokens=40, window=8)), beta=4) + kivi4(group=8, residual=8) + rerotate"})
    REQUIRE(exercise_text(text, 6.0, 77));
}

TEST_CASE("cache: every merge stage works with every low-rank and retrieval stage", "[cache][pairs][merge]") {
  std::uint32_t seed = 7000;
  for (const Setting& merge : room(Stage::merge)) {
    const std::string policy = word_of(merge.text) == "minicache" ? "sink_window(sinks=2, recent=70) + " : "h2o(heavy=24, recent=20) + ";
    for (const Setting& lowrank : room(Stage::lowrank))
      if (!left_out(++seed))  // rows of two layers have no basis in common
        REQUIRE(exercise_text(policy + merge.text + " + " + lowrank.text + (takes_keys(lowrank.text, false) ? "" : " + rerotate"), 20.0, seed) ==
                (word_of(merge.text) != "minicache"));
    for (const Setting& retrieve : room(Stage::retrieve)) {
      if (left_out(++seed)) continue;
      const std::string text = policy + merge.text + " + " + retrieve.text;
      REQUIRE(exercise_text(made(text) == Status::incompatible ? text + " + rerotate" : text, std::max(6.0, merge.most_error), seed));
    }
  }
}
