// Days of decoding in fast-forward: many steps on a small shape, memory watched, and now and then a restart.
//
//   kvcondense_soak [--steps N] [--seed S]    N steps of each recipe
//
// A cache gets one token per step. Ten times on the way a second one is loaded from its file; for the next thousand steps both get the
// same tokens and must give the same bits, and the same file in the end. What is held may never be an eighth more than in the
// first tenth of the way: where slots leave decides how full pages are. Ends with one line of figures; the exit status is 1 where something differs.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <support/byte_list.hpp>
#include <support/memory.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

constexpr CacheShape shape{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 32, .page_slots = 16};

/// One per way to be bounded: a window, scores that add up, scores of the newest queries, merging, coded rows whose groups
/// are written again, positions that are made anew, an index.
constexpr const char* recipes[] = {
    "sink_window(sinks=4, recent=40)",
    "h2o(heavy=24, recent=24) + kivi2(group=8, residual=16)",
    "tova(tokens=48) + int4(group=16) + reindex",
    "keyformer(tokens=48, recent=16)",
    "h2o(heavy=24, recent=16) + d2o + rerotate",
    "every(snapkv(tokens=40, window=8), tokens=9) + gear(bits=2, group_size=8, chunk=8, rank=2, sinks=2)",
    "h2o(heavy=40, recent=24) + quest(page=4, tokens=24, dense_layers=0)",
};

struct Soaked {
  test::CountingMemory memory;
  any::AnyCache cache;
  Workspace work;

  explicit Soaked(const char* text) : cache(make(text, memory)) {
    if (work.reserve(cache.workspace_bytes(256, 8)) != Status::ok) std::abort();
  }
  static any::AnyCache make(const char* text, MemoryResource<Cpu>& memory) {
    auto made = any::make(text, shape, any::on<Cpu>, memory);
    if (!made) std::fprintf(stderr, "%s: %.*s\n", text, static_cast<int>(made.message().size()), made.message().data()), std::abort();
    return std::move(*made);
  }
  Status step(const test::Tokens& t, float* out) {
    Context<Cpu> ctx(work.bytes());
    return cache.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out, shape.q_heads, 1, shape.head_dim));
  }
  std::vector<std::byte> file() const {
    test::ByteList list;
    return cache.save(list) == Status::ok ? list.bytes : std::vector<std::byte>{};
  }
};

/// What went wrong, or nothing.
std::string soak(const char* text, long steps, std::uint32_t seed, long& restarts, std::size_t& most) {
  std::mt19937 random(seed);
  Soaked cache(text);
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim)), other = out;
  const long part = std::max(steps / 10, 1L), together = std::min(1000L, part);
  std::size_t bound = 0;
  // Numbers are drawn once and taken in another order each time: drawing would take longer than the steps.
  std::vector<test::Tokens> tokens;
  for (int i = 0; i < 4096; ++i) tokens.emplace_back(shape, 1, random);
  for (long done = 0; done < steps; done += part) {
    Soaked again(text);
    const auto file = cache.file();
    if (file.empty() || again.cache.load(file) != Status::ok) return "no restart at step " + std::to_string(done);
    ++restarts;
    for (long i = 0; i < part && done + i < steps; ++i) {
      const test::Tokens& t = tokens[random() % tokens.size()];
      if (cache.step(t, out.data()) != Status::ok) return "refused at step " + std::to_string(done + i);
      if (i < together) {
        if (again.step(t, other.data()) != Status::ok) return "refused after a restart at step " + std::to_string(done + i);
        if (std::memcmp(out.data(), other.data(), out.size() * sizeof(float)) != 0) return "other outputs at step " + std::to_string(done + i);
        if (i + 1 == together && cache.file() != again.file()) return "another file at step " + std::to_string(done + i);
      }
      if (cache.cache.length() != done + i + 1) return "a lost token at step " + std::to_string(done + i);
    }
    if (done == 0) bound = cache.memory.peak_bytes + cache.memory.peak_bytes / 8;
    if (cache.memory.peak_bytes > bound) return "more memory at step " + std::to_string(done);
    if (cache.cache.report().bytes() != cache.memory.live_bytes) return "another report at step " + std::to_string(done);
  }
  most = std::max(most, cache.memory.peak_bytes);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  long steps = 20000;
  unsigned long seed = 1;
  for (int i = 1; i < argc; ++i) {
    char* end = nullptr;
    if (i + 1 < argc && std::strcmp(argv[i], "--steps") == 0) steps = std::strtol(argv[++i], &end, 10);
    else if (i + 1 < argc && std::strcmp(argv[i], "--seed") == 0) seed = std::strtoul(argv[++i], &end, 10);
    if (end == nullptr || *end != '\0' || steps < 1) return std::fprintf(stderr, "what is %s?\n", argv[i]), 2;
  }
  long restarts = 0, all = 0;
  std::size_t most = 0;
  for (const char* text : recipes) {
    if (const std::string why = soak(text, steps, static_cast<std::uint32_t>(seed), restarts, most); !why.empty())
      return std::printf("soak: %s: %s\n", text, why.c_str()), EXIT_FAILURE;
    all += steps;
  }
  std::printf("soak: %ld steps over %zu recipes, %ld restarts, at most %zu bytes, 0 differ (seed %lu)\n", all, std::size(recipes), restarts, most, seed);
  return EXIT_SUCCESS;
}
