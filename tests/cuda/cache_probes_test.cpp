// Caches on CUDA that store slots in more or fewer bits by scores, beside those on the CPU: what probe queries look at.

#include <string>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/smooth_attention.hpp>
#include <kvcondense/quant/zipcache.hpp>

#include "cache_live.hpp"
#include "cache_methods.hpp"

using namespace kvcondense;
using namespace cuda_cache;

using Zip = quant::ZipCache<4, 2>;

TEST_CASE("cuda cache codec: zipcache") {
  const auto along = [](const auto& zip, const std::string& text, const CacheShape& shape, const auto& eviction, const std::string& front) {
    INFO(text << ", heads of " << shape.head_dim);
    Pair pair(recipe(eviction, zip), front + text, shape);
    lives(pair);
    Pair twin = pair.fork();
    twin.forward(4);
    pair.forward(3);
    pair.exchange();
  };
  const evict::SinkWindow all{.recent = 300, .sinks = 3};
  along(Zip{.salient = 0.5, .block = 8, .sinks = 2}, "zipcache(salient=50%, block=8, sinks=2)", small, all, "sink_window(recent=300, sinks=3) + ");
  along(Zip{.block = 16, .newest = 0.3, .random = 0.2, .history = 9, .seed = 4, .keep_window = 2},
        "zipcache(block=16, newest=30%, random=20%, history=9, seed=4, keep_window=2)", odd, ends, ends_text);
  // Behind a method that looks at queries too, at fewer of those that the layer keeps.
  along(Zip{.salient = 0.1, .block = 4, .history = 12, .scale_values = false}, "zipcache(salient=10%, block=4, history=12, scale_values=false)", common,
        evict::SnapKV{.tokens = 30, .window = 6, .kernel = 3}, "snapkv(tokens=30, window=6, kernel=3) + ");
  along(Zip{.salient = 0.9, .block = 16}, "zipcache(salient=90%, block=16)", wide_halves, ends, ends_text);
  // Behind factors: groups are joined as they are stored, not mapped back and forth.
  along(quant::SmoothAttention<Zip>{.base = {.salient = 0.5, .block = 8, .sinks = 2}, .least = 12},
        "smooth_attention(zipcache(salient=50%, block=8, sinks=2), least=12)", small, ends, ends_text);
  // Token by token: the queries of earlier steps judge.
  Pair single(recipe(all, Zip{.salient = 0.5, .block = 4, .history = 6}), "sink_window(recent=300, sinks=3) + zipcache(salient=50%, block=4, history=6)", shared);
  single.look();
  for (int i = 0; i < 18; ++i) single.forward(1);
  single.truncate(1);
  single.forward(9);
  single.forward(1);
  single.compare_reports();
}

TEST_CASE("cuda cache: a step that codes by scores and joins groups and is refused memory leaves all as it was") {
  const auto again = [](auto& ctx, const auto& cache, const auto& fork) { CHECK(fork.report(ctx)->evicted_slots > cache.report(ctx)->evicted_slots); };
  refuse_a_step(recipe(evict::SinkWindow{.recent = 6, .sinks = 2}, Zip{.salient = 0.5, .block = 4}), 5, {-1, 0, 1, 2, 4, 6}, 2, again);
}
