#include <eval/options.hpp>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>

#include <engine/json_text.hpp>
#include <kvcondense/version.hpp>

namespace eval {
namespace {

constexpr index_t most_tokens = 1 << 22;

/// A whole number in a range. CLI11 itself reads -1 as a large unsigned number and cuts one that is
/// too large.
template <class T>
CLI::Validator whole_number(T least, T most) {
  const auto complaint = [least, most](const std::string& text) -> std::string {
    T value{};
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc{} && stop == end && value >= least && value <= most) return {};
    return "expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
           ", not '" + engine::printable(text) + "'";
  };
  return CLI::Validator(complaint, "");
}

/// `--json "$unset"` asks for something and names nothing: without this minutes would pass and no
/// file would come.
std::string empty_complaint(const std::string& text) {
  return text.empty() ? "its value is empty" : "";
}

/// --help without the notes of CLI11 that would stand between an option and its meaning.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string name) const override {
    return CLI::Formatter::make_usage(app, name) + "\n";
  }
  std::string make_group(std::string group, bool is_positional,
                         std::vector<const CLI::Option*> opts) const override {
    const std::string text = CLI::Formatter::make_group(group, is_positional, opts);
    return text.substr(std::min(text.find_first_not_of('\n'), text.size()));
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return {};
    const std::string& value = option->get_default_str();
    return " " + option->get_type_name() + (value.empty() ? "" : "=" + value);
  }
};

template <class T>
CLI::Option* add(CLI::App& app, const char* group, const char* name, const char* type, T& value,
                 const char* says) {
  return app.add_option(name, value, says)
      ->type_name(type)
      ->group(group)
      ->check(CLI::Validator([](std::string& text) { return empty_complaint(text); }, ""));
}

// What suite and tune read where the options do not say: less at once than one recipe is asked, more often.
constexpr index_t many_recipes_context = 1024;
constexpr index_t many_recipes_windows = 4;

CLI::Option* add_count(CLI::App& app, const char* name, index_t& value, index_t least, index_t most,
                       const char* says) {
  return add(app, "How", name, "N", value, says)
      ->check(whole_number(least, most))
      ->capture_default_str();
}

CLI::Option* add_part(CLI::App& app, const char* name, double& value, double most, const char* says) {
  const auto complaint = [most](const std::string& text) -> std::string {
    double x = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, x);
    if (error == std::errc{} && stop == end && x >= 0 && x <= most) return {};
    return "expected a number from 0 to " + std::to_string(static_cast<int>(most)) + ", not '" +
           engine::printable(text) + "'";
  };
  return add(app, "How", name, "X", value, says)
      ->check(CLI::Validator(complaint, ""))
      ->capture_default_str();
}

void add_common(CLI::App& app, Options& o) {
  add_count(app, "--rounds", o.rounds, 0, 1000, "Rounds of the timing; 0: no timing");
  add_count(app, "--jobs", o.jobs, 0, 1024, "Threads, not for the timing; 0: one per processor");
  add_count(app, "--page-slots", o.page_slots, 1, 256, "Slots of a page; free ones of the last page of a head are memory, too");
  app.add_flag("--quiet", o.quiet, "No progress on stderr")->group("How");
}

void add_seed(CLI::App& app, Options& o, const char* says) {
  add(app, "How", "--seed", "N", o.seed, says)
      ->check(whole_number<std::uint64_t>(0, ~std::uint64_t{0}))
      ->capture_default_str();
}

/// An option that may be given again and again, one value each.
template <class T>
CLI::Option* add_each(CLI::App& app, const char* group, const char* name, const char* value, std::vector<T>& all, const char* says) {
  return add(app, group, name, value, all, says)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void add_recipe(CLI::App& app, Options& o, const char* says) { add_each(app, "What to measure", "--recipe", "RECIPE", o.recipes, says); }

void add_input(CLI::App& app, Options& o) {
  const char* group = "What to measure";
  auto* model = add(app, group, "--model", "DIR", o.model,
                    "Directory with config.json and model.safetensors (Hugging Face, Llama)");
  add(app, group, "--qkv", "FILE", o.qkv, "A dump of q, k and v per layer, instead of a model")
      ->excludes(model);
  auto* text = add(app, group, "--text", "FILE", o.text,
                   "Text to predict; without it heldout.txt beside the model");
  add(app, group, "--ids", "FILE", o.ids,
      "The text as token ids, for models whose vocabulary is not the bytes")
      ->excludes(text);
  add(app, group, "--recall", "FILE", o.recall,
      "Recall documents; without it recall.jsonl beside the model, if there");
  add(app, group, "--heads", "FILE", o.heads,
      "Tables of the model's heads, as identify-heads writes them, for recipes that need them");
  add_each(app, group, "--bases", "FILE", o.bases, "Bases and other arrays of the model, as calibrate writes them, for recipes; may be repeated");
  add_recipe(app, o, "A recipe, as in 'h2o(heavy=256, recent=256) + kivi2'; may be repeated; without it a dozen");
}

void add_main(CLI::App& app, Options& o) {
  add_input(app, o);
  add_count(app, "--context", o.context, 2, most_tokens, "Tokens of one window");
  add_count(app, "--prefill", o.prefill, 0, most_tokens, "Tokens fed at once; 0: half of them");
  add_count(app, "--chunk", o.chunk, 1, most_tokens, "Most tokens of one prefill pass");
  add_count(app, "--last-pass", o.last_pass, 0, most_tokens, "Tokens at the end of a prefill that are a question behind it, a pass of their own");
  add_count(app, "--windows", o.windows, 1, 100000, "Windows of the text");
  add_count(app, "--documents", o.documents, 0, 100000,
            "Recall documents, the longest that fit; 0: none");
  add(app, "What to measure", "--ask", "HOW", o.ask, "Their questions come in a stream, inside the prefill, or later")
      ->transform(CLI::Transformer(std::map<std::string, Ask>{
                      {to_string(Ask::stream), Ask::stream}, {to_string(Ask::inside), Ask::inside}, {to_string(Ask::later), Ask::later}})
                      .description("stream, inside or later"));
  add_count(app, "--question", o.question, 1, most_tokens, "Tokens before a value that ask for it, where each question is asked alone");
  add_seed(app, o, "Where in the text the windows lie");
  add_common(app, o);
  const char* group = "Output";
  add(app, group, "--json", "FILE", o.json, "Writes every number to FILE; -: to stdout, no table");
  add(app, group, "--plot", "FILE", o.plot, "Writes a chart of error against memory (SVG)");
  add(app, group, "--dump", "FILE", o.dump, "Writes what the caches hold (safetensors)");
  add(app, group, "--dump-qkv", "FILE", o.dump_qkv,
      "Writes q, k, v of the first window, for --qkv, and ends");
  group = "Information";
  app.set_help_flag("-h,--help", "Prints this, and ends")->group(group);
  app.add_flag("--list", o.list, "Lists every method, and ends")->group(group);
  add(app, group, "--about", "WORD", o.about, "Describes a method and its fields, and ends");
  app.set_version_flag("--version", "kvcondense-eval " + std::string(kvcondense::version_string),
                       "Prints the version, and ends")
      ->group(group);
}

void add_identify(CLI::App& app, Options& o) {
  const char* group = "What to measure";
  add(app, group, "--model", "DIR", o.model, "Directory with config.json and model.safetensors")
      ->required();
  auto* text = add(app, group, "--text", "FILE", o.text, "A text; without it heldout.txt beside the model");
  add(app, group, "--ids", "FILE", o.ids, "The text as token ids")->excludes(text);
  add(app, group, "--recall", "FILE", o.recall,
      "Recall documents for the gates; without it recall.jsonl beside the model, if there");
  add(app, "Output", "--out", "FILE", o.probe.out, "Where the tables go, for --heads")->required();
  add_count(app, "--context", o.context, 2, most_tokens, "Tokens of one window");
  add_count(app, "--chunk", o.chunk, 1, most_tokens, "Most tokens of one pass");
  add_count(app, "--windows", o.windows, 1, 100000, "Windows of the text, where there are no documents");
  add_count(app, "--documents", o.documents, 0, 100000,
            "Recall documents for the gates, the longest that fit; 0: windows of the text");
  add_count(app, "--probe", o.probe.segment, 0, most_tokens,
            "Random tokens that repeat; 0: 2500, or what the model was made for");
  add_count(app, "--repeats", o.probe.repeats, 2, 1000, "How often they are there");
  add_count(app, "--sinks", o.probe.sinks, 0, most_tokens, "First tokens that a head without a gate sees");
  add_count(app, "--recent", o.probe.recent, 0, most_tokens, "And newest tokens, before its own");
  add_part(app, "--l1", o.probe.l1, 1000, "Weight of the mean gate in the search");
  add_count(app, "--steps", o.probe.steps, 0, 1000000, "Steps of the search, at most");
  add_part(app, "--evict", o.probe.evict, 1, "Part of all tokens that leaves where layers are compared");
  add_count(app, "--level-bits", o.probe.quant.level_bits, 1, 4, "Of kvquant's levels");
  add_part(app, "--outliers", o.probe.quant.outliers, 0.5, "Part of a key channel outside of kvquant's thresholds");
  add_count(app, "--clusters", o.probe.quant.clusters, 1, 32, "Groups of a head's channels, for skvq");
  add_part(app, "--width", o.probe.quant.mean_width, 8, "Bits of a number in the mean, for bit_allocation");
  add_count(app, "--width-group", o.probe.quant.width_group, 1, 256, "Numbers that share a scale where widths are compared");
  add_seed(app, o, "Of the random tokens and the windows");
  add_count(app, "--jobs", o.jobs, 0, 1024, "Threads; 0: one per processor");
  app.add_flag("--quiet", o.quiet, "No progress on stderr")->group("How");
  app.set_help_flag("-h,--help", "Prints this, and ends")->group("Information");
}

void add_suite(CLI::App& app, Options& o) {
  const char* group = "What to measure";
  SuiteRequest& s = o.suite;
  auto* model = add(app, group, "--model", "DIR", o.model, "Directory with config.json and model.safetensors; without it the shipped model");
  add(app, group, "--qkv", "FILE", o.qkv, "A dump of q, k and v per layer, instead of a model")->excludes(model);
  add(app, group, "--text", "FILE", o.text, "Text to predict and to make documents of; without it heldout.txt beside the model");
  add(app, group, "--ids", "FILE", o.ids, "The text as token ids; documents need a text")->excludes("--text");
  add(app, group, "--heads", "FILE", o.heads, "Tables of the model's heads, for recipes that need them");
  add_each(app, group, "--bases", "FILE", o.bases, "Bases and other arrays of the model, for recipes that need them; may be repeated");
  add_recipe(app, o, "A recipe, with a hole as in 'snapkv(tokens={tokens})' or without; may be repeated");
  add(app, group, "--recipes", "FILE", s.recipes_file, "Recipes, one a line, as in 'evict: h2o(heavy={tokens/2}, recent={tokens/2})'");
  add_each(app, group, "--share", "PERCENT", s.shares, "What holes are sized for: bytes, of all keys and values in 16 bits; may be repeated")
      ->check(CLI::Validator([](std::string& text) -> std::string {
        double x = 0;
        const char* const end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, x);
        return error == std::errc{} && stop == end && x > 0 && x <= 1000 ? std::string() : "expected a number above 0, up to 1000, not '" + engine::printable(text) + "'";
      }, ""));
  add_count(app, "--context", o.context, 64, most_tokens, "Tokens of a window of the text, and of the longest document")->default_str(std::to_string(many_recipes_context));
  add_count(app, "--prefill", o.prefill, 0, most_tokens, "Tokens of a window fed at once; 0: 15 of 16");
  add_count(app, "--chunk", o.chunk, 1, most_tokens, "Most tokens of one prefill pass");
  add_count(app, "--windows", o.windows, 1, 100000, "Windows of the text")->default_str(std::to_string(many_recipes_windows));
  add_count(app, "--needles", s.needles, 0, 1000, "Documents of each length and depth that hold one value; 0: none");
  add_count(app, "--depths", s.depths, 1, 100, "Depths");
  add_count(app, "--lengths", s.lengths, 1, 16, "Lengths: the context, half of it, ...");
  add_count(app, "--dialogues", s.dialogues, 0, 1000, "Documents that are condensed once and asked many times; 0: none");
  add_count(app, "--keys", s.keys, 1, 1000, "Values in each of them, all asked");
  add_count(app, "--plans", s.plans, 0, 1000, "Long answers by a plan; 0: none");
  add_count(app, "--lines", s.lines, 4, 100000, "Lines of each");
  add_count(app, "--texts", s.texts, 0, 1000, "Texts that are continued by what is likeliest; 0: none");
  add_count(app, "--continued", s.continued, 1, most_tokens, "Tokens of each");
  app.add_flag("!--no-induction", s.induction, "Leaves out the written model")->group("How");
  add_seed(app, o, "Where in the text windows lie, and of the documents");
  add_common(app, o);
  add_each(app, "Output", "--join", "FILE", s.join, "Runs nothing: makes one of what earlier runs wrote, each a suite.json of the same tasks; may be repeated");
  add(app, "Output", "--out", "DIR", s.out, "Where suite.json, suite.md and the pictures go")->capture_default_str();
  app.set_help_flag("-h,--help", "Prints this, and ends")->group("Information");
}

void add_tune(CLI::App& app, Options& o) {
  const char* group = "What to measure";
  TuneRequest& t = o.tune;
  auto* model = add(app, group, "--model", "DIR", o.model, "Directory with config.json and model.safetensors");
  add(app, group, "--qkv", "FILE", o.qkv, "A dump of q, k and v per layer, instead of a model")->excludes(model);
  auto* text = add(app, group, "--text", "FILE", o.text, "Text to predict; without it heldout.txt beside the model");
  add(app, group, "--ids", "FILE", o.ids, "The text as token ids")->excludes(text);
  add(app, group, "--recall", "FILE", o.recall, "Recall documents; without it recall.jsonl beside the model, if there");
  add(app, group, "--heads", "FILE", o.heads, "Tables of the model's heads, for candidates that need them");
  add_each(app, group, "--bases", "FILE", o.bases, "Bases and other arrays of the model, for candidates that need them; may be repeated");
  add_recipe(app, o, "A candidate, with a hole as in 'snapkv(tokens={tokens}) + kivi4' or without; may be repeated; without it all of the library");
  auto* bytes = add_part(app, "--bytes-per-token", t.bytes_per_token, 1e9, "Bytes that a cache may take per token at the end of a context");
  add_part(app, "--share", t.share, 100, "The same as percent of keys and values in 16 bits")->excludes(bytes);
  add_count(app, "--best", t.best, 1, 1000, "Recipes to report");
  add_count(app, "--keep", t.keep, 2, 100, "One in so many candidates goes on to the next rung");
  add_count(app, "--turn", t.turn, 0, 1000, "The best so many get their knobs turned");
  add_part(app, "--recall-weight", t.recall_weight, 1000, "What losing all recall counts, in nats of KL");
  add_count(app, "--context", o.context, 64, most_tokens, "Tokens of one window")->default_str(std::to_string(many_recipes_context));
  add_count(app, "--prefill", o.prefill, 0, most_tokens, "Tokens fed at once; 0: 15 of 16");
  add_count(app, "--chunk", o.chunk, 1, most_tokens, "Most tokens of one prefill pass");
  add_count(app, "--windows", o.windows, 1, 100000, "Windows of the text, in the last rung")->default_str(std::to_string(many_recipes_windows));
  add_count(app, "--documents", o.documents, 0, 100000, "Recall documents, the longest that fit; 0: none");
  add_count(app, "--questions", t.questions, 1, 100000, "Of their values, those asked for in the last rung, each alone and behind its context");
  add_seed(app, o, "Where in the text the windows lie");
  add_common(app, o);
  add(app, "Output", "--json", "FILE", o.json, "Writes every number to FILE; -: to stdout, no table");
  app.set_help_flag("-h,--help", "Prints this, and ends")->group("Information");
}

void add_plan(CLI::App& app, Options& o) {
  const char* group = "What to measure";
  add(app, group, "--model-shape", "SHAPE", o.plan.model_shape, "A model's name, a directory with config.json, or 'layers=32, hidden=4096, ...'")
      ->required();
  add(app, group, "--gpu", "GPU", o.plan.gpu, "A device's name, or 'flops=312e12, bandwidth=2e12, memory=80e9, link=20e9'")
      ->required();
  add_recipe(app, o, "A recipe, one column; may be repeated");
  add_part(app, "--of-16-bit", o.plan.of_16_bit, 1000, "One more column: a cache of this part of 16 bits; 0: none");
  add_count(app, "--context", o.context, 2, most_tokens, "Tokens of context");
  add_count(app, "--generated", o.plan.generated, 1, most_tokens, "Tokens of an answer");
  add_count(app, "--rounds", o.plan.rounds, 1, 1000000, "Answers of a dialogue");
  add_count(app, "--devices", o.plan.devices, 1, 100000, "Devices that share model and caches");
  add_count(app, "--weight-bits", o.plan.weight_bits, 1, 64, "Bits of a parameter");
  add_count(app, "--on-chip", o.plan.on_chip, 1, most_tokens, "KiB of fast memory of a processor of the device");
  app.set_help_flag("-h,--help", "Prints this, and ends")->group("Information");
}

void add_calibrate(CLI::App& app, Options& o) {
  const char* group = "What to measure";
  Calibration& c = o.calibration;
  add(app, group, "--model", "DIR", o.model, "Directory with config.json and model.safetensors")
      ->required();
  auto* text = add(app, group, "--text", "FILE", o.text, "A text; without it heldout.txt beside the model");
  add(app, group, "--ids", "FILE", o.ids, "The text as token ids")->excludes(text);
  add(app, "Output", "--out", "FILE", c.out, "Where the bases go, for --bases")->required();
  const auto one_of = [](std::vector<std::string> words) {
    std::string all;
    for (const std::string& w : words) all += (all.empty() ? "" : ", ") + w;
    return CLI::Validator(
        [words, all](const std::string& word) -> std::string {
          for (const std::string& w : words)
            if (w == word) return {};
          return "expected one of " + all + ", not '" + engine::printable(word) + "'";
        },
        "");
  };
  add(app, "How", "--method", "WORD", c.method,
      "pca, matryoshka, cskv, eigen_attention, palu, weight_svd, lorc, recalkv, kv_heads_svd, kvtc, aquakv, commvq, loki, infinigen, qfilters, a2ats or magicpig")
      ->check(one_of({"pca", "matryoshka", "cskv", "eigen_attention", "palu", "weight_svd", "lorc", "recalkv", "kv_heads_svd", "kvtc", "aquakv", "commvq",
                      "loki", "infinigen", "qfilters", "a2ats", "magicpig"}))
      ->capture_default_str();
  add(app, "How", "--keys", "FORM", c.keys, "Of keys: rotated or raw; without it as the method was published")
      ->check(one_of({"rotated", "raw"}));
  add(app, "How", "--weighing", "WORD", c.weighing, "Of weight_svd: plain, asvd or whitening")
      ->check(one_of({"plain", "asvd", "whitening"}))
      ->capture_default_str();
  app.add_flag("--center", c.center, "pca: takes the mean off first")->group("How");
  app.add_flag("--aware", c.aware, "pca: key directions that suit queries")->group("How");
  add_count(app, "--kv-heads", c.kv_heads, 0, 1024, "kv_heads_svd: heads that are left; 0: half of them");
  app.add_flag("--paired", c.paired, "kv_heads_svd: a basis of keys that commutes with their rotation")->group("How");
  add(app, "Output", "--checkpoint", "DIR", c.checkpoint, "kv_heads_svd --paired: the model with the bases in its weights");
  add_part(app, "--keep", c.keep, 1, "Part of all numbers that cskv is fitted for, rank tables and kvtc hold");
  add_count(app, "--tile", c.tile, 1, 256, "Ranks of tables are multiples of it");
  add_count(app, "--steps", c.steps, 0, 1000000, "Of a training; 0: as many as the method needs");
  add_count(app, "--stages", c.stages, 1, 128, "Of commvq's books");
  add_count(app, "--words", c.words, 2, 256, "Codewords of a stage of them");
  add_count(app, "--codes", c.codes, 2, 65536, "a2ats: centroids of a head's keys");
  add_count(app, "--distance", c.distance, 0, most_tokens, "a2ats: at which queries compare keys, as its recipe has it");
  add_count(app, "--tables", c.tables, 2, 4096, "Of magicpig's planes");
  add_count(app, "--bits", c.bits, 1, 16, "Planes of a table of them");
  add_count(app, "--context", o.context, 2, most_tokens, "Tokens of one window");
  add_count(app, "--chunk", o.chunk, 1, most_tokens, "Most tokens of one pass");
  add_count(app, "--windows", o.windows, 1, 100000, "Windows of the text");
  add_seed(app, o, "Of the windows, the training and the planes");
  add_count(app, "--jobs", o.jobs, 0, 1024, "Threads; 0: one per processor");
  app.add_flag("--quiet", o.quiet, "No progress on stderr")->group("How");
  app.set_help_flag("-h,--help", "Prints this, and ends")->group("Information");
}

/// The first of `names` that was given, or nothing.
std::string given(const CLI::App& app, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (app.count(name) > 0) return name;
  return {};
}

/// The same file may not be two things.
std::string same_file(const Options& o) {
  const std::vector<std::pair<const char*, std::string>> named{
      {"--qkv", o.qkv},   {"--text", o.text}, {"--ids", o.ids},   {"--recall", o.recall},
      {"--heads", o.heads}, {"--recipes", o.suite.recipes_file}, {"--out", o.probe.out}, {"--out", o.calibration.out},
      {"--json", o.json}, {"--plot", o.plot}, {"--dump", o.dump}, {"--dump-qkv", o.dump_qkv}};
  constexpr std::size_t inputs = 6;
  const auto place = [](const std::string& path) {
    std::error_code error;
    const auto whole = std::filesystem::weakly_canonical(std::filesystem::absolute(path), error);
    return error ? std::filesystem::path(path) : whole;
  };
  for (std::size_t i = 0; i < named.size(); ++i)
    for (std::size_t j = std::max(i + 1, inputs); j < named.size(); ++j)
      if (!named[i].second.empty() && !named[j].second.empty() &&
          place(named[i].second) == place(named[j].second))
        return std::string(named[i].first) + " and " + named[j].first + " name the same file";
  return {};
}

/// What CLI11 cannot say about options together; empty when all is well.
std::string complaint(const CLI::App& app, const Options& o) {
  if (o.list || !o.about.empty() || !o.suite.join.empty()) return {};
  if (o.model.empty() && o.qkv.empty())
    return "give --model DIR or --qkv FILE (or --list, or the subcommand demo)";
  std::string odd;
  if (!o.qkv.empty())
    odd = given(app, {"--text", "--ids", "--recall", "--dump-qkv", "--context", "--windows",
                      "--documents", "--ask", "--question", "--seed"});
  if (!odd.empty()) return odd + " belongs to --model, not to --qkv";
  if (!o.dump_qkv.empty())
    odd = given(app, {"--recipe", "--heads", "--bases", "--json", "--plot", "--dump", "--recall", "--documents",
                      "--ask", "--question", "--rounds", "--jobs"});
  if (!odd.empty()) return odd + " does nothing beside --dump-qkv";
  if (o.ask == Ask::stream && app.count("--question") > 0) return "--question belongs to --ask inside or --ask later";
  if (!o.recall.empty() && o.documents == 0) return "--recall and --documents 0 exclude each other";
  if (o.prefill > 0 && o.last_pass >= o.prefill) return "--last-pass " + std::to_string(o.last_pass) + " must be below --prefill " + std::to_string(o.prefill);
  if (o.qkv.empty() && o.prefill >= o.context)
    return "--prefill " + std::to_string(o.prefill) + " must be below --context " +
           std::to_string(o.context);
  return same_file(o);
}

std::string make_demo(const CLI::App& app, Options& o, const std::string& out) {
  for (const CLI::Option* option : app.get_options())
    if (option->count() > 0)
      return option->get_name() + ": options of demo go behind it; demo --help lists them";
  if (o.model.empty()) {
    o.model = KVCONDENSE_EXAMPLES_DIR "/models/tinylm";
    o.model_name = "examples/models/tinylm";
  }
  o.context = 2048;
  o.prefill = 1536;
  o.windows = 1;
  o.documents = 3;
  o.json = (std::filesystem::path(out) / "demo.json").string();
  o.plot = (std::filesystem::path(out) / "demo.svg").string();
  return {};
}

/// A subcommand with options of its own has none before it.
std::string make_subcommand(const CLI::App& app, const std::string& name, bool& chosen) {
  for (const CLI::Option* option : app.get_options())
    if (option->count() > 0)
      return option->get_name() + ": options of " + name + " go behind it; " + name + " --help lists them";
  chosen = true;
  return {};
}

std::string make_suite(const CLI::App& app, const CLI::App& sub, Options& o) {
  if (!o.suite.join.empty()) {
    for (const CLI::Option* option : sub.get_options())
      if (const std::string name = option->get_name(); option->count() > 0 && name != "--join" && name != "--out") return name + " does not go with --join, which runs nothing";
    return make_subcommand(app, "suite", o.run_suite);
  }
  if (o.qkv.empty() && o.model.empty()) {
    o.model = KVCONDENSE_EXAMPLES_DIR "/models/tinylm";
    o.model_name = "examples/models/tinylm";
  }
  if (!o.qkv.empty()) {
    const std::string odd = given(sub, {"--text", "--ids", "--context", "--windows", "--needles", "--depths", "--lengths", "--dialogues", "--keys", "--plans",
                                        "--lines", "--texts", "--continued", "--seed"});
    if (!odd.empty()) return odd + " belongs to --model, not to --qkv";
  }
  if (sub.count("--context") == 0) o.context = many_recipes_context;
  if (o.prefill == 0) o.prefill = o.context - std::max<index_t>(o.context / 16, 1);
  if (!o.qkv.empty() && sub.count("--prefill") == 0) o.prefill = 0;  // known when the dump is
  if (sub.count("--windows") == 0) o.windows = many_recipes_windows;
  o.documents = 0;
  return make_subcommand(app, "suite", o.run_suite);
}

std::string make_tune(const CLI::App& app, const CLI::App& sub, Options& o) {
  if (!(o.tune.bytes_per_token > 0 || o.tune.share > 0)) return "give --bytes-per-token B or --share PERCENT";
  if (!o.qkv.empty()) {
    const std::string odd = given(sub, {"--text", "--ids", "--recall", "--context", "--windows", "--documents", "--questions", "--recall-weight", "--seed"});
    if (!odd.empty()) return odd + " belongs to --model, not to --qkv";
  } else {
    if (sub.count("--context") == 0) o.context = many_recipes_context;
    if (sub.count("--windows") == 0) o.windows = many_recipes_windows;
    if (o.prefill == 0) o.prefill = o.context - o.context / 16;
  }
  return make_subcommand(app, "tune", o.tuning);
}

/// "a, b and c".
std::string listed(const std::vector<const char*>& words) {
  std::string all;
  for (std::size_t i = 0; i < words.size(); ++i) all += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + std::string(words[i]);
  return all;
}

std::string make_calibrate(const CLI::App& app, const CLI::App& sub, Options& o) {
  o.documents = 0;
  const Calibration& c = o.calibration;
  const std::vector<std::pair<std::string, std::vector<const char*>>> own{{"pca", {"--center", "--aware"}},
                                                                          {"weight_svd", {"--weighing"}},
                                                                          {"kv_heads_svd", {"--kv-heads", "--paired", "--checkpoint"}},
                                                                          {"commvq", {"--stages", "--words"}},
                                                                          {"a2ats", {"--codes", "--distance"}},
                                                                          {"magicpig", {"--tables", "--bits"}}};
  for (const auto& [method, options] : own)
    if (c.method != method && std::any_of(options.begin(), options.end(), [&](const char* name) { return sub.count(name) > 0; }))
      return listed(options) + (options.size() > 1 ? " belong" : " belongs") + " to --method " + method;
  const std::string odd = given(sub, {"--text", "--ids", "--keys", "--keep", "--tile", "--steps", "--context", "--chunk", "--windows", "--jobs"});
  if (c.method == "magicpig" && !odd.empty()) return odd + " does nothing beside --method magicpig: planes are random";
  if (!c.checkpoint.empty() && !c.paired) return "--checkpoint wants --paired: another basis of keys does not fold into weights in front of a rotation";
  if (c.aware && c.center) return "--aware and --center exclude each other";
  return make_subcommand(app, "calibrate", o.calibrate);
}

/// A word as a shell wants it.
std::string quoted(const std::string& word) {
  constexpr std::string_view plain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,:=+@%";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

/// CLI11's complaint in our words where its own are hard to read.
std::string in_words(const CLI::ParseError& e, const CLI::App& app) {
  const std::string said = e.what();
  if (dynamic_cast<const CLI::ExtrasError*>(&e) != nullptr)
    for (const std::string& word : app.remaining(true)) {
      if (word.starts_with("-")) return "unknown option " + word + "; --help lists them all";
      return "unexpected argument '" + word + "'; --help says what is expected";
    }
  const std::size_t at = said.find(": At Most 1 required but received");
  if (at != std::string::npos) return said.substr(0, at) + " is given more than once";
  const std::size_t missing = said.find(": 1 required "), end = said.find(" missing");
  if (missing != std::string::npos && end != std::string::npos) {
    const std::size_t type = missing + std::string_view(": 1 required ").size();
    return said.substr(0, missing) + " needs " + said.substr(type, end - type) + " behind it";
  }
  return said;
}

}  // namespace

Parsed parse_options(int argc, const char* const* argv) {
  Parsed parsed;
  Options& o = parsed.options;
  o.command = "kvcondense-eval";
  for (int i = 1; i < argc; ++i) o.command += " " + quoted(argv[i]);
  CLI::App app(
      "Shows what each recipe for a KV cache saves and costs, on a model or on a dump of real "
      "q, k and v.",
      "kvcondense-eval");
  app.formatter(std::make_shared<HelpFormatter>());
  app.get_formatter()->column_width(22);
  add_main(app, o);
  std::string out = ".";
  auto* demo =
      app.add_subcommand("demo", "A dozen recipes on the model that comes with the source");
  add(*demo, "What to measure", "--model", "DIR", o.model, "Another model");
  add(*demo, "Output", "--out", "DIR", out, "Where demo.svg and demo.json go")
      ->capture_default_str();
  add_common(*demo, o);
  demo->set_help_flag("-h,--help", "Prints this, and ends")->group("Information");
  auto* identify = app.add_subcommand(
      "identify-heads", "Measures a model's heads, for recipes that treat heads differently");
  add_identify(*identify, o);
  auto* tuning = app.add_subcommand("tune", "Searches recipes and knobs for those that lose least in given bytes");
  add_tune(*tuning, o);
  auto* planning = app.add_subcommand(
      "plan", "What serving a model costs with and without recipes, by cost models: nothing runs but the caches");
  add_plan(*planning, o);
  auto* suite = app.add_subcommand("suite", "Recall, dialogues, long answers, text and attention of many recipes at given shares of memory, as tables and pictures");
  add_suite(*suite, o);
  auto* calibrate = app.add_subcommand("calibrate", "Makes bases, books, maps and other arrays for recipes and streams from a model and a text");
  add_calibrate(*calibrate, o);
  app.footer(
      "Examples:\n"
      "  kvcondense-eval demo\n"
      "  kvcondense-eval --model DIR --ids FILE --recipe kivi4 --recipe 'snapkv(tokens=1024) + "
      "kivi2'\n"
      "  kvcondense-eval tune --model DIR --share 25\n"
      "  kvcondense-eval plan --model-shape llama-3-8b --gpu h100-sxm --context 131072 --recipe kivi2\n"
      "  kvcondense-eval suite --share 25 --recipe 'snapkv(tokens={tokens}) + kivi4' --out DIR\n"
      "  kvcondense-eval --qkv FILE --recipe 'h2o(heavy=64, recent=64)' --json -\n"
      "Everything else: docs/evaluation.md.");
  try {
    app.parse(argc, argv);
    if (demo->parsed()) parsed.complaint = make_demo(app, o, out);
    if (identify->parsed()) parsed.complaint = make_subcommand(app, "identify-heads", o.identify);
    if (tuning->parsed()) parsed.complaint = make_tune(app, *tuning, o);
    if (planning->parsed()) parsed.complaint = make_subcommand(app, "plan", o.planning);
    if (suite->parsed()) parsed.complaint = make_suite(app, *suite, o);
    if (calibrate->parsed()) parsed.complaint = make_calibrate(app, *calibrate, o);
    if (parsed.complaint.empty() && !planning->parsed()) parsed.complaint = complaint(app, o);
  } catch (const CLI::CallForHelp&) {
    parsed.help = demo->parsed()       ? demo->help(app.get_name())
                  : identify->parsed() ? identify->help(app.get_name())
                  : tuning->parsed()   ? tuning->help(app.get_name())
                  : planning->parsed() ? planning->help(app.get_name())
                  : suite->parsed()    ? suite->help(app.get_name())
                  : calibrate->parsed() ? calibrate->help(app.get_name())
                                       : app.help();
  } catch (const CLI::CallForVersion& version) {
    parsed.help = std::string(version.what()) + "\n";
  } catch (const CLI::ParseError& e) {
    parsed.complaint = in_words(e, app);
  }
  return parsed;
}

std::vector<std::string> default_recipes(index_t context) {
  const index_t room = std::max<index_t>(context / 4, 8);
  const std::string all = std::to_string(room), half = std::to_string(room / 2);
  const std::string recent = std::to_string(room - 4),
                    window = std::to_string(std::min<index_t>(32, room / 4));
  const std::string h2o = "h2o(heavy=" + half + ", recent=" + half + ")";
  const std::string snapkv = "snapkv(tokens=" + all + ", window=" + window + ")";
  return {"sliding_window(window=" + all + ")",
          "sink_window(sinks=4, recent=" + recent + ")",
          "sink_window(sinks=4, recent=" + recent + ") + reindex",
          h2o,
          "tova(tokens=" + all + ")",
          "knorm(tokens=" + all + ", recent=" + window + ")",
          snapkv,
          "ada(" + snapkv + ")",
          "int8",
          "kivi4",
          "kivi2",
          h2o + " + kivi2",
          "ada(" + snapkv + ") + kivi4"};
}

}  // namespace eval
