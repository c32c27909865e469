// What the host does for kernels of a cache on CUDA. What it writes they may read until the step is done, so no later part of the step writes it; and where
// nothing grows it only enqueues.

#include <cstring>
#include <utility>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/quant/kivi.hpp>
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

TEST_CASE("cuda cache steps: an index writes nothing that kernels of a choice may still read", "[ways]") {
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

namespace {

/// Tokens one by one, pages of sixteen slots. Only the emulation counts.
template <class R>
void only_growth_allocates(const R& method) {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 16};
  test::Device device;
  std::mt19937 random(7);
  test::OnDevice<float> x(device, cuda_cache::normal_numbers(2 * 16, random)), out(device, std::vector<float>(2 * 16)), mass(device, std::vector<float>(2 * 80));
  const auto row = dense_view(static_cast<const float*>(x.data()), 2, 1, 16);
  auto c = make_cache<Cuda>(shape, method);
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(80, 1));
  const auto host = [] { return std::pair(test::host_work().allocations, test::stream_waits()); };
  const auto begin = host();
  for (int i = 0; i < 70; ++i) {
    CAPTURE(i);
    const auto before = host();
    REQUIRE(c->append(ctx, 0, row, row) == Status::ok);
    AttendOutputs measure;
    if (c->wants_mass(0)) measure.mass = c->ragged(0, mass.data());
    const test::HostWork appended = test::host_work();
    REQUIRE(c->attend(ctx, 0, row, dense_view(out.data(), 2, 1, 16), measure) == Status::ok);
    CHECK(test::host_work() == appended);  // nor waits for a place in the stream
    REQUIRE(c->step(ctx, 0, AttentionView{measure.mass, c->mass_rows(1)}) == Status::ok);
    const int in_page = i % 16;
    if (in_page != 0 && in_page != 15) CHECK(host() == before);  // no page is full, none is taken
  }
  if (test::host_work().allocations > 0) CHECK(host().first > begin.first);
}

}  // namespace

TEST_CASE("cuda cache steps: attention allocates nothing and waits for nothing, nor do tokens where nothing grows") {
  only_growth_allocates(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 16}));
  only_growth_allocates(recipe(evict::H2O{.heavy = 20, .recent = 20}));
}
