// What coding costs, for every word of the quant room with its defaults: a page of 256 slots of one head of 128 numbers,
// mapped by the word's transform and coded, on one thread. items_per_second are rows of keys or of values; `bits` is what a
// number takes in the page. One token of a model is layers * kv_heads rows of each.

#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace {

using namespace kvcondense;

constexpr CacheShape shape{.layers = 20, .q_heads = 8, .kv_heads = 2, .head_dim = 128};
constexpr index_t slots = 256, dim = shape.head_dim;
constexpr HeadIndex middle{16, 1};

/// About normal, one channel in sixteen strong, with offsets.
const std::vector<float>& rows() {
  static const std::vector<float> all = [] {
    std::vector<float> x(static_cast<std::size_t>(slots * dim));
    for (std::size_t i = 0; i < x.size(); ++i) {
      float sum = -2.0f;
      for (std::uint64_t k = 0; k < 4; ++k) sum += random_uniform(k, i);
      x[i] = 1.7f * sum * (i % 16 == 5 ? 6.0f : 1.0f) + static_cast<float>(i % 128 % 5) - 2.0f;
    }
    return x;
  }();
  return all;
}

/// Thresholds of every channel for kvquant, books of 21 stages of 64 words for commvq.
any::ModelFacts facts() {
  static const std::size_t n = static_cast<std::size_t>(shape.layers * shape.kv_heads * dim);
  static const std::vector<float> lower(n, -6.0f), upper(n, 6.0f);
  static const std::vector<float> books = [] {
    std::vector<float> x(static_cast<std::size_t>(shape.layers * shape.kv_heads) * 21 * 64 * 128);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.1f * random_uniform(3, i) - 0.05f;
    return x;
  }();
  any::ModelFacts f;
  f.key_books = f.value_books = {books.data(), shape.layers, shape.kv_heads, 21 * 64 * 128};
  f.key_lower = {lower.data(), shape.layers, shape.kv_heads, dim};
  f.key_upper = {upper.data(), shape.layers, shape.kv_heads, dim};
  return f;
}

void encode(benchmark::State& state, const std::string& text, bool keys) {
  const any::ParseResult parsed = any::parse(text, facts());
  if (!parsed) return state.SkipWithError(std::string(parsed.message()).c_str());
  const any::AnyQuant& quant = parsed->stages.quant;
  if (const Status s = quant.validate(shape); s != Status::ok) return state.SkipWithError(to_string(s));
  const any::AnyCodec codec = keys ? quant.key_codec(shape, middle) : quant.value_codec(shape, middle);
  const any::AnyCodec::Transform transform = codec.transform();
  using Map = prim::MapOf<Cpu, any::AnyCodec::Transform>;
  std::vector<float> found(static_cast<std::size_t>(transform.finding_floats(dim))), x = rows(), scores(slots);
  for (index_t i = 0; i < slots; ++i) scores[static_cast<std::size_t>(i)] = random_uniform(9, static_cast<std::uint64_t>(i));
  if (!found.empty()) {
    std::vector<float> first = rows();
    Map::observe(transform, dim, {first.data(), slots, dim}, found.data());
    Map::settle(transform, dim, {dense_view(rows().data(), 1, slots, dim), 0, 1}, found.data());
  }
  const std::size_t bytes = codec.page_bytes(slots, transform.stored_dim(dim));
  std::vector<std::byte> page(bytes + 64);
  for (auto _ : state) {
    x = rows();
    Map::forward(transform, found.data(), dim, {x.data(), slots, dim});
    benchmark::DoNotOptimize(prim::PageCodec<Cpu, any::AnyCodec>::encode(
        codec, {page.data(), slots, transform.stored_dim(dim)}, 0, slots, {x.data(), slots, dim}, scores.data()));
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * slots);
  state.counters["bits"] = static_cast<double>(bytes) * 8 / (slots * dim);
}

const bool registered = [] {
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::quant) continue;
    const std::string text = std::string(e->word) + (e->wraps ? "(group_int)" : "");
    for (const bool keys : {true, false})
      benchmark::RegisterBenchmark((text + (keys ? "/keys" : "/values")).c_str(),
                                   [text, keys](benchmark::State& s) { encode(s, text, keys); });
  }
  return true;
}();

}  // namespace
