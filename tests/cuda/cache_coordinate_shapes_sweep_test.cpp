// Low-rank stages of the catalogue, and layers that are pairs, in a cache on CUDA beside the same on the CPU, in every shape, a line each. Every time each
// is built in the shapes of its own tests.

#include <string>

#include <kvcondense/lowrank/cskv.hpp>
#include <kvcondense/lowrank/eigen_attention.hpp>
#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/lorc.hpp>
#include <kvcondense/lowrank/matryoshka.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/recalkv.hpp>
#include <kvcondense/lowrank/shadowkv.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/lowrank/weight_svd.hpp>
#include <kvcondense/lowrank/xkv.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/position/reindex.hpp>

#include "cache_stored.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

// Slots move and leave; coordinates leave with them. Of raw keys positions are a stage behind.
const Stored known{.before = heavy_text, .within = 2e-5f, .again = made_again};
const Stored raw{.before = heavy_text, .after = " + reindex", .within = 6e-5f, .again = made_again};
const Stored found{.before = heavy_text, .within = 3e-5f, .again = 2e-5f, .found = true};
const Stored raw_found{.before = heavy_text, .after = " + reindex", .within = 6e-5f, .again = 2e-5f, .found = true};
// Whole pages alone, of slots that no head has left.
const Stored shared_pages{.within = 3e-5f, .again = 2e-5f, .most_page = 8, .found = true};

constexpr position::Reindex reindex{};

}  // namespace

KVCONDENSE_CUDA_STORES("coordinates", "pca", known, heavy, lowrank::Pca{.keep = 0.5, .value_keep = 0.5, .window = 6, .bases = facts.bases})
KVCONDENSE_CUDA_STORES("coordinates", "online_pca", found, heavy, lowrank::OnlinePca{.keep = 0.5, .value_keep = 0.5, .window = 6, .least = 20})
KVCONDENSE_CUDA_STORES("coordinates", "think", known, heavy, lowrank::Think{.ratio = 0.5, .recent = 6, .least = 8})
KVCONDENSE_CUDA_STORES("coordinates", "matryoshka", known, heavy, lowrank::Matryoshka{.keep = 0.5, .value_keep = 0.5, .bases = facts.bases})
KVCONDENSE_CUDA_STORES("coordinates", "cskv", known, heavy, lowrank::Cskv{.keep = 0.5, .value_keep = 0.5, .window = 8, .bases = facts.bases})
KVCONDENSE_CUDA_STORES("coordinates", "eigen_attention", known, heavy,
                       lowrank::EigenAttention{.keep = 0.5, .value_keep = 0.5, .rule = lowrank::RankRule::part, .window = 3, .bases = facts.bases})
KVCONDENSE_CUDA_STORES("coordinates", "shadowkv", raw_found, heavy, lowrank::ShadowKV{.keep = 0.5, .chunk = 4, .local_chunks = 2, .least = 16}, reindex)
KVCONDENSE_CUDA_STORES("coordinates", "xkv", shared_pages, lowrank::XKv{.keep = 0.5, .value_keep = 0.5, .layers = 2, .window = 6, .least = 20})
KVCONDENSE_CUDA_STORES("coordinates", "palu", raw, heavy, lowrank::Palu{.keep = 0.5, .value_keep = 0.5, .bases = facts.bases}, reindex)
KVCONDENSE_CUDA_STORES("coordinates", "weight_svd", raw, heavy, lowrank::WeightSvd{.keep = 0.5, .value_keep = 0.5, .bases = facts.bases}, reindex)
KVCONDENSE_CUDA_STORES("coordinates", "joint_heads", raw, heavy, lowrank::JointHeads{.window = 6, .bases = facts.bases}, reindex)
KVCONDENSE_CUDA_STORES("coordinates", "lorc", raw, heavy, lowrank::Lorc{.keep = 0.5, .value_keep = 0.5, .rule = lowrank::RankRule::part, .bases = facts.bases}, reindex)
KVCONDENSE_CUDA_STORES("coordinates", "recalkv", raw, heavy, lowrank::ReCalKV{.keep = 0.5, .value_keep = 0.5, .bases = facts.bases}, reindex)

KVCONDENSE_CUDA_STORES("method", "minicache", shared_pages, merge::MiniCache{.start = 0.0f, .part = 0.1f})

TEST_CASE("cuda cache: every low-rank stage is tried in every shape", "[.][sweep]") {
  every_word_is_tried({Stage::lowrank}, "cuda cache coordinates in every shape: ", {});
}
