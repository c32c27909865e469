// Shows what KV-cache recipes save and cost: docs/evaluation.md.

#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>

#include <eval/calibrate.hpp>
#include <eval/dump.hpp>
#include <eval/error.hpp>
#include <eval/evaluate.hpp>
#include <eval/fold_checkpoint.hpp>
#include <eval/identify.hpp>
#include <eval/json_report.hpp>
#include <eval/list.hpp>
#include <eval/output_file.hpp>
#include <eval/plan.hpp>
#include <eval/plot.hpp>
#include <eval/suite_join.hpp>
#include <eval/suite_plot.hpp>
#include <eval/suite_report.hpp>
#include <eval/table.hpp>
#include <eval/tune.hpp>

namespace {

/// Everything that goes to stdout; a full disk or a closed pipe behind it is an error like others.
void print(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0)
    throw eval::Error("stdout: cannot be written");
}

void finish(const eval::OutputFile& file, std::string_view bytes, bool say) {
  if (!file.wanted()) return;
  file.write(bytes);
  if (say) print(file.path() + " written\n");
}

void report_suite(const eval::Options& options) {
  std::error_code why;  // the first file says it
  std::filesystem::create_directories(options.suite.out, why);
  const auto file = [&](const char* name) { return eval::OutputFile((std::filesystem::path(options.suite.out) / name).string()); };
  const eval::OutputFile json = file("suite.json"), tables = file("suite.md");
  const std::vector<std::string>& earlier = options.suite.join;
  const eval::SuiteResults results = earlier.empty() ? eval::run_suite(options) : eval::join_suite_files(earlier);
  const std::vector<eval::Picture> pictures = suite_pictures(results);
  std::vector<std::string> names;
  for (const eval::Picture& p : pictures) names.push_back(p.file);
  const std::string text = suite_markdown(results, names);
  print(text + "\n");
  for (const eval::Picture& p : pictures) finish(file(p.file.c_str()), p.svg, true);
  finish(json, eval::suite_json(results).dump(1) + "\n", true);
  finish(tables, text, true);
}

void run(const eval::Options& options) {
  if (options.list) return print(eval::list_methods());
  if (!options.about.empty()) return print(eval::describe_method(options.about));
  if (options.tuning) {
    const bool only_json = options.json == "-";
    const eval::OutputFile json(only_json ? "" : options.json);
    const eval::Tuned tuned = eval::tune(options);
    const std::string numbers = tuned_json(tuned).dump(1) + "\n";
    print(only_json ? numbers : tuned_text(tuned) + "\n");
    return finish(json, numbers, true);
  }
  if (options.planning) return print(eval::plan(options));
  if (options.run_suite) return report_suite(options);
  if (options.identify) {
    const eval::OutputFile file(options.probe.out);
    const eval::Identified found = eval::identify_heads(options);
    print(found.text);
    return finish(file, heads_text(found.heads, found.made), true);
  }
  if (options.calibrate) {
    const eval::OutputFile file(options.calibration.out);
    const eval::Calibrated made = eval::calibrate(options);
    print(made.text);
    if (const std::string& to = options.calibration.checkpoint; !to.empty()) {
      eval::fold_checkpoint(options.model, made.bases, to);
      print(to + " written\n");
    }
    return finish(file, bases_bytes(made.bases), true);
  }
  if (!options.dump_qkv.empty()) {
    const eval::OutputFile file(options.dump_qkv);
    return finish(file, eval::dump_qkv(options), true);
  }
  const bool only_json = options.json == "-";
  const eval::OutputFile json(only_json ? "" : options.json), plot(options.plot),
      dump(options.dump);
  eval::Kept kept;
  const eval::Results results = eval::evaluate(options, dump.wanted() ? &kept : nullptr);
  const std::string numbers = eval::to_json(results).dump(1) + "\n";
  if (only_json)
    print(numbers);
  else
    print(heading(results) + "\n" + table(results) + "\n" + legend(results) + "\n");
  finish(json, numbers, true);
  if (plot.wanted()) finish(plot, plot_svg(results), !only_json);
  if (dump.wanted()) finish(dump, eval::dump_bytes(results, kept), !only_json);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const eval::Parsed parsed = eval::parse_options(argc, argv);
    if (!parsed.complaint.empty()) throw eval::Error(parsed.complaint);
    if (parsed.help.empty())
      run(parsed.options);
    else
      print(parsed.help);
    return 0;
  } catch (const eval::Error& e) {
    std::fprintf(stderr, "kvcondense-eval: %s\n", e.what());
  } catch (const std::bad_alloc&) {
    std::fputs("kvcondense-eval: out of memory\n", stderr);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kvcondense-eval: unexpected: %s\n", e.what());
  }
  return 2;
}
