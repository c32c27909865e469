// The one program of all consumer projects: a cache of two recipes lives through a request. Also
// built without exceptions and run-time types.

#include <cstdio>
#include <vector>

#include <kvcondense/cpu.hpp>

namespace {

using kvcondense::index_t;
using kvcondense::Status;

const kvcondense::CacheShape shape{.layers = 2, .q_heads = 14, .kv_heads = 2, .head_dim = 64};

/// A prompt of 300 tokens, 40 generated ones, two drafts taken back; what went wrong, or null.
template <class R>
const char* request(const R& recipe, index_t slots) {
  auto cache = kvcondense::make_cache<kvcondense::Cpu>(shape, recipe);
  if (!cache) return "make_cache";
  kvcondense::Workspace scratch;
  if (scratch.reserve(cache->workspace_bytes(512, 300)) != Status::ok) return "workspace";
  kvcondense::Context<kvcondense::Cpu> ctx(scratch.bytes());

  std::vector<float> rows(14 * 300 * 64), out(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = static_cast<float>(i * 7919 % 1000) / 1000;
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
  for (const char* wrong : {request(heavy, 128), request(coded, 340)})
    if (wrong != nullptr) return std::printf("went wrong: %s\n", wrong), 1;
  return 0;
}
