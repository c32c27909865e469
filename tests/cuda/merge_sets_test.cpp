// Who folds into whom, on CUDA and on the CPU: words that move links alone.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/chunk_memory.hpp>
#include <kvcondense/backend/cpu/merge_sets.hpp>
#include <kvcondense/backend/cpu/unit_fold.hpp>
#include <kvcondense/backend/cpu/unit_spread.hpp>
#include <kvcondense/backend/cuda/gated_merge.cuh>
#include <kvcondense/backend/cuda/merge_filter.cuh>
#include <kvcondense/backend/cuda/merge_sets.cuh>
#include <kvcondense/backend/cuda/unit_fold.cuh>
#include <kvcondense/backend/cuda/unit_spread.cuh>

#include "merge_links.hpp"
#include "numbers.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::DeviceLinks;
using test::Links;
using test::normals;

namespace {

/// Heads without a slot, with one, two, a few; with more than a block walks at once.
const std::vector<index_t> lengths{0, 1, 2, 37, 0, 290, 530};
/// With more than all blocks of a head walk at once.
const std::vector<index_t> longer{3, 4500};

/// Links as `MergeSets::begin` leaves them: slots stay or are unlinked, some have left for good.
Links begun(unsigned seed, const std::vector<index_t>& of = lengths) {
  Links l(of, 1, seed);
  std::mt19937 random(seed + 7);
  for (index_t h = 0; h < l.heads(); ++h)
    for (index_t j = 0; j < l.slots[at(h)]; ++j) {
      std::int32_t& to = l.to[at(l.offset[at(h)] + j)];
      const auto draw = random() % 8;
      to = draw < 4 ? static_cast<std::int32_t>(j) : draw < 7 ? prim::unlinked : prim::dropped;
    }
  return l;
}

/// Per head: a few first slots that take no part, and as many last ones.
std::vector<prim::SlotRange> regions(const Links& l) {
  std::vector<prim::SlotRange> r;
  for (const index_t n : l.slots) r.push_back({0, std::min<index_t>(3, n), std::max(std::min<index_t>(3, n), n - 2)});
  return r;
}

/// call(ctx, links, side) on both backends; `side(x)` brings an array to the backend's memory. The same targets and the same likeness.
/// Returns how many slots have another target than before.
template <class Call>
std::size_t compare(const Links& before, Call&& call, bool ways = true) {
  Links l = before;
  Context<Cpu> cpu;
  const auto here = [](const auto& x) { return x.data(); };
  REQUIRE(call(cpu, l.view(), l.offset.data(), here) == Status::ok);
  const auto one = [&] {
    test::Device device;
    DeviceLinks d(device, before);
    std::vector<std::shared_ptr<void>> alive;
    const auto there = [&]<class T>(const std::vector<T>& x) {
      auto copy = std::make_shared<test::OnDevice<T>>(device, x);
      alive.push_back(copy);
      return static_cast<const T*>(copy->data());
    };
    REQUIRE(call(device.context(), d.view(), d.offset.data(), there) == Status::ok);
    REQUIRE(d.to.read() == l.to);
    close(d.likeness.read(), l.likeness, 0.0f);
  };
  if (ways) test::each_way(one);
  else one();
  std::size_t moved = 0;
  for (std::size_t j = 0; j < l.to.size(); ++j) moved += l.to[j] != before.to[j];
  return moved;
}

}  // namespace

TEST_CASE("cuda merge_sets: begin and end, the CPU's lists") {
  for (const bool all : {false, true}) {
    Links l(lengths, 1, 3);
    std::vector<std::int32_t> kept(at(l.total()), 0);
    std::vector<index_t> count;
    for (index_t h = 0; h < l.heads(); ++h) {
      index_t n = 0;
      for (index_t j = 0; j < l.slots[at(h)]; ++j)
        if (all || j % 3 != 1) kept[at(l.offset[at(h)] + n++)] = static_cast<std::int32_t>(j);
      count.push_back(n);
    }
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t* o, auto&& side) {
      return prim::MergeSets<B>::begin(c, {side(kept), o, l.heads()}, side(count), links);
    });
  }
  for (const unsigned seed : {4u, 5u}) {
    Links l(seed == 5u ? longer : lengths, 1, seed);
    std::vector<std::int32_t> kept(at(l.total()), -7);
    std::vector<index_t> count(at(l.heads())), folded(at(l.heads()));
    const auto expected_kept = kept;
    Context<Cpu> cpu;
    REQUIRE(prim::MergeSets<Cpu>::end(cpu, l.view(), {kept.data(), l.offset.data(), l.heads()}, count.data(), folded.data()) == Status::ok);
    CHECK(folded.back() > 0);
    test::each_way([&] {
      test::Device device;
      DeviceLinks d(device, l);
      test::OnDevice<std::int32_t> k(device, expected_kept);
      test::OnDevice<index_t> c(device, std::vector<index_t>(at(l.heads()), 9)), f(device, std::vector<index_t>(at(l.heads()), 9));
      REQUIRE(prim::MergeSets<Cuda>::end(device, d.view(), {k.data(), d.offset.data(), l.heads()}, c.data(), f.data()) == Status::ok);
      CHECK(k.read() == kept);
      CHECK(c.read() == count);
      CHECK(f.read() == folded);
    });
  }
}

TEST_CASE("cuda merge_sets: drop, heirs, next, alternate, the CPU's links") {
  for (const auto& of : {lengths, longer}) {
    const Links l = begun(11, of);
    const std::vector<prim::SlotRange> region = regions(l);
    std::vector<std::int32_t> heirs(at(l.total()));
    for (index_t h = 0; h < l.heads(); ++h)
      for (index_t j = 0; j < l.slots[at(h)]; ++j) heirs[at(l.offset[at(h)] + j)] = static_cast<std::int32_t>(j % 5 == 0 ? j : j / 5 * 5);
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&&) { return prim::MergeSets<B>::drop(c, links); });
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t* o, auto&& side) {
      return prim::MergeSets<B>::heirs(c, {side(heirs), o, l.heads()}, links);
    });
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&& side) { return prim::MergeSets<B>::next(c, side(l.targets), links); });
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&& side) { return prim::MergeSets<B>::alternate(c, side(region), links); });
  }
}

TEST_CASE("cuda merge_sets: nearest_token, of equal distances the older, none in reach") {
  for (const unsigned seed : {13u, 14u}) {
    const Links l = begun(seed);
    std::vector<std::int32_t> tokens(at(l.total()));
    std::mt19937 random(seed);
    for (index_t h = 0; h < l.heads(); ++h) {
      std::int32_t token = 5;
      for (index_t j = 0; j < l.slots[at(h)]; ++j) tokens[at(l.offset[at(h)] + j)] = token += 1 + static_cast<std::int32_t>(random() % 3);
    }
    std::size_t moved = 0;
    for (const index_t last : {index_t{0}, index_t{90}, index_t{10000}})
      moved += compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t* o, auto&& side) {
        return prim::MergeSets<B>::nearest_token(c, {side(tokens), o, l.heads()}, 20, last, side(l.targets), links);
      });
    CHECK(moved > 100);
  }
}

TEST_CASE("cuda merge_sets: runs, by likeness and by number, heavy slots alone, NaN joins nothing") {
  for (const bool by_number : {false, true})
    for (const double heavy : {0.0, 0.1, 1.5}) {
      Links l = begun(17);
      for (std::size_t j = 0; j < l.to.size(); ++j)
        if (j % 11 != 0) l.to[j] = static_cast<std::int32_t>(static_cast<index_t>(j) - *(std::upper_bound(l.offset.begin(), l.offset.end(), static_cast<index_t>(j)) - 1));
      l.likeness[60] = l.likeness[200] = NAN;
      const std::vector<prim::SlotRange> region = regions(l);
      std::vector<float> scores = normals(l.total(), 18);
      for (float& x : scores) x = std::round(4.0f * x);  // many are equal
      scores[70] = NAN;
      std::vector<index_t> sets;
      for (const index_t n : l.slots) sets.push_back(n / 3);
      const std::size_t moved = compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t* o, auto&& side) {
        return prim::MergeSets<B>::runs(c, {side(region), -0.3f, by_number ? side(sets) : nullptr, heavy}, {side(scores), o, l.heads()}, links);
      }, heavy == 0.1);
      CHECK((moved > 100) == (heavy < 1.0));
    }
}

TEST_CASE("cuda merge_sets: strongest, in chunks and in all, what does not fold stays") {
  for (const index_t chunk : {index_t{0}, index_t{1}, index_t{16}, index_t{1000}})
    for (const index_t most : {index_t{0}, index_t{3}, index_t{5000}}) {
      if (chunk == 1 && most != 3) continue;
      Links l(lengths, 1, 21);
      for (float& x : l.likeness) x = std::round(8.0f * x) / 8.0f;
      l.likeness[100] = l.likeness[300] = NAN;
      const std::vector<prim::SlotRange> region = regions(l);
      const std::vector<index_t> number(lengths.size(), most);
      const std::size_t moved = compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&& side) {
        return prim::MergeSets<B>::strongest(c, side(region), chunk, side(number), links);
      }, chunk == 16 && most == 3);
      CHECK((moved > 100) == (most < 1000 && chunk != 1));
    }
}

TEST_CASE("cuda merge_filter: the slots that the CPU lets fold") {
  const Links l = [] {
    Links made(lengths, 1, 31);
    made.likeness[100] = NAN;  // a head whose mean is none: nothing folds
    return made;
  }();
  for (const float least : {-2.0f, 0.2f, INFINITY})
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&&) { return prim::MergeFilter<B>::least(c, least, links); }, false);
  CHECK(compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&&) { return prim::MergeFilter<B>::mean(c, links); }) > 100);
  for (const double part : {0.0, 0.3, 1.0})
    compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t*, auto&&) { return prim::MergeFilter<B>::best_part(c, part, links); }, part == 0.3);
  const Links open = begun(32);
  std::vector<float> scores = normals(l.total(), 33);
  for (float& x : scores) x = std::round(4.0f * x);
  scores[120] = NAN;
  for (const double each : {0.0, 0.5, 9.0})
    compare(open, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t* o, auto&& side) {
      return prim::MergeFilter<B>::best_scores(c, {side(scores), o, l.heads()}, each, links);
    }, each == 0.5);
}

TEST_CASE("cuda merge_filter: a mean that moves, to 1e-5 of the CPU's") {
  Links l(lengths, 1, 35);
  std::vector<float> state;
  for (std::size_t h = 0; h < lengths.size(); ++h) state.insert(state.end(), {0.25f, h % 2 == 0 ? 0.0f : 1.0f});
  const Links before = l;
  std::vector<float> expected = state;
  Context<Cpu> cpu;
  REQUIRE(prim::MergeFilter<Cpu>::moving_mean(cpu, 0.9f, 0.2f, dense_view(expected.data(), l.heads(), 2), l.view()) == Status::ok);
  test::each_way([&] {
    test::Device device;
    DeviceLinks d(device, before);
    test::OnDevice<float> s(device, state);
    REQUIRE(prim::MergeFilter<Cuda>::moving_mean(device, 0.9f, 0.2f, dense_view(s.data(), l.heads(), 2), d.view()) == Status::ok);
    REQUIRE(d.to.read() == l.to);
    close(s.read(), expected, 1e-5f, 1.0f);
  });
}

TEST_CASE("cuda merge_filter: chance, the CPU's draws with any fan") {
  for (const index_t fan : {index_t{1}, index_t{3}}) {
    const Links l(lengths, fan, 41);
    std::vector<float> scores = normals(l.total(), 42);
    for (float& x : scores) x = std::fabs(x);
    scores[50] = 0.0f, scores[90] = NAN;
    std::vector<std::int32_t> tokens(at(l.total()));
    std::iota(tokens.begin(), tokens.end(), 900);
    const std::size_t left = compare(l, [&]<Backend B>(Context<B>& c, const prim::MergeLinks& links, const index_t* o, auto&& side) {
      return prim::MergeFilter<B>::chance(c, {side(scores), o, l.heads()}, side(l.targets), {side(tokens), o, l.heads()}, 77, links);
    });
    CHECK(left > 50);
    CHECK(left < 400);
  }
}

TEST_CASE("cuda unit_fold and unit_spread: as the CPU folds one unit after another") {
  constexpr index_t units = 3;
  for (const index_t dim : {1, 64, 80, 128, 256})
    for (const index_t rows : {0, 1, 16}) {
      std::vector<float> x = normals(units * rows * dim, 51), start = normals(units * dim, 52);
      if (rows == 16) x[5] = NAN, x[7] = INFINITY, x[at(dim)] = -INFINITY;
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> in(device, x);
        const auto view = dense_view(static_cast<const float*>(in.data()), units, rows, dim);
        const auto one = [&](auto&& host, auto&& word) {
          std::vector<float> expected = start;
          for (index_t u = 0; u < units; ++u) host({x.data() + u * rows * dim, rows, dim}, dim, expected.data() + u * dim);
          test::OnDevice<float> out(device, start);
          REQUIRE(word(device.context(), view, dense_view(out.data(), units, dim)) == Status::ok);
          close(out.read(), expected, 0.0f);
        };
        one(prim::UnitFold<Cpu>::largest, prim::UnitFold<Cuda>::largest);
        one(prim::UnitFold<Cpu>::smallest, prim::UnitFold<Cuda>::smallest);
        one(prim::UnitFold<Cpu>::sum, prim::UnitFold<Cuda>::sum);
        std::vector<float> least(units, 0.4f), direction = start;
        std::fill_n(direction.begin(), dim, 0.0f);  // cosines with nothing are 0
        if (rows == 1) std::copy_n(x.begin() + 2 * dim, dim, direction.begin() + 2 * dim);
        test::OnDevice<float> d(device, direction), l(device, least);
        for (index_t u = 0; u < units; ++u)
          least[at(u)] = prim::UnitSpread<Cpu>::smallest_cosine({x.data() + u * rows * dim, rows, dim}, dim, direction.data() + u * dim, least[at(u)]);
        REQUIRE(prim::UnitSpread<Cuda>::smallest_cosine(device, view, dense_view(static_cast<const float*>(d.data()), units, dim), l.data()) == Status::ok);
        close(l.read(), least, 2e-6f, 1.0f);
      });
    }
  test::Device device;
  const TensorView<const float, 3> rows = dense_view(static_cast<const float*>(nullptr), 2, 3, 64);
  CHECK(prim::UnitFold<Cuda>::sum(device, rows, dense_view(static_cast<float*>(nullptr), 3, 64)) == Status::shape_mismatch);
  CHECK(prim::UnitFold<Cuda>::sum(device, rows, dense_view(static_cast<float*>(nullptr), 2, 63)) == Status::shape_mismatch);
  CHECK(prim::UnitSpread<Cuda>::smallest_cosine(device, rows, dense_view(static_cast<const float*>(nullptr), 2, 63), nullptr) == Status::shape_mismatch);
}

TEST_CASE("cuda gated_merge: to 1e-6 of the CPU's, in place too") {
  for (const index_t tokens : {0, 1, 5})
    for (const index_t dim : {64, 80, 256}) {
      constexpr index_t heads = 3;
      const std::vector<float> a = normals(heads * tokens * dim, 61), b = normals(heads * tokens * dim, 62), bias{-INFINITY, -0.85f, INFINITY};
      std::vector<float> expected(a.size());
      Context<Cpu> cpu;
      REQUIRE(prim::GatedMerge<Cpu>::run(cpu, dense_view(a.data(), heads, tokens, dim), dense_view(b.data(), heads, tokens, dim), bias,
                                         dense_view(expected.data(), heads, tokens, dim)) == Status::ok);
      test::Device device;
      test::OnDevice<float> x(device, a), y(device, b), g(device, bias);
      const auto first = dense_view(x.data(), heads, tokens, dim);
      REQUIRE(prim::GatedMerge<Cuda>::run(device, first, dense_view(y.data(), heads, tokens, dim), {g.data(), 3}, first) == Status::ok);
      close(x.read(), expected, 1e-6f, 1.0f);
      CHECK(prim::GatedMerge<Cuda>::run(device, first, first, {g.data(), 2}, first) == Status::shape_mismatch);
      CHECK(prim::GatedMerge<Cuda>::run(device, first, dense_view(y.data(), heads, tokens + 1, dim), {g.data(), 3}, first) == Status::shape_mismatch);
    }
}

TEST_CASE("cuda merge_sets: slots of spans of tokens that may be written") {
  const std::vector<index_t> slots{0, 1, 40, 40, 40, 300, 7}, offset{0, 0, 1, 41, 81, 121, 421, 428};
  std::vector<std::int32_t> tokens;
  for (const index_t n : slots)
    for (index_t j = 0; j < n; ++j) tokens.push_back(static_cast<std::int32_t>(3 * j + 1));
  const std::vector<prim::TokenSpan> spans{{0, 9}, {0, 2}, {10, 60}, {0, 0}, {5, 4}, {200, 100000}, {2, 4}};  // the last one holds none
  const std::vector<prim::SlotRange> targets{{0, 0, 0}, {0, 0, 1}, {2, 8, 15}, {0, 0, 40}, {0, 0, 40}, {0, 0, 299}, {0, 0, 7}};
  const auto heads = static_cast<index_t>(slots.size());
  for (const double share : {0.0, 0.4, 1.0}) {
    std::vector<prim::SlotRange> region(slots.size(), {7, 7, 7});
    std::vector<index_t> parts(slots.size(), -1);
    Context<Cpu> cpu;
    REQUIRE(prim::MergeSets<Cpu>::spans(cpu, {tokens.data(), offset.data(), heads}, spans.data(), targets.data(), share, region.data(), parts.data()) == Status::ok);
    CHECK(region[2].begin == 8);
    CHECK(region[2].end == 15);
    CHECK(parts[2] == static_cast<index_t>(7 * share + 1e-6));
    CHECK(region[5].begin == 67);
    CHECK(region[5].end == 299);
    for (const std::size_t empty : {0u, 3u, 4u, 6u}) CHECK(region[empty].begin == region[empty].end);
    test::each_way([&] {
      test::Device device;
      test::OnDevice<std::int32_t> t(device, tokens);
      test::OnDevice<index_t> o(device, offset), p(device, std::vector<index_t>(slots.size(), -1));
      test::OnDevice<prim::TokenSpan> s(device, spans);
      test::OnDevice<prim::SlotRange> w(device, targets), r(device, std::vector<prim::SlotRange>(slots.size(), {7, 7, 7}));
      REQUIRE(prim::MergeSets<Cuda>::spans(device, {t.data(), o.data(), heads}, s.data(), w.data(), share, r.data(), p.data()) == Status::ok);
      REQUIRE(p.read() == parts);
      const std::vector<prim::SlotRange> got = r.read();
      for (std::size_t h = 0; h < got.size(); ++h) {
        CHECK(got[h].prefix == region[h].prefix);
        CHECK(got[h].begin == region[h].begin);
        CHECK(got[h].end == region[h].end);
      }
    });
  }
}
