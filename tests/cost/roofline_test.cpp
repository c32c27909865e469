#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/cost/known.hpp>
#include <kvcondense/cost/roofline.hpp>
#include <limits>
#include <support/oracle.hpp>

using namespace kvcondense;
using cost::AttentionShape;
using cost::Roofline;
using cost::Work;
using test::near;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "roofline"); }
Roofline a6000() { return {.device = *cost::find_device("a6000")}; }

void check(const Roofline& r, Work w, const nlohmann::json& want) {
  CHECK(w.ops == near(want.at("ops")));
  CHECK(w.bytes == near(want.at("bytes")));
  if (want.contains("ai")) CHECK(w.intensity() == near(want.at("ai")));
  if (want.contains("bound")) CHECK(r.compute_bound(w) == (want.at("bound") == "compute"));
  if (want.contains("time_s")) CHECK(r.seconds(w) == near(want.at("time_s")));
  CHECK(w.ops / r.flops(w) == Approx(r.seconds(w)));
}

}  // namespace

TEST_CASE("roofline: the worked projections", "[cost][roofline]") {
  const Roofline r = a6000();
  const auto o = oracle();
  check(r, r.linear(4096, 4096, 1), o.at("q_proj_decode"));
  check(r, r.linear(4096, 4096, 2048), o.at("q_proj_prefill2048"));
  check(r, r.linear(4096, 11008, 1), o.at("gate_decode"));
  check(r, r.linear(4096, 11008, 128), o.at("gate_batch128"));
}

TEST_CASE("roofline: the worked decode attention, with and without groups", "[cost][roofline]") {
  const Roofline r = a6000();
  const auto o = oracle();
  for (const auto& [key, kv_heads] : {std::pair{"attn_decode_llama2_7b_L2048_B1", 32}, {"attn_decode_llama3_8b_L2048_B1", 8}}) {
    const AttentionShape s{.q_heads = 32, .kv_heads = kv_heads, .head_dim = 128};
    const auto& want = o.at(key);
    check(r, r.decode_scores(s, 2048), want.at("qk"));
    check(r, r.decode_softmax(s, 2048), want.at("softmax"));
    check(r, r.decode_values(s, 2048), want.at("sv"));
    check(r, r.decode_fused(s, 2048), want.at("fused"));
  }
  const auto& limits = o.at("gqa_decode_ai_limit");
  for (const index_t group : {1, 4, 8})
    CHECK(r.decode_limit({.q_heads = 8, .kv_heads = 8 / group}) == near(limits.at("G" + std::to_string(group))));
}

TEST_CASE("roofline: the worked prefill attention", "[cost][roofline]") {
  const Roofline r = a6000();
  const auto want = oracle().at("attn_prefill_flash_llama3_8b_2048");
  const index_t rows = r.block_rows(128, 21.504e6);
  REQUIRE(rows == want.at("block_rows").get<index_t>());
  check(r, r.prefill_fused({.q_heads = 32, .kv_heads = 8, .head_dim = 128}, 2048, rows), want);
  CHECK(r.block_rows(128, 2560) == 10);
}

TEST_CASE("roofline: fewer bits and larger batches move the work", "[cost][roofline]") {
  Roofline r = a6000();
  const AttentionShape s{.q_heads = 32, .kv_heads = 8, .head_dim = 128};
  const Work full = r.decode_fused(s, 8192);
  AttentionShape four = s;
  four.batch = 4;
  CHECK(r.decode_fused(four, 8192).bytes == 4 * full.bytes);
  CHECK(r.decode_fused(four, 8192).ops == 4 * full.ops);
  r.bytes.cache = 0.25;  // 2 bits
  const Work coded = r.decode_fused(s, 8192);
  CHECK(coded.ops == full.ops);
  CHECK(coded.bytes < full.bytes / 7);
  CHECK(r.decode_limit(s) == 32.0);
  CHECK(coded.intensity() < r.decode_limit(s) * 1.05);
  // A projection into the cache writes what the cache stores.
  CHECK(r.linear(64, 32, 10, true).bytes == 64 * 32 * 2 + 64 * 10 * 2 + 32 * 10 * 0.25);
  r.bytes.activation = 4, r.bytes.weight = 1;
  CHECK(r.linear(64, 32, 10).bytes == 64 * 32 + 64 * 10 * 4 + 32 * 10 * 4);
  CHECK((full + coded).ops == 2 * full.ops);
}

TEST_CASE("roofline: peaks that are none are refused", "[cost][roofline]") {
  Roofline r = a6000();
  REQUIRE(r.validate() == Status::ok);
  r.device.bandwidth = 0;
  CHECK(r.validate() == Status::invalid_argument);
  r = a6000();
  r.bytes.cache = std::numeric_limits<double>::quiet_NaN();
  CHECK(r.validate() == Status::invalid_argument);
}
