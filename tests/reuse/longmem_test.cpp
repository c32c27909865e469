#include <algorithm>
#include <catch2/catch.hpp>
#include <deque>
#include <kvcondense/backend/cpu/chunk_memory.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/reuse/longmem.hpp>
#include <limits>
#include <numeric>
#include <support/fill.hpp>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using Memory = reuse::LongMem<Cpu>;

namespace {

Memory made(const CacheShape& shape, const Memory::Options& options) {
  auto m = Memory::make(shape, options);
  REQUIRE(m);
  return std::move(*m);
}

/// What one query reads, the long way: the best chunks by mean key, softmax over their rows.
std::vector<double> by_hand(const std::vector<std::vector<float>>& keys, const std::vector<std::vector<float>>& values, const float* q,
                            std::size_t chunk, std::size_t most, double scale) {
  const std::size_t chunks = keys.size() / chunk;
  std::vector<std::pair<double, std::size_t>> score;
  for (std::size_t c = 0; c < chunks; ++c) {
    double s = 0;
    for (std::size_t d = 0; d < keys[0].size(); ++d) {
      double mean = 0;
      for (std::size_t i = 0; i < chunk; ++i) mean += keys[c * chunk + i][d];
      s += mean / static_cast<double>(chunk) * q[d];
    }
    score.emplace_back(-s, c);
  }
  std::sort(score.begin(), score.end());
  score.resize(std::min(most, score.size()));
  std::vector<double> out(values[0].size(), 0.0);
  double sum = 0;
  for (const auto& [s, c] : score)
    for (std::size_t i = c * chunk; i < (c + 1) * chunk; ++i) {
      double l = 0;
      for (std::size_t d = 0; d < keys[0].size(); ++d) l += static_cast<double>(keys[i][d]) * q[d];
      const double w = std::exp(l * scale);
      sum += w;
      for (std::size_t d = 0; d < out.size(); ++d) out[d] += w * values[i][d];
    }
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace

TEST_CASE("longmem: the worked memory, gate and output", "[reuse][longmem]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "longmem");
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 2};
  Memory m = made(shape, {.chunk = o.at("chunk"), .tokens = 4, .capacity = 8});
  const auto k = test::floats(o.at("K_mem")), v = test::floats(o.at("V_mem")), q = test::floats(o.at("q")), local = test::floats(o.at("out_local"));
  std::vector<std::byte> work(m.workspace_bytes(1) + Scratch::align);
  Context<Cpu> ctx(work);
  REQUIRE(m.add(ctx, dense_view(k.data(), 1, 8, 2), dense_view(v.data(), 1, 8, 2)) == Status::ok);
  CHECK(m.chunks() == 4);
  for (std::size_t c = 0; c < 4; ++c) {
    const auto mean = [&](index_t d) { return m.memory().means(0, static_cast<index_t>(c), d); };
    CHECK(mean(0) * q[0] + mean(1) * q[1] == Approx(o.at("chunk_scores")[c].get<double>()));
  }
  std::vector<float> out(2), far(2);
  std::vector<std::int32_t> chosen(2);
  const std::vector<float> bias{o.at("gate_bias").get<float>()}, always{100.0f};
  const auto queries = dense_view(q.data(), 1, 1, 2);
  const auto run = [&](const std::vector<float>& b, std::vector<float>& to) {
    return m.mix(ctx, queries, dense_view(local.data(), 1, 1, 2), b, dense_view(to.data(), 1, 1, 2), dense_view(chosen.data(), 1, 1, 2));
  };
  REQUIRE(run(bias, out) == Status::ok);
  CHECK(std::vector<index_t>(chosen.begin(), chosen.end()) == o.at("selected_chunks").get<std::vector<index_t>>());
  REQUIRE(run(always, far) == Status::ok);
  for (std::size_t d = 0; d < 2; ++d) {
    CHECK(out[d] == Approx(o.at("out")[d].get<double>()).epsilon(1e-5));
    CHECK(far[d] == Approx(o.at("out_mem")[d].get<double>()).epsilon(1e-5));
  }
}

TEST_CASE("longmem: every head and query reads its own chunks, over a ring that forgets", "[reuse][longmem]") {
  struct Case {
    index_t kv, group, dim, width, chunk, tokens, capacity, drop;
  };
  for (const Case c : {Case{2, 1, 64, 64, 4, 16, 32, 1}, Case{1, 4, 80, 48, 2, 2, 10, 3}, Case{2, 7, 96, 96, 3, 12, 21, 7}, Case{1, 16, 128, 128, 1, 5, 16, 2},
                       Case{2, 2, 256, 256, 4, 64, 16, 1}}) {
    const CacheShape shape{.q_heads = c.kv * c.group, .kv_heads = c.kv, .head_dim = c.dim, .value_dim = c.width};
    Memory m = made(shape, {.chunk = c.chunk, .tokens = c.tokens / c.chunk * c.chunk, .capacity = c.capacity / c.chunk * c.chunk, .drop = c.drop});
    const index_t places = c.capacity / c.chunk;
    constexpr index_t n = 3;
    std::vector<std::byte> work(m.workspace_bytes(n) + Scratch::align);
    Context<Cpu> ctx(work);
    std::vector<std::deque<std::vector<float>>> keys(static_cast<std::size_t>(c.kv)), values(keys.size());
    index_t waiting = 0, chunks = 0, dropped = 0;
    for (std::uint64_t step = 0; step < 14; ++step) {
      const index_t tokens = static_cast<index_t>(step % 5);
      std::vector<float> k(static_cast<std::size_t>(c.kv * tokens * c.dim)), v(static_cast<std::size_t>(c.kv * tokens * c.width));
      test::fill_normal(k.data(), k.size(), 10 * step), test::fill_normal(v.data(), v.size(), 10 * step + 1);
      REQUIRE(m.add(ctx, dense_view(std::as_const(k).data(), c.kv, tokens, c.dim), dense_view(std::as_const(v).data(), c.kv, tokens, c.width)) == Status::ok);
      for (index_t t = 0; t < tokens; ++t) {
        for (index_t h = 0; h < c.kv; ++h) {
          keys[static_cast<std::size_t>(h)].emplace_back(k.begin() + (h * tokens + t) * c.dim, k.begin() + (h * tokens + t + 1) * c.dim);
          values[static_cast<std::size_t>(h)].emplace_back(v.begin() + (h * tokens + t) * c.width, v.begin() + (h * tokens + t + 1) * c.width);
        }
        if (++waiting == c.chunk) {
          waiting = 0;
          if (chunks == places) {
            chunks -= c.drop, dropped += c.drop;
            for (index_t h = 0; h < c.kv; ++h)
              for (index_t i = 0; i < c.drop * c.chunk; ++i) keys[static_cast<std::size_t>(h)].pop_front(), values[static_cast<std::size_t>(h)].pop_front();
          }
          ++chunks;
        }
      }
      REQUIRE(m.chunks() == chunks);
      REQUIRE(m.waiting() == waiting);
      REQUIRE(m.dropped() == dropped);
      std::vector<float> q(static_cast<std::size_t>(shape.q_heads * n * c.dim)), local(static_cast<std::size_t>(shape.q_heads * n * c.width)), out(local);
      test::fill_normal(q.data(), q.size(), 10 * step + 2), test::fill_normal(local.data(), local.size(), 10 * step + 3);
      std::vector<float> bias(static_cast<std::size_t>(shape.q_heads));
      for (std::size_t h = 0; h < bias.size(); ++h) bias[h] = 0.5f * static_cast<float>(h) - 1.0f;
      REQUIRE(m.mix(ctx, dense_view(std::as_const(q).data(), shape.q_heads, n, c.dim), dense_view(std::as_const(local).data(), shape.q_heads, n, c.width), bias,
                    dense_view(out.data(), shape.q_heads, n, c.width)) == Status::ok);
      if (chunks == 0) {
        CHECK(out == local);
        continue;
      }
      for (index_t h = 0; h < shape.q_heads; ++h) {
        const auto head = static_cast<std::size_t>(h / c.group);
        const std::vector<std::vector<float>> hk(keys[head].begin(), keys[head].begin() + chunks * c.chunk), hv(values[head].begin(), values[head].begin() + chunks * c.chunk);
        const double g = 1.0 / (1.0 + std::exp(-static_cast<double>(bias[static_cast<std::size_t>(h)])));
        for (index_t t = 0; t < n; ++t) {
          const auto want = by_hand(hk, hv, q.data() + (h * n + t) * c.dim, static_cast<std::size_t>(c.chunk), static_cast<std::size_t>(c.tokens / c.chunk),
                                    1.0 / std::sqrt(static_cast<double>(c.dim)));
          for (index_t d = 0; d < c.width; ++d) {
            const auto i = static_cast<std::size_t>((h * n + t) * c.width + d);
            REQUIRE(out[i] == Approx((1 - g) * static_cast<double>(local[i]) + g * want[static_cast<std::size_t>(d)]).margin(1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("longmem: tokens that come together are remembered as one by one", "[reuse][longmem]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 3, .value_dim = 2};
  for (const index_t chunk : {1, 3})
    for (const index_t places : {1, 2, 5})
      for (index_t drop = 1; drop <= places; ++drop) {
        const Memory::Options options{.chunk = chunk, .tokens = chunk, .capacity = places * chunk, .drop = drop};
        Memory together = made(shape, options), single = made(shape, options);
        Context<Cpu> ctx;
        float number = 0.0f;
        for (const index_t n : {1, 4, 20, 2, 7, 61}) {
          std::vector<float> k(static_cast<std::size_t>(2 * n * 3)), v(static_cast<std::size_t>(2 * n * 2));
          for (float& x : k) x = ++number;
          for (float& x : v) x = ++number;
          const auto keys = dense_view(std::as_const(k).data(), 2, n, 3), values = dense_view(std::as_const(v).data(), 2, n, 2);
          REQUIRE(together.add(ctx, keys, values) == Status::ok);
          for (index_t t = 0; t < n; ++t)
            REQUIRE(single.add(ctx, {keys.data + t * 3, {2, 1, 3}, {n * 3, 3, 1}}, {values.data + t * 2, {2, 1, 2}, {n * 2, 2, 1}}) == Status::ok);
          REQUIRE(together.chunks() == single.chunks());
          REQUIRE(together.waiting() == single.waiting());
          REQUIRE(together.dropped() == single.dropped());
          const prim::ChunkMemory a = together.memory(), b = single.memory();
          bool same = a.first == b.first;
          for (index_t c = 0; c < a.chunks; ++c)
            for (index_t h = 0; h < 2; ++h) {
              const index_t at = a.place(c);
              for (index_t d = 0; d < 3; ++d) same = same && a.means(h, at, d) == b.means(h, at, d);
              for (index_t t = at * chunk; t < (at + 1) * chunk; ++t) {
                for (index_t d = 0; d < 3; ++d) same = same && a.keys(h, t, d) == b.keys(h, t, d);
                for (index_t d = 0; d < 2; ++d) same = same && a.values(h, t, d) == b.values(h, t, d);
              }
            }
          CHECK(same);
        }
      }
}

TEST_CASE("longmem: NaN is never chosen, ties are the older chunk's", "[reuse][longmem]") {
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 1};
  Memory m = made(shape, {.chunk = 1, .tokens = 2, .capacity = 8});
  const std::vector<float> k{1, std::numeric_limits<float>::quiet_NaN(), 3, 1, 3, 3}, v{1, 2, 3, 4, 5, 6}, q{1}, local{0}, bias{0};
  std::vector<std::byte> work(m.workspace_bytes(1) + Scratch::align);
  Context<Cpu> ctx(work);
  REQUIRE(m.add(ctx, dense_view(k.data(), 1, 6, 1), dense_view(v.data(), 1, 6, 1)) == Status::ok);
  std::vector<float> out(1);
  std::vector<std::int32_t> chosen(2);
  REQUIRE(m.mix(ctx, dense_view(q.data(), 1, 1, 1), dense_view(local.data(), 1, 1, 1), bias, dense_view(out.data(), 1, 1, 1), dense_view(chosen.data(), 1, 1, 2)) == Status::ok);
  CHECK(chosen == std::vector<std::int32_t>{2, 4});
  CHECK(out[0] == Approx(0.5 * 4.0));
  m.clear();
  CHECK(m.chunks() == 0);
}

TEST_CASE("longmem: what cannot be is refused", "[reuse][longmem]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 4};
  for (const Memory::Options bad : {Memory::Options{.chunk = 0}, {.chunk = 4, .tokens = 2}, {.chunk = 4, .tokens = 6}, {.capacity = 2}, {.capacity = 6},
                                    {.drop = 0}, {.capacity = 8, .drop = 3}})
    CHECK(Memory::make(shape, bad).status() == Status::invalid_argument);
  CHECK(Memory::make({.q_heads = 3, .kv_heads = 2}, {}).status() == Status::invalid_argument);
  test::CountingMemory none;
  none.refuse_from = 2;
  CHECK(Memory::make(shape, {}, none).status() == Status::out_of_memory);
  CHECK(none.live_bytes == 0);
  Memory m = made(shape, {.chunk = 2, .tokens = 2, .capacity = 4});
  std::vector<float> rows(64);
  std::vector<std::byte> work(m.workspace_bytes(2) + Scratch::align);
  Context<Cpu> ctx(work);
  Context<Cpu> poor(std::span<std::byte>(work).first(8));
  const auto view = [&](index_t heads, index_t n, index_t d) { return dense_view(std::as_const(rows).data(), heads, n, d); };
  CHECK(m.add(ctx, view(2, 2, 4), view(1, 2, 4)) == Status::shape_mismatch);
  CHECK(m.add(ctx, view(1, 2, 4), view(1, 3, 4)) == Status::shape_mismatch);
  CHECK(m.add(ctx, {rows.data(), {1, 2, 4}, {16, 8, 2}}, view(1, 2, 4)) == Status::shape_mismatch);
  CHECK(m.waiting() == 0);
  REQUIRE(m.add(ctx, view(1, 3, 4), view(1, 3, 4)) == Status::ok);
  const std::vector<float> bias(2), one(1);
  auto out = dense_view(rows.data(), 2, 2, 4);
  CHECK(m.mix(ctx, view(2, 2, 4), view(2, 2, 4), one, out) == Status::shape_mismatch);
  CHECK(m.mix(ctx, view(2, 2, 3), view(2, 2, 4), bias, out) == Status::shape_mismatch);
  CHECK(m.mix(poor, view(2, 2, 4), view(2, 2, 4), bias, out) == Status::workspace_too_small);
  REQUIRE(m.mix(ctx, view(2, 2, 4), view(2, 2, 4), bias, out) == Status::ok);
}
