#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

/// `n` tokens of the first `most`, ascending.
std::vector<std::int32_t> draw(index_t n, index_t most, std::mt19937& random) {
  std::set<std::int32_t> drawn;
  while (static_cast<index_t>(drawn.size()) < n) drawn.insert(static_cast<std::int32_t>(random() % static_cast<unsigned>(most)));
  return {drawn.begin(), drawn.end()};
}

}  // namespace

TEST_CASE("keep_tokens: the slots whose tokens are wanted, and all where there is room for all", "[prim][keep_tokens]") {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    constexpr index_t heads = 3;
    std::vector<std::int32_t> tokens, wanted;
    std::vector<index_t> offset{0}, wanted_offset{0}, total;
    for (index_t h = 0; h < heads; ++h) {
      const auto n = static_cast<index_t>(random() % 30), m = static_cast<index_t>(random() % 30);
      for (const std::int32_t t : draw(n, 40, random)) tokens.push_back(t);
      for (const std::int32_t t : draw(m, 40, random)) wanted.push_back(t);
      offset.push_back(static_cast<index_t>(tokens.size())), wanted_offset.push_back(static_cast<index_t>(wanted.size()));
      total.push_back(static_cast<index_t>(random() % 40));
    }
    test::Guarded<std::int32_t> slots(tokens.size());
    std::vector<index_t> count(heads, -1);
    Context<Cpu> ctx;
    REQUIRE(prim::KeepTokens<Cpu>::run(ctx, {tokens.data(), offset.data(), heads}, {wanted.data(), wanted_offset.data(), heads}, total.data(),
                                       {slots.data(), offset.data(), heads}, count.data()) == Status::ok);
    REQUIRE(slots.ok());
    for (index_t h = 0; h < heads; ++h) {
      const auto row = [](const auto& x, const auto& at, index_t i) { return std::vector(x.begin() + at[i], x.begin() + at[i + 1]); };
      const auto hu = static_cast<std::size_t>(h);
      const auto have = row(tokens, offset, h), want = row(wanted, wanted_offset, h);
      std::vector<std::int32_t> expected;
      for (std::size_t i = 0; i < have.size(); ++i)
        if (total[hu] >= static_cast<index_t>(have.size()) || std::count(want.begin(), want.end(), have[i]) > 0)
          expected.push_back(static_cast<std::int32_t>(i));
      REQUIRE(std::vector<std::int32_t>(slots.data() + offset[hu], slots.data() + offset[hu] + count[hu]) == expected);
    }
  }
}
