// The engine's own memory and threads: a resource with a limit, scratch from an array, an executor
// over std::thread. The library takes nothing from anywhere else.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

namespace {

/// Says no, by null, once `limit` bytes are out. The executor's threads call it too: hence the lock.
struct Budget final : kvc::MemoryResource<kvc::Cpu> {
  std::mutex lock;
  std::size_t limit, used = 0;
  explicit Budget(std::size_t bytes) : limit(bytes) {}
  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock);
    if (bytes > limit - used) return nullptr;
    void* p = ::operator new (bytes, std::align_val_t{align}, std::nothrow);
    if (p != nullptr) used += bytes;
    return p;
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    const std::lock_guard guard(lock);
    used -= bytes;
    ::operator delete (p, std::align_val_t{align});
  }
};

/// Four threads for each call; an engine would hand over the pool it has.
struct Threads final : kvc::Executor {
  kvc::index_t workers() const noexcept override { return 4; }
  void run(kvc::index_t tasks, void (*body)(void*, kvc::index_t, kvc::index_t),
           void* state) noexcept override {
    std::atomic<kvc::index_t> next{0};
    std::array<std::thread, 4> team;
    for (std::size_t w = 0; w < team.size(); ++w)
      team[w] = std::thread([&, w] {
        for (kvc::index_t t = next++; t < tasks; t = next++)
          body(state, t, static_cast<kvc::index_t>(w));
      });
    for (std::thread& t : team) t.join();
  }
};

}  // namespace

int main() {
  const kvc::CacheShape shape{.q_heads = 16, .kv_heads = 8, .head_dim = 64};
  Budget memory(1 << 20);
  bool good = false;
  {
    auto cache = kvc::make_cache<kvc::Cpu>(shape, kvc::recipe(kvc::quant::Kivi<4>{}), memory);
    if (!cache) return 1;
    // Sizes are pure functions, so scratch may come from wherever the engine likes.
    std::vector<std::byte> scratch(cache->workspace_bytes(2048, 64, 4));
    Threads threads;
    kvc::Context<kvc::Cpu> alone(scratch), team(scratch, &threads);

    std::vector<float> rows(16 * 64 * 64), one(rows.size()), four(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = kvc::random_uniform(1, i) - 0.5f;
    const auto q = kvc::dense_view<const float>(rows.data(), 16, 64, 64);
    const auto kv = kvc::dense_view<const float>(rows.data(), 8, 64, 64);

    // Tokens come until the resource refuses; the refused call leaves the cache as it was.
    kvc::Status done = kvc::Status::ok;
    while (done == kvc::Status::ok)
      done = cache->forward(team, 0, q, kv, kv, kvc::dense_view(four.data(), 16, 64, 64));
    const kvc::index_t length = cache->length();
    std::printf("%s after %lld tokens, %zu of %zu bytes in use\n", to_string(done),
                static_cast<long long>(length), memory.used, memory.limit);

    const auto token = kvc::dense_view<const float>(rows.data(), 16, 1, 64);
    // The same numbers on one thread and on four; the report counts what the resource counts.
    good =
        done == kvc::Status::out_of_memory && length > 512 && length % 64 == 0 &&
        cache->slots(0, 7) == length && cache->report().bytes() == memory.used &&
        cache->attend(alone, 0, token, kvc::dense_view(one.data(), 16, 1, 64)) == kvc::Status::ok &&
        cache->attend(team, 0, token, kvc::dense_view(four.data(), 16, 1, 64)) == kvc::Status::ok;
    for (std::size_t i = 0; i < 16 * 64; ++i) good = good && one[i] == four[i];
  }
  return good && memory.used == 0 ? 0 : 1;  // all of it came back
}
