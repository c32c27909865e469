#include <eval/options.hpp>

#include <CLI/CLI.hpp>
#include <filesystem>

namespace eval {
namespace {

constexpr index_t most_tokens = 1 << 22;

void add_common(CLI::App& app, Options& o) {
  app.add_option("--rounds", o.rounds, "Rounds of the timing; 0: none")->check(CLI::Range(0, 1000));
  app.add_option("--jobs", o.jobs, "Threads; 0: as many as the machine has")
      ->check(CLI::Range(0, 1024));
  app.add_flag("--quiet", o.quiet, "No progress on stderr");
}

void add_main(CLI::App& app, Options& o) {
  auto* model = app.add_option(
      "--model", o.model, "Directory with config.json and model.safetensors (Hugging Face, Llama)");
  app.add_option("--qkv", o.qkv, "safetensors dump of q, k, v per layer, instead of a model")
      ->excludes(model);
  auto* text =
      app.add_option("--text", o.text, "Text to predict; default: heldout.txt beside the model");
  app.add_option("--ids", o.ids,
                 "The text as token ids, for models whose vocabulary is not the bytes")
      ->excludes(text);
  app.add_option("--recall", o.recall, "Recall documents; default: recall.jsonl beside the model");
  app.add_option("--recipe", o.recipes,
                 "A recipe, as in 'h2o(heavy=256,recent=256) + kivi2'; repeatable")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--context", o.context, "Tokens of one window")
      ->check(CLI::Range(index_t{2}, most_tokens));
  app.add_option("--prefill", o.prefill, "Tokens of a window fed at once; 0: half")
      ->check(CLI::Range(index_t{0}, most_tokens));
  app.add_option("--chunk", o.chunk, "Most tokens of one prefill pass")
      ->check(CLI::Range(index_t{1}, most_tokens));
  app.add_option("--windows", o.windows, "Windows of the text")->check(CLI::Range(1, 100000));
  app.add_option("--documents", o.documents, "Recall documents, the longest that fit; 0: none")
      ->check(CLI::Range(0, 100000));
  app.add_option("--seed", o.seed, "Where the windows lie");
  app.add_option("--json", o.json, "Writes every number to this file");
  app.add_option("--plot", o.plot, "Writes a chart of error against memory to this file (SVG)");
  app.add_option("--dump", o.dump, "Writes what the caches hold to this file (safetensors)");
  app.add_option("--dump-qkv", o.dump_qkv,
                 "Writes q, k, v of the first window to this file, and ends");
  app.add_flag("--list", o.list, "Lists every method, and ends");
  app.add_option("--about", o.about, "Describes a method and its fields, and ends");
  add_common(app, o);
}

/// What CLI11 cannot say about options together; empty when all is well.
std::string complaint(const Options& o) {
  if (o.list || !o.about.empty()) return {};
  if (o.model.empty() && o.qkv.empty())
    return "give --model DIR or --qkv FILE (or --list, or the subcommand demo)";
  if (!o.qkv.empty() && !(o.text + o.ids + o.recall + o.dump_qkv).empty())
    return "--text, --ids, --recall and --dump-qkv belong to --model";
  if (o.qkv.empty() && o.prefill >= o.context) return "--prefill must be below --context";
  return {};
}

void make_demo(Options& o, const std::string& out) {
  if (o.model.empty()) o.model = KVCONDENSE_EXAMPLES_DIR "/models/tinylm";
  o.context = 2048;
  o.prefill = 1536;
  o.windows = 1;
  o.documents = 3;
  o.json = (std::filesystem::path(out) / "demo.json").string();
  o.plot = (std::filesystem::path(out) / "demo.svg").string();
}

}  // namespace

Parsed parse_options(int argc, const char* const* argv) {
  Parsed parsed;
  Options& o = parsed.options;
  for (int i = 0; i < argc; ++i) o.command += (i == 0 ? "" : " ") + std::string(argv[i]);
  CLI::App app(
      "Shows what each KV-cache recipe saves and costs, on a model or on a dump of real q, k and "
      "v.",
      "kvcondense-eval");
  add_main(app, o);
  std::string out = ".";
  auto* demo =
      app.add_subcommand("demo", "About ten recipes on the model that comes with the source");
  demo->add_option("--model", o.model, "Another model");
  demo->add_option("--out", out, "Directory for demo.svg and demo.json");
  add_common(*demo, o);
  app.footer("Methods: --list. Fields of one: --about WORD.");
  try {
    app.parse(argc, argv);
    if (demo->parsed()) make_demo(o, out);
    parsed.complaint = complaint(o);
  } catch (const CLI::CallForHelp&) {
    parsed.help = demo->parsed() ? demo->help() : app.help();
  } catch (const CLI::ParseError& e) {
    parsed.complaint = e.what();
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
