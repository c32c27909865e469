// Runs all targets on what their seeds and the corpus hold, and on mutations of both, without a fuzzer.
//
//   kvcondense_replay CORPUS [--mutations N]     N mutations per target, from a fixed seed
//   kvcondense_replay --write-seeds FOLDER       seeds as files, for a fuzzer to begin with
//   kvcondense_replay --input TARGET FILE        one input, to see a failure again
//
// An input that breaks a demand is written to broken-TARGET, and the exit status is 1.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <fuzz/targets.hpp>

using namespace kvcondense::fuzz;
namespace fs = std::filesystem;

namespace {

Input read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Input input(bytes.size());
  std::memcpy(input.data(), bytes.data(), bytes.size());
  return input;
}

void write_file(const fs::path& path, const Input& input) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
}

bool holds(const Target& target, const Input& input) {
  try {
    target.run(input);
    return true;
  } catch (const std::exception& broken) {
    const std::string file = std::string("broken-") + target.name;
    write_file(file, input);
    std::printf("%s: %s\n  input written to %s\n", target.name, broken.what(), file.c_str());
    return false;
  }
}

/// A few changed, inserted, lost or repeated bytes.
Input mutated(Input input, std::mt19937& random) {
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  for (std::size_t changes = 1 + below(6); changes > 0; --changes) {
    if (input.empty()) input.push_back(std::byte{0});
    const auto at = static_cast<std::ptrdiff_t>(below(input.size()));
    constexpr int edges[] = {0, 1, 0x7f, 0x80, 0xff};
    switch (below(6)) {
      case 0: input[static_cast<std::size_t>(at)] ^= static_cast<std::byte>(1u << below(8)); break;
      case 1: input[static_cast<std::size_t>(at)] = static_cast<std::byte>(edges[below(5)]); break;
      case 2: input[static_cast<std::size_t>(at)] = static_cast<std::byte>(below(256)); break;
      case 3: input.insert(input.begin() + at, static_cast<std::byte>(below(256))); break;
      case 4: input.erase(input.begin() + at, input.begin() + at + static_cast<std::ptrdiff_t>(1 + below(std::min<std::size_t>(8, input.size() - static_cast<std::size_t>(at))))); break;
      default: input.resize(static_cast<std::size_t>(at)); break;
    }
  }
  return input;
}

int replay(const fs::path& corpus, std::size_t mutations) {
  std::size_t files = 0, seeds = 0, tried = 0, broken = 0;
  for (const Target* target : targets) {
    std::vector<Input> inputs = target->seeds();
    seeds += inputs.size();
    if (fs::is_directory(corpus / target->name))
      for (const auto& entry : fs::directory_iterator(corpus / target->name)) inputs.push_back(read_file(entry.path())), ++files;
    for (const Input& input : inputs) broken += !holds(*target, input), ++tried;
    std::mt19937 random(11);
    for (std::size_t i = 0; i < mutations; ++i) broken += !holds(*target, mutated(inputs[i % inputs.size()], random)), ++tried;
  }
  std::printf("replay: %zu targets, %zu seeds, %zu files, %zu inputs tried, %zu broken\n", std::size(targets), seeds, files, tried, broken);
  return broken == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int write_seeds(const fs::path& folder) {
  for (const Target* target : targets) {
    fs::create_directories(folder / target->name);
    int n = 0;
    for (const Input& seed : target->seeds()) write_file(folder / target->name / ("seed-" + std::to_string(n++)), seed);
  }
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "", second = argc > 2 ? argv[2] : "";
  if (argc == 3 && first == "--write-seeds") return write_seeds(second);
  if (argc == 4 && first == "--input")
    for (const Target* target : targets)
      if (second == target->name) return holds(*target, read_file(argv[3])) ? EXIT_SUCCESS : EXIT_FAILURE;
  if (argc == 2) return replay(first, 100);
  if (argc == 4 && second == "--mutations") return replay(first, std::strtoul(argv[3], nullptr, 10));
  return std::fprintf(stderr, "usage: see the head of replay.cpp\n"), 2;
}
