// Caches on CUDA that hold rows of blocks: small floats, MX, NVFP4, block floating point, ggml's formats.

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/bfp.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/ggml.hpp>
#include <kvcondense/quant/mx.hpp>
#include <kvcondense/quant/nvfp4.hpp>

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

TEST_CASE("cuda cache: blocks of small floats and of ggml are coded as they leave the exact window") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  Pair q4(recipe(quant::Ggml{.format = quant::GgmlFormat::q4_0, .value_format = quant::GgmlFormat::q5_1}), "ggml(format=q4_0, value_format=q5_1)", shape);
  live(q4);
  quant::Ggml q8{.format = quant::GgmlFormat::q8_0};
  q8.residual_window = 7, q8.sinks = 2;
  Pair window(recipe(q8), "ggml(format=q8_0, residual_window=7, sinks=2)", shape);
  live(window);
  quant::Mx mx{.format = quant::MxFormat::fp6_e2m3, .value_format = quant::MxFormat::fp4, .rounding = prim::Rounding::half_away};
  mx.residual_window = 3, mx.sinks = 2;
  Pair micro(recipe(mx), "mx(format=fp6_e2m3, value_format=fp4, rounding=half_away, residual_window=3, sinks=2)", shape);
  live(micro);
  Pair nv(recipe(quant::Nvfp4{.key_scale = 0.5f}), "nvfp4(key_scale=0.5)", {.q_heads = 4, .kv_heads = 1, .head_dim = 32, .page_slots = 8});
  live(nv);
  Pair fp8(recipe(quant::Fp8{.scale = quant::Fp8Scale::block, .block = 16}), "fp8(scale=block, block=16)",
           {.q_heads = 5, .kv_heads = 1, .head_dim = 80, .value_dim = 48, .page_slots = 5});
  live(fp8);
}

TEST_CASE("cuda cache: rows of blocks stay, move and leave behind eviction, and are scored as they are stored") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  quant::Ggml q5{.format = quant::GgmlFormat::q5_0};
  q5.residual_window = 4, q5.sinks = 1;
  Pair heavy(recipe(evict::H2O{.heavy = 20, .recent = 8}, q5), "h2o(heavy=20, recent=8) + ggml(format=q5_0, residual_window=4, sinks=1)", shape);
  live(heavy);
  heavy.burst(12);
  quant::Bfp bfp;
  bfp.bits = 5, bfp.value_bits = 3, bfp.block = 16, bfp.residual_window = 2;
  Pair ends(recipe(evict::SinkWindow{.recent = 20, .sinks = 3}, bfp), "sink_window(recent=20, sinks=3) + bfp(bits=5, value_bits=3, block=16, residual_window=2)",
            {.layers = 2, .q_heads = 7, .kv_heads = 1, .head_dim = 96, .page_slots = 8});
  live(ends);
  // Columns of attention over blocks; on tensor cores nothing reads them.
  Pair columns(recipe(evict::SnapKV{.tokens = 30, .window = 8, .kernel = 5}, quant::Ggml{.format = quant::GgmlFormat::q8_0}),
               "snapkv(tokens=30, window=8, kernel=5) + ggml(format=q8_0)", shape);
  live(columns);
  test::OnDevice<float> q(columns.device(), std::vector<float>(6 * 64)), out(columns.device(), std::vector<float>(6 * 64));
  Context<Cuda> ctx = columns.device().with_workspace(columns.on_device().workspace_bytes(64, 1));
  CHECK(columns.on_device().attend(ctx, 0, dense_view(static_cast<const float*>(q.data()), 6, 1, 64), dense_view(out.data(), 6, 1, 64), {}, prim::AttendMath::halves) ==
        Status::not_supported);
  // The norm of a key is that of its codes.
  Pair norms(recipe(evict::Knorm{.tokens = 30, .recent = 6}, quant::Fp8{.format = quant::Fp8Format::e5m2}), "knorm(tokens=30, recent=6) + fp8(format=e5m2)",
             {.q_heads = 4, .kv_heads = 4, .head_dim = 256});
  live(norms);
}
