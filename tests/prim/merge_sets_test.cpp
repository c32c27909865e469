#include <cmath>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;
using prim::dropped;
using prim::unlinked;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }
using To = std::vector<std::int32_t>;
using Numbers = std::vector<float>;
using Sets = prim::MergeSets<Cpu>;
using Filter = prim::MergeFilter<Cpu>;

/// Links of one head, of a second one of no slot, and numbers beside them.
struct Rig {
  index_t n;
  std::vector<index_t> offset;
  To to;
  Numbers like, wk, wv, score;
  prim::SlotRange range[2];
  Context<Cpu> ctx;

  explicit Rig(To t, Numbers likeness = {}, Numbers scores = {})
      : n(static_cast<index_t>(t.size())), offset{0, n, n}, to(std::move(t)), like(std::move(likeness)), wk(at(n)), wv(at(n)), score(std::move(scores)),
        range{{0, 0, n}, {}} {
    like.resize(at(n)), score.resize(at(n));
  }
  template <class T>
  RaggedView<T> view(std::vector<T>& x) { return {x.data(), offset.data(), 2}; }
  prim::MergeLinks links(index_t fan = 1) { return {view(to), view(like), view(wk), view(wv), fan}; }
  RaggedView<const float> scores() { return view(score); }
};

constexpr std::int32_t u = unlinked, x = dropped;

}  // namespace

TEST_CASE("merge sets: lists of kept slots become links, and links lists", "[prim][merge_sets]") {
  Rig r(To(6));
  To kept{1, 4, 5, 0, 0, 0};
  index_t count[2] = {3, 0}, folded[2] = {7, 7};
  REQUIRE(Sets::begin(r.ctx, r.view(kept), count, r.links()) == Status::ok);
  REQUIRE(r.to == To{u, 1, u, u, 4, 5});
  r.to = {1, 1, x, 5, 4, 5};
  REQUIRE(Sets::end(r.ctx, r.links(), r.view(kept), count, folded) == Status::ok);
  REQUIRE((count[0] == 3 && folded[0] == 2 && count[1] == 0 && folded[1] == 0));
  REQUIRE(To(kept.begin(), kept.begin() + 3) == To{1, 4, 5});
  count[0] = 6;  // all, without a list
  REQUIRE(Sets::begin(r.ctx, r.view(kept), count, r.links()) == Status::ok);
  REQUIRE(r.to == To{0, 1, 2, 3, 4, 5});
  r.to = {u, 1, u, x, 4, u};
  REQUIRE(Sets::drop(r.ctx, r.links()) == Status::ok);
  REQUIRE(r.to == To{x, 1, x, x, 4, x});
}

TEST_CASE("merge sets: the next slot that stays and may be written", "[prim][merge_sets]") {
  Rig r({u, 1, u, 3, u, x, 6, u});
  r.range[0] = {2, 4, 8};  // slot 3 may not
  REQUIRE(Sets::next(r.ctx, r.range, r.links()) == Status::ok);
  REQUIRE(r.to == To{1, 1, 6, 3, 6, x, 6, u});
}

TEST_CASE("merge sets: the nearest token, of two the older, among those that may be", "[prim][merge_sets]") {
  Rig r({u, 1, u, u, 4, u, 6, u});
  To token{0, 2, 5, 6, 8, 20, 30, 31};
  REQUIRE(Sets::nearest_token(r.ctx, r.view(token), 0, 100, r.range, r.links()) == Status::ok);
  REQUIRE(r.to == To{1, 1, 1, 4, 4, 6, 6, 6});
  REQUIRE(r.like[2] == -3.0f);
  REQUIRE(r.like[5] == -10.0f);
  Rig part({u, 1, u, u, 4, u, 6, u});
  REQUIRE(Sets::nearest_token(part.ctx, part.view(token), 3, 30, part.range, part.links()) == Status::ok);
  REQUIRE(part.to == To{4, 1, 4, 4, 4, 4, 6, 4});
}

TEST_CASE("merge sets: every second slot that stays leaves, and the strongest links hold", "[prim][merge_sets]") {
  Rig r({0, 1, x, 3, 4, 5, 6, 7});
  const prim::SlotRange region[2] = {{0, 1, 7}, {}};
  REQUIRE(Sets::alternate(r.ctx, region, r.links()) == Status::ok);
  REQUIRE(r.to == To{0, u, x, 3, u, 5, u, 7});
  r.to = {0, 3, x, 3, 5, 5, 3, 7};
  r.like = {9, 0.5f, 9, 9, 0.5f, 9, NAN, 9};
  const index_t one[2] = {1, 1};
  REQUIRE(Sets::strongest(r.ctx, region, 0, one, r.links()) == Status::ok);
  REQUIRE(r.to == To{0, 3, x, 3, 4, 5, 6, 7});  // of equal ones the first; NaN never; what does not fold stays
  r.to = {0, 3, x, 3, 5, 5, u, 7};
  r.like = {9, 0.5f, 9, 9, 0.5f, 9, 1, 9};
  REQUIRE(Sets::strongest(r.ctx, region, 3, one, r.links()) == Status::ok);
  REQUIRE(r.to == To{0, 3, x, 3, 5, 5, 6, 7});  // one in each chunk of three
}

TEST_CASE("merge sets: runs end where neighbours part, at what leaves and at heavy slots", "[prim][merge_sets]") {
  const Numbers alike{0.9f, 0.9f, 0.2f, 0.9f, 0.9f, 0.9f, NAN, 0.9f, 0.9f, 0};
  Rig r({0, 1, 2, 3, 4, x, 6, 7, 8, 9}, alike, {1, 2, 1, 5, 5, 9, NAN, 1, 3, 3});
  prim::RunRequest request{r.range, 0.5f, nullptr, 0.0};
  REQUIRE(Sets::runs(r.ctx, request, r.scores(), r.links()) == Status::ok);
  REQUIRE(r.to == To{1, 1, 1, 3, 3, x, 6, 8, 8, 8});
  Rig heavy({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, Numbers(10, 0.9f), {1, 2, 1, 5, 5, 9, 1, 1, 3, 3});
  heavy.range[0] = {0, 1, 9};
  request.region = heavy.range, request.heavy = 0.125;
  REQUIRE(Sets::runs(heavy.ctx, request, heavy.scores(), heavy.links()) == Status::ok);
  REQUIRE(heavy.to == To{0, 3, 3, 3, 3, 5, 8, 8, 8, 9});
  // At exactly the threshold nothing joins; to numbers of sets it does not matter.
  Rig strict({0, 1, 2, 3}, Numbers(4, 0.5f), {0, 0, 0, 0});
  request = {strict.range, 0.5f, nullptr, 0.0};
  REQUIRE(Sets::runs(strict.ctx, request, strict.scores(), strict.links()) == Status::ok);
  REQUIRE(strict.to == To{0, 1, 2, 3});
  strict.like = Numbers(4, 0.5f);
  const index_t sets[2] = {3, 0};
  request.sets = sets;
  REQUIRE(Sets::runs(strict.ctx, request, strict.scores(), strict.links()) == Status::ok);
  REQUIRE(strict.to == To{0, 0, 2, 3});
}

TEST_CASE("merge filter: by likeness, by its mean, by a mean that moves, by a part", "[prim][merge_sets]") {
  const To links{0, 0, 0, 0, 0, u, x};
  const Numbers like{9, 0.1f, 0.4f, 0.7f, NAN, 9, 9};
  Rig r(links, like);
  REQUIRE(Filter::least(r.ctx, 0.4f, r.links()) == Status::ok);
  REQUIRE(r.to == To{0, x, 0, 0, x, u, x});
  Rig mean({0, 0, 0, 0, 0}, {9, 0.1f, 0.4f, 0.7f, 0.4f});
  REQUIRE(Filter::mean(mean.ctx, mean.links()) == Status::ok);
  REQUIRE(mean.to == To{0, x, 0, 0, 0});

  Numbers state(4, 0.0f);
  const auto view = dense_view(state.data(), 2, 2);
  const auto moving = [&](Numbers l) {
    Rig m({0, 0, 0}, l);
    REQUIRE(Filter::moving_mean(m.ctx, 0.25f, 0.5f, view, m.links()) == Status::ok);
    return m.to;
  };
  REQUIRE(moving({9, 0.2f, 0.6f}) == To{0, x, 0});
  REQUIRE(state == Numbers{0.4f, 1, 0, 0});
  REQUIRE(moving({9, 0.2f, 0.3f}) == To{0, x, 0});  // 0.25 * 0.4 + 0.5 * 0.25 = 0.225
}

TEST_CASE("merge filter: the best by score before links are sought, and the best part of links", "[prim][merge_sets]") {
  Rig r({0, u, u, u, 4, u, x}, {}, {0, 3, NAN, 5, 0, 3, 9});
  REQUIRE(Filter::best_scores(r.ctx, r.scores(), 1.0, r.links()) == Status::ok);
  REQUIRE(r.to == To{0, u, x, u, 4, x, x});
  Rig part({0, 0, 0, 0, 4}, {9, 0.3f, 0.5f, 0.3f, 9});
  REQUIRE(Filter::best_part(part.ctx, 0.6, part.links()) == Status::ok);
  REQUIRE(part.to == To{0, 0, 0, x, 4});
}

TEST_CASE("merge filter: chance follows the share of attention, and the same draw comes again", "[prim][merge_sets]") {
  const index_t n = 4000;
  To links(at(n), 0), token(at(n));
  Numbers score(at(n), 0.3f);
  score[0] = 1.0f;
  for (index_t j = 0; j < n; ++j) token[at(j)] = static_cast<std::int32_t>(7 * j);
  Rig a(links, {}, score), b(links, {}, score), c(links, {}, score);
  REQUIRE(Filter::chance(a.ctx, a.scores(), a.range, a.view(token), 5, a.links()) == Status::ok);
  REQUIRE(Filter::chance(b.ctx, b.scores(), b.range, b.view(token), 5, b.links()) == Status::ok);
  REQUIRE(Filter::chance(c.ctx, c.scores(), c.range, c.view(token), 6, c.links()) == Status::ok);
  REQUIRE(a.to == b.to);
  REQUIRE(a.to != c.to);
  const auto held = std::count(a.to.begin(), a.to.end(), 0) - 1;
  REQUIRE(static_cast<double>(held) / 3999 == Approx(0.3).margin(0.03));
}
