#include <cstring>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/budget/ada.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/counting.hpp>
#include <kvcondense/evict/erased.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/paged_h2o.hpp>
#include <kvcondense/evict/prefixkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 1, .q_heads = 6, .kv_heads = 2, .head_dim = 8};

template <class P>
evict::Counting of(const P& policy, index_t rows = 1) {
  const auto p = policy.pipeline();
  const auto typed = evict::counting(p.source, shape, rows);
  const auto erased = evict::counting(evict::AnyPipeline(p).source, shape, rows);
  REQUIRE(erased.lane == typed.lane);
  REQUIRE(erased.scale == typed.scale);
  return typed;
}

/// `observe` of a mass, and attention that is added and then what is left of `observe`: the same numbers.
template <class Source>
void adds_the_same(const Source& source, index_t rows) {
  constexpr index_t slots = 37;
  const index_t offset[] = {0, slots, 2 * slots};
  std::vector<float> mass(2 * slots), seen[2], counted[2];
  for (std::size_t i = 0; i < mass.size(); ++i) mass[i] = 0.1f + 0.37f * static_cast<float>(i % 11);
  for (std::size_t l = 0; l < 2; ++l) {
    for (std::size_t i = 0; i < mass.size(); ++i) seen[l].push_back(0.7f * static_cast<float>(i % 13) + static_cast<float>(l));
    counted[l] = seen[l];
  }
  const auto lanes_of = [&](std::vector<float>* x) {
    return std::vector<RaggedView<float>>{{x[0].data(), offset, 2}, {x[1].data(), offset, 2}};
  };
  const auto seen_lanes = lanes_of(seen), counted_lanes = lanes_of(counted);
  const auto lanes = static_cast<std::size_t>(source.lanes());
  Context<Cpu> ctx;
  StepView<Cpu> view;
  view.shape = shape, view.offset = offset, view.appended = rows;
  StepView<Cpu> after = view;
  view.inputs.attention = {{mass.data(), offset, 2}, rows};
  REQUIRE(source.observe(ctx, view, std::span(seen_lanes).first(lanes)) == Status::ok);
  const evict::Counting where = evict::counting(source, shape, rows);
  REQUIRE(where);
  auto& sums = counted[where.lane];
  for (std::size_t i = 0; i < mass.size(); ++i) sums[i] = sums[i] + where.scale * mass[i];
  after.counted = rows;
  REQUIRE(evict::observe_counted(source, ctx, after, std::span(counted_lanes).first(lanes)) == Status::ok);
  REQUIRE(seen[0] == counted[0]);
  REQUIRE(std::memcmp(seen[1].data(), counted[1].data(), seen[1].size() * sizeof(float)) == 0);  // integers may lie there
}

struct Halves : evict::RunningSum {
  void counted_lane() const = delete;
};
struct Squared : evict::PerHead {
  void own_scale() const = delete;
};
struct Noted : evict::AttentionMass<evict::PerHead, evict::RunningSum> {
  void counting() const = delete;
};

}  // namespace

TEST_CASE("counting: sources of sums per head say so, erased or not, and wrappers pass it on", "[evict][counting]") {
  const evict::H2O h2o{.heavy = 8, .recent = 8};
  REQUIRE(of(h2o).lane == 0);
  REQUIRE(of(h2o, 5).scale == 1.0f);
  REQUIRE(of(evict::ObservedAttention{}).lane == 0);
  REQUIRE(of(evict::ObservedAttention{}).scale == 1.0f / 3.0f);  // the mean over the group
  REQUIRE(of(evict::Every{h2o, 4}).lane == 0);
  REQUIRE(of(evict::Caote{h2o}).lane == 0);
  REQUIRE(of(budget::Ada{h2o}).lane == 0);
  REQUIRE(!of(evict::Tova{}));      // keeps no sum
  REQUIRE(!of(evict::PrefixKV{}));  // adds heads up
  REQUIRE(!of(evict::PagedH2O{}));
}

TEST_CASE("counting: attention that is added elsewhere and what is left to do are what observe does", "[evict][counting]") {
  using namespace evict;
  for (const index_t rows : {1, 3})
    for (const Reduce row : {Reduce::sum, Reduce::mean})
      for (const Reduce group : {Reduce::sum, Reduce::mean}) {
        adds_the_same(AttentionMass<PerHead, RunningSum>{all_rows(), row, {group}, {}}, rows);
        adds_the_same(AttentionMass<PerHead, SumExposure>{all_rows(), row, {group}, {}}, rows);
      }
}

TEST_CASE("counting: blocks that derive from counted ones are counted too, unless they hide it", "[evict][counting]") {
  using namespace evict;
  struct Alike : RunningSum {};
  REQUIRE(counting(AttentionMass<PerHead, Alike>{}, shape, 1));
  REQUIRE(!counting(AttentionMass<PerHead, Halves>{}, shape, 1));
  REQUIRE(!counting(AttentionMass<Squared, RunningSum>{}, shape, 1));
  REQUIRE(!counting(Noted{}, shape, 1));
}
