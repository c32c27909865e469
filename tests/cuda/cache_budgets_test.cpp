// Wrappers of the catalogue and its budgets over a policy, in a cache on CUDA beside the same on the CPU, a line each.

#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/global_top.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/layer_pattern.hpp>
#include <kvcondense/budget/prefix_mass.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/budget/variance.hpp>
#include <kvcondense/evict/block_prefill.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/chunked.hpp>
#include <kvcondense/evict/critical.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/page_round.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::inner;

KVCONDENSE_CUDA_METHOD_AS("exit_threshold", "exit_threshold(keydiff(tokens=40, recent=8), window=25, least=0)",
                          evict::ExitThreshold{evict::KeyDiff{.tokens = 40, .recent = 8}, 0.0f, 25})
KVCONDENSE_CUDA_METHOD("caote", evict::Caote{inner})
KVCONDENSE_CUDA_METHOD("critical", evict::Critical{inner, facts.output, 0.4})
KVCONDENSE_CUDA_METHOD("chunked", evict::InChunks{inner, 5})
KVCONDENSE_CUDA_METHOD("page_round", evict::PageRound{inner, 8})
KVCONDENSE_CUDA_METHOD("every", evict::Every{inner, 7})
KVCONDENSE_CUDA_METHOD("block_prefill", evict::BlockPrefill{inner, 30})
KVCONDENSE_CUDA_METHOD("uniform", budget::Uniform{inner, 37})
KVCONDENSE_CUDA_METHOD("ratio", budget::Ratio{inner, 0.6})
KVCONDENSE_CUDA_METHOD("pyramid", budget::Pyramid{inner, 4.0})
KVCONDENSE_CUDA_METHOD("ada", budget::Ada{inner, 0.2})
KVCONDENSE_CUDA_METHOD("skip_layers", budget::SkipLayers{inner, 1})
KVCONDENSE_CUDA_METHOD("layer_pattern", budget::LayerPattern{inner, 0.5})
KVCONDENSE_CUDA_METHOD("global_top", budget::GlobalTop{inner, 0.6})
TEST_CASE("cuda cache method: global_top, strict") {
  cuda_cache::parity("global_top(h2o(heavy=20, recent=20), keep=60%, strict=true)", cuda_cache::shapes()[0],
                     [](const any::ModelFacts&) { return budget::GlobalTop{inner, 0.6, true}; });
}
KVCONDENSE_CUDA_METHOD("head_table", budget::HeadTableBudget{inner, 1.5, facts.shares})
KVCONDENSE_CUDA_METHOD("prefix_mass", budget::PrefixMass{inner, facts.evicted})
KVCONDENSE_CUDA_METHOD("variance", budget::Variance{inner, 0.05, facts.variance})
