#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/locret.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sirllm.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/position/reindex.hpp>
#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

// A hundred thousand tokens through the methods that are made for streams: in the memory of the first thousands, with
// not one more request for it, and with the last token at the position where a cache that had seen no others would put it.

namespace {

constexpr CacheShape stream_shape{.q_heads = 2, .kv_heads = 1, .head_dim = 8, .dtype = DType::f32, .page_slots = 32};
constexpr index_t stream_tokens = 100000, stream_warm = 5000, stream_check = 5000;

/// How tokens come. A step brings less than a page: pages that empty several at a time go back to the resource.
struct StreamPlan {
  index_t chunk = 1;       ///< tokens of a step
  index_t turn = 0;        ///< tokens before which room is made; 0: never
  Phase phase = Phase::decode;
  index_t most_slots = 0;  ///< after a step
};

template <class R>
struct Streamed : test::CacheRig<R> {
  using test::CacheRig<R>::cache, test::CacheRig<R>::ctx, test::CacheRig<R>::memory;
  // Token t has the numbers of row t % rows: a prime, so that no two tokens that are held at once share them.
  static constexpr index_t rows = 4099, dim = stream_shape.head_dim;
  StreamPlan plan;
  bool raw_keys;
  std::vector<float> q, k, v, surprise, out;
  std::vector<index_t> seen;  ///< tokens that the last row of the last step attended to

  Streamed(const R& r, const StreamPlan& p, bool raw) : test::CacheRig<R>(stream_shape, r, 256, 64), plan(p), raw_keys(raw) {
    const auto fill = [](std::vector<float>& x, index_t heads, index_t size, std::uint64_t seed) {
      const index_t all = (rows + 64) * size;  // a chunk may begin with the last row
      for (index_t h = 0; h < heads; ++h) {
        std::vector<float> one(static_cast<std::size_t>(rows * size));
        test::fill_normal(one.data(), one.size(), seed + static_cast<std::uint64_t>(h));
        for (index_t i = 0; i < all; ++i) x.push_back(one[static_cast<std::size_t>(i % (rows * size))]);
      }
    };
    fill(q, stream_shape.q_heads, dim, 1), fill(k, 1, dim, 11), fill(v, 1, dim, 21), fill(surprise, 1, 1, 31);
    for (float& x : surprise) x = std::fabs(x);
    out.resize(static_cast<std::size_t>(stream_shape.q_heads * plan.chunk * dim));
  }

  TensorView<const float, 3> part(const std::vector<float>& x, index_t heads, index_t first, index_t n) const {
    return {x.data() + first % rows * dim, {heads, n, dim}, {(rows + 64) * dim, dim, 1}};
  }

  std::vector<index_t> kept() const {
    std::vector<index_t> tokens;
    for (index_t i = 0; i < cache.slots(0, 0); ++i) tokens.push_back(cache.token(0, 0, i));
    return tokens;
  }

  void advance(index_t first, bool watched) {
    const index_t n = plan.chunk;
    if (plan.turn > 0 && first % plan.turn == 0) REQUIRE(cache.turn(ctx, plan.turn) == Status::ok);
    if (watched) {
      seen = kept();
      for (index_t i = 0; i < n; ++i) seen.push_back(first + i);
    }
    const auto queries = part(q, stream_shape.q_heads, first, n), keys = part(k, 1, first, n), values = part(v, 1, first, n);
    StepInputs inputs{.raw_queries = queries, .raw_keys = keys, .values = values};
    inputs.surprise = std::span(surprise).subspan(static_cast<std::size_t>(first % rows), static_cast<std::size_t>(n));
    if (cache.forward(ctx, 0, queries, keys, values, dense_view(out.data(), stream_shape.q_heads, n, dim), {}, plan.phase, inputs) != Status::ok)
      FAIL("token " << first);
  }

  /// The last row of the last step, against attention in double over the rows of the tokens that were there: raw keys turned
  /// by their slot, the query by the last one.
  void require_last_row() const {
    const auto turned = [&](const std::vector<float>& x, index_t head, index_t token, index_t slot) {
      std::vector<double> row(static_cast<std::size_t>(dim));
      const float* from = x.data() + head * (rows + 64) * dim + token % rows * dim;
      for (index_t d = 0; d < dim; ++d) row[static_cast<std::size_t>(d)] = static_cast<double>(from[d]);
      for (index_t d = 0; raw_keys && d < dim / 2; ++d) {
        const double angle = static_cast<double>(slot) * std::pow(10000.0, -2.0 * static_cast<double>(d) / static_cast<double>(dim));
        double &x0 = row[static_cast<std::size_t>(d)], &x1 = row[static_cast<std::size_t>(d + dim / 2)];
        const double first = x0 * std::cos(angle) - x1 * std::sin(angle);
        x1 = x1 * std::cos(angle) + x0 * std::sin(angle), x0 = first;
      }
      return row;
    };
    const auto last = static_cast<index_t>(seen.size()) - 1;
    std::vector<test::NaiveSlot> slots;
    for (index_t s = 0; s <= last; ++s) {
      const index_t t = seen[static_cast<std::size_t>(s)];
      slots.push_back({.token = t, .k = turned(k, 0, t, s), .v = {v.begin() + t % rows * dim, v.begin() + (t % rows + 1) * dim}});
    }
    for (index_t h = 0; h < stream_shape.q_heads; ++h) {
      const auto want = test::naive_attention(turned(q, h, seen.back(), last), slots, last + 1, 1 / std::sqrt(static_cast<double>(dim)), dim);
      for (index_t d = 0; d < dim; ++d)
        REQUIRE(out[static_cast<std::size_t>((h * plan.chunk + plan.chunk - 1) * dim + d)] == Approx(want[static_cast<std::size_t>(d)]).margin(1e-5));
    }
  }
};

template <class Policy, class Position>
auto stream_through(const Policy& policy, const Position& position, const StreamPlan& plan) {
  const auto r = recipe(policy, position);
  auto stream = std::make_unique<Streamed<std::remove_cvref_t<decltype(r)>>>(r, plan, Position::raw_keys);
  auto& cache = stream->cache;
  long requests = 0;
  std::size_t peak = 0;
  index_t fresh = 0;
  for (index_t at = 0; at < stream_tokens; at += plan.chunk) {
    const index_t end = at + plan.chunk;
    const bool watched = end % stream_check == 0;
    stream->advance(at, watched);
    if (at < stream_warm) {
      peak = std::max(peak, stream->memory.live_bytes);
      requests = stream->memory.requests;
    } else if (stream->memory.requests != requests || stream->memory.live_bytes > peak || cache.slots(0, 0) > plan.most_slots) {
      FAIL("token " << end << ": request " << stream->memory.requests << " after " << requests << ", " << stream->memory.live_bytes
                    << " bytes after " << peak << ", " << cache.slots(0, 0) << " slots");
    }
    if (!watched) continue;
    CAPTURE(end);
    REQUIRE(cache.length() == end);
    REQUIRE(cache.next_position() == end);
    REQUIRE(cache.report().bytes() == stream->memory.live_bytes);
    stream->require_last_row();
    // Half of what is held came since the last look: nothing stays for ever that once gathered enough.
    const auto now = stream->kept();
    REQUIRE(std::is_sorted(now.begin(), now.end()));
    REQUIRE(now.back() == end - 1);
    fresh += now[now.size() / 2] > end - stream_check;
  }
  REQUIRE(fresh == stream_tokens / stream_check);
  return stream;
}

}  // namespace

TEST_CASE("streams: a hundred thousand tokens through sink_window", "[cache][memory][stream]") {
  const auto s = stream_through(evict::SinkWindow{.recent = 44, .sinks = 4}, position::Reindex{}, {.most_slots = 48});
  for (index_t i = 0; i < 48; ++i) REQUIRE(s->cache.token(0, 0, i) == (i < 4 ? i : stream_tokens - 48 + i));
}

TEST_CASE("streams: a hundred thousand tokens through h2o, at their positions and at those of their slots", "[cache][memory][stream]") {
  const evict::H2O policy{.heavy = 20, .recent = 28};
  SECTION("absolute") { REQUIRE(stream_through(policy, position::Absolute{}, {.most_slots = 48})->cache.slots(0, 0) == 48); }
  SECTION("reindex") { REQUIRE(stream_through(policy, position::Reindex{}, {.most_slots = 48})->cache.slots(0, 0) == 48); }
}

TEST_CASE("streams: a hundred thousand tokens through sirllm, in turns", "[cache][memory][stream]") {
  // Room is made before a turn of twenty tokens: there are never more than the sinks, the memory and the recent ones.
  const auto s = stream_through(evict::SirLLM{.sinks = 4, .memory = 44, .recent = 8, .decay = 0.7f}, position::Reindex{},
                                {.chunk = 2, .turn = 20, .most_slots = 56});
  for (index_t i = 0; i < 4; ++i) REQUIRE(s->cache.token(0, 0, i) == i);
}

TEST_CASE("streams: a hundred thousand tokens of a prompt through locret", "[cache][memory][stream]") {
  // A retaining head that reads the first number of the key.
  constexpr index_t inputs = stream_shape.q_heads * stream_shape.head_dim + 2 * stream_shape.head_dim;
  std::vector<float> in(inputs, 0.0f), scale{1.0f};
  in[static_cast<std::size_t>(stream_shape.q_heads * stream_shape.head_dim)] = 1.0f;
  const float *in_at = in.data(), *out_at = scale.data();
  const evict::Locret policy{.tokens = 48, .stabilizers = 28, .local = 8, .retain_in = {&in_at, 1, inputs, 1}, .retain_out = {&out_at, 1, 1, 1}};
  const auto s = stream_through(policy, position::Reindex{}, {.chunk = 10, .phase = Phase::prefill_chunk, .most_slots = 48});
  REQUIRE(s->cache.slots(0, 0) == 48);
}
