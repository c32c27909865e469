#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

/// Two heads whose slots come and go, with the rows that saw each of them counted one by one.
struct Counted {
  std::vector<float> mark[2];
  std::vector<index_t> rows[2];
  index_t stepped = 0;

  std::vector<index_t> offset() const { return {0, static_cast<index_t>(mark[0].size()), static_cast<index_t>(mark[0].size() + mark[1].size())}; }
  std::vector<float> together() const {
    std::vector<float> all = mark[0];
    all.insert(all.end(), mark[1].begin(), mark[1].end());
    return all;
  }
  /// use(ctx, marks) in place.
  template <class F>
  void in_place(F&& use) {
    const std::vector<index_t> at = offset();
    test::Guarded<float> all(static_cast<std::size_t>(at[2]));
    const std::vector<float> before = together();
    std::copy(before.begin(), before.end(), all.data());
    Context<Cpu> ctx;
    REQUIRE(use(ctx, RaggedView<float>{all.data(), at.data(), 2}) == Status::ok);
    REQUIRE(all.ok());
    for (int h = 0; h < 2; ++h) std::copy(all.data() + at[static_cast<std::size_t>(h)], all.data() + at[static_cast<std::size_t>(h) + 1], mark[h].begin());
  }
  void see(index_t count, bool anew) {
    for (auto& r : rows) {
      if (anew) std::fill(r.begin(), r.end(), 0);
      for (index_t row = 0; row < count; ++row)  // the oldest row first
        for (std::size_t j = 0; j < r.size(); ++j) r[j] += static_cast<index_t>(j + 1 + static_cast<std::size_t>(count - 1 - row)) <= static_cast<index_t>(r.size());
    }
  }
  void step(index_t appended, index_t count) {
    for (int h = 0; h < 2; ++h) mark[h].resize(mark[h].size() + static_cast<std::size_t>(appended), 0.0f), rows[h].resize(mark[h].size(), 0);
    stepped += appended;
    see(count, false);
    in_place([&](Context<Cpu>& ctx, RaggedView<float> m) { return prim::SlotExposure<Cpu>::count(ctx, stepped, appended, count, m); });
  }
  void begin(index_t count) {
    see(count, true);
    in_place([&](Context<Cpu>& ctx, RaggedView<float> m) { return prim::SlotExposure<Cpu>::begin(ctx, stepped, count, m); });
  }
  void drop(int h, std::size_t slot) {
    mark[h].erase(mark[h].begin() + static_cast<std::ptrdiff_t>(slot));
    rows[h].erase(rows[h].begin() + static_cast<std::ptrdiff_t>(slot));
  }
  void check() const {
    for (int h = 0; h < 2; ++h)
      for (std::size_t j = 0; j < mark[h].size(); ++j) {
        CAPTURE(h, j, stepped);
        REQUIRE(prim::exposed_rows(mark[h][j], static_cast<std::uint32_t>(stepped)) == static_cast<std::uint32_t>(rows[h][j]));
      }
  }
};

}  // namespace

TEST_CASE("slot_exposure: marks tell the rows that saw a slot, whatever comes, leaves and counts", "[prim][slot_exposure]") {
  // From 0, where float32 no longer has each number, and over the end of 32 bits.
  for (const index_t from : {index_t{0}, index_t{1} << 25, (index_t{1} << 32) - 40}) {
    Counted c;
    c.stepped = from;
    std::mt19937 random(7);
    for (int i = 0; i < 60; ++i) {
      const auto appended = static_cast<index_t>(random() % 5), odd = static_cast<index_t>(random() % 8);
      c.step(appended, i % 3 == 0 ? odd : appended);  // fewer rows than tokens, more of them, or as many
      c.check();
      for (int h = 0; h < 2; ++h)
        while (c.mark[h].size() > 6 && random() % 3 != 0) c.drop(h, random() % c.mark[h].size());
      if (i % 20 == 19) c.begin(odd), c.check();
    }
  }
}

TEST_CASE("slot_exposure: a step whose rows are its tokens writes their marks alone", "[prim][slot_exposure]") {
  std::vector<float> mark(9, 5.0f);
  const index_t offset[] = {0, 1, 9};
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::count(ctx, 40, 2, 2, {mark.data(), offset, 2}) == Status::ok);
  REQUIRE(std::count(mark.begin() + 1, mark.begin() + 7, 5.0f) == 6);
  REQUIRE((mark[0] == prim::exposure_mark(1, 40) && mark[7] == prim::exposure_mark(2, 40) && mark[8] == prim::exposure_mark(1, 40)));
}

TEST_CASE("slot_exposure: means divide by the rows, and nothing seen is nothing", "[prim][slot_exposure]") {
  const std::uint32_t now = GENERATE(0u, 9u, 1u << 26);
  const float sum[] = {3.0f, 2.0f, 5.0f}, mark[] = {prim::exposure_mark(4, now), prim::exposure_mark(1, now), prim::exposure_mark(0, now)};
  const index_t offset[] = {0, 1, 3};
  test::Guarded<float> out(3);
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::mean(ctx, {sum, offset, 2}, {mark, offset, 2}, now, {out.data(), offset, 2}) == Status::ok);
  REQUIRE((out.data()[0] == 0.75f && out.data()[1] == 2.0f && out.data()[2] == 0.0f));
  REQUIRE(out.ok());
}

TEST_CASE("slot_exposure: logarithms of the sums of new slots are of nothing, and become means", "[prim][slot_exposure]") {
  constexpr std::uint32_t now = 1000;
  const index_t rows[] = {0, 2, 6, 2, 900}, offset[] = {0, 3, 3, 5};
  float logs[] = {3, 3, 3, 3, 3}, mark[5], out[5];
  std::transform(rows, rows + 5, mark, [](index_t n) { return prim::exposure_mark(static_cast<std::uint32_t>(n), now); });
  const float none = -std::numeric_limits<float>::infinity();
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::open_logs(ctx, 0, {logs, offset, 3}) == Status::ok);
  REQUIRE(std::vector<float>(logs, logs + 5) == std::vector<float>(5, 3.0f));
  REQUIRE(prim::SlotExposure<Cpu>::open_logs(ctx, 1, {logs, offset, 3}) == Status::ok);
  REQUIRE(std::vector<float>(logs, logs + 5) == std::vector<float>{3, 3, none, 3, none});
  for (const float decay : {0.0f, 0.5f, 0.9f}) {
    REQUIRE(prim::SlotExposure<Cpu>::decayed_mean(ctx, {logs, offset, 3}, {mark, offset, 3}, now, decay, {out, offset, 3}) == Status::ok);
    REQUIRE((out[0] == none && out[2] == none && out[4] == none));  // no row, or nothing summed
    for (const std::size_t j : {1u, 3u})
      REQUIRE(out[j] == Approx(3.0 - std::log(1.0 - std::pow(static_cast<double>(decay), static_cast<double>(rows[j])))).epsilon(1e-6));
  }
  REQUIRE(prim::SlotExposure<Cpu>::open_logs(ctx, 3, {logs, offset, 3}) == Status::ok);  // a head may hold fewer slots than came
  REQUIRE(std::vector<float>(logs, logs + 5) == std::vector<float>(5, none));
}

TEST_CASE("slot_exposure: rows are divided by the part of all tokens that came before them", "[prim][slot_exposure]") {
  float out[4] = {7.0f, 7.0f, 7.0f, 7.0f};
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::row_divisors(ctx, 12, 3, out) == Status::ok);
  REQUIRE((out[0] == 12.0f / 9.0f && out[1] == 1.2f && out[2] == 12.0f / 11.0f && out[3] == 7.0f));
  REQUIRE(prim::SlotExposure<Cpu>::row_divisors(ctx, 2, 2, out) == Status::ok);
  REQUIRE((out[0] == std::numeric_limits<float>::infinity() && out[1] == 2.0f));
}
