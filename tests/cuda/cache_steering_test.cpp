// What the host writes for kernels of a step in a cache on CUDA: kernels may read it until the step is done, so no later part of the step writes it.

#include <cstring>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/retrieve/quest.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;

namespace {

/// What the last choice was told that its kernels read, and where it lies.
const evict::Protected* told = nullptr;
std::vector<evict::Protected> as_told;

struct RememberingTopK : evict::TopK {
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const evict::Protected* shield, const evict::KeepSet& keep, Scratch& scratch) const {
    told = shield, as_told.assign(shield, shield + view.heads());
    return evict::TopK::run(ctx, view, scores, shield, keep, scratch);
  }
};
struct RememberingH2O : evict::H2O {
  constexpr auto pipeline() const {
    const auto p = evict::H2O::pipeline();
    return evict::Pipeline{p.source, p.pool, p.protect, p.allocate, RememberingTopK{}, p.trigger};
  }
};

}  // namespace

TEST_CASE("cuda cache steps: an index writes nothing that kernels of a choice may still read") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  const index_t n = 24;
  test::Device device;
  std::mt19937 random(7);
  test::OnDevice<float> q(device, cuda_cache::normal_numbers(4 * n * 16, random)), kv(device, cuda_cache::normal_numbers(2 * n * 16, random));
  test::OnDevice<float> out(device, std::vector<float>(test::at(4 * n * 16)));
  auto c = make_cache<Cuda>(shape, recipe(RememberingH2O{{.heavy = 9, .recent = 5}}, retrieve::Quest{.page = 4, .tokens = 8, .dense_layers = 0}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(n, n));
  const auto rows = [&](test::OnDevice<float>& x, index_t heads) { return dense_view(static_cast<const float*>(x.data()), heads, n, 16); };
  REQUIRE(c->forward(ctx, 0, rows(q, 4), rows(kv, 2), rows(kv, 2), dense_view(out.data(), 4, n, 16)) == Status::ok);
  CHECK(c->slots(0, 0) == 14);
  REQUIRE(as_told.size() == 2);
  for (std::size_t h = 0; h < as_told.size(); ++h) {
    CHECK(as_told[h].suffix == 5);
    CHECK(told[h].prefix == as_told[h].prefix);
    CHECK(told[h].suffix == as_told[h].suffix);
  }
}
