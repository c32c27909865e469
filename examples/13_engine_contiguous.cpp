// An engine with a contiguous cache of its own, and what it must add to condense it: the adapter
// below. The engine keeps its memory and its attention; the library reads keys, values and queries
// where they are and says what stays.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

// --- engine ---
namespace {

constexpr int layers = 2, q_heads = 6, kv_heads = 2, dim = 64, room = 256;

/// Keys and values [layers, kv_heads, room, dim]; a layer's heads hold `length` rows each.
struct Engine {
  std::vector<float> keys = std::vector<float>(layers * kv_heads * room * dim), values = keys;
  int length[layers] = {};
  std::function<bool(int layer, const float* q, int n)>
      after_attention;  // empty: nothing is condensed

  float* row(std::vector<float>& x, int layer, int head, int slot) {
    return x.data() + ((layer * kv_heads + head) * room + slot) * dim;
  }

  /// n tokens: q [q_heads, n, dim], k and v [kv_heads, n, dim]; out like q.
  bool attend(int layer, const float* q, const float* k, const float* v, int n, float* out) {
    const int before = length[layer];
    if (before + n > room) return false;
    for (int h = 0; h < kv_heads; ++h) {
      std::copy_n(k + h * n * dim, n * dim, row(keys, layer, h, before));
      std::copy_n(v + h * n * dim, n * dim, row(values, layer, h, before));
    }
    length[layer] += n;
    for (int h = 0; h < q_heads; ++h)
      for (int t = 0; t < n; ++t) {
        const int kv = h / (q_heads / kv_heads), seen = before + t + 1;
        const float* x = q + (h * n + t) * dim;
        std::vector<double> weight(static_cast<std::size_t>(seen));
        double sum = 0;
        for (int j = 0; j < seen; ++j) {
          double dot = 0;
          for (int d = 0; d < dim; ++d)
            dot += static_cast<double>(x[d]) * row(keys, layer, kv, j)[d];
          sum += weight[static_cast<std::size_t>(j)] = std::exp(dot / std::sqrt(double{dim}));
        }
        for (int d = 0; d < dim; ++d) {
          double o = 0;
          for (int j = 0; j < seen; ++j)
            o += weight[static_cast<std::size_t>(j)] * row(values, layer, kv, j)[d];
          out[(h * n + t) * dim + d] = static_cast<float>(o / sum);
        }
      }
    return !after_attention || after_attention(layer, q, n);
  }
};

}  // namespace

// --- adapter ---
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/external/condenser.hpp>

namespace kvc = kvcondense;

namespace {

class Condense {
 public:
  Condense(Engine& engine, const kvc::any::AnyRecipe& recipe)
      : engine_(engine), state_(Condenser::make(shape(), recipe)) {
    ok_ = state_ && scratch_.reserve(state_->workspace_bytes(room, room, 1)) == kvc::Status::ok;
    engine.after_attention = [this](int layer, const float* q, int n) {
      return ok_ && run(layer, q, n);
    };
  }
  static kvc::CacheShape shape() {
    return {.layers = layers,
            .q_heads = q_heads,
            .kv_heads = kv_heads,
            .head_dim = dim,
            .dtype = kvc::DType::f32};
  }

 private:
  using Condenser = kvc::external::Condenser<kvc::any::AnyRecipe>;
  bool run(int layer, const float* q, int n) {
    kvc::Context<kvc::Cpu> ctx(scratch_.bytes());
    const auto rows = kvc::external::borrow_contiguous(
        kvc::dense_view(engine_.row(engine_.keys, layer, 0, 0), kv_heads, room, dim),
        kvc::dense_view(engine_.row(engine_.values, layer, 0, 0), kv_heads, room, dim));
    const kvc::StepInputs inputs{.queries = kvc::dense_view(q, q_heads, n, dim)};
    if (state_->step(ctx, layer, rows, n, inputs) != kvc::Status::ok) return false;
    if (state_->leaves(layer) && state_->compact(ctx, layer, rows) != kvc::Status::ok) return false;
    engine_.length[layer] = static_cast<int>(state_->longest(layer));
    // The engine knows one length for all heads of a layer, and its attention adds nothing to
    // slots.
    for (int h = 0; h < kv_heads; ++h) {
      const kvc::prim::SlotScalars x = state_->scalars(layer, h);
      if (state_->slots(layer, h) != engine_.length[layer] || x.bias || x.value_scale) return false;
    }
    return true;
  }

  Engine& engine_;
  kvc::Expected<Condenser> state_;
  kvc::Workspace scratch_;
  bool ok_ = false;
};

}  // namespace

// --- check ---
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/core/random.hpp>

namespace {

std::vector<float> random(std::size_t n, std::uint64_t seed) {
  std::vector<float> x(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = 3.0f * (kvc::random_uniform(seed, i) - 0.5f);
  return x;
}

/// The engine with its adapter beside a cache of the library with the same recipe: the largest
/// difference of outputs.
float compare(const char* text) {
  const auto recipe = kvc::any::parse(text);
  auto cache = kvc::any::AnyCache::make(recipe->stages, text, Condense::shape());
  Engine engine;
  Condense condense(engine, recipe->stages);
  kvc::Workspace scratch;
  if (!cache || scratch.reserve(cache->workspace_bytes(room, room)) != kvc::Status::ok) return 1e9f;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());
  float worst = 0.0f;
  for (std::uint64_t step = 0; step < 60; ++step)
    for (int layer = 0; layer < layers; ++layer) {
      const int n = step == 0 ? 150 : 1;
      const std::uint64_t seed = 10 * step + static_cast<std::uint64_t>(layer);
      const auto q = random(static_cast<std::size_t>(q_heads * n * dim), 3 * seed),
                 k = random(static_cast<std::size_t>(kv_heads * n * dim), 3 * seed + 1),
                 v = random(static_cast<std::size_t>(kv_heads * n * dim), 3 * seed + 2);
      std::vector<float> mine(q.size()), theirs(q.size());
      const bool ok =
          engine.attend(layer, q.data(), k.data(), v.data(), n, mine.data()) &&
          cache->forward(ctx, layer, kvc::dense_view(q.data(), q_heads, n, dim),
                         kvc::dense_view(k.data(), kv_heads, n, dim),
                         kvc::dense_view(v.data(), kv_heads, n, dim),
                         kvc::dense_view(theirs.data(), q_heads, n, dim)) == kvc::Status::ok;
      if (!ok || cache->slots(layer, 0) != engine.length[layer]) return 1e9f;
      for (std::size_t i = 0; i < mine.size(); ++i)
        if (const float diff = std::abs(mine[i] - theirs[i]); !(diff <= worst)) worst = diff;
    }
  std::printf("%-46s %3d of 209 tokens in each head, outputs differ by %.1e\n", text,
              engine.length[0], static_cast<double>(worst));
  return worst;
}

/// Whether the adapter refuses a recipe that this engine cannot follow.
bool refused(const char* text) {
  const auto recipe = kvc::any::parse(text);
  Engine engine;
  Condense condense(engine, recipe->stages);
  const auto q = random(q_heads * 150 * dim, 1), k = random(kv_heads * 150 * dim, 2),
             v = random(kv_heads * 150 * dim, 3);
  std::vector<float> out(q.size());
  return !engine.attend(0, q.data(), k.data(), v.data(), 150, out.data());
}

}  // namespace

int main() {
  bool good = true;
  for (const char* text : {"snapkv(tokens=64, window=16)", "h2o(heavy=32, recent=32)",
                           "h2o(heavy=32, recent=32) + d2o", "sink_window(sinks=4, recent=60)"})
    good = compare(text) < 1e-4f && good;
  // Heads of different lengths, and what merging adds to attention.
  for (const char* text : {"ada(snapkv(tokens=64, window=16), floor=0.2)",
                           "h2o(heavy=32, recent=32) + keepkv", "h2o(heavy=32, recent=32) + ems"})
    good = refused(text) && good;
  return good ? 0 : 1;
}
