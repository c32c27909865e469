// Columns of the attention matrix on CUDA against the CPU, for every reduction.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <kvcondense/backend/cpu/attend_columns.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;
using test::ColumnShape;

namespace {

using Keys = prim::GroupInt<4>;

/// What AttendColumns<Cpu> asks of a head beyond its keys.
struct ColumnHead : test::HostHead<Keys, Keys> {
  TensorView<const float, 3> queries;
  index_t group, rows;
  const float* bias = nullptr;
  prim::SlotScalars scalars() const { return {nullptr, bias, nullptr}; }
  index_t seen = 0;  ///< 0: the newest slots are those of the rows; else slot i holds token 2i, and half of the tokens have left

  index_t visible(index_t row) const { return seen > 0 ? below(row_token(row) + 1) : std::max<index_t>(0, n - rows + row + 1); }
  index_t below(index_t t) const { return std::clamp<index_t>((t + 1) / 2, 0, n); }
  void load_query(index_t row, index_t member, float* q) const {
    for (index_t d = 0; d < queries.extent[2]; ++d) q[d] = queries(head * group + member, row, d);
  }
  index_t token(index_t slot) const { return seen > 0 ? 2 * slot : slot; }
  index_t row_token(index_t row) const { return (seen > 0 ? seen : n) - rows + row; }
};

struct Fixture {
  index_t group, rows, dim = 64;
  std::vector<index_t> slots{300, 5, 0, 64, 31}, offset{0, 300, 305, 305, 369, 400};
  std::vector<ColumnShape> shapes{{4, 250, 46, 1}, {0, 0, 5}, {0, 0, 0}, {0, 64, 0}, {1, 0, 30}};
  Keys codec{.axis = prim::GroupAxis::channel, .group_size = 32};
  test::HostColumn<Keys> keys{codec, {DType::f16}, 64, 64, shapes, 31};
  std::vector<float> queries, before, biases;  ///< of slots, 300 of each head: none of the newest two
  float scale = 0.125f;

  Fixture(index_t g, index_t r) : group(g), rows(r) {
    std::mt19937 random(17);
    std::normal_distribution<float> normal;
    queries.resize(at(5 * group * rows * dim));
    for (float& x : queries) x = normal(random);
    before.resize(at(400 * group));
    for (float& x : before) x = std::fabs(normal(random));
    biases.resize(at(5 * 300));
    for (float& x : biases) x = normal(random);
    for (index_t h = 0; h < 5; ++h)
      for (index_t s = std::max<index_t>(0, slots[at(h)] - 2); s < slots[at(h)]; ++s) biases[at(h * 300 + s)] = 0.0f;
  }

  /// seen: tokens so far, where slots hold half of them; `weighs`: slots have biases.
  void compare(prim::ColumnRequest r, index_t seen = 0, bool weighs = false) const {
    r.rows = rows;
    const std::size_t size = at(400 * (r.group == prim::GroupReduce::none ? group : 1));
    std::vector<float> expected(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(size));
    const std::vector<float> start = expected;
    const CacheShape shape{.q_heads = 5 * group, .kv_heads = 5, .head_dim = dim, .softmax_scale = scale};
    Workspace scratch;
    REQUIRE(scratch.reserve(prim::AttendColumns<Cpu>::workspace_bytes(1, shape, rows)) == Status::ok);
    Context<Cpu> cpu(scratch.bytes());
    r.out = {expected.data(), offset.data(), 5};
    const auto q = dense_view(queries.data(), 5 * group, rows, dim);
    REQUIRE(prim::AttendColumns<Cpu>::run(cpu, r, shape, [&](index_t h) {
              ColumnHead head;
              head.keys = &keys, head.head = h, head.n = slots[at(h)];
              head.queries = q, head.group = group, head.rows = rows, head.seen = seen;
              if (weighs) head.bias = biases.data() + h * 300;
              return head;
            }) == Status::ok);

    test::Device device;
    auto copy = keys.on(device);
    test::OnDevice<index_t> n(device, slots), o(device, offset);
    test::OnDevice<float> out(device, start), in(device, queries);
    r.out = {out.data(), o.data(), 5};
    std::vector<float> written = biases;  // the newest two slots have none yet, whatever lies there
    for (index_t h = 0; h < 5; ++h)
      for (index_t s = std::max<index_t>(0, slots[at(h)] - 2); s < slots[at(h)]; ++s) written[at(h * 300 + s)] = NAN;
    test::OnDevice<float> weights(device, written);
    const prim::PagedHeads<Keys, Keys> heads{codec, codec, {DType::f16}, copy.view(), copy.view(), n.data(), 5,
                                             {{weighs ? weights.data() : nullptr, 300}, {}, 2}};
    std::vector<std::int32_t> tokens(at(5 * 300));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(2 * (i % 300));
    test::OnDevice<std::int32_t> ids(device, tokens);
    prim::SlotTokens held;
    if (seen > 0) held = {{ids.data(), 300}, seen, 0};
    const std::size_t need = prim::AttendColumns<Cuda>::workspace_bytes(r, 5 * group, 5, 300);
    test::OnDevice<float> divide(device, r.divide == nullptr ? std::vector<float>{} : std::vector<float>(r.divide, r.divide + rows));
    if (r.divide != nullptr) r.divide = divide.data();
    const auto device_queries = dense_view(static_cast<const float*>(in.data()), 5 * group, rows, dim);
    Context<Cuda> less = device.with_workspace(need - 1);
    REQUIRE(prim::AttendColumns<Cuda>::run(less, r, device_queries, scale, heads, 300, held) == Status::workspace_too_small);
    Context<Cuda> ctx = device.with_workspace(need);
    REQUIRE(prim::AttendColumns<Cuda>::run(ctx, r, device_queries, scale, heads, 300, held) == Status::ok);
    const std::vector<float> got = out.read();
    INFO("group " << static_cast<int>(r.group) << " row " << static_cast<int>(r.row) << " past " << r.past << " rows " << rows);
    for (std::size_t i = 0; i < size; ++i) {
      INFO("number " << i << ": " << got[i] << " and " << expected[i] << " group size " << group);
      if (got[i] != expected[i]) REQUIRE(std::fabs(got[i] - expected[i]) < 2e-5f * (1.0f + std::fabs(expected[i])));
    }
  }
};

}  // namespace

TEST_CASE("cuda attend_columns: every reduction of groups and rows") {
  using prim::GroupReduce;
  using prim::RowReduce;
  for (const index_t group : {1, 3})
    for (const index_t rows : {1, 7}) {
      const Fixture f(group, rows);
      for (const GroupReduce g : {GroupReduce::none, GroupReduce::sum, GroupReduce::mean, GroupReduce::max, GroupReduce::max_logit})
        for (const RowReduce r : {RowReduce::sum, RowReduce::mean, RowReduce::max, RowReduce::seen_mean, RowReduce::low_count})
          f.compare({.group = g, .row = r});
    }
}

TEST_CASE("cuda attend_columns: the past alone, on top of what is there, heated, and a band") {
  Fixture(8, 40).compare({.group = prim::GroupReduce::mean, .row = prim::RowReduce::seen_mean});
  const Fixture f(3, 7);
  using prim::GroupReduce;
  for (const GroupReduce g : {GroupReduce::none, GroupReduce::mean, GroupReduce::max_logit}) {
    f.compare({.group = g, .past = true});
    f.compare({.group = g, .row = prim::RowReduce::max, .add = true});
    f.compare({.group = g, .row = prim::RowReduce::seen_mean, .add = true});
    f.compare({.group = g, .temperature = 1.5f, .warming = 0.25f});
    f.compare({.group = g, .row = prim::RowReduce::seen_mean, .band = 9});
  }
  test::each_way([&] { Fixture(2, 3).compare({.group = GroupReduce::mean}); });
}

TEST_CASE("cuda attend_columns: rows whose slots have left, noise, and parts") {
  const Fixture f(3, 7);
  using prim::GroupReduce;
  for (const GroupReduce g : {GroupReduce::none, GroupReduce::mean, GroupReduce::max_logit})
    for (const index_t seen : {60, 599}) {  // some slots are later than every row; some rows have a slot, others none
      f.compare({.group = g}, seen);
      f.compare({.group = g, .row = prim::RowReduce::seen_mean, .past = true}, seen);
      f.compare({.group = g, .row = prim::RowReduce::low_count, .add = true}, seen);
      f.compare({.group = g, .temperature = 1.5f, .seed = 9}, seen);
      f.compare({.group = g, .row = prim::RowReduce::max, .part = {.sinks = 4, .first = 20, .last = 50}}, seen);
    }
}

TEST_CASE("cuda attend_columns: rows that are chosen") {
  std::vector<std::int32_t> many(270);  // more than travel with one launch
  std::iota(many.begin(), many.end(), 2);
  const std::int32_t first[] = {0, 1, 2}, some[] = {1, 4, 5}, last[] = {6};
  const Fixture f(3, 7), long_one(1, 290);
  for (const index_t seen : {0, 60, 599})
    for (const auto& chosen : {std::span<const std::int32_t>(first), std::span<const std::int32_t>(some), std::span<const std::int32_t>(last)})
      for (const prim::RowReduce row : {prim::RowReduce::seen_mean, prim::RowReduce::mean}) {
        f.compare({.chosen = chosen, .group = prim::GroupReduce::sum, .row = row}, seen);
        f.compare({.chosen = chosen, .group = prim::GroupReduce::max_logit, .row = row, .past = true}, seen);
        f.compare({.chosen = chosen, .group = prim::GroupReduce::mean, .row = row, .temperature = 1.0f, .warming = 0.25f}, seen);
        if (seen > 0) f.compare({.chosen = chosen, .group = prim::GroupReduce::none, .row = row, .seed = 9, .part = {.sinks = 4, .first = 20, .last = 50}}, seen);
      }
  long_one.compare({.chosen = many, .row = prim::RowReduce::seen_mean}, 599);
}

TEST_CASE("cuda attend_columns: rows whose shares are divided, and such as count nothing") {
  const std::vector<float> divide{2.0f, 0.5f, 0.0f, 7.0f, -1.0f, NAN, 3.0f};
  const std::vector<std::int32_t> chosen{1, 2, 6};
  for (const index_t group : {1, 3}) {
    const Fixture f(group, 7);
    for (const prim::GroupReduce g : {prim::GroupReduce::none, prim::GroupReduce::sum, prim::GroupReduce::max_logit})
      for (const prim::RowReduce r : {prim::RowReduce::sum, prim::RowReduce::max}) f.compare({.group = g, .row = r, .divide = divide.data()});
    f.compare({.chosen = chosen, .group = prim::GroupReduce::none, .row = prim::RowReduce::max, .divide = divide.data()});
    f.compare({.group = prim::GroupReduce::none, .row = prim::RowReduce::max, .divide = divide.data(), .part = {2, 4, 40}}, 599);
  }
}

TEST_CASE("cuda attend_columns: biases of slots, and logarithms that fade, which are of keys alone") {
  for (const auto& [group, rows] : {std::pair<index_t, index_t>{1, 1}, {3, 7}, {7, 20}}) {
    const Fixture f(group, rows);
    for (const index_t seen : {0, 60, 599}) {
      f.compare({.group = prim::GroupReduce::sum}, seen, true);
      f.compare({.group = prim::GroupReduce::max_logit, .row = prim::RowReduce::max, .past = true}, seen, true);
      for (const bool weighs : {false, true})
        for (const bool add : {false, true}) f.compare({.row = prim::RowReduce::log_decay, .add = add, .decay = 0.9f}, seen, weighs);
      f.compare({.row = prim::RowReduce::log_decay, .decay = 0.0f, .band = 3}, seen);
    }
  }
}

TEST_CASE("cuda attend_columns: what is refused") {
  test::Device device;
  const prim::PagedHeads<Keys, Keys> heads{{.group_size = 32}, {.group_size = 32}, {}, {}, {}, nullptr, 2};
  const auto run = [&](prim::ColumnRequest r, index_t q_heads, index_t rows, index_t most) {
    static const float q = 0.0f;
    r.out.heads = 2;
    return prim::AttendColumns<Cuda>::run(device, r, dense_view(&q, q_heads, rows, 64), 1.0f, heads, most);
  };
  const std::int32_t two[] = {2}, twice[] = {1, 1}, below[] = {-1, 0};
  for (const auto& chosen : {std::span<const std::int32_t>(two), std::span<const std::int32_t>(twice), std::span<const std::int32_t>(below)})
    CHECK(run({.rows = 2, .chosen = chosen}, 4, 2, 9) == Status::invalid_argument);
  CHECK(run({.rows = 2, .seed = 3}, 4, 2, 9) == Status::not_supported);
  CHECK(run({.rows = 2, .part = {.last = 3}}, 4, 2, 9) == Status::not_supported);
  CHECK(run({.rows = 2, .temperature = 0.0f}, 4, 2, 9) == Status::invalid_argument);
  CHECK(run({.rows = 2, .warming = -1.0f}, 4, 2, 9) == Status::invalid_argument);
  CHECK(run({.rows = 2}, 3, 2, 9) == Status::shape_mismatch);
  CHECK(run({.rows = 2}, 4, 3, 9) == Status::shape_mismatch);
  CHECK(run({.rows = 2}, 4, 2, 9) == Status::workspace_too_small);
}

TEST_CASE("cuda attend_columns: a slot that lives on in another draws nothing, even where a row sees no other one") {
  const Fixture f(2, 4);
  test::Device device;
  auto copy = f.keys.on(device);
  test::OnDevice<index_t> n(device, f.slots), o(device, f.offset);
  test::OnDevice<float> out(device, std::vector<float>(400, NAN)), in(device, f.queries);
  test::OnDevice<std::uint8_t> passed(device, std::vector<std::uint8_t>(5 * 4, 1));
  prim::PagedHeads<Keys, Keys> heads{f.codec, f.codec, {DType::f16}, copy.view(), copy.view(), n.data(), 5};
  heads.passed = {{passed.data(), 4}, 4};
  const prim::ColumnRequest r{.rows = 4, .group = prim::GroupReduce::sum, .past = true, .out = {out.data(), o.data(), 5}};
  Context<Cuda> ctx = device.with_workspace(prim::AttendColumns<Cuda>::workspace_bytes(r, 10, 5, 300));
  REQUIRE(prim::AttendColumns<Cuda>::run(ctx, r, dense_view(static_cast<const float*>(in.data()), 10, 4, 64), f.scale, heads, 300) == Status::ok);
  const std::vector<float> got = out.read();
  for (std::size_t h = 0; h < 5; ++h) {
    float drawn = 0.0f;
    for (auto i = at(f.offset[h]); i < at(f.offset[h + 1]); ++i) drawn += got[i];
    CHECK(drawn == Approx(f.slots[h] > 5 ? 8.0f : 0.0f));  // the second head has one old slot, which the first new one joined
    if (f.slots[h] > 4) CHECK(got[at(f.offset[h + 1]) - 5] == 0.0f);
  }
}
