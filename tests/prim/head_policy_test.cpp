#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::HeadPolicy;

namespace {

/// One head, all numbers in plain lists.
struct Head {
  std::vector<float> classes, sums, near, scores;
  index_t frequent = 0, local = 0;

  index_t size() const { return static_cast<index_t>(sums.size()); }

  HeadPolicy choose(double recovery) const {
    const index_t offset[] = {0, size()};
    test::Guarded<float> policy(sums.size(), -1.0f);
    Context<Cpu> ctx;
    REQUIRE(prim::HeadPolicies<Cpu>::choose(ctx, {{classes.data(), offset, 1}, frequent, local}, {sums.data(), offset, 1},
                                            {near.data(), offset, 1}, {scores.data(), offset, 1}, recovery,
                                            {policy.data(), offset, 1}) == Status::ok);
    REQUIRE(policy.ok());
    for (index_t j = 0; j < size(); ++j) REQUIRE(policy.data()[j] == policy.data()[0]);
    return static_cast<HeadPolicy>(static_cast<int>(policy.data()[0]));
  }
  std::vector<index_t> kept(HeadPolicy own) const {
    const index_t offset[] = {0, size()};
    const std::vector<float> policy(sums.size(), static_cast<float>(own));
    test::Guarded<float> out(sums.size());
    std::copy(scores.begin(), scores.end(), out.data());
    Context<Cpu> ctx;
    REQUIRE(prim::HeadPolicies<Cpu>::mark(ctx, {{classes.data(), offset, 1}, frequent, local}, {policy.data(), offset, 1},
                                          {out.data(), offset, 1}) == Status::ok);
    REQUIRE(out.ok());
    std::vector<index_t> kept;
    for (index_t j = 0; j < size(); ++j) {
      if (std::isinf(out.data()[j])) kept.push_back(j);
      else REQUIRE((out.data()[j] == scores[static_cast<std::size_t>(j)] || std::isnan(scores[static_cast<std::size_t>(j)])));
    }
    return kept;
  }
};

using Slots = std::vector<index_t>;

}  // namespace

TEST_CASE("head_policy: what each set keeps of all attention equals the oracle", "[prim][head_policy][oracle]") {
  const auto oracle = test::load_oracle("eviction.json", "fastgen");
  const auto& rows = oracle["A"];
  const std::size_t n = rows.size();
  Head head{std::vector<float>(n), std::vector<float>(n), std::vector<float>(n), std::vector<float>(n)};
  head.local = oracle["params"]["local_window"];
  head.frequent = static_cast<index_t>(std::ceil(oracle["params"]["frequency_ratio"].get<double>() * static_cast<double>(n)));
  for (const std::size_t j : oracle["special"]) head.classes[j] = static_cast<float>(TokenClass::special);
  for (const std::size_t j : oracle["punct"]) head.classes[j] = static_cast<float>(TokenClass::punctuation);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j <= i; ++j) {
      head.sums[j] += rows[i][j].get<float>();
      if (j + static_cast<std::size_t>(head.local) > i) head.near[j] += rows[i][j].get<float>();
    }
  head.scores = head.sums;  // the oracle's frequent slots are those of the largest sums, whatever rows saw them

  REQUIRE(head.kept(HeadPolicy::frequent) == oracle["frequent"].get<Slots>());
  const HeadPolicy order[] = {HeadPolicy::special, HeadPolicy::punctuation, HeadPolicy::frequent, HeadPolicy::local, HeadPolicy::full};
  for (std::size_t i = 0; i < 5; ++i) {
    const double mass = oracle["retained_mass"][i]["mass"];
    REQUIRE(head.choose(mass - 1e-6) == order[i]);
    REQUIRE(head.choose(mass + 1e-6) == order[std::min<std::size_t>(i + 1, 4)]);
  }
  const std::vector<std::string> names{"special", "special+punct", "special+punct+frequent", "special+punct+frequent+local", "full"};
  for (const auto& [threshold, name] : oracle["chosen_policy_by_threshold"].items()) {
    const auto at = static_cast<std::size_t>(head.choose(std::stod(threshold))) - 1;
    REQUIRE(names[at] == name.get<std::string>());
  }
  REQUIRE(head.kept(HeadPolicy::special) == Slots{0});
  REQUIRE(head.kept(HeadPolicy::punctuation) == Slots{0, 2});
  REQUIRE(head.kept(HeadPolicy::local) == Slots{0, 1, 2, 4, 5});
  REQUIRE(head.kept(HeadPolicy::full).size() == n);
  REQUIRE(head.kept(HeadPolicy::undecided).size() == n);
}

TEST_CASE("head_policy: heads have their own policies and lengths, none at all too", "[prim][head_policy]") {
  const index_t offset[] = {0, 3, 3, 4, 7};
  const std::vector<float> classes{2, 0, 0, 0, 2, 1, 0}, sums{3, 0, 0, 1, 1, 1, 1}, near(7, 0.0f), scores = sums;
  test::Guarded<float> policy(7, 0.0f), out(7, 0.5f);
  Context<Cpu> ctx;
  const auto view = [&](const std::vector<float>& x) { return RaggedView<const float>{x.data(), offset, 4}; };
  const prim::HeadPolicySets sets{view(classes), 0, 0};
  REQUIRE(prim::HeadPolicies<Cpu>::choose(ctx, sets, view(sums), view(near), view(scores), 0.6, {policy.data(), offset, 4}) ==
          Status::ok);
  const float want[] = {1, 1, 1, 5, 2, 2, 2};
  for (int i = 0; i < 7; ++i) REQUIRE(policy.data()[i] == want[i]);
  REQUIRE(prim::HeadPolicies<Cpu>::mark(ctx, sets, {policy.data(), offset, 4}, {out.data(), offset, 4}) == Status::ok);
  const bool stays[] = {true, false, false, true, true, true, false};
  for (int i = 0; i < 7; ++i) REQUIRE(std::isinf(out.data()[i]) == stays[i]);
  REQUIRE((policy.ok() && out.ok()));
}

TEST_CASE("head_policy: ties keep the smaller slot, and what is no number is not frequent", "[prim][head_policy]") {
  const float bad = std::numeric_limits<float>::quiet_NaN();
  Head head{{0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}, {1, bad, 2, 1, 1}};
  head.frequent = 2;
  REQUIRE(head.kept(HeadPolicy::frequent) == Slots{0, 2});
  head.frequent = 4;
  REQUIRE(head.kept(HeadPolicy::frequent) == Slots{0, 2, 3, 4});
  head.frequent = 9;
  REQUIRE(head.kept(HeadPolicy::frequent).size() == 5);
  REQUIRE(head.choose(1.0) == HeadPolicy::frequent);
  head.sums[3] = bad;
  REQUIRE(head.choose(0.0) == HeadPolicy::full);
  head.sums[3] = 1, head.near[0] = 1, head.frequent = 0, head.local = 9;
  REQUIRE(head.choose(0.2) == HeadPolicy::local);
  REQUIRE(head.choose(0.3) == HeadPolicy::full);
  REQUIRE(head.choose(0.0) == HeadPolicy::special);
  REQUIRE(head.kept(HeadPolicy::local).size() == 5);
}
