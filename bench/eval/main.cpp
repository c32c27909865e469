// Shows what KV-cache recipes save and cost: docs/evaluation.md.

#include <cstdio>
#include <exception>

#include <eval/error.hpp>
#include <eval/evaluate.hpp>
#include <eval/list.hpp>
#include <eval/table.hpp>

namespace {

void show(const eval::Options& options) {
  const eval::Results results = eval::evaluate(options);
  std::fputs(
      (heading(results.setting) + "\n" + table(results) + "\n" + legend(results.setting)).c_str(),
      stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const eval::Parsed parsed = eval::parse_options(argc, argv);
    if (parsed.finished) return parsed.exit_code;
    if (parsed.options.list) return std::fputs(eval::list_methods().c_str(), stdout) < 0;
    show(parsed.options);
    return 0;
  } catch (const eval::Error& e) {
    std::fprintf(stderr, "kvcondense-eval: %s\n", e.what());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kvcondense-eval: %s\n", e.what());
  }
  return 2;
}
