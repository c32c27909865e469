#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/backend/cpu/simd/rank_kernels.hpp>

// Ranking with every instruction set of this processor: the same cutoffs and places as counting digits.

using namespace kvcondense;
using namespace kvcondense::prim;
using cpu::RankOps;

namespace {

void require_same(const RankOps& ops, const std::vector<float>& x, index_t k) {
  const auto n = static_cast<index_t>(x.size());
  const RowCutoff want = cpu::portable::cutoff(x.data(), n, k), got = ops.cutoff(x.data(), n, k);
  CAPTURE(n, k);
  REQUIRE(got.bits == want.bits);
  REQUIRE(got.ties == want.ties);
  std::vector<std::int32_t> a(x.size(), -1), b(x.size(), -1);
  index_t nan_a = 0, nan_b = 0;
  const index_t here = cpu::portable::pick(x.data(), n, 7, want, a.data(), nan_a), there = ops.pick(x.data(), n, 7, want, b.data(), nan_b);
  REQUIRE(here == k);
  REQUIRE(there == k);
  REQUIRE(nan_a == nan_b);
  a.resize(static_cast<std::size_t>(k)), b.resize(static_cast<std::size_t>(k));
  REQUIRE(a == b);
}

template <class F>
void for_isas(F&& use) {
  for (const cpu::Isa isa : cpu::all_isas)
    if (cpu::can_run(isa)) use(cpu::rank_ops(isa));
}

}  // namespace

TEST_CASE("rank_ops: scores of every kind, any k, any length", "[prim][rank_ops]") {
  for_isas([](const RankOps& ops) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (const index_t n : {1, 2, 15, 16, 17, 100, 1000, 4095, 4096, 4097, 10000, 70000})
      for (int kind = 0; kind < 8; ++kind) {
        std::vector<float> x(static_cast<std::size_t>(n));
        for (std::size_t i = 0; i < x.size(); ++i) {
          float& e = x[i];
          e = normal(random);
          if (kind == 1) e = static_cast<float>(random() % 5) - 2.0f;  // ties everywhere
          if (kind == 2) e = 1.0f;
          if (kind == 3) e = static_cast<float>(i);  // samples from the front are not fair
          if (kind == 4) e = -static_cast<float>(i);
          if (kind == 5) e = random() % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : random() % 2 == 0 ? -0.0f : 0.0f;
          if (kind == 6) e = random() % 2 == 0 ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
          if (kind == 7) e = i % 64 == 0 ? 100.0f : e * 1e-30f;  // strided samples are not fair
        }
        for (const index_t k : {index_t{1}, index_t{2}, n / 64, n / 8, n / 2, n - 1, n})
          if (k >= 1 && k <= n) require_same(ops, x, k);
      }
  });
}

TEST_CASE("rank_ops: a million scores", "[prim][rank_ops]") {
  for_isas([](const RankOps& ops) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<float> x(std::size_t{1} << 20);
    for (float& e : x) e = normal(random);
    for (const index_t k : {1, 1000, 1 << 17, 1 << 19, (1 << 20) - 1}) require_same(ops, x, k);
  });
}

TEST_CASE("rank_ops: the lowest of several runs of scores", "[prim][rank_ops]") {
  for_isas([](const RankOps& ops) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (const index_t n : {1, 2, 31, 63, 64, 65, 130, 1000, 4097})
      for (int kind = 0; kind < 5; ++kind)
        for (const bool backward : {false, true}) {
          std::vector<float> x(static_cast<std::size_t>(n));
          for (std::size_t i = 0; i < x.size(); ++i) {
            x[i] = normal(random);
            if (kind == 1) x[i] = static_cast<float>(random() % 5) - 2.0f;
            if (kind == 2) x[i] = 1.0f;
            if (kind == 3) x[i] = random() % 3 == 0 ? std::numeric_limits<float>::quiet_NaN() : random() % 2 == 0 ? -0.0f : 0.0f;
            if (kind == 4) x[i] = random() % 2 == 0 ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
          }
          std::vector<index_t> order(x.size());
          std::iota(order.begin(), order.end(), index_t{0});
          std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) {
            const auto bits = [&](index_t i) { return rank_bits(x[static_cast<std::size_t>(i)]); };
            return bits(a) != bits(b) ? bits(a) < bits(b) : backward ? a > b : a < b;
          });
          for (const index_t wanted : {1, 2, 7, 32}) {
            if (wanted > n) continue;
            cpu::Lowest low;
            low.wanted = wanted;
            const index_t half = n / 2;  // in two runs, in the order of the search
            if (backward) ops.lowest(x.data() + half, n - half, 5 + half, true, low);
            ops.lowest(x.data(), half, 5, backward, low);
            if (!backward) ops.lowest(x.data() + half, n - half, 5 + half, false, low);
            CAPTURE(n, kind, backward, wanted);
            REQUIRE(low.found == wanted);
            for (index_t i = 0; i < wanted; ++i) {
              REQUIRE(low.place[i] == 5 + order[static_cast<std::size_t>(i)]);
              REQUIRE(low.key[i] == rank_bits(x[static_cast<std::size_t>(low.place[i] - 5)]));
            }
          }
        }
  });
}
