// Retrieval stages whose attention reads something of a list of chosen slots, in a cache on CUDA beside the same on the CPU: biases of units, numbers of
// slots, raw keys at the places of a list.

#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/retrieve/a2ats.hpp>
#include <kvcondense/retrieve/landmark.hpp>
#include <kvcondense/retrieve/magicpig.hpp>
#include <kvcondense/retrieve/rekv.hpp>
#include <kvcondense/retrieve/triforce.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::parity;

KVCONDENSE_CUDA_RETRIEVES("landmark", retrieve::Landmark{.tokens = 4, .blocks = 3})
KVCONDENSE_CUDA_RETRIEVES("magicpig", retrieve::MagicPig{.hash_planes = facts.hash_planes, .sinks = 2, .local = 6, .dense_every = 0})
KVCONDENSE_CUDA_RETRIEVES("triforce", retrieve::TriForce{.chunk = 4, .tokens = 28})

namespace {

/// In a cache of raw keys, in every shape or one.
template <class Make>
void of_raw_keys(const std::string& word, Make&& make, bool every) {
  const std::string text = cuda_cache::setting(word);
  for (const CacheShape& shape : cuda_cache::shapes()) {
    if (!every && &shape != &cuda_cache::shape_of(word)) continue;
    parity([&](const any::ModelFacts& facts) { return recipe(position::Reindex{}, make(facts)); }, "reindex + " + text, shape, false, 5e-5f);
  }
}

}  // namespace

#define KVCONDENSE_CUDA_RETRIEVES_RAW(word, ...)                                                                                           \
  TEST_CASE("cuda cache retrieves: " word) {                                                                                                \
    of_raw_keys(word, []([[maybe_unused]] const any::ModelFacts& facts) { return __VA_ARGS__; }, false);                                    \
  }                                                                                                                                        \
  TEST_CASE("cuda cache retrieves in every shape: " word, "[.][sweep]") {                                                                  \
    of_raw_keys(word, []([[maybe_unused]] const any::ModelFacts& facts) { return __VA_ARGS__; }, true);                                     \
  }

KVCONDENSE_CUDA_RETRIEVES_RAW("rekv", retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8})
KVCONDENSE_CUDA_RETRIEVES_RAW("a2ats", retrieve::A2ats{.key_codes = facts.key_codes, .key_metric = facts.key_metric, .share = 0.1, .sinks = 2, .local = 5, .distance = 30})

TEST_CASE("cuda cache retrieves: queries at one distance, of keys that come rotated") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  parity([](const any::ModelFacts& facts) {
    return recipe(position::Rerotate{}, retrieve::A2ats{.key_codes = facts.key_codes, .key_metric = facts.key_metric, .share = 0.1, .sinks = 2, .local = 5, .distance = 30});
  }, "rerotate + " + cuda_cache::setting("a2ats"), shape, false, 7e-5f, 1e-5f);
}
