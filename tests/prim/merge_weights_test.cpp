#include <bit>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>

using namespace kvcondense;
using prim::MergeKernel;
using prim::MergeNormaliser;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
using Numbers = std::vector<float>;
using Word = prim::MergeWeights<Cpu>;

/// Slots 1 and 2 fold into 0, 4 into 3; 5 leaves, 6 stays alone.
struct Rig {
  std::vector<std::int32_t> to{0, 0, 0, 3, 3, prim::dropped, 6};
  Numbers like{0, 0.5f, -0.25f, 0, 1, 0, 0}, wk = Numbers(7, NAN), wv = Numbers(7, NAN);
  index_t offset[2] = {0, 7};
  prim::SlotRange range{0, 0, 7};
  Context<Cpu> ctx;
  template <class T>
  RaggedView<T> view(std::vector<T>& v) { return {v.data(), offset, 1}; }
  prim::MergeLinks links(index_t fan = 1) { return {view(to), view(like), view(wk), view(wv), fan}; }
};

void require(const Rig& r, const Numbers& want) {
  for (const index_t j : {0, 1, 2, 3, 4, 6}) {
    CAPTURE(j);
    REQUIRE(r.wv[at(j)] == Approx(want[at(j)]).margin(1e-6));
    REQUIRE(r.wk[at(j)] == Approx(want[at(j)]).margin(1e-6));
  }
}

}  // namespace

TEST_CASE("merge weights: every kernel and normaliser", "[prim][merge_weights]") {
  Numbers score{2, 1, 1, 0, 0, 9, 4}, sizes{std::log(2.0f), 0, std::log(5.0f), 0, std::log(3.0f), 0, 0};
  const auto run = [&](MergeKernel kernel, MergeNormaliser normaliser, index_t fan = 1) {
    Rig r;
    REQUIRE(Word::run(r.ctx, {kernel, normaliser, r.view(score), r.view(sizes), &r.range}, r.links(fan)) == Status::ok);
    return r;
  };
  const float third = 1.0f / 3, half = 0.5f;
  require(run(MergeKernel::uniform, MergeNormaliser::sum), {third, third, third, half, half, 0, 1});
  require(run(MergeKernel::uniform, MergeNormaliser::none), {1, 1, 1, 1, 1, 0, 1});
  require(run(MergeKernel::likeness, MergeNormaliser::members), {third, 0.5f / 3, -0.25f / 3, half, half, 0, 1});
  require(run(MergeKernel::likeness, MergeNormaliser::sum), {0.8f, 0.4f, -0.2f, half, half, 0, 1});
  require(run(MergeKernel::half_likeness, MergeNormaliser::sum), {1 / 2.125f, 0.75f / 2.125f, 0.375f / 2.125f, half, half, 0, 1});
  require(run(MergeKernel::middle, MergeNormaliser::members), {2 * third, half * third, half * third, 0.75f, 0.25f, 0, 1});
  const float e = std::exp(1.0f), sum = e + std::exp(0.5f) + std::exp(-0.25f);
  require(run(MergeKernel::exponential, MergeNormaliser::sum), {e / sum, std::exp(0.5f) / sum, std::exp(-0.25f) / sum, half, half, 0, 1});
  require(run(MergeKernel::score, MergeNormaliser::sum), {0.5f, 0.25f, 0.25f, 1, 0, 0, 1});  // no attention: the target stays
  require(run(MergeKernel::size, MergeNormaliser::sum), {0.25f, 0.125f, 0.625f, 0.25f, 0.75f, 0, 1});
  require(run(MergeKernel::length_share, MergeNormaliser::sum), {1 / (1 + 0.5f / 3), 0.5f / 3 / (1 + 0.5f / 3), 0, 1, 0, 0, 1});
  require(run(MergeKernel::spread, MergeNormaliser::none, 2), {1, half, half, 1, half, 0, 1});
}

TEST_CASE("merge weights: numbers that are none count nothing", "[prim][merge_weights]") {
  Rig r;
  Numbers score{1, NAN, 3, NAN, INFINITY, 0, NAN};
  REQUIRE(Word::run(r.ctx, {MergeKernel::score, MergeNormaliser::sum, r.view(score), {}, &r.range}, r.links()) == Status::ok);
  require(r, {0.25f, 0, 0.75f, 1, 0, 0, 1});
  Rig v;
  Numbers logs{1, -INFINITY, 2, -INFINITY, -INFINITY, 0, -INFINITY}, sizes(7, 0.0f);
  REQUIRE(Word::votes(v.ctx, v.view(logs), false, v.view(sizes), v.links()) == Status::ok);
  const float all = std::exp(1.0f) + std::exp(2.0f);
  require(v, {std::exp(1.0f) / all, 0, std::exp(2.0f) / all, 1, 0, 0, 1});
}

TEST_CASE("merge weights: sizes and scales add up, over a fan in parts", "[prim][merge_weights]") {
  Rig r;
  Numbers sizes{0, std::log(3.0f), 0, std::log(2.0f), std::log(4.0f), 5, 0};
  REQUIRE(Word::add_sizes(r.ctx, &r.range, r.links(), r.view(sizes)) == Status::ok);
  REQUIRE(std::exp(sizes[0]) == Approx(5));
  REQUIRE(std::exp(sizes[3]) == Approx(6));
  REQUIRE(sizes[6] == 0.0f);
  Numbers spread{0, std::log(3.0f), 0, std::log(2.0f), std::log(4.0f), 5, 0}, scale(7, 1.0f);
  REQUIRE(Word::add_sizes(r.ctx, &r.range, r.links(2), r.view(spread)) == Status::ok);
  REQUIRE(std::exp(spread[0]) == Approx(1 + 2));
  REQUIRE(std::exp(spread[3]) == Approx(2 + 2 + 2));
  REQUIRE(std::exp(spread[6]) == Approx(1 + 2));
  REQUIRE(Word::add_scales(r.ctx, &r.range, r.links(), r.view(scale)) == Status::ok);
  REQUIRE(scale == Numbers{3, 1, 1, 2, 1, 1, 1});
}

TEST_CASE("merge weights: turns to the target's position, or to the newest", "[prim][merge_weights]") {
  for (const bool newest : {false, true}) {
    Rig r;
    Numbers places;
    for (const int p : {10, 4, 90, 7, 6, 1, 2147483647}) places.push_back(std::bit_cast<float>(p));
    std::vector<std::int32_t> turn(7);
    REQUIRE(Word::places(r.ctx, newest, r.links(), r.view(places), r.view(turn)) == Status::ok);
    turn[5] = 0;  // leaves: nobody asks
    REQUIRE(turn == (newest ? std::vector<std::int32_t>{80, 86, 0, 0, 1, 0, 0} : std::vector<std::int32_t>{0, 6, -80, 0, 1, 0, 0}));
    REQUIRE(std::bit_cast<std::int32_t>(places[0]) == (newest ? 90 : 10));
    REQUIRE(std::bit_cast<std::int32_t>(places[6]) == 2147483647);
  }
}
