// Lists of chosen units and slots: their order, their union, what is added to logits, and indexes of codes, of words and of what slots drew.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include <kvcondense/backend/cpu/k_means.hpp>
#include <kvcondense/backend/cuda/drawn_slots.cuh>
#include <kvcondense/backend/cuda/listed_numbers.cuh>
#include <kvcondense/backend/cuda/metric_codes.cuh>
#include <kvcondense/backend/cuda/sign_hashes.cuh>
#include <kvcondense/backend/cuda/unit_biases.cuh>
#include <kvcondense/backend/cuda/unit_lists.cuh>
#include <kvcondense/retrieve/blocks/hashes.hpp>

#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;

namespace {

/// Rows of these lengths, and where they begin.
std::vector<index_t> offsets(std::initializer_list<index_t> lengths) {
  std::vector<index_t> out{0};
  for (const index_t n : lengths) out.push_back(out.back() + n);
  return out;
}

struct Rows {
  explicit Rows(const prim::ExactRows& exact, index_t dim, const std::vector<test::ColumnShape>& shapes, unsigned seed) : column(exact, exact, dim, 16, shapes, seed) {}
  std::vector<float> key(index_t head, index_t slot) const {
    std::vector<float> x(at(column.dim()));
    column.each(head, slot, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
      prim::PageCodec<Cpu, prim::ExactRows>::decode(column.exact(), column.page(run), place, 1, {x.data(), 1, column.dim()});
    });
    return x;
  }
  test::HostColumn<prim::ExactRows> column;
};

}  // namespace

TEST_CASE("cuda unit lists: places in the order of scores, equal ones in their own, NaN last") {
  std::mt19937 random(11);
  const std::vector<index_t> offset = offsets({700, 0, 5, 300});
  std::vector<float> scores(at(offset.back()));
  for (float& x : scores) x = static_cast<float>(random() % 40);
  scores[3] = scores[710 - 10 + 2] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::int32_t> units(at(offset.back()), 0), ranks(at(offset.back()), -1);
  std::vector<index_t> count{613, 0, 5, 300};
  for (std::size_t r = 0; r < count.size(); ++r)
    for (index_t i = 0; i < count[r]; ++i) units[at(offset[r] + i)] = static_cast<std::int32_t>(i + (i > 100 ? offset[r + 1] - offset[r] - count[r] : 0));
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> x(device, scores);
    test::OnDevice<std::int32_t> list(device, units), out(device, ranks);
    test::OnDevice<index_t> begin(device, offset), n(device, count);
    REQUIRE(prim::UnitOrder::ranks(device, {x.data(), begin.data(), 4}, {list.data(), begin.data(), 4}, n.data(), out.data()) == Status::ok);
    const std::vector<std::int32_t> got = out.read();
    for (std::size_t r = 0; r < count.size(); ++r) {
      std::vector<index_t> order(at(count[r]));
      for (index_t i = 0; i < count[r]; ++i) order[at(i)] = i;
      const auto key = [&](index_t i) { return prim::rank_bits(scores[at(offset[r] + units[at(offset[r] + i)])]); };
      std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return key(a) > key(b); });
      for (index_t i = 0; i < count[r]; ++i) REQUIRE(got[at(offset[r] + order[at(i)])] == i);
      for (index_t i = offset[r] + count[r]; i < offset[r + 1]; ++i) REQUIRE(got[at(i)] == -1);
    }
  });
}

TEST_CASE("cuda unit lists: what any row of a head lists") {
  std::mt19937 random(12);
  constexpr index_t heads = 3, group = 4;
  const std::vector<index_t> head_offset = offsets({600, 1, 257});
  std::vector<index_t> offset{0}, count;
  for (index_t r = 0; r < heads * group; ++r) offset.push_back(offset.back() + head_offset[at(r / group + 1)] - head_offset[at(r / group)]);
  std::vector<std::int32_t> rows(at(offset.back()), -1);
  std::set<std::int32_t> any[heads];
  for (index_t r = 0; r < heads * group; ++r) {
    index_t n = 0;
    for (std::int32_t u = 0; u < offset[at(r + 1)] - offset[at(r)]; ++u)
      if (random() % 9 == 0 && r != 5) rows[at(offset[at(r)] + n++)] = u, any[r / group].insert(u);
    count.push_back(n);
  }
  test::each_way([&] {
    test::Device device;
    test::OnDevice<std::int32_t> from(device, rows), to(device, std::vector<std::int32_t>(at(head_offset.back()), -7));
    test::OnDevice<index_t> begin(device, offset), head_begin(device, head_offset), n(device, count), made(device, std::vector<index_t>(heads, -1));
    REQUIRE(prim::UnitOrder::unite(device, {from.data(), begin.data(), heads * group}, n.data(), {to.data(), head_begin.data(), heads}, made.data()) == Status::ok);
    const std::vector<std::int32_t> got = to.read();
    const std::vector<index_t> sizes = made.read();
    for (index_t h = 0; h < heads; ++h) {
      REQUIRE(sizes[at(h)] == static_cast<index_t>(any[h].size()));
      REQUIRE(std::equal(any[h].begin(), any[h].end(), got.begin() + head_offset[at(h)]));
    }
  });
}

TEST_CASE("cuda unit biases: a block weighs what its score says") {
  constexpr index_t heads = 2, group = 3, dim = 80, size = 6, read = 5, units = 7;
  const Rows rows({DType::f16}, dim, {{5, 20, 30}, {42, 0, 0}}, 21);
  std::mt19937 random(22);
  std::normal_distribution<float> normal;
  std::vector<float> q(at(heads * group * dim)), scores(at(heads * group * units));
  for (float& x : q) x = normal(random);
  for (float& x : scores) x = normal(random);
  q[at(4 * dim + 3)] = std::numeric_limits<float>::quiet_NaN();
  std::vector<index_t> offset{0}, count, first{0, 0}, slots{55, 42};
  std::vector<std::int32_t> list(at(heads * group * units));
  for (index_t r = 0; r < heads * group; ++r) {
    offset.push_back((r + 1) * units), count.push_back(r % 4);
    for (index_t i = 0; i < count.back(); ++i) list[at(r * units + i)] = static_cast<std::int32_t>(2 * i);
  }
  const float scale = 0.3f;
  test::each_way([&] {
    test::Device device;
    auto copy = rows.column.on(device);
    test::OnDevice<index_t> begin(device, offset), n(device, count), begins(device, first), lengths(device, slots);
    test::OnDevice<std::int32_t> chosen(device, list);
    test::OnDevice<float> queries(device, q), x(device, scores), bias(device, std::vector<float>(scores.size(), 99.0f));
    const SlotRows<Cuda> keys(rows.column.exact(), copy.view(), lengths.data(), heads, 55, dim);
    const prim::BiasedUnits of{{chosen.data(), begin.data(), heads * group}, n.data(), begins.data(), heads, size, 0, queries.data()};
    REQUIRE(prim::UnitBiases::of_blocks(device, keys, of, read, scale, x.data(), units, bias.data()) == Status::ok);
    const std::vector<float> got = bias.read();
    for (index_t r = 0; r < heads * group; ++r)
      for (index_t i = 0; i < units; ++i) {
        const float b = got[at(r * units + i)];
        if (i >= count[at(r)]) {
          REQUIRE(b == 99.0f);
          continue;
        }
        double sum = 0.0;
        for (index_t s = 0; s < read; ++s) {
          const std::vector<float> key = rows.key(r / group, list[at(r * units + i)] * size + s);
          double dot = 0.0;
          for (index_t d = 0; d < dim; ++d) dot += static_cast<double>(q[at(r * dim + d)]) * static_cast<double>(key[at(d)]);
          sum += std::exp(static_cast<double>(scale) * dot);
        }
        const double want = static_cast<double>(scale * scores[at(r * units + list[at(r * units + i)])]) - std::log(sum);
        if (std::isnan(want)) REQUIRE(std::isnan(b));
        else REQUIRE(std::fabs(static_cast<double>(b) - want) < 2e-5);
      }
  });
}

TEST_CASE("cuda metric codes: the nearest centroid by a metric") {
  constexpr index_t heads = 2, dim = 64, entries = 11, slots = 37;
  const Rows rows({DType::bf16}, dim, {{5, 10, 22}, {slots, 0, 0}}, 31);
  std::mt19937 random(32);
  std::normal_distribution<float> normal;
  const auto numbers = [&](index_t n) {
    std::vector<float> x(at(n));
    for (float& e : x) e = normal(random);
    return x;
  };
  const std::vector<float> book = numbers(heads * entries * dim), metric = numbers(heads * dim * dim);
  for (const bool plain : {true, false}) {
    std::vector<std::uint16_t> want(at(heads * slots));
    for (index_t h = 0; h < heads; ++h)
      for (index_t s = 0; s < slots; ++s) {
        const std::vector<float> key = rows.key(h, s);
        float best = std::numeric_limits<float>::infinity(), difference[dim];
        for (index_t c = 0; c < entries; ++c) {
          for (index_t d = 0; d < dim; ++d) difference[d] = key[at(d)] - book[at((h * entries + c) * dim + d)];
          const float far = prim::MetricLength<Cpu>::squared(difference, dim, plain ? nullptr : &metric[at(h * dim * dim)]);
          if (far < best) best = far, want[at(h * slots + s)] = static_cast<std::uint16_t>(c);
        }
      }
    test::each_way([&] {
      test::Device device;
      auto copy = rows.column.on(device);
      test::OnDevice<index_t> lengths(device, {slots, slots}), from(device, {0, 9});
      test::OnDevice<float> centroids(device, book), l(device, metric);
      test::OnDevice<std::uint16_t> codes(device, std::vector<std::uint16_t>(at(heads * slots), 77));
      prim::UnitPlanes planes;
      planes.plane[0] = reinterpret_cast<std::byte*>(codes.data()), planes.room[0] = 2 * slots;
      planes.metric = plain ? nullptr : l.data();
      const SlotRows<Cuda> keys(rows.column.exact(), copy.view(), lengths.data(), heads, slots, dim);
      REQUIRE(prim::MetricCodes::build(device, keys, planes, {centroids.data(), entries * dim, 1, 2, entries, false}, from.data(), lengths.data(), 0, slots) == Status::ok);
      const std::vector<std::uint16_t> got = codes.read();
      for (index_t i = 0; i < heads * slots; ++i) REQUIRE(got[at(i)] == (i >= slots && i < slots + 9 ? 77 : want[at(i)]));  // those stay as they are
    });
  }
}

TEST_CASE("cuda sign words: sides of planes seen from a mean, samples that meet twice, and their chances") {
  constexpr index_t heads = 2, group = 2, dim = 80, tables = 9, bits = 3, slots = 61;
  const Rows rows({DType::f16}, dim, {{11, 20, 30}, {slots, 0, 0}}, 41);
  std::mt19937 random(42);
  std::normal_distribution<float> normal;
  std::vector<float> planes(at(tables * bits * dim)), q(at(heads * group * dim));
  for (float& x : planes) x = normal(random);
  for (float& x : q) x = normal(random);
  const HashPlanes on_host{planes.data(), tables, bits, dim};
  std::vector<float> found;
  for (index_t h = 0; h < heads; ++h) {  // of slots [3, 55)
    std::vector<double> sum(at(dim));
    for (index_t s = 3; s < 55; ++s)
      for (index_t d = 0; d < dim; ++d) sum[at(d)] += static_cast<double>(rows.key(h, s)[at(d)]);
    for (index_t d = 0; d < dim; ++d) found.push_back(static_cast<float>(sum[at(d)] / 52.0));
  }
  const auto word = [&](const std::vector<float>& x, index_t table) {
    std::uint32_t w = 0;
    for (index_t b = 0; b < bits; ++b) {
      float sum = 0.0f;
      for (index_t d = 0; d < dim; ++d) sum += x[at(d)] * on_host.plane(table, b)[d];
      w |= static_cast<std::uint32_t>(sum > 0.0f) << b;
    }
    return w;
  };
  test::each_way([&] {
    test::Device device;
    auto copy = rows.column.on(device);
    test::OnDevice<float> sides(device, planes), queries(device, q), mean(device, std::vector<float>(at(heads * dim))), words(device, std::vector<float>(at(heads * group * tables)));
    test::OnDevice<index_t> lengths(device, {slots, slots}), from(device, {0, 0}), first(device, {2, 2}), offset(device, offsets({50, 50, 50, 50})), count(device, {-1, -1, -1, -1});
    test::OnDevice<std::uint16_t> codes(device, std::vector<std::uint16_t>(at(heads * slots * tables)));
    test::OnDevice<float> scores(device, std::vector<float>(200)), bias(device, std::vector<float>(200, 99.0f));
    test::OnDevice<std::int32_t> list(device, std::vector<std::int32_t>(200, -1));
    const SlotRows<Cuda> keys(rows.column.exact(), copy.view(), lengths.data(), heads, slots, dim);
    for (index_t h = 0; h < heads; ++h) REQUIRE(prim::SignWords::mean(device, keys, h, 3, 55, 52.0, mean.data() + h * dim) == Status::ok);
    REQUIRE(mean.read() == found);
    prim::UnitPlanes index;
    index.plane[0] = reinterpret_cast<std::byte*>(codes.data()), index.room[0] = 2 * slots * tables;
    index.found = mean.data(), index.found_room = dim;
    const HashPlanes on_device{sides.data(), tables, bits, dim};
    REQUIRE(prim::SignWords::build(device, keys, index, on_device, from.data(), lengths.data(), 0, slots) == Status::ok);
    REQUIRE(prim::SignWords::queries(device, on_device, queries.data(), heads * group, words.data()) == Status::ok);
    const prim::UnitScores to{{scores.data(), offset.data(), heads * group}, first.data(), nullptr, group, 1};
    REQUIRE(prim::SignWords::score(device, index, to, tables, words.data(), 50) == Status::ok);
    REQUIRE(prim::SignWords::sample(device, RaggedView<const float>(to.out), {list.data(), offset.data(), heads * group}, count.data()) == Status::ok);
    const prim::BiasedUnits chosen{{list.data(), offset.data(), heads * group}, count.data(), first.data(), heads, 1, 0, queries.data()};
    REQUIRE(prim::SignWords::chances(device, keys, index, chosen, bits, tables, 50, bias.data()) == Status::ok);
    const std::vector<float> x = scores.read(), b = bias.read();
    const std::vector<std::int32_t> listed = list.read();
    const std::vector<index_t> n = count.read();
    for (index_t r = 0; r < heads * group; ++r) {
      const std::vector<float> query(q.begin() + r * dim, q.begin() + (r + 1) * dim);
      index_t taken = 0;
      for (index_t u = 0; u < 50; ++u) {
        std::vector<float> key = rows.key(r / group, u + 2);
        for (index_t d = 0; d < dim; ++d) key[at(d)] -= found[at(r / group * dim + d)];
        int same = 0;
        for (index_t t = 0; t < tables; ++t) same += word(key, t) == word(query, t) ? 1 : 0;
        REQUIRE(x[at(r * 50 + u)] == static_cast<float>(same));
        if (same < 2) continue;
        REQUIRE(listed[at(r * 50 + taken)] == u);
        double dot = 0.0, norm = 0.0, length = 0.0;
        for (index_t d = 0; d < dim; ++d) {
          const double k = static_cast<double>(key[at(d)]), e = static_cast<double>(query[at(d)]);
          dot += k * e, norm += k * k, length += e * e;
        }
        const double want = -std::log(retrieve::Sampled::chance(dot / std::sqrt(norm * length), bits, tables) + 1e-4);
        REQUIRE(std::fabs(static_cast<double>(b[at(r * 50 + taken)]) - want) < 1e-5);
        ++taken;
      }
      REQUIRE(n[at(r)] == taken);
      REQUIRE(taken > 0);
    }
  });
}

TEST_CASE("cuda drawn slots: sums that move with slots, and the mean of the keys that drew most") {
  constexpr index_t heads = 2, group = 3, dim = 64, size = 20, count = 18;
  const Rows rows({DType::f32}, dim, {{45, 0, 0}, {40, 0, 0}}, 51);
  const std::vector<index_t> offset = offsets({45, 40}), stay{41, 40};
  std::mt19937 random(52);
  std::vector<float> before(at(heads * 50 * group)), more(at(85 * group));
  for (float& x : before) x = static_cast<float>(random() % 5);
  for (float& x : more) x = static_cast<float>(random() % 5);
  more[7] = std::numeric_limits<float>::quiet_NaN(), more[100] = std::numeric_limits<float>::infinity();
  std::vector<std::int32_t> keep(85);
  for (index_t h = 0; h < heads; ++h)
    for (index_t i = 0; i < stay[at(h)]; ++i) keep[at(offset[at(h)] + i)] = static_cast<std::int32_t>(i < 6 ? i : i + offset[at(h + 1)] - offset[at(h)] - stay[at(h)]);
  std::vector<float> want = before;
  for (index_t h = 0; h < heads; ++h)
    for (index_t i = 0; i < stay[at(h)]; ++i)
      for (index_t g = 0; g < group; ++g) {
        const index_t slots = offset[at(h + 1)] - offset[at(h)], slot = keep[at(offset[at(h)] + i)];
        const float old = slot < slots - 4 ? before[at((h * 50 + slot) * group + g)] : 0.0f, x = more[at(offset[at(h)] * group + g * slots + slot)];
        want[at((h * 50 + i) * group + g)] = old + (std::isfinite(x) ? x : 0.0f);
      }
  test::each_way([&] {
    test::Device device;
    auto copy = rows.column.on(device);
    test::OnDevice<float> sums(device, before), fresh(device, more), room(device, std::vector<float>(at(85 * group)));
    test::OnDevice<index_t> begin(device, offset), n(device, stay), from(device, {0, 0});
    test::OnDevice<std::int32_t> list(device, keep);
    const prim::DrawnNumbers drawn{{sums.data(), 50 * group}, group};
    REQUIRE(prim::DrawnSlots::step(device, drawn, 4, fresh.data(), {room.data(), begin.data(), heads}, list.data(), n.data()) == Status::ok);
    REQUIRE(sums.read() == want);

    test::OnDevice<float> index(device, std::vector<float>(at(heads * 2 * group * dim)));
    prim::UnitPlanes planes;
    planes.plane[0] = reinterpret_cast<std::byte*>(index.data()), planes.room[0] = 2 * group * dim * 4;
    planes.dtype = DType::f32, planes.slots = size, planes.width = group * dim;
    const SlotRows<Cuda> keys(rows.column.exact(), copy.view(), n.data(), heads, 45, dim);
    REQUIRE(prim::DrawnSlots::build(device, keys, planes, drawn, count, from.data(), n.data(), 0, 2) == Status::ok);
    const std::vector<float> got = index.read();
    for (index_t h = 0; h < heads; ++h)
      for (index_t u = 0; u < 2; ++u)
        for (index_t g = 0; g < group; ++g) {
          std::vector<index_t> order(at(size));
          for (index_t i = 0; i < size; ++i) order[at(i)] = u * size + i;
          std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return want[at((h * 50 + a) * group + g)] > want[at((h * 50 + b) * group + g)]; });
          std::vector<float> mean(at(dim));
          for (index_t i = 0; i < count; ++i)
            for (index_t d = 0; d < dim; ++d) mean[at(d)] += rows.key(h, order[at(i)])[at(d)];
          for (index_t d = 0; d < dim; ++d) REQUIRE(got[at(((h * 2 + u) * group + g) * dim + d)] == mean[at(d)] / static_cast<float>(count));
        }
  });
}
