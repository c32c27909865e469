#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/io/file_memory.hpp>
#include <kvcondense/storage/two_tier.hpp>
#include <support/byte_list.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

/// Bytes of this process that are in RAM.
std::size_t resident() {
  long pages = 0, all = 0;
  FILE* f = std::fopen("/proc/self/statm", "r");
  REQUIRE(f != nullptr);
  REQUIRE(std::fscanf(f, "%ld %ld", &all, &pages) == 2);
  std::fclose(f);
  return static_cast<std::size_t>(pages) * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

struct Team final : Executor {
  index_t workers() const noexcept override { return 4; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    std::vector<std::thread> team;
    for (index_t w = 0; w < workers(); ++w)
      team.emplace_back([=, this] {
        for (index_t t = w; t < tasks; t += workers()) body(state, t, w);
      });
    for (std::thread& t : team) t.join();
  }
};

/// What files without a name have on the disk: this test's, since nothing else here makes any.
std::size_t blocks_on_disk() {
  std::size_t sum = 0;
  struct stat s = {};
  for (int file = 3; file < 256; ++file)
    if (::fstat(file, &s) == 0 && S_ISREG(s.st_mode) && s.st_nlink == 0) sum += static_cast<std::size_t>(s.st_blocks) * 512;
  return sum;
}

/// Files of this process may not grow beyond so many bytes while this lives.
struct FileLimit {
  struct rlimit old = {};
  void (*handler)(int) = SIG_ERR;
  explicit FileLimit(std::size_t bytes) : handler(std::signal(SIGXFSZ, SIG_IGN)) {
    if (::getrlimit(RLIMIT_FSIZE, &old) != 0) throw std::runtime_error("no limit to read");
    struct rlimit now = old;
    now.rlim_cur = bytes;
    if (::setrlimit(RLIMIT_FSIZE, &now) != 0) throw std::runtime_error("no limit to set");
  }
  FileLimit(const FileLimit&) = delete;
  FileLimit& operator=(const FileLimit&) = delete;
  ~FileLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, handler);
  }
};

}  // namespace

TEST_CASE("file memory: threads that ask and give back at once never get the same piece", "[io][file_memory]") {
  io::FileMemory memory;
  REQUIRE(memory.open(".", 1 << 16, 256) == Status::ok);
  constexpr int threads = 4, rounds = 20000, mine = 8;
  std::vector<index_t> wrong(threads);
  std::vector<std::thread> team;
  for (int w = 0; w < threads; ++w)
    team.emplace_back([&, w] {
      std::mt19937 random(static_cast<std::uint32_t>(w));
      index_t bad = 0;
      unsigned char* piece[mine] = {};
      std::size_t bytes[mine] = {};
      const auto back = [&](std::size_t i) {
        if (piece[i] == nullptr) return;
        for (const std::size_t at : {std::size_t{0}, bytes[i] / 2, bytes[i] - 1}) bad += piece[i][at] != w + 1;
        memory.release(piece[i], bytes[i], 64);
      };
      for (int r = 0; r < rounds; ++r) {
        const std::size_t i = random() % mine;
        back(i);
        bytes[i] = 64 * (1 + random() % 8);  // some from `small`
        piece[i] = static_cast<unsigned char*>(memory.allocate(bytes[i], 64));
        if (piece[i] == nullptr) ++bad;
        else std::memset(piece[i], w + 1, bytes[i]);
      }
      for (std::size_t i = 0; i < mine; ++i) back(i);
      wrong[static_cast<std::size_t>(w)] = bad;
    });
  for (std::thread& t : team) t.join();
  for (const index_t bad : wrong) REQUIRE(bad == 0);
  REQUIRE(memory.file_bytes() < std::size_t{1} << 20);  // pieces were used again
}

TEST_CASE("file memory: a cache whose heads evict on several threads is that of one thread", "[io][file_memory]") {
  const CacheShape shape{.q_heads = 16, .kv_heads = 16, .head_dim = 64, .page_slots = 16};
  io::FileMemory file;
  REQUIRE(file.open(".", 1 << 18, 512) == Status::ok);
  const auto method = recipe(evict::SinkWindow{.recent = 24, .sinks = 4});
  auto one = make_cache<Cpu>(shape, method), many = make_cache<Cpu>(shape, method, file);
  REQUIRE(one);
  REQUIRE(many);
  Team team;
  Workspace work;
  REQUIRE(work.reserve(one->workspace_bytes(512, 96, team.workers())) == Status::ok);
  Context<Cpu> alone(work.bytes()), together(work.bytes(), &team);
  std::mt19937 random(4);
  std::vector<float> a(16 * 96 * 64), b(a.size());
  for (int round = 0; round < 40; ++round) {
    const test::Tokens t(shape, round % 3 == 0 ? 96 : 1, random);
    const auto forward = [&](auto& cache, Context<Cpu>& ctx, std::vector<float>& out) {
      REQUIRE(cache.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 16, t.n, 64)) == Status::ok);
    };
    forward(*one, alone, a), forward(*many, together, b);
    REQUIRE(a == b);
  }
}

TEST_CASE("file memory: caches on threads of their own over one resource are what each is alone", "[io][file_memory]") {
  const CacheShape shape{.q_heads = 16, .kv_heads = 16, .head_dim = 64, .page_slots = 16};
  const auto method = recipe(evict::SinkWindow{.recent = 24, .sinks = 4});
  using Held = Cache<Cpu, std::remove_cv_t<decltype(method)>>;
  constexpr int caches = 4;
  // The file that a cache over this memory writes in the end; one of its forks goes half of the way.
  const auto life = [&](MemoryResource<Cpu>& memory, int seed) -> std::vector<std::byte> {
    auto cache = make_cache<Cpu>(shape, method, memory);
    Workspace work;
    if (!cache || work.reserve(cache->workspace_bytes(512, 96)) != Status::ok) return {};
    Context<Cpu> ctx(work.bytes());
    std::mt19937 random(static_cast<std::uint32_t>(seed));
    std::vector<float> out(16 * 96 * 64);
    const auto forward = [&](Held& one, const test::Tokens& t) {
      return one.forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 16, t.n, 64)) == Status::ok;
    };
    for (int round = 0; round < 24; ++round) {
      const test::Tokens t(shape, round % 8 == 0 ? 96 : 1, random);
      if (!forward(*cache, t)) return {};
      if (round % 6 != 5) continue;
      auto copy = cache->fork();
      if (!copy || !forward(*copy, t)) return {};
    }
    test::ByteList file;
    return save(*cache, file) == Status::ok ? file.bytes : std::vector<std::byte>{};
  };
  io::FileMemory file;
  REQUIRE(file.open(".", 1 << 18, 512) == Status::ok);
  std::vector<std::byte> together[caches];
  {
    std::vector<std::jthread> team;
    for (int w = 0; w < caches; ++w) team.emplace_back([&, w] { together[w] = life(file, w); });
  }
  for (int w = 0; w < caches; ++w) {
    REQUIRE_FALSE(together[w].empty());
    REQUIRE((together[w] == life(heap_memory(), w)));
  }
}

TEST_CASE("file memory: pieces are aligned, apart, used again, and keep what is written", "[io][file_memory]") {
  io::FileMemory memory;
  REQUIRE(memory.open("/nowhere at all") == Status::io_error);
  REQUIRE(memory.open(".", 100, 200) == Status::invalid_argument);
  REQUIRE(memory.open(".", 100, 0) == Status::invalid_argument);
  void* small = memory.allocate(5000, 64);  // no file yet: from the memory for small pieces
  REQUIRE(small != nullptr);
  REQUIRE_FALSE(memory.holds(small));
  memory.release(small, 5000, 64);
  REQUIRE(memory.open(".", 1 << 16, 1024) == Status::ok);
  REQUIRE(memory.open(".") == Status::invalid_argument);
  std::vector<std::pair<unsigned char*, std::size_t>> pieces;
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const std::size_t bytes = 1024 + random() % 3000;
    auto* p = static_cast<unsigned char*>(memory.allocate(bytes, 64));
    REQUIRE(p != nullptr);
    REQUIRE(reinterpret_cast<std::uintptr_t>(p) % 64 == 0);
    REQUIRE(memory.holds(p));
    std::memset(p, i & 0xff, bytes);
    pieces.emplace_back(p, bytes);
  }
  REQUIRE(memory.let_go() == Status::ok);
  memory.expect(reinterpret_cast<const std::byte*>(pieces[5].first), pieces[5].second);
  for (std::size_t i = 0; i < pieces.size(); ++i)
    for (const std::size_t at : {std::size_t{0}, pieces[i].second - 1}) REQUIRE(pieces[i].first[at] == (i & 0xff));
  const std::size_t bytes = memory.file_bytes();
  for (int round = 0; round < 3; ++round) {
    for (const auto& [p, size] : pieces) memory.release(p, size, 64);
    for (auto& [p, size] : pieces) p = static_cast<unsigned char*>(memory.allocate(size, 64));
  }
  REQUIRE(memory.file_bytes() == bytes);
  for (const auto& [p, size] : pieces) memory.release(p, size, 64);
  void* little = memory.allocate(100, 16);
  REQUIRE_FALSE(memory.holds(little));
  memory.release(little, 100, 16);
  void* large = memory.allocate(1 << 20, 64);  // more than a slab
  REQUIRE(memory.holds(large));
  memory.release(large, 1 << 20, 64);
}

TEST_CASE("file memory: a million tokens, a step within 32 MiB of RAM beside them", "[io][file_memory]") {
  constexpr index_t tokens = 1'000'000, chunk = 4000;
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 64};
  io::FileMemory memory;
  REQUIRE(memory.open(".") == Status::ok);
  const std::size_t before = resident();
  auto cache = make_cache<Cpu>(shape, recipe(retrieve::Quest{.page = 64, .tokens = 4096, .dense_layers = 0}), memory);
  REQUIRE(cache.status() == Status::ok);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(tokens + 8, chunk)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(3);
  const test::Tokens t(shape, chunk, random);
  for (index_t at = 0; at < tokens; at += chunk) {
    REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(cache->step(ctx, 0, StepInputs{}, Phase::prefill_chunk) == Status::ok);
    if (at % (25 * chunk) == 0) REQUIRE(memory.let_go() == Status::ok);
  }
  REQUIRE(memory.file_bytes() >= static_cast<std::size_t>(tokens) * 256);
  REQUIRE(memory.let_go() == Status::ok);
  const std::size_t quiet = resident();
  REQUIRE(quiet < before + (std::size_t{64} << 20));  // scratch of long chunks and tables
  std::vector<float> out(2 * 64);
  for (int step = 0; step < 4; ++step) {
    ReadCounts reads;
    const test::Tokens one(shape, 1, random);
    REQUIRE(cache->append(ctx, 0, one.keys(shape), one.values(shape)) == Status::ok);
    REQUIRE(cache->attend(ctx, 0, one.queries(shape), dense_view(out.data(), 2, 1, 64), {.reads = &reads}) == Status::ok);
    REQUIRE(cache->step(ctx, 0, StepInputs{}) == Status::ok);
    REQUIRE(reads.slots_read <= 2 * 4096 + 128);
    REQUIRE(reads.index_bytes < std::size_t{5} << 20);  // 256 bytes for 64 tokens
    REQUIRE(reads.slot_bytes < std::size_t{3} << 20);
    // The machine maps up to 64 KiB around each of the 2 * 64 * 2 pieces that are read: 16 MiB, the index and scratch.
    REQUIRE(resident() < quiet + (std::size_t{32} << 20));
    REQUIRE(memory.let_go() == Status::ok);
  }
  // With two tiers pages are not mapped in: their copies, the index and what is open.
  constexpr index_t frames = 512;
  constexpr std::size_t page = 64 * 64 * 2;
  auto tier = storage::TwoTier::make(memory, frames);
  REQUIRE(tier);
  std::vector<float> again(out.size());
  for (int step = 0; step < 4; ++step) {
    const test::Tokens one(shape, 1, random);
    REQUIRE(cache->append(ctx, 0, one.keys(shape), one.values(shape)) == Status::ok);
    tier->restart();
    ReadCounts reads;
    REQUIRE(cache->attend(ctx, 0, one.queries(shape), dense_view(out.data(), 2, 1, 64), {.reads = &reads, .pages = &*tier}) == Status::ok);
    REQUIRE(tier->fast_bytes() <= frames * page);
    REQUIRE(tier->counts().hit_bytes + tier->counts().miss_bytes >= reads.slot_bytes / 2 - 2 * page);
    REQUIRE(resident() < quiet + frames * page + (std::size_t{12} << 20));
    REQUIRE(cache->attend(ctx, 0, one.queries(shape), dense_view(again.data(), 2, 1, 64)) == Status::ok);
    REQUIRE(again == out);
    REQUIRE(cache->step(ctx, 0, StepInputs{}) == Status::ok);
    REQUIRE(memory.let_go() == Status::ok);
  }
}

TEST_CASE("file memory: all of the file has its blocks before any of it is written", "[io][file_memory]") {
  const std::size_t before = blocks_on_disk();
  io::FileMemory memory;
  REQUIRE(memory.open(".", 1 << 20, 1024) == Status::ok);
  void* p = memory.allocate(5000, 64);
  REQUIRE(p != nullptr);
  REQUIRE(memory.file_bytes() == 1 << 20);
  REQUIRE(blocks_on_disk() >= before + memory.file_bytes());
  memory.release(p, 5000, 64);
}

TEST_CASE("file memory: a file that may not grow is null, and a cache that asked for it stays as it was", "[io][file_memory]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};
  io::FileMemory memory;
  REQUIRE(memory.open(".", 1 << 16, 1024) == Status::ok);
  auto cache = make_cache<Cpu>(shape, recipe(), memory);
  REQUIRE(cache.status() == Status::ok);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(4096, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(5);
  const test::Tokens t(shape, 64, random), one(shape, 1, random);
  const auto feed = [&] {
    const Status s = cache->append(ctx, 0, t.keys(shape), t.values(shape));
    return s == Status::ok ? cache->step(ctx, 0) : s;
  };
  const auto answer = [&] {
    std::vector<float> out(4 * 64);
    REQUIRE(cache->attend(ctx, 0, one.queries(shape), dense_view(out.data(), 4, 1, 64)) == Status::ok);
    return out;
  };
  REQUIRE(feed() == Status::ok);
  const std::size_t most = memory.file_bytes() + (1 << 16);
  index_t fed = 1;
  {
    const FileLimit limit(most);
    Status s = Status::ok;
    std::vector<float> before;
    for (; s == Status::ok && fed < 64; fed += s == Status::ok) before = answer(), s = feed();
    REQUIRE(s == Status::out_of_memory);
    REQUIRE(cache->length() == 64 * fed);
    REQUIRE(cache->pending() == 0);
    REQUIRE(cache->slots(0, 1) == 64 * fed);
    REQUIRE(answer() == before);
    REQUIRE(memory.file_bytes() <= most);
    REQUIRE(memory.allocate(1 << 20, 64) == nullptr);
    REQUIRE(blocks_on_disk() <= most + (1 << 16));  // nothing is left of what was refused
  }
  REQUIRE(feed() == Status::ok);
  REQUIRE(cache->length() == 64 * (fed + 1));
}
