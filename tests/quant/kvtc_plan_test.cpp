#include <cmath>
#include <functional>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/random.hpp>
#include <kvcondense/quant/kvtc_plan.hpp>
#include <support/memory.hpp>

using namespace kvcondense;
using quant::Kvtc;
using quant::KvtcBlock;
using quant::KvtcType;

namespace {

using Plan = std::vector<KvtcBlock>;

/// Energies that fall by `rate` each, a little unevenly.
std::vector<float> falling(index_t n, double rate, std::uint64_t seed = 1) {
  std::vector<float> e;
  double at = 4.0;
  for (index_t i = 0; i < n; ++i) e.push_back(static_cast<float>(at)), at *= rate * (1.0 - 0.3 * (1.0 - rate) * static_cast<double>(random_uniform(seed, static_cast<std::uint64_t>(i))));
  return e;
}

Plan plan_of(const Kvtc& m, const std::vector<float>& energy, index_t budget, index_t most_cells = index_t{1} << 23) {
  Buffer<KvtcBlock> plan(heap_memory());
  REQUIRE(quant::plan_kvtc(m, energy, budget, plan, heap_memory(), most_cells) == Status::ok);
  return {plan.begin(), plan.end()};
}

/// The least error of any plan within the budget, by trying all of them.
double best_of_all(const Kvtc& m, const std::vector<float>& energy, index_t budget) {
  Plan plan;
  double least = HUGE_VAL;
  const std::function<void(index_t)> grow = [&](index_t at) {
    if (quant::kvtc_cost(m, plan) > budget) return;
    least = std::min(least, quant::kvtc_error(m, energy, plan));
    for (const index_t size : m.blocks)
      for (int t = 1; size > 0 && at + size <= static_cast<index_t>(energy.size()) && t < quant::kvtc_types; ++t) {
        plan.push_back({static_cast<std::uint16_t>(size), static_cast<KvtcType>(t)});
        grow(at + size);
        plan.pop_back();
      }
  };
  grow(0);
  return least;
}

index_t components(const Plan& p) {
  index_t n = 0;
  for (const KvtcBlock& b : p) n += b.count;
  return n;
}

}  // namespace

TEST_CASE("kvtc_plan: no plan within the budget leaves less, by trying all", "[quant][kvtc_plan]") {
  Kvtc m;
  m.blocks = {1, 2, 3, 0, 0};
  m.sub_chunk = GENERATE(5, 16, 32);
  // fp8 as cheap as int8 and worse would only cost time; here it has its use.
  m.error = {1.0, 0.12, 0.012, 0.002, 0.001};
  for (const double rate : {0.3, 0.8, 1.0})
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      const auto energy = falling(5, rate, seed);
      for (index_t budget = 0; budget < 5 * (8 * m.sub_chunk + 64) + 10; budget += 37) {
        const Plan p = plan_of(m, energy, budget);
        REQUIRE(quant::kvtc_cost(m, p) <= budget);
        REQUIRE(components(p) <= 5);
        REQUIRE(quant::kvtc_error(m, energy, p) == Approx(best_of_all(m, energy, budget)).epsilon(1e-9));
      }
    }
}

TEST_CASE("kvtc_plan: by price it is near the best, and never above the budget", "[quant][kvtc_plan]") {
  Kvtc m;
  m.sub_chunk = 64;
  for (const double rate : {0.9, 0.99, 1.0}) {
    const auto energy = falling(200, rate);
    for (const double bits : {0.1, 0.5, 1.0, 2.0, 4.0}) {
      const auto budget = static_cast<index_t>(bits * 200 * 64);
      const Plan exact = plan_of(m, energy, budget), priced = plan_of(m, energy, budget, 1);
      const double least = quant::kvtc_error(m, energy, exact), near = quant::kvtc_error(m, energy, priced);
      CAPTURE(rate, bits, least, near);
      REQUIRE(quant::kvtc_cost(m, priced) <= budget);
      REQUIRE(near >= least * (1 - 1e-9));
      REQUIRE(near <= least * 1.05);
    }
  }
}

TEST_CASE("kvtc_plan: four thousand components", "[quant][kvtc_plan]") {
  std::vector<float> energy;
  for (int i = 0; i < 4096; ++i) energy.push_back(static_cast<float>(std::pow(1.0 + i, -1.1)));
  Kvtc m;
  double last = HUGE_VAL;
  for (const double bits : {0.0, 0.25, 1.0, 3.0, 8.5}) {
    const auto budget = static_cast<index_t>(bits * 4096 * 256);
    const Plan p = plan_of(m, energy, budget);
    REQUIRE(quant::kvtc_cost(m, p) <= budget);
    const double error = quant::kvtc_error(m, energy, p);
    REQUIRE(error < last);
    last = error;
  }
  // A budget for everything buys the best type for everything.
  const Plan all = plan_of(m, energy, 9 * 4096 * 256);
  REQUIRE(components(all) == 4096);
  for (const KvtcBlock& b : all) REQUIRE(b.type == KvtcType::int8);
}

TEST_CASE("kvtc_plan: sizes, types and rank of the method count", "[quant][kvtc_plan]") {
  const auto energy = falling(64, 0.95);
  const index_t budget = 2 * 64 * 256;
  Kvtc m;
  const Plan base = plan_of(m, energy, budget);
  const auto used = [](const Plan& p, KvtcType t) {
    for (const KvtcBlock& b : p)
      if (b.type == t) return true;
    return false;
  };
  REQUIRE(used(base, KvtcType::int4));
  REQUIRE(!used(base, KvtcType::fp8));
  Kvtc other = m;
  other.error[2] = HUGE_VAL;
  REQUIRE(!used(plan_of(other, energy, budget), KvtcType::int4));
  other = m;
  other.error[3] = HUGE_VAL, other.error[4] = 1e-6;
  REQUIRE(used(plan_of(other, energy, 3 * budget), KvtcType::fp8));
  other = m;
  other.blocks = {16, 0, 0, 0, 0};
  for (const KvtcBlock& b : plan_of(other, energy, budget)) REQUIRE(b.count == 16);
  other.blocks = {48, 0, 0, 0, 0};
  REQUIRE(components(plan_of(other, energy, 9 * 64 * 256)) == 48);  // 16 are left over
  other.blocks = {65, 0, 0, 0, 0};
  REQUIRE(plan_of(other, energy, budget).empty());
  // Short sub-chunks make blocks dear: fewer of them.
  other = m;
  other.sub_chunk = 4;
  REQUIRE(plan_of(other, energy, budget / 64).size() < base.size());
}

TEST_CASE("kvtc_plan: nothing to plan, bad energies, memory that is refused", "[quant][kvtc_plan]") {
  Buffer<KvtcBlock> plan(heap_memory());
  const Kvtc m;
  REQUIRE(quant::plan_kvtc(m, {}, 1000, plan) == Status::ok);
  REQUIRE(plan.empty());
  REQUIRE(plan_of(m, {1.0f, 0.5f}, 0).empty());
  REQUIRE(plan_of(m, {0.0f, 0.0f}, 100000).empty());
  const auto refused = [&](const std::vector<float>& e, index_t budget = 1000) {
    return quant::plan_kvtc(m, e, budget, plan) == Status::invalid_argument;
  };
  REQUIRE(refused({1.0f, 2.0f}));
  REQUIRE(refused({-1.0f}));
  REQUIRE(refused({std::nanf("")}));
  REQUIRE(refused({HUGE_VALF}));
  REQUIRE(refused({1.0f}, -1));
  for (const index_t cells : {index_t{1}, index_t{1} << 20}) {
    test::CountingMemory memory;
    const auto energy = falling(40, 0.9);
    for (long n = 0;; ++n) {
      Buffer<KvtcBlock> out(memory);
      memory.refuse_from = memory.requests + n;
      const Status s = quant::plan_kvtc(m, energy, 40 * 256, out, memory, cells);
      memory.refuse_from = -1;
      if (s == Status::ok) break;
      REQUIRE(s == Status::out_of_memory);
    }
    REQUIRE(memory.live_bytes == 0);
  }
}
