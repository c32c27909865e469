#include <vector>

#include <kvcondense/cost/io_bound.hpp>
#include <kvcondense/retrieve/blocks/step_reads.hpp>
#include <kvcondense/retrieve/infllm.hpp>
#include <kvcondense/retrieve/landmark.hpp>
#include <kvcondense/retrieve/loki.hpp>
#include <kvcondense/retrieve/lserve.hpp>
#include <kvcondense/retrieve/pqcache.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/read_all.hpp>
#include <kvcondense/retrieve/shadow_select.hpp>
#include <kvcondense/retrieve/sparq.hpp>
#include <kvcondense/retrieve/squeezed.hpp>
#include <kvcondense/retrieve/triforce.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

struct Worked {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "bytes_per_decode_step");
  index_t n = oracle["n"].get<index_t>();
  CacheShape shape{.q_heads = oracle["Hq"].get<index_t>(), .kv_heads = oracle["Hkv"].get<index_t>(), .head_dim = oracle["d"].get<index_t>()};
  double slot = 4.0 * static_cast<double>(shape.head_dim);  ///< key and value in 16 bits
  double heads = static_cast<double>(shape.kv_heads);

  double bytes(const char* name) const { return oracle["bytes"][name].get<double>(); }
  double ratio(const char* name) const { return oracle["ratio"][name].get<double>(); }
};

}  // namespace

TEST_CASE("step reads: the worked table of bytes per decode step", "[retrieve][step_reads]") {
  const Worked w;
  const double dense = retrieve::step_reads(retrieve::ReadAll{}, w.shape, w.n).least(w.slot);
  const auto agrees = [&](double got, const char* name) {
    CAPTURE(name);
    REQUIRE(got == w.bytes(name));
    REQUIRE(got / dense == Approx(w.ratio(name)).epsilon(1e-11));
  };
  agrees(dense, "dense");
  REQUIRE(dense == cost::decode_bytes_least(static_cast<double>(w.n), w.shape.kv_heads, w.shape.head_dim));
  agrees(cost::decode_bytes_least(4096, w.shape.kv_heads, w.shape.head_dim), "streaming_128_3968");

  const auto quest = retrieve::step_reads(retrieve::Quest{.keep_last = false}, w.shape, w.n);
  agrees(quest.least(w.slot), "quest_p16_b1024");
  agrees(quest.most(w.slot), "quest_p16_b1024_per_qhead_selection_worst");
  // A page that is read without a score stands behind those that are counted.
  agrees(retrieve::step_reads(retrieve::LServe{}, w.shape, w.n + 64).least(w.slot), "lserve_logical16_interval4_b4096");
  agrees(retrieve::step_reads(retrieve::SparQ{}, w.shape, w.n).least(w.slot), "sparq_ratio8_r16_k_n_over_16");
  const float* none = nullptr;
  const LayerMatrices axes{&none, 1, w.shape.kv_heads * w.shape.head_dim, w.shape.head_dim};
  agrees(retrieve::step_reads(retrieve::Loki{.key_axes = axes}, w.shape, w.n).least(w.slot), "loki_df32_k25pct");
  // So do a window and a prefix, which the worked numbers leave out.
  const auto infllm = retrieve::step_reads(retrieve::InfLlm{}, w.shape, w.n + 4096 + 128);
  agrees(infllm.least(w.slot) - w.heads * (4096 + 128) * w.slot, "infllm_block128_repr_mean_perQhead_top16");

  // Keys of low rank: 160 numbers that all KV heads share. The stage reads a number more per chunk, that makes outliers.
  const auto shadow = retrieve::step_reads(retrieve::ShadowSelect{.outliers = 0, .local_chunks = 0}, w.shape, w.n);
  const double low_rank = 160.0 * 2 / w.heads + static_cast<double>(w.shape.head_dim) * 2;
  agrees(shadow.least(low_rank) - w.heads * static_cast<double>(w.n) / 8 * sizeof(float), "shadowkv_chunk8_b2048");
  // Codes of a byte, not of two; centroids are read too.
  const auto pq = retrieve::step_reads(retrieve::PqCache{.keep = 1024.0 / static_cast<double>(w.n), .recent = 0.0, .sinks = 0}, w.shape, w.n);
  const double codes = w.heads * static_cast<double>(w.n) * 2, tables = w.heads * 64 * static_cast<double>(w.shape.head_dim) * sizeof(float);
  agrees(pq.least(w.slot) - tables + codes, "pqcache_m2_b6_k1024");
  // Centroids of 32 bits, not of 16, and two bytes of label per slot. A window stands behind.
  const double centroids = 6553 * static_cast<double>(w.shape.head_dim), kept = 39321 / static_cast<double>(w.n);
  const auto squeezed = retrieve::step_reads(retrieve::Squeezed{}, w.shape, w.n + 100, {.chosen = kept});
  agrees(squeezed.least(w.slot) - w.heads * (centroids * 2 + 2 * static_cast<double>(w.n) + 100 * w.slot), "squeezed_5pct_keep30pct");
}

TEST_CASE("step reads: what is held is not chosen again, first layers and short caches read all", "[retrieve][step_reads]") {
  const CacheShape shape{.q_heads = 8, .kv_heads = 2, .head_dim = 64};
  const auto lserve = [&](index_t interval) { return retrieve::step_reads(retrieve::LServe{.interval = interval}, shape, 100000); };
  REQUIRE(lserve(1).index_bytes == 4 * lserve(4).index_bytes);
  REQUIRE(lserve(1).slots_least == lserve(4).slots_least);
  const auto held = retrieve::step_reads(retrieve::TriForce{.chunk = 8, .tokens = 512}, shape, 100000);
  REQUIRE(held.index_bytes == 0);
  REQUIRE(held.slots_least == 2 * 512);
  REQUIRE(held.slots_most == 2 * (8 + 4 * 504));

  const auto quest = [&](index_t slots, index_t layer) { return retrieve::step_reads(retrieve::Quest{.tokens = 256}, shape, slots, {.layer = layer}); };
  REQUIRE(quest(5000, 1).slots_least == 2 * 5000);
  REQUIRE(quest(5000, 1).index_bytes == 0);
  REQUIRE(quest(5000, 2).slots_least == 2 * (15 * 16 + 8));  // the last page is not full
  REQUIRE(quest(200, 2).slots_most == 2 * 200);
  const auto one = retrieve::step_reads(retrieve::Quest{.tokens = 256, .heads = retrieve::Heads::group_sum}, shape, 5000);
  REQUIRE(one.slots_most == one.slots_least);
  // A landmark is scored and not read.
  REQUIRE(retrieve::step_reads(retrieve::Landmark{.tokens = 9, .blocks = 3}, shape, 1004).slots_least == 2 * (27 + 4));
}
