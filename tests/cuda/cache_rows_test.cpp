// Caches on CUDA that hold rows by levels, clusters of channels, codewords, planes of bits and angles, mapped or not.

#include <string>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/bipolar_int.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/commvq.hpp>
#include <kvcondense/quant/ggml.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kvquant.hpp>
#include <kvcondense/quant/polar_recursive.hpp>
#include <kvcondense/quant/rotatekv.hpp>
#include <kvcondense/quant/skvq.hpp>
#include <kvcondense/quant/turboquant.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

/// A prompt, tokens, a roll back, a removal, files that change sides: decoded codes are the same bits on both sides after each.
template <class R>
void live(Pair<R>& pair) {
  pair.forward(40);
  for (int i = 0; i < 5; ++i) pair.forward(1);
  pair.forward(3);
  pair.compare_reports();
  pair.truncate(44);
  pair.remove(3, 9);
  pair.exchange();
  pair.forward(6);
  pair.exchange();
  pair.forward(1);
  pair.compare_reports();
}

}  // namespace

TEST_CASE("cuda cache: rows of clusters become codes as they leave the exact window") {
  quant::Skvq skvq;
  skvq.window = 6, skvq.sinks = 3, skvq.group_size = 32, skvq.value_levels = 3;
  Pair pair(recipe(skvq), "skvq(window=6, sinks=3, group_size=32, value_levels=3)", {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16});
  live(pair);
}
