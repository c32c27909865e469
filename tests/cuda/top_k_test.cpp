// TopK and KeepEnds on CUDA keep exactly what the CPU keeps.

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/top_k.hpp>
#include <kvcondense/backend/cuda/top_k.cuh>

#include "device.hpp"

using namespace kvcondense;
using test::at;

namespace {

struct Rows {
  std::vector<float> scores;
  std::vector<index_t> offset{0};

  void add(const std::vector<float>& row) {
    scores.insert(scores.end(), row.begin(), row.end());
    offset.push_back(static_cast<index_t>(scores.size()));
  }
  index_t heads() const { return static_cast<index_t>(offset.size()) - 1; }
};

struct Kept {
  std::vector<std::int32_t> slots;
  std::vector<index_t> count;
  index_t nan = 100;
  bool operator==(const Kept&) const = default;
};

Kept on_cpu(const Rows& r, const std::vector<prim::Ends>& always, const std::vector<index_t>& total, prim::Ties ties) {
  Kept k{std::vector<std::int32_t>(r.scores.size(), -7), std::vector<index_t>(at(r.heads()), -7)};
  Context<Cpu> ctx;
  REQUIRE(prim::TopK<Cpu>::run(ctx, {r.scores.data(), r.offset.data(), r.heads()}, always.empty() ? nullptr : always.data(),
                               total.data(), {k.slots.data(), r.offset.data(), r.heads()}, k.count.data(), &k.nan,
                               ties) == Status::ok);
  return k;
}

Kept on_cuda(const Rows& r, const std::vector<prim::Ends>& always, const std::vector<index_t>& total, prim::Ties ties) {
  test::Device device;
  test::OnDevice<float> scores(device, r.scores);
  test::OnDevice<index_t> offset(device, r.offset), wanted(device, total), count(device, std::vector<index_t>(at(r.heads()), -7)),
      nan(device, {100});
  test::OnDevice<prim::Ends> ends(device, always);
  test::OnDevice<std::int32_t> slots(device, std::vector<std::int32_t>(r.scores.size(), -7));
  REQUIRE(prim::TopK<Cuda>::run(device, {scores.data(), offset.data(), r.heads()}, always.empty() ? nullptr : ends.data(),
                                wanted.data(), {slots.data(), offset.data(), r.heads()}, count.data(), nan.data(),
                                ties) == Status::ok);
  return {slots.read(), count.read(), nan.read()[0]};
}

/// What lies behind the count is nobody's.
void blank(Kept& k, const Rows& r) {
  for (index_t h = 0; h < r.heads(); ++h)
    for (index_t i = r.offset[at(h)] + k.count[at(h)]; i < r.offset[at(h + 1)]; ++i) k.slots[at(i)] = -7;
}

void compare(const Rows& r, const std::vector<prim::Ends>& always, const std::vector<index_t>& total) {
  for (const prim::Ties ties : {prim::Ties::first, prim::Ties::last}) {
    Kept cpu = on_cpu(r, always, total, ties);
    blank(cpu, r);
    test::each_way([&] {
      Kept cuda = on_cuda(r, always, total, ties);
      blank(cuda, r);
      CHECK(cuda.count == cpu.count);
      CHECK(cuda.nan == cpu.nan);
      CHECK(cuda.slots == cpu.slots);
    });
  }
}

}  // namespace

TEST_CASE("cuda top_k: ragged rows of random scores") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  Rows r;
  std::vector<index_t> total;
  std::vector<prim::Ends> always;
  for (const index_t n : {0, 1, 2, 31, 32, 33, 255, 1023, 1024, 1025, 3000}) {
    std::vector<float> row(at(n));
    for (float& x : row) x = normal(random);
    r.add(row);
    total.push_back(n / 3 + n % 2);
    always.push_back({n % 5, n % 7});
  }
  compare(r, {}, total);
  compare(r, always, total);
}

TEST_CASE("cuda top_k: ties, zeros of both signs, NaN and infinities") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937 random(6);
  Rows r;
  std::vector<index_t> total;
  std::vector<prim::Ends> always;
  const float few[] = {0.0f, -0.0f, 1.0f, -1.0f, inf, -inf, nan, -nan, 1e-42f};
  for (const index_t n : {1, 9, 64, 700, 1500})
    for (const index_t k : {index_t{0}, index_t{1}, n / 2, n - 1, n, n + 5}) {
      std::vector<float> row(at(n));
      for (float& x : row) x = few[random() % (k % 2 == 0 ? 9 : 3)];
      r.add(row);
      total.push_back(k);
      always.push_back({static_cast<index_t>(random() % 4), static_cast<index_t>(random() % 4)});
    }
  compare(r, {}, total);
  compare(r, always, total);
}

TEST_CASE("cuda top_k: ends that meet or want more than the total") {
  Rows r;
  r.add({5, 4, 3, 2, 1});
  r.add({1, 2, 3, 4, 5});
  r.add({1, 2, 3, 4, 5, 6, 7});
  compare(r, {{3, 4}, {9, 9}, {2, 3}}, {2, 1, 4});
  compare(r, {{-1, 2}, {0, 5}, {0, 0}}, {3, 4, -2});
}

TEST_CASE("cuda top_k: no rows, and no count of NaN") {
  test::Device device;
  CHECK(prim::TopK<Cuda>::run(device, {}, nullptr, nullptr, {}, nullptr) == Status::ok);
  test::OnDevice<float> scores(device, {1.0f, NAN, 3.0f});
  test::OnDevice<index_t> offset(device, {0, 3}), total(device, {2}), count(device, {0});
  test::OnDevice<std::int32_t> slots(device, {9, 9, 9});
  REQUIRE(prim::TopK<Cuda>::run(device, {scores.data(), offset.data(), 1}, nullptr, total.data(),
                                {slots.data(), offset.data(), 1}, count.data()) == Status::ok);
  CHECK(slots.read() == std::vector<std::int32_t>{0, 2, 9});
  CHECK(count.read()[0] == 2);
}

TEST_CASE("cuda keep_ends: as the CPU") {
  const std::vector<prim::Ends> ends{{2, 3}, {0, 0}, {4, 4}, {-1, 300}};
  const std::vector<index_t> offset{0, 10, 13, 16, 500};
  std::vector<std::int32_t> expected(500, -7);
  std::vector<index_t> count(4);
  Context<Cpu> ctx;
  REQUIRE(prim::KeepEnds<Cpu>::run(ctx, ends.data(), {expected.data(), offset.data(), 4}, count.data()) == Status::ok);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<prim::Ends> e(device, ends);
    test::OnDevice<index_t> o(device, offset), c(device, std::vector<index_t>(4));
    test::OnDevice<std::int32_t> slots(device, std::vector<std::int32_t>(500, -7));
    REQUIRE(prim::KeepEnds<Cuda>::run(device, e.data(), {slots.data(), o.data(), 4}, c.data()) == Status::ok);
    CHECK(slots.read() == expected);
    CHECK(c.read() == count);
  });
}

TEST_CASE("cuda top_k: called as docs/guide.md shows it") {
  test::Device engine;
  const cudaStream_t stream = engine.context().stream();

  const std::vector<float> scores{0.1f, 0.9f, 0.4f, 0.7f, /* of the second head: */ 0.8f, 0.2f, 0.5f};
  const std::vector<index_t> offset{0, 4, 7}, budget{2, 2};
  cuda::DeviceArray<float> d_scores;
  cuda::DeviceArray<index_t> d_offset, d_budget, d_count;
  cuda::DeviceArray<std::int32_t> d_kept;

  // The engine's stream: everything below is enqueued on it, and nothing waits or allocates but the arrays.
  Expected<Context<Cuda>> ctx = Context<Cuda>::make(stream);
  REQUIRE(ctx);
  REQUIRE(d_scores.upload(*ctx, scores) == Status::ok);
  REQUIRE(d_offset.upload(*ctx, offset) == Status::ok);
  REQUIRE(d_budget.upload(*ctx, budget) == Status::ok);
  REQUIRE(d_kept.resize(7) == Status::ok);
  REQUIRE(d_count.resize(2) == Status::ok);

  // Which slots of each head stay: rows of a ragged array, on the device like everything in views.
  REQUIRE(prim::TopK<Cuda>::run(*ctx, {d_scores.data(), d_offset.data(), 2}, nullptr, d_budget.data(),
                                {d_kept.data(), d_offset.data(), 2}, d_count.data()) == Status::ok);

  std::vector<std::int32_t> kept(7);
  REQUIRE(d_kept.download(*ctx, std::span<std::int32_t>(kept)) == Status::ok);
  REQUIRE(ctx->wait() == Status::ok);  // errors of kernels show here at the latest
  CHECK(kept[0] == 1);
  CHECK(kept[1] == 3);
  CHECK(kept[4] == 0);
  CHECK(kept[5] == 2);
}
