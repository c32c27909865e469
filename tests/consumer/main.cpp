// The one program of all consumer projects: a cache of two recipes lives through a request. Each project compiles it with another
// compiler or other options, also without exceptions and run-time types: it prints a digest of what was selected and stored, and they
// must agree on it.

#include <cstdint>
#include <cstdio>
#include <span>
#include <vector>

#include <kvcondense/cpu.hpp>

namespace {

using kvcondense::index_t;
using kvcondense::Status;

const kvcondense::CacheShape shape{.layers = 2, .q_heads = 14, .kv_heads = 2, .head_dim = 64};

struct Digest final : kvcondense::ByteSink {
  kvcondense::Checksum sum;
  bool write(std::span<const std::byte> bytes) noexcept override { return sum.add(bytes), true; }
};

/// A prompt of 300 tokens, 40 generated ones, two drafts taken back; what went wrong, or null. What the cache then holds goes to `digest`:
/// tokens, rows and, where it holds no sums of floats, its file.
template <class R>
const char* request(const R& recipe, index_t slots, Digest& digest) {
  auto cache = kvcondense::make_cache<kvcondense::Cpu>(shape, recipe);
  if (!cache) return "make_cache";
  kvcondense::Workspace scratch;
  if (scratch.reserve(cache->workspace_bytes(512, 300)) != Status::ok) return "workspace";
  kvcondense::Context<kvcondense::Cpu> ctx(scratch.bytes());

  std::vector<float> rows(14 * 300 * 64), out(rows.size());
  std::uint32_t state = 1;
  for (float& x : rows) x = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
  const auto view = [&](index_t heads, index_t n) {
    return kvcondense::dense_view<const float>(rows.data(), heads, n, 64);
  };
  for (index_t pass = 0; pass <= 40; ++pass)
    for (index_t layer = 0; layer < shape.layers; ++layer) {
      const index_t n = pass == 0 ? 300 : 1;
      if (cache->forward(ctx, layer, view(14, n), view(2, n), view(2, n),
                         kvcondense::dense_view(out.data(), 14, n, 64)) != Status::ok)
        return "forward";
    }
  for (index_t layer = 0; layer < shape.layers; ++layer)
    if (cache->append(ctx, layer, view(2, 2), view(2, 2)) != Status::ok) return "append";
  if (cache->truncate(340) != Status::ok || cache->length() != 340) return "truncate";

  auto twin = cache->fork();
  if (!twin || twin->next_position() != 340) return "fork";
  cache->reset();
  for (index_t layer = 0; layer < shape.layers; ++layer)
    for (index_t head = 0; head < 2; ++head) {
      const index_t n = twin->slots(layer, head);
      for (index_t slot = 0; slot < n; ++slot) {
        const index_t token = twin->token(layer, head, slot);
        digest.write(std::as_bytes(std::span(&token, 1)));
      }
      if (twin->read(layer, head, 0, kvcondense::dense_view(rows.data(), n, 64), kvcondense::dense_view(out.data(), n, 64)) != Status::ok) return "read";
      for (const std::vector<float>* list : {&rows, &out}) digest.write(std::as_bytes(std::span(list->data(), static_cast<std::size_t>(n * 64))));
    }
  if (slots == 340 && kvcondense::save(*twin, digest) != Status::ok) return "save";
  const kvcondense::Report r = twin->report();
  std::printf("%lld tokens, %lld slots in each head, %zu bytes for %zu\n",
              static_cast<long long>(r.tokens), static_cast<long long>(twin->slots(1, 1)),
              r.bytes(), r.dense_bytes);
  return twin->slots(1, 1) == slots && r.bytes() < r.dense_bytes ? nullptr : "report";
}

}  // namespace

int main() {
  std::printf("kvcondense %s\n", kvcondense::version_string);
  const auto heavy = kvcondense::recipe(kvcondense::evict::H2O{.heavy = 64, .recent = 64},
                                        kvcondense::quant::GroupInt<8>{});
  const auto coded = kvcondense::recipe(kvcondense::quant::Kivi<2>{});
  Digest digest;
  for (const char* wrong : {request(heavy, 128, digest), request(coded, 340, digest)})
    if (wrong != nullptr) return std::printf("went wrong: %s\n", wrong), 1;
  std::printf("digest %016llx\n", static_cast<unsigned long long>(digest.sum.value()));
  return 0;
}
