// A first cache: H2O decides which tokens stay, KIVI stores them in 2 bits, one call per layer and
// pass does the rest.

#include <cstdio>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

namespace {

// Stands for the engine: rows after projection and RoPE, [heads, tokens, head_dim].
std::vector<float> projected(kvc::index_t heads, kvc::index_t tokens, std::uint64_t seed) {
  std::vector<float> rows(static_cast<std::size_t>(heads * tokens * 128));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = 4 * kvc::random_uniform(seed, i) - 2;
  return rows;
}

template <class T>
kvc::TensorView<T, 3> view(std::vector<float>& rows, kvc::index_t tokens) {
  const auto heads = static_cast<kvc::index_t>(rows.size()) / (tokens * 128);
  return kvc::dense_view<T>(rows.data(), heads, tokens, 128);
}

}  // namespace

int main() {
  const kvc::CacheShape shape{.layers = 2, .q_heads = 32, .kv_heads = 8, .head_dim = 128};
  auto cache = kvc::make_cache<kvc::Cpu>(
      shape, kvc::recipe(kvc::evict::H2O{.heavy = 256, .recent = 256},
                         kvc::quant::Kivi<2>{.group_size = 32, .residual_window = 128}));
  if (!cache) return std::printf("no cache: %s\n", to_string(cache.status())), 1;

  // Scratch is the caller's: here enough for prompts of 1024 tokens.
  kvc::Workspace scratch;
  if (scratch.reserve(cache->workspace_bytes(1024, 1024)) != kvc::Status::ok) return 1;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());

  // A prompt of 1024 tokens, then 32 generated ones; every layer sees each of them once.
  for (kvc::index_t pass = 0; pass <= 32; ++pass)
    for (kvc::index_t layer = 0; layer < shape.layers; ++layer) {
      const kvc::index_t n = pass == 0 ? 1024 : 1;
      const auto seed = static_cast<std::uint64_t>(3 * (pass * shape.layers + layer));
      auto queries = projected(32, n, seed), keys = projected(8, n, seed + 1),
           values = projected(8, n, seed + 2), outputs = queries;
      const auto q = view<const float>(queries, n), k = view<const float>(keys, n),
                 v = view<const float>(values, n);
      const auto out = view<float>(outputs, n);
      // Stores k and v, attends, condenses.
      const kvc::Status done = cache->forward(ctx, layer, q, k, v, out);
      if (done != kvc::Status::ok) return std::printf("forward: %s\n", to_string(done)), 1;
    }

  const kvc::Report r = cache->report();
  std::printf("%lld tokens seen, %lld slots in each head, %.2f MiB instead of %.2f: %.1f %%\n",
              static_cast<long long>(r.tokens), static_cast<long long>(cache->slots(0, 0)),
              static_cast<double>(r.bytes()) / 0x1p20, static_cast<double>(r.dense_bytes) / 0x1p20,
              100 * r.ratio());
  const bool condensed = r.tokens == 1056 && cache->slots(1, 7) == 512 && r.ratio() < 0.25;
  return condensed ? 0 : 1;
}
