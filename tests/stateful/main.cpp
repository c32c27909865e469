// Random programs over random recipes, against a cache that stores everything in double.
//
//   kvcondense_stateful [--operations N] [--seed S]    runs programs until N calls are done
//   kvcondense_stateful --shrinker                     tests the shrinker on bugs that it makes up
//
// Ends with one line of figures. The first program that breaks is shrunk and printed, and the exit status is 1.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include <stateful/shrink.hpp>

using namespace kvcondense::test;

namespace {

int run_programs(long operations, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::set<std::string> recipes;
  long done = 0, programs = 0;
  while (done < operations) {
    const Program p = random_program(random);
    recipes.insert(p.recipe());
    if (const auto why = broken(p)) {
      std::printf("broken: %s\n%s\nshrinking...\n", why->c_str(), described(p).c_str());
      std::fflush(stdout);
      const Program small = shrink(p, [](const Program& q) { return broken(q).has_value(); });
      std::printf("the shortest found: %s\n%s\n", broken(small).value_or("it holds when run again").c_str(), described(small).c_str());
      return EXIT_FAILURE;
    }
    done += static_cast<long>(p.calls.size()), ++programs;
  }
  std::printf("stateful: %ld calls in %ld programs over %zu recipes, 0 broken (seed %u)\n", done, programs, recipes.size(), seed);
  return EXIT_SUCCESS;
}

/// A program breaks when a call of kind 3 comes after one of kind 5 whose `a` is at least 100, and the recipe evicts.
bool made_up(const Program& p) {
  bool forked = false;
  for (const Call& c : p.calls) {
    if (c.kind == 3 && forked) return p.recipe().find("h2o") != std::string::npos;
    forked = forked || (c.kind == 5 && c.a >= 100);
  }
  return false;
}

int test_shrinker() {
  std::mt19937 random(7);
  int tried = 0;
  while (tried < 50) {
    Program p = random_program(random);
    p.stages = {"h2o(heavy=20, recent=20)", "kivi2(group=8, residual=16)"};
    if (!made_up(p)) continue;
    ++tried;
    const Program small = shrink(p, made_up);
    const bool shortest = small.calls.size() == 2 && small.stages.size() == 1 && small.calls[0].kind == 5 && small.calls[0].a == 100 &&
                          small.calls[0].b == 0 && small.calls[1].kind == 3 && small.calls[1].a == 0 && small.calls[1].b == 0;
    if (!shortest) return std::printf("not shrunk:\n%s\n", described(small).c_str()), EXIT_FAILURE;
  }
  std::printf("shrinker: 50 programs, each shrunk to the two calls that break it\n");
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  long operations = 20000;
  unsigned long seed = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--shrinker") == 0) return test_shrinker();
    char* end = nullptr;
    if (i + 1 < argc && std::strcmp(argv[i], "--operations") == 0) operations = std::strtol(argv[++i], &end, 10);
    else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) seed = std::strtoul(argv[++i], &end, 10);
    if (end == nullptr || *end != '\0' || operations < 1) return std::fprintf(stderr, "what is %s?\n", argv[i]), 2;
  }
  return run_programs(operations, static_cast<std::uint32_t>(seed));
}
