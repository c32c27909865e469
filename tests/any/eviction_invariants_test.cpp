#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <any/eviction_run.hpp>
#include <kvcondense/core/dtype.hpp>

using namespace kvcondense;

// What every composition of eviction policy, budget and wrapper has to keep, tried over the registry: a new word
// needs no line here.

namespace {

using Run = test::EvictionRun;
using Room = test::EvictionRoom;
constexpr const CacheShape& shape = test::eviction_shape;

/// A number as a cache of this type stores it.
double stored(float x, DType type) {
  return static_cast<double>(type == DType::f16 ? static_cast<float>(half(x)) : type == DType::bf16 ? static_cast<float>(bfloat16(x)) : x);
}

/// Attention of one query over the full history, with what the cache let go masked out. In double.
std::vector<double> masked_attention(const Run& run, index_t layer, index_t q_head, const float* q) {
  const index_t head = q_head / shape.group();
  std::vector<double> logits, out(static_cast<std::size_t>(shape.head_dim));
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (index_t s = 0; s < run.cache.slots(layer, head); ++s) {
    const float* k = run.row(true, layer, head, run.cache.token(layer, head, s));
    double dot = 0;
    for (index_t d = 0; d < shape.head_dim; ++d) dot += static_cast<double>(q[d]) * stored(k[d], run.shape.dtype);
    logits.push_back(dot / std::sqrt(static_cast<double>(shape.head_dim)));
    most = std::max(most, logits.back());
  }
  for (index_t s = 0; s < run.cache.slots(layer, head); ++s) {
    const double p = std::exp(logits[static_cast<std::size_t>(s)] - most);
    const float* v = run.row(false, layer, head, run.cache.token(layer, head, s));
    for (index_t d = 0; d < shape.head_dim; ++d) out[static_cast<std::size_t>(d)] += p * stored(v[d], run.shape.dtype);
    sum += p;
  }
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace

TEST_CASE("eviction: slots rise, counters go on, and attention is that of the kept tokens in every recipe and type", "[any][invariants]") {
  const DType type = GENERATE(DType::f32, DType::f16, DType::bf16);
  CAPTURE(to_string(type));
  std::size_t evicted = 0;
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    Run run(text, 3, type);
    Room room(run.cache);
    index_t seen = 0;
    for (int pass = 0; pass < Run::passes; ++pass) {
      run.advance(room.ctx, pass);
      seen += Run::tokens(pass);
      for (index_t l = 0; l < shape.layers; ++l) {
        REQUIRE(run.cache.length(l) == seen);
        REQUIRE(run.cache.next_position(l) == seen);
        REQUIRE(run.cache.pending(l) == 0);
        for (index_t h = 0; h < shape.kv_heads; ++h) {
          index_t last = -1;
          for (index_t s = 0; s < run.cache.slots(l, h); ++s) {
            const index_t t = run.cache.token(l, h, s);
            if (t <= last || t >= seen) FAIL("slot " << s << " holds token " << t << " after " << last);
            last = t;
          }
        }
      }
    }
    REQUIRE(run.cache.report().slots == run.cache.total_slots(0) + run.cache.total_slots(1) + run.cache.total_slots(2));
    evicted += run.cache.report().evicted_slots > 0;
    // A summary of what left is attended to as well; its own tests say how.
    if (text.starts_with("razor_attention") || text.starts_with("compensate")) continue;
    const test::Tokens q(shape, 1, run.random);
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
    for (index_t l = 0; l < shape.layers; ++l) {
      REQUIRE(run.cache.attend(room.ctx, l, q.queries(shape), dense_view(out.data(), shape.q_heads, index_t{1}, shape.head_dim)) ==
              Status::ok);
      for (index_t h = 0; h < shape.q_heads; ++h) {
        if (run.cache.slots(l, h / shape.group()) == 0) continue;
        const auto want = masked_attention(run, l, h, q.q.data() + h * shape.head_dim);
        for (index_t d = 0; d < shape.head_dim; ++d)
          if (std::fabs(static_cast<double>(out[static_cast<std::size_t>(h * shape.head_dim + d)]) - want[static_cast<std::size_t>(d)]) > 1e-5)
            FAIL("layer " << l << ", query head " << h << ", number " << d << ": "
                          << out[static_cast<std::size_t>(h * shape.head_dim + d)] << " for " << want[static_cast<std::size_t>(d)]);
      }
    }
  }
  REQUIRE(evicted + 6 >= test::eviction_recipes().size());  // most settings are such that something leaves
}

TEST_CASE("eviction: another sequence in between changes nothing in any recipe", "[any][invariants]") {
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    Run alone(text, 5), first(text, 5), second(text, 6);
    Room quiet(alone.cache), busy(alone.cache);
    for (int pass = 0; pass < Run::passes; ++pass) alone.advance(quiet.ctx, pass);
    for (int pass = 0; pass < Run::passes; ++pass) first.advance(busy.ctx, pass), second.advance(busy.ctx, pass);
    REQUIRE(first.kept() == alone.kept());
    REQUIRE(first.outputs == alone.outputs);
    REQUIRE(second.outputs != alone.outputs);
  }
}

TEST_CASE("eviction: a fork goes on as its origin would, and rejected drafts leave no trace in any recipe", "[any][invariants]") {
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    Run run(text, 7);
    Room room(run.cache);
    for (int pass = 0; pass < 6; ++pass) run.advance(room.ctx, pass);
    auto copy = run.cache.fork();
    REQUIRE(copy);
    const std::vector<index_t> before = run.kept();
    {  // tokens that no step has seen, taken back
      std::mt19937 random(1);
      for (index_t l = 0; l < shape.layers; ++l) {
        const test::Tokens t(shape, 4, random);
        REQUIRE(copy->append(room.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      }
      REQUIRE(copy->truncate(run.cache.length()) == Status::ok);
    }
    Run twin(text, 7);
    twin.random = run.random, twin.given = run.given;
    twin.cache = std::move(*copy);
    REQUIRE(twin.kept() == before);
    run.outputs.clear();
    for (int pass = 6; pass < Run::passes; ++pass) run.advance(room.ctx, pass), twin.advance(room.ctx, pass);
    REQUIRE(twin.kept() == run.kept());
    REQUIRE(twin.outputs == run.outputs);
  }
}
