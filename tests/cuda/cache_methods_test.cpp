// Methods of the catalogue in a cache on CUDA beside the same on the CPU, a line each. Those over another policy: cache_budgets_test.cpp; those that
// fold what leaves: cache_merge_test.cpp; whose tokens join slots: cache_join_test.cpp.

#include <string>

#include <kvcondense/evict/alisa.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/dms.hpp>
#include <kvcondense/evict/duo_attention.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/fastgen.hpp>
#include <kvcondense/evict/finch.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/keyformer.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/kvcrush.hpp>
#include <kvcondense/evict/kvzip.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/locret.hpp>
#include <kvcondense/evict/nacl.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/paged_h2o.hpp>
#include <kvcondense/evict/prefixkv.hpp>
#include <kvcondense/evict/qfilters.hpp>
#include <kvcondense/evict/razor_attention.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/scissorhands.hpp>
#include <kvcondense/evict/simlayerkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sirllm.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/strided_blocks.hpp>
#include <kvcondense/evict/tova.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

KVCONDENSE_CUDA_METHOD("sliding_window", evict::SlidingWindow{.window = 40})
KVCONDENSE_CUDA_METHOD("sink_window", evict::SinkWindow{.recent = 30, .sinks = 3})
KVCONDENSE_CUDA_METHOD("h2o", evict::H2O{.heavy = 20, .recent = 20})
KVCONDENSE_CUDA_METHOD("tova", evict::Tova{.tokens = 36})
KVCONDENSE_CUDA_METHOD("snapkv", evict::SnapKV{.tokens = 40, .window = 8, .kernel = 5})
KVCONDENSE_CUDA_METHOD("finch", evict::Finch{.keep = 0.5, .window = 8})
KVCONDENSE_CUDA_METHOD("nacl", evict::Nacl{.tokens = 40, .window = 8, .sinks = 2, .recent = 8, .drawn = 0.5})
KVCONDENSE_CUDA_METHOD("knorm", evict::Knorm{.tokens = 40, .recent = 8})
KVCONDENSE_CUDA_METHOD("keydiff", evict::KeyDiff{.tokens = 40, .recent = 8})
KVCONDENSE_CUDA_METHOD("qfilters", evict::QFilters{.keep = 0.5, .recent = 8, .query_filters = facts.query_filters})
KVCONDENSE_CUDA_METHOD("observed_attention", evict::ObservedAttention{.keep = 0.5, .sinks = 2, .recent = 8})
KVCONDENSE_CUDA_METHOD("lagkv", evict::LagKV{.sinks = 2, .lag = 8, .keep = 0.5})
KVCONDENSE_CUDA_METHOD("sirllm", evict::SirLLM{.sinks = 2, .memory = 30, .recent = 8, .decay = 0.6f})
KVCONDENSE_CUDA_METHOD("dms", evict::Dms{.window = 30, .scale = 10, .offset = 2})
KVCONDENSE_CUDA_METHOD("chunkkv", evict::ChunkKV{.tokens = 40, .window = 8, .chunk = 5})
KVCONDENSE_CUDA_METHOD("duo_attention", evict::DuoAttention{.sparsity = 0.5, .sinks = 2, .recent = 20, .gates = facts.gates})
KVCONDENSE_CUDA_METHOD("simlayerkv", evict::SimLayerKV{.threshold = 0.3, .sinks = 2, .recent = 20})
KVCONDENSE_CUDA_METHOD("strided_blocks", evict::StridedBlocks{.block = 4, .local = 5, .every = 3})
KVCONDENSE_CUDA_METHOD("prefixkv", evict::PrefixKV{.sinks = 2, .recent = 5, .distance = 8, .evicted = facts.evicted})
KVCONDENSE_CUDA_METHOD("paged_h2o", evict::PagedH2O{.page = 4, .start = 4, .evictable = 24, .recent = 8})
KVCONDENSE_CUDA_METHOD("razor_attention",
                       evict::RazorAttention{.induction_part = 0.2, .sinks = 2, .least = 16, .divisor = 4, .induction = facts.induction, .echo = facts.echo})
KVCONDENSE_CUDA_METHOD("compensate", evict::Compensate{cuda_cache::inner})
KVCONDENSE_CUDA_METHOD("rkv", evict::RKV{.tokens = 40, .window = 6, .kernel = 3, .slack = 8})
KVCONDENSE_CUDA_METHOD("scissorhands", evict::Scissorhands{.tokens = 40, .drop = 10, .history = 20, .recent = 6, .sinks = 2})
KVCONDENSE_CUDA_METHOD("keyformer", evict::Keyformer{.tokens = 40, .recent = 8, .generation = 30})
KVCONDENSE_CUDA_METHOD("alisa", evict::Alisa{.ratio = 0.4, .history = 8})
KVCONDENSE_CUDA_METHOD("kvcrush", evict::KVCrush{cuda_cache::inner, 0.4, 3})
KVCONDENSE_CUDA_METHOD("fastgen", evict::FastGen{.recovery = 0.6, .frequent = 0.2, .local = 0.2, .profile = 20})
KVCONDENSE_CUDA_METHOD("locret", evict::Locret{.tokens = 40, .stabilizers = 12, .local = 8, .retain_in = facts.retain_in, .retain_out = facts.retain_out})
KVCONDENSE_CUDA_METHOD("expected_attention", evict::ExpectedAttention{.keep = 0.5, .sinks = 2, .horizon = 16, .rope = facts.rope})

namespace {
/// Probes ask about parts of a prompt and are taken back; the turn behind them evicts.
void probed(const CacheShape& shape) {
  INFO("head_dim " << shape.head_dim);
  test::Device device;
  const cuda_cache::Model model(device, shape);
  const auto ask = [&](bool weighted) {
    std::string text = cuda_cache::setting("kvzip");
    if (weighted) text.insert(text.size() - 1, ", weighted=true");
    Pair pair(recipe(evict::KVzip{.keep = 0.6, .sinks = 2, .weighted = weighted, .output = model.on_device().output}), text, shape, model.on_host());
    pair.forward(41);
    pair.probe(5, 4, 20);
    pair.probe(3, 20, 39);
    pair.turn(0);
    CHECK(pair.on_device().slots(0, 0) < 41);
    pair.forward(9, prim::AttendMath::f32, pair.near, Phase::prefill_end);
    pair.forward(1);
    pair.probe(4, 40, 50);
    pair.turn(0);
    pair.forward(2);
    pair.compare_reports();
    std::vector<std::int32_t> kept(static_cast<std::size_t>(pair.on_device().slots(0, 0)));
    REQUIRE(pair.on_device().tokens(pair.device(), 0, 0, kept) == Status::ok);
    return kept;
  };
  CHECK(ask(false) != ask(true));
}
}  // namespace
TEST_CASE("cuda cache method: kvzip") { probed(cuda_cache::shape_of("kvzip")); }
TEST_CASE("cuda cache method in every shape: kvzip", "[.][sweep]") {
  for (const CacheShape& shape : cuda_cache::shapes()) probed(shape);
}
