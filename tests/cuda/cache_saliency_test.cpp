// Caches on CUDA that store slots in more or fewer bits by scores, beside those on the CPU: scores of an eviction policy.

#include <string>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/quant/mikv.hpp>

#include "cache_live.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache codec: mikv") {
  using Mi = quant::MiKV<8, 2>;
  // Nothing leaves: classes alone.
  const evict::H2O all{.heavy = 300, .recent = 300};
  const Mi eighths{.important = 0.25, .block = 8, .least = 16, .keep_window = 3};
  const std::string text = "mikv(important=25%, block=8, least=16, keep_window=3)";
  Pair kept(recipe(all, eighths), "h2o(heavy=300, recent=300) + " + text, small);
  lives(kept);
  // A page has what its codes take: of two groups a map, two rows of eight bits and six of two, each with a scale and a minimum.
  const auto report = kept.on_device().report(kept.device());
  REQUIRE(report);
  CHECK(report->coded_bytes == 24 * 2 * (4 + 2 * (64 + 4) + 6 * (16 + 4)));  // three pages of 16 slots in each column of two heads of two layers
  // Slots leave: groups are joined, and files change sides amid them. The factors of the keys are found late.
  leaves(eighths, text, odd);
  leaves(Mi{.important = 0.1, .block = 16, .balance = false, .sinks = 2}, "mikv(important=10%, block=16, balance=false, sinks=2)", common);
  leaves(Mi{.important = 0.5, .block = 2, .least = 26}, "mikv(important=50%, block=2, least=26)", wide_halves);
  CHECK(make_cache<Cuda>(small, recipe(heavy, Mi{.block = 24})).status() == Status::invalid_argument);
  // Tensor cores read no maps.
  test::OnDevice<float> rows(kept.device(), std::vector<float>(6 * 64));
  Context<Cuda> ctx = kept.device().with_workspace(kept.on_device().workspace_bytes(64, 1));
  const auto queries = dense_view(static_cast<const float*>(rows.data()), 6, 1, 64);
  CHECK(kept.on_device().attend(ctx, 0, queries, dense_view(rows.data(), 6, 1, 64), {}, prim::AttendMath::halves) == Status::not_supported);
}

TEST_CASE("cuda cache: a policy that tells slots apart by other rows than those that eviction measures is refused") {
  CHECK(make_cache<Cuda>(small, recipe(evict::Tova{}, quant::MiKV<8, 2>{})).status() == Status::incompatible);
}
