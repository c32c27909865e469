// Pages whose groups of slots have two widths: the bytes of the CPU, by the same scores, and each slot in its class when pages are joined.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cpu/mixed_rows.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"
#include "joined_pages.hpp"

using namespace kvcondense;
using test::at;

namespace {

using Codec = prim::MixedRows<prim::GroupInt<4>, prim::GroupInt<2>>;
using Coder = prim::PageCodec<Cpu, Codec>;

/// Of `group` slots `high` have 4 bits, the others 2.
Codec mixed(prim::GroupAxis axis, index_t group, index_t high) {
  const auto slots = [&](index_t n) { return axis == prim::GroupAxis::channel ? n : 0; };
  return {{.axis = axis, .group_size = slots(high)}, {.axis = axis, .group_size = slots(group - high)}, group, high};
}

/// Normal numbers, some of which must be repaired.
std::vector<float> rows_of(index_t n, index_t dim, unsigned seed, bool odd = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n * dim));
  for (float& v : x) {
    const auto strange = odd ? random() % 200 : 9;
    v = strange == 0 ? NAN : strange == 1 ? -INFINITY : strange == 2 ? 3e38f : strange == 3 ? 70000.0f : normal(random);
  }
  return x;
}
/// Few scores that differ, so that many are equal; some are no numbers.
std::vector<float> scores_of(index_t n, unsigned seed) {
  std::mt19937 random(seed);
  const float any[] = {NAN, -INFINITY, -0.0f, 0.0f, 1e-30f, 0.25f, 0.5f, INFINITY};
  std::vector<float> x(at(n));
  for (float& v : x) v = any[random() % 8];
  return x;
}

/// Rows of a whole page that become codes by their scores, on the device from newest slots of a head, of which every second one stays.
void codes_alike(const Codec& codec, index_t slots, index_t dim) {
  INFO("groups of " << codec.group << ", " << codec.high_slots << " of them better, in pages of " << slots << ", rows of " << dim);
  const std::vector<float> rows = rows_of(slots, dim, 5), scores = scores_of(slots, 6);
  std::vector<std::byte> page(codec.page_bytes(slots, dim));
  const prim::PageSpan host{page.data(), slots, dim};
  REQUIRE(Coder::encode(codec, host, 0, slots, {rows.data(), slots, dim}, scores.data()) == 0);
  std::vector<float> decoded(at(slots * dim));
  Coder::decode(codec, host, 0, slots, {decoded.data(), slots, dim});

  constexpr index_t others = 7;  // slots in front of the newest ones
  std::vector<float> newest(at(2 * slots * dim), 9.0f), all(at(others + 2 * slots), 8.0f);
  std::vector<std::int32_t> list;
  for (index_t i = 0; i < slots; ++i) {
    std::copy_n(rows.data() + i * dim, dim, newest.data() + (2 * i + 1) * dim);
    all[at(others + 2 * i + 1)] = scores[at(i)], list.push_back(static_cast<std::int32_t>(others + 2 * i + 1));
  }
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> exact(device, newest), numbers(device, all), out(device, std::vector<float>(decoded.size(), NAN));
    test::OnDevice<std::byte> there(device, std::vector<std::byte>(page.size(), std::byte{255}));  // bytes that are nobody's become zeros
    test::OnDevice<std::byte*> pages(device, {reinterpret_cast<std::byte*>(exact.data())});
    test::OnDevice<index_t> offset(device, {0, 1}), list_offset(device, {0, slots}), count(device, {slots}), score_offset(device, {0, others + 2 * slots}), repaired(device, {0});
    test::OnDevice<std::int32_t> kept(device, list);
    test::OnDevice<prim::KeptRange> range(device, {{0, slots, others, 0}});
    test::OnDevice<prim::CodedRows> jobs(device, {{there.data(), 0, 0, 0, static_cast<std::int32_t>(slots)}});
    prim::ColumnParts column;
    column.coded.page_slots = slots, column.coded.dim = dim;
    column.newest = {pages.data(), offset.data(), 1, 2 * slots, dim};
    prim::GroupWork work;
    work.coded = jobs.data(), work.coded_count = 1, work.scores = {numbers.data(), score_offset.data(), 1};
    const auto form = prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim);
    CHECK(form.page_bytes(slots, dim) == page.size());
    REQUIRE(prim::GroupPages::code(device, form, prim::ExactRows{DType::f32}, column, {{kept.data(), list_offset.data(), 1}, count.data(), range.data()}, work, repaired.data()) == Status::ok);
    REQUIRE(there.read() == page);
    CHECK(repaired.read()[0] == 0);
    test::OnDevice<prim::PageRows> reads(device, {{there.data(), out.data(), dim, 0, static_cast<std::int32_t>(slots)}});
    REQUIRE(prim::PageCodec<Cuda, prim::MixedForm>::decode(device, form, {reads.data(), 1, slots, slots, dim}) == Status::ok);
    REQUIRE(out.read() == decoded);
  });
}

/// Without scores: the newest slots of a group are in the better class. Rows have numbers to repair.
void pages_alike(const Codec& codec, index_t slots, index_t dim) {
  const std::vector<float> rows = rows_of(slots, dim, 7, true);
  std::vector<std::byte> page(codec.page_bytes(slots, dim));
  const index_t repaired = Coder::encode(codec, {page.data(), slots, dim}, 0, slots, {rows.data(), slots, dim}, nullptr);
  CHECK(repaired > 0);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> in(device, rows);
    test::OnDevice<std::byte> there(device, std::vector<std::byte>(page.size()));
    test::OnDevice<prim::PageRows> jobs(device, {{there.data(), in.data(), dim, 0, static_cast<std::int32_t>(slots)}});
    test::OnDevice<index_t> count(device, {5});
    const auto form = prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim);
    REQUIRE(prim::PageCodec<Cuda, prim::MixedForm>::encode(device, form, {jobs.data(), 1, slots, slots, dim}, count.data()) == Status::ok);
    REQUIRE(there.read() == page);
    CHECK(count.read()[0] == 5 + repaired);
  });
}

/// Two pages become one, in place and in a third, as the host does it.
void joins_alike(const Codec& codec, index_t slots, index_t dim) {
  INFO("groups of " << codec.group << " in pages of " << slots << ", rows of " << dim);
  const std::size_t each = (codec.page_bytes(slots, dim) + 63) / 64 * 64;
  for (const index_t into : {0, 2}) {
    std::vector<std::byte> pages(3 * each);
    const auto page = [&](index_t p) { return prim::PageSpan{pages.data() + at(p) * each, slots, dim}; };
    for (index_t p = 0; p < 3; ++p)
      Coder::encode(codec, page(p), 0, slots, {rows_of(slots, dim, static_cast<unsigned>(p)).data(), slots, dim}, scores_of(slots, static_cast<unsigned>(p + 3)).data());
    const std::vector<std::byte> before = pages;
    std::vector<float> rows(at(2 * slots * dim)), grades(at(2 * slots));
    index_t n = 0;
    for (index_t p = 0; p < 2; ++p)
      for (index_t s = 0; s < slots; ++s)
        if (cuda_pages::lives(p, s, slots)) grades[at(n)] = Coder::grade(codec, page(p), s), Coder::decode(codec, page(p), s, 1, {rows.data() + dim * n++, 1, dim});
    const index_t full = (n + codec.group - 1) / codec.group * codec.group;
    for (index_t i = n; i < full; ++i) std::copy_n(rows.data() + (n - 1) * dim, dim, rows.data() + i * dim);
    Coder::encode(codec, page(into), 0, full, {rows.data(), full, dim}, grades.data());
    test::each_way([&] { REQUIRE(cuda_pages::joined(codec, before, each, into, slots, dim) == pages); });
  }
}

/// Maps that name any number of slots, as in forged files: every class has its rows still, and those alone are read.
void reads_forged(const Codec& codec, index_t slots, index_t dim) {
  std::vector<std::byte> page(codec.page_bytes(slots, dim));
  const prim::PageSpan host{page.data(), slots, dim};
  Coder::encode(codec, host, 0, slots, {rows_of(slots, dim, 3).data(), slots, dim}, nullptr);
  std::mt19937 random(9);
  std::vector<float> decoded(at(slots * dim)), one(at(dim));
  for (index_t g = 0; g < slots / codec.group; ++g) {
    const std::uint32_t map = g == 0 ? 0u : g == 1 ? ~0u : static_cast<std::uint32_t>(random());
    std::memcpy(page.data() + g * codec.group_bytes(dim), &map, at(codec.group / 8));
  }
  Coder::decode(codec, host, 0, slots, {decoded.data(), slots, dim});
  for (index_t s = 0; s < slots; ++s) {  // one by one, too
    Coder::decode(codec, host, s, 1, {one.data(), 1, dim});
    REQUIRE(std::equal(one.begin(), one.end(), decoded.begin() + s * dim));
  }
  // Where none is named, the others come first.
  std::vector<std::byte> named(page.begin(), page.begin() + codec.group_bytes(dim));
  const auto map = static_cast<std::uint32_t>(((std::uint64_t{1} << codec.high_slots) - 1) << codec.low_slots());
  std::memcpy(named.data(), &map, at(codec.group / 8));
  std::vector<float> first(at(codec.group * dim));
  Coder::decode(codec, {named.data(), codec.group, dim}, 0, codec.group, {first.data(), codec.group, dim});
  REQUIRE(std::equal(first.begin(), first.end(), decoded.begin()));
  test::each_way([&] {
    test::Device device;
    test::OnDevice<std::byte> there(device, page);
    test::OnDevice<float> out(device, std::vector<float>(decoded.size(), NAN));
    test::OnDevice<prim::PageRows> reads(device, {{there.data(), out.data(), dim, 0, static_cast<std::int32_t>(slots)}});
    const auto form = prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim);
    REQUIRE(prim::PageCodec<Cuda, prim::MixedForm>::decode(device, form, {reads.data(), 1, slots, slots, dim}) == Status::ok);
    REQUIRE(out.read() == decoded);
  });
}

}  // namespace

// What a form that kernels learn when they run does not say is not served.
static_assert(prim::table_serves(Codec{.group = 64, .high_slots = 16}));
static_assert(!prim::table_serves(Codec{.high = {.form = prim::GroupForm::symmetric}}));
static_assert(!prim::table_serves(Codec{.low = {.rounding = prim::Rounding::half_up}}));
static_assert(!prim::table_serves(Codec{.low = {.params = prim::ParamType::f32}}));
static_assert(!prim::table_serves(Codec{.high = {.axis = prim::GroupAxis::channel, .group_size = 16}}));

TEST_CASE("cuda mixed_rows: scores choose the slots with more bits, of equal ones the newer, NaN never") {
  for (const auto axis : {prim::GroupAxis::token, prim::GroupAxis::channel}) {
    codes_alike(mixed(axis, 8, 3), 16, 64);
    codes_alike(mixed(axis, 2, 1), 6, 17);
    codes_alike(mixed(axis, 64, 39), 64, 80);
    codes_alike(mixed(axis, 256, 100), 256, 96);
    pages_alike(mixed(axis, 16, 9), 32, 256);
  }
}

TEST_CASE("cuda mixed_rows: slots keep their classes when pages are joined") {
  for (const auto axis : {prim::GroupAxis::token, prim::GroupAxis::channel}) {
    joins_alike(mixed(axis, 8, 3), 32, 64);
    joins_alike(mixed(axis, 4, 1), 12, 17);
    joins_alike(mixed(axis, 64, 39), 128, 80);
  }
}

TEST_CASE("cuda mixed_rows: maps that name too many slots or too few are read within the page") {
  for (const auto axis : {prim::GroupAxis::token, prim::GroupAxis::channel}) {
    reads_forged(mixed(axis, 8, 2), 64, 64);
    reads_forged(mixed(axis, 32, 20), 128, 17);
  }
}
