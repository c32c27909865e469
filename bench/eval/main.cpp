// Shows what KV-cache recipes save and cost: docs/evaluation.md.

#include <cstdio>
#include <exception>
#include <fstream>

#include <eval/dump.hpp>
#include <eval/error.hpp>
#include <eval/evaluate.hpp>
#include <eval/json_report.hpp>
#include <eval/list.hpp>
#include <eval/plot.hpp>
#include <eval/table.hpp>

namespace {

void print(const std::string& text) { std::fputs(text.c_str(), stdout); }

/// Opened before the work begins, so that a wrong path costs no minutes.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path) : path_(path) {
    if (!path.empty()) file_.open(path, std::ios::binary | std::ios::trunc);
    check();
  }
  void write(const std::string& text) {
    file_ << text << std::flush;
    check();
    print(path_ + " written\n");
  }
  bool wanted() const { return !path_.empty(); }

 private:
  void check() const {
    if (wanted() && !file_) throw eval::Error(path_ + ": cannot be written");
  }

  std::string path_;
  std::ofstream file_;
};

void run(const eval::Options& options) {
  if (options.list) return print(eval::list_methods());
  if (!options.about.empty()) return print(eval::describe_method(options.about));
  if (!options.dump_qkv.empty()) {
    const OutputFile writable(options.dump_qkv);
    eval::dump_qkv(options);
    return print(options.dump_qkv + " written\n");
  }
  OutputFile json(options.json), plot(options.plot);
  const OutputFile dump(options.dump);
  eval::Kept kept;
  const eval::Results results = eval::evaluate(options, dump.wanted() ? &kept : nullptr);
  print(heading(results.setting) + "\n" + table(results) + "\n" + legend(results.setting) + "\n");
  if (json.wanted()) json.write(to_json(results).dump(1) + "\n");
  if (plot.wanted()) plot.write(plot_svg(results));
  if (dump.wanted()) {
    eval::write_dump(results, kept, options.dump);
    print(options.dump + " written\n");
  }
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
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kvcondense-eval: unexpected: %s\n", e.what());
  }
  return 2;
}
