// Words that choose slots, on CUDA: exactly what the CPU chooses, whatever the ties.

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/block_stride.hpp>
#include <kvcondense/backend/cpu/block_top_k.hpp>
#include <kvcondense/backend/cpu/chunk_top_k.hpp>
#include <kvcondense/backend/cpu/count_above.hpp>
#include <kvcondense/backend/cpu/draw_ranks.hpp>
#include <kvcondense/backend/cpu/ends_sum.hpp>
#include <kvcondense/backend/cpu/keep_tokens.hpp>
#include <kvcondense/backend/cpu/lift_top.hpp>
#include <kvcondense/backend/cpu/open_blocks.hpp>
#include <kvcondense/backend/cpu/settle_probed.hpp>
#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/backend/cpu/top_then_newest.hpp>
#include <kvcondense/backend/cuda/block_stride.cuh>
#include <kvcondense/backend/cuda/block_top_k.cuh>
#include <kvcondense/backend/cuda/chunk_top_k.cuh>
#include <kvcondense/backend/cuda/count_above.cuh>
#include <kvcondense/backend/cuda/draw_ranks.cuh>
#include <kvcondense/backend/cuda/ends_sum.cuh>
#include <kvcondense/backend/cuda/keep_tokens.cuh>
#include <kvcondense/backend/cuda/lift_top.cuh>
#include <kvcondense/backend/cuda/open_blocks.cuh>
#include <kvcondense/backend/cuda/settle_probed.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/backend/cuda/top_then_newest.cuh>

#include "device.hpp"

using namespace kvcondense;
using test::at;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// Rows of scores with what is asked of each.
struct Rows {
  std::vector<float> scores;
  std::vector<index_t> offset{0}, total;
  std::vector<prim::Ends> ends;

  void add(std::vector<float> row, index_t wanted, prim::Ends e = {}) {
    scores.insert(scores.end(), row.begin(), row.end());
    offset.push_back(static_cast<index_t>(scores.size()));
    total.push_back(wanted);
    ends.push_back(e);
  }
  index_t heads() const { return static_cast<index_t>(offset.size()) - 1; }
};

/// Ragged rows: no slot, one, odd numbers, around a block's reach; different scores, few different ones, NaN and infinities.
Rows many_rows() {
  std::mt19937 random(41);
  std::normal_distribution<float> normal;
  const float few[] = {0.0f, -0.0f, 1.0f, -1.0f, inf, -inf, NAN, -NAN, 1e-42f};
  Rows r;
  index_t kind = 0;
  for (const index_t n : {0, 1, 2, 33, 97, 1100}) {
    std::vector<float> row(at(n));
    for (float& x : row) x = kind % 2 == 0 ? few[random() % 9] : normal(random);
    r.add(row, n / 3 + kind++, {n % 5, n % 7});
  }
  std::vector<float> row(37);
  for (float& x : row) x = few[random() % 5];
  for (const index_t total : {-3, 5, 7, 36, 37, 50}) r.add(row, total, {2, 3});
  r.add({1, 2, 3, 4, 5}, 1, {3, 4});
  r.add({NAN, NAN, NAN, 4}, 2, {0, 0});
  return r;
}

struct Kept {
  std::vector<std::int32_t> slots;
  std::vector<index_t> count;
  index_t bad = 0;
};

/// call(ctx, scores, ends, total, slots, count, nan) on both backends. What lies behind a row's count is nobody's.
template <class Call>
void compare_lists(const Rows& r, Call&& call, bool wants_nan = true) {
  const auto blank = [&](Kept& k) {
    for (index_t h = 0; h < r.heads(); ++h)
      for (index_t i = r.offset[at(h)] + k.count[at(h)]; i < r.offset[at(h + 1)]; ++i) k.slots[at(i)] = -7;
  };
  Kept expected{std::vector<std::int32_t>(r.scores.size(), -7), std::vector<index_t>(at(r.heads()), -7), 100};
  Context<Cpu> cpu;
  REQUIRE(call(cpu, RaggedView<const float>{r.scores.data(), r.offset.data(), r.heads()}, r.ends.data(), r.total.data(),
               RaggedView<std::int32_t>{expected.slots.data(), r.offset.data(), r.heads()}, expected.count.data(),
               wants_nan ? &expected.bad : nullptr) == Status::ok);
  blank(expected);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> scores(device, r.scores);
    test::OnDevice<index_t> offset(device, r.offset), total(device, r.total), count(device, std::vector<index_t>(at(r.heads()), -7)), bad(device, {100});
    test::OnDevice<prim::Ends> ends(device, r.ends);
    test::OnDevice<std::int32_t> slots(device, std::vector<std::int32_t>(r.scores.size(), -7));
    REQUIRE(call(device.context(), RaggedView<const float>{scores.data(), offset.data(), r.heads()}, static_cast<const prim::Ends*>(ends.data()),
                 static_cast<const index_t*>(total.data()), RaggedView<std::int32_t>{slots.data(), offset.data(), r.heads()}, count.data(),
                 wants_nan ? bad.data() : nullptr) == Status::ok);
    Kept got{slots.read(), count.read(), bad.read()[0]};
    CHECK(got.count == expected.count);
    CHECK(got.bad == expected.bad);
    if (got.count != expected.count) return;
    blank(got);
    CHECK(got.slots == expected.slots);
  });
}

}  // namespace

TEST_CASE("cuda chunk_top_k: the CPU's chunks, ragged rows, a shorter last one") {
  const Rows r = many_rows();
  for (const index_t chunk : {1, 5, 5000})
    for (const bool ends : {true, chunk != 5})
      compare_lists(r, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends* e, const index_t* total, RaggedView<std::int32_t> slots,
                                      index_t* count, index_t* bad) { return prim::ChunkTopK<B>::run(c, s, ends ? e : nullptr, chunk, total, slots, count, bad); });
  test::Device device;
  CHECK(prim::ChunkTopK<Cuda>::run(device, {}, nullptr, 0, nullptr, {}, nullptr) == Status::invalid_argument);
  CHECK(prim::ChunkTopK<Cuda>::run(device, {}, nullptr, 1, nullptr, {}, nullptr) == Status::ok);
}

TEST_CASE("cuda block_top_k: the CPU's places of every block, with and without places that do not compete") {
  Rows r = many_rows();
  std::mt19937 random(43);
  for (const index_t open : {0, 1, 130}) {  // settled ones, open ones, those behind them
    std::vector<float> row(at(open + 40), inf);
    for (index_t i = 0; i < open; ++i) row[at(17 + i)] = static_cast<float>(random() % 50);
    for (const index_t total : {index_t{20}, 40 + open / 2, 40 + open * 9 / 10}) r.add(row, total, {1, 2});
  }
  for (const index_t block : {60, 5000})
    for (const bool ends : {true, block != 60})
      compare_lists(r, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends* e, const index_t* total, RaggedView<std::int32_t> slots,
                                      index_t* count, index_t* bad) { return prim::BlockTopK<B>::run(c, s, ends ? e : nullptr, block, total, slots, count, bad); });
  test::Device device;
  CHECK(prim::BlockTopK<Cuda>::run(device, {}, nullptr, 0, nullptr, {}, nullptr) == Status::invalid_argument);
}

TEST_CASE("cuda keep_tokens: the CPU's slots whose tokens are wanted, all of them, some and none") {
  std::mt19937 random(47);
  struct List {
    std::vector<std::int32_t> tokens;
    std::vector<index_t> offset{0};
    void add(index_t n, index_t every, std::mt19937& draw) {
      std::int32_t t = 0;
      for (index_t i = 0; i < n; ++i) tokens.push_back(t += 1 + static_cast<std::int32_t>(draw() % static_cast<unsigned>(every)));
      offset.push_back(static_cast<index_t>(tokens.size()));
    }
  };
  List have, want;
  std::vector<index_t> total;
  for (const index_t n : {0, 1, 5, 255, 256, 257, 1100})
    for (const index_t m : {index_t{0}, n / 2, n + 20}) {
      have.add(n, 3, random), want.add(m, 4, random);
      total.push_back(m == n / 2 && n % 2 == 1 ? n : n - 1);
    }
  const auto heads = static_cast<index_t>(total.size());
  std::vector<std::int32_t> slots(have.tokens.size(), -1);
  std::vector<index_t> count(total.size(), -1);
  Context<Cpu> cpu;
  REQUIRE(prim::KeepTokens<Cpu>::run(cpu, {have.tokens.data(), have.offset.data(), heads}, {want.tokens.data(), want.offset.data(), heads}, total.data(),
                                     {slots.data(), have.offset.data(), heads}, count.data()) == Status::ok);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<std::int32_t> tokens(device, have.tokens), wanted(device, want.tokens), out(device, std::vector<std::int32_t>(have.tokens.size(), -1));
    test::OnDevice<index_t> offset(device, have.offset), wanted_offset(device, want.offset), most(device, total), counts(device, std::vector<index_t>(total.size(), -1));
    REQUIRE(prim::KeepTokens<Cuda>::run(device, {tokens.data(), offset.data(), heads}, {wanted.data(), wanted_offset.data(), heads}, most.data(),
                                        {out.data(), offset.data(), heads}, counts.data()) == Status::ok);
    CHECK(counts.read() == count);
    CHECK(out.read() == slots);  // what is not kept is not written
  });
}

TEST_CASE("cuda top_then_newest: the CPU's first, best and newest places") {
  const Rows r = many_rows();
  for (const auto& [first_slots, best_slots] : {std::pair<index_t, index_t>{0, 0}, {4, 9}, {1, 3000}, {3000, 1}}) {
    const index_t first = first_slots, best = best_slots;
    compare_lists(r, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends*, const index_t* total, RaggedView<std::int32_t> slots,
                                      index_t* count, index_t* bad) { return prim::TopThenNewest<B>::run(c, s, first, best, total, slots, count, bad); },
                  first == 4);
  }
  test::Device device;
  CHECK(prim::TopThenNewest<Cuda>::run(device, {}, -1, 0, nullptr, {}, nullptr) == Status::invalid_argument);
  CHECK(prim::TopThenNewest<Cuda>::run(device, {}, 0, -1, nullptr, {}, nullptr) == Status::invalid_argument);
}

TEST_CASE("cuda top_k_counts: as the CPU over all rows, with places of their own and ends") {
  const Rows r = many_rows();
  const auto all = static_cast<index_t>(r.scores.size());
  for (const bool own : {false, true})
    for (const bool strict : {false, true})
      for (const index_t k : {index_t{-1}, index_t{1}, all / 2, all - 5, all + 9}) {
        const bool ends = own;
        std::vector<index_t> expected(at(r.heads()), -7);
        std::vector<std::byte> room(Scratch::bytes_for<prim::RowCutoff>(r.heads()) + Scratch::align);
        Scratch scratch(room);
        Context<Cpu> cpu;
        REQUIRE(prim::TopKCounts<Cpu>::run(cpu, {r.scores.data(), r.offset.data(), r.heads()}, ends ? r.ends.data() : nullptr, own ? r.total.data() : nullptr, k,
                                           expected.data(), scratch, strict) == Status::ok);
        test::each_way([&] {
          test::Device device;
          test::OnDevice<float> scores(device, r.scores);
          test::OnDevice<index_t> offset(device, r.offset), total(device, r.total), count(device, std::vector<index_t>(at(r.heads()), -7));
          test::OnDevice<prim::Ends> e(device, r.ends);
          const std::size_t bytes = Scratch::bytes_for<prim::RowCutoff>(r.heads());
          Context<Cuda> ctx = device.with_workspace(bytes);
          const auto run = [&](std::span<std::byte> room_there) {
            Scratch s(room_there);
            return prim::TopKCounts<Cuda>::run(ctx, {scores.data(), offset.data(), r.heads()}, ends ? e.data() : nullptr, own ? total.data() : nullptr, k, count.data(), s, strict);
          };
          REQUIRE(run(ctx.workspace().first(bytes - 1)) == Status::workspace_too_small);
          REQUIRE(run(ctx.workspace()) == Status::ok);
          CHECK(count.read() == expected);
        });
      }
}

namespace {

/// call(ctx, scores, ends, first, numbers, counts) on both backends: numbers and counts equal, NaN too.
template <class Call>
void compare_marks(const Rows& r, const std::vector<float>& start, Call&& call) {
  std::vector<float> expected = start;
  std::vector<index_t> counted(at(r.heads()), -7);
  Context<Cpu> cpu;
  REQUIRE(call(cpu, RaggedView<const float>{r.scores.data(), r.offset.data(), r.heads()}, r.ends.data(), r.total.data(),
               RaggedView<float>{expected.data(), r.offset.data(), r.heads()}, counted.data()) == Status::ok);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> scores(device, r.scores), out(device, start);
    test::OnDevice<index_t> offset(device, r.offset), total(device, r.total), count(device, std::vector<index_t>(at(r.heads()), -7));
    test::OnDevice<prim::Ends> ends(device, r.ends);
    REQUIRE(call(device.context(), RaggedView<const float>{scores.data(), offset.data(), r.heads()}, static_cast<const prim::Ends*>(ends.data()),
                 static_cast<const index_t*>(total.data()), RaggedView<float>{out.data(), offset.data(), r.heads()}, count.data()) == Status::ok);
    const std::vector<float> got = out.read();
    for (std::size_t i = 0; i < got.size(); ++i)
      if (!(got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i])))) FAIL_CHECK(i << ": " << got[i] << " instead of " << expected[i]);
    CHECK(count.read() == counted);
  });
}

std::vector<float> weights_for(const Rows& r) {
  std::mt19937 random(44);
  std::normal_distribution<float> normal;
  std::vector<float> x(r.scores.size());
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace

TEST_CASE("cuda count_above, lift_top, settle_probed: as the CPU") {
  const Rows r = many_rows();
  const std::vector<float> weights = weights_for(r);
  for (const bool ends : {true, false}) {
    for (const float least : {-inf, 0.0f, NAN})
      compare_marks(r, weights, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends* e, const index_t*, RaggedView<float>, index_t* count) {
        return prim::CountAbove<B>::run(c, s, ends ? e : nullptr, least, count);
      });
    compare_marks(r, weights, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends* e, const index_t* first, RaggedView<float> out, index_t*) {
      return prim::LiftTop<B>::run(c, s, out, ends ? e : nullptr, first, 0.3f, out);
    });
  }
  std::vector<float> asked(r.scores.size());
  for (std::size_t i = 0; i < asked.size(); ++i) asked[i] = i % 3 == 0 ? 0.0f : i % 7 == 0 ? NAN : weights[i];
  std::vector<float> left = asked, expected(asked.size());
  Context<Cpu> cpu;
  REQUIRE(prim::SettleProbed<Cpu>::run(cpu, {left.data(), r.offset.data(), r.heads()}, {expected.data(), r.offset.data(), r.heads()}) == Status::ok);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> a(device, asked), out(device, weights);
    test::OnDevice<index_t> o(device, r.offset);
    REQUIRE(prim::SettleProbed<Cuda>::run(device, {a.data(), o.data(), r.heads()}, {out.data(), o.data(), r.heads()}) == Status::ok);
    const std::vector<float> asked_after = a.read(), got = out.read();
    CHECK(asked_after == left);
    CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
  });
}

TEST_CASE("cuda ends_sum: as the CPU, in another order") {
  const Rows r = many_rows();
  const std::vector<float> x = weights_for(r);
  std::vector<float> expected(at(r.heads()));
  Context<Cpu> cpu;
  REQUIRE(prim::EndsSum<Cpu>::run(cpu, {x.data(), r.offset.data(), r.heads()}, r.ends.data(), expected.data()) == Status::ok);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> in(device, x), sum(device, std::vector<float>(expected.size(), 7.0f));
    test::OnDevice<index_t> o(device, r.offset);
    test::OnDevice<prim::Ends> ends(device, r.ends);
    REQUIRE(prim::EndsSum<Cuda>::run(device, {in.data(), o.data(), r.heads()}, ends.data(), sum.data()) == Status::ok);
    const std::vector<float> got = sum.read();
    for (std::size_t h = 0; h < got.size(); ++h) CHECK(std::fabs(got[h] - expected[h]) <= 1e-5f * static_cast<float>(r.offset[h + 1] - r.offset[h]));
  });
}

TEST_CASE("cuda draw_ranks: the CPU's noise, infinities and NaN left alone") {
  const Rows r = many_rows();
  std::vector<float> start = weights_for(r);
  start[3] = inf, start[4] = NAN;
  std::vector<float> expected = start;
  Context<Cpu> cpu;
  REQUIRE(prim::DrawRanks<Cpu>::run(cpu, 2.5f, 9, {expected.data(), r.offset.data(), r.heads()}) == Status::ok);
  REQUIRE((expected[3] == inf && std::isnan(expected[4])));
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> out(device, start);
    test::OnDevice<index_t> o(device, r.offset);
    REQUIRE(prim::DrawRanks<Cuda>::run(device, 2.5f, 9, {out.data(), o.data(), r.heads()}) == Status::ok);
    const std::vector<float> got = out.read();
    for (std::size_t i = 0; i < got.size(); ++i)
      if (!(std::fabs(got[i] - expected[i]) <= 1e-5f || got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i])))) FAIL_CHECK(i << ": " << got[i] << " instead of " << expected[i]);
  });
}

TEST_CASE("cuda open_blocks: marked, settled and counted as on the CPU") {
  Rows r = many_rows();
  for (float& x : r.scores) x = 0.0f;
  for (index_t h = 0; h < r.heads(); ++h)  // of the first slots some settled
    for (index_t j = r.offset[at(h)]; j < r.offset[at(h + 1)] && j - r.offset[at(h)] < 11 * (h % 4); ++j) r.scores[at(j)] = j % 5 == 0 ? 2.0f : 1.0f;
  for (const index_t first : {4, 5000})
    for (const index_t block : {1, 16})
      compare_marks(r, r.scores, [&]<Backend B>(Context<B>& c, RaggedView<const float> settled, const prim::Ends*, const index_t*, RaggedView<float> out, index_t*) {
        return prim::OpenBlocks<B>::mark(c, settled, first, block, out);
      });
  const Rows scores = many_rows();
  compare_marks(scores, r.scores, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends*, const index_t*, RaggedView<float> out, index_t*) {
    return prim::OpenBlocks<B>::settle(c, s, out);
  });
  for (const bool ends : {true, false})
    compare_marks(scores, r.scores, [&]<Backend B>(Context<B>& c, RaggedView<const float> s, const prim::Ends* e, const index_t*, RaggedView<float>, index_t* count) {
      return prim::OpenBlocks<B>::count(c, s, ends ? e : nullptr, count);
    });
  test::Device device;
  CHECK(prim::OpenBlocks<Cuda>::mark(device, {}, 0, 0, {}) == Status::invalid_argument);
}

TEST_CASE("cuda block_stride: the CPU's marks, tokens that are no slots left out") {
  const Rows r = many_rows();
  for (const index_t count : {0, 1, 40, 1500})
    for (const index_t shift : {0, 3})
      compare_marks(r, r.scores, [&]<Backend B>(Context<B>& c, RaggedView<const float>, const prim::Ends*, const index_t*, RaggedView<float> out, index_t*) {
        return prim::BlockStride<B>::mark(c, {.block = 8, .every = 5, .shift = shift}, 1003, count, out);
      });
  test::Device device;
  CHECK(prim::BlockStride<Cuda>::mark(device, {.block = 0}, 0, 1, {}) == Status::invalid_argument);
  CHECK(prim::BlockStride<Cuda>::mark(device, {.every = 0}, 0, 1, {}) == Status::invalid_argument);
  CHECK(prim::BlockStride<Cuda>::mark(device, {.shift = -1}, 0, 1, {}) == Status::invalid_argument);
}
