#include <fuzz/fuzz.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <kvcondense/cpu.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::fuzz {
namespace {

/// a before b by the rule of the word: larger first, NaN last, equal ones by place.
bool before(const std::vector<float>& row, index_t a, index_t b, bool last) {
  const float x = row[static_cast<std::size_t>(a)], y = row[static_cast<std::size_t>(b)];
  if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
  if (!std::isnan(x) && x != y) return x > y;
  return last ? a > b : a < b;
}

// Rows of scores of any bits, ends and totals of any size that a caller may give, against a sort.
void run(Bytes bytes) {
  Reader in(bytes);
  const index_t rows = 1 + in.up_to(3);
  const auto ties = in.up_to(1) == 0 ? prim::Ties::first : prim::Ties::last;
  std::vector<prim::Ends> always(static_cast<std::size_t>(rows));
  std::vector<index_t> total(static_cast<std::size_t>(rows)), offset{0};
  std::vector<std::vector<float>> scores(static_cast<std::size_t>(rows));
  std::vector<float> flat;
  for (index_t r = 0; r < rows; ++r) {
    const auto i = static_cast<std::size_t>(r);
    const index_t n = in.take<std::uint16_t>() % 300;
    always[i].prefix = in.byte() % (n + 1);
    always[i].suffix = in.byte() % (n - always[i].prefix + 1);
    total[i] = in.take<std::uint16_t>() % (n + 3);
    const bool few = in.up_to(1) == 1;  // of few values, so that they are equal
    for (index_t j = 0; j < n; ++j) {
      const float x = few ? static_cast<float>(in.up_to(3)) : in.take<float>();
      scores[i].push_back(few && x == 3.0f ? NAN : x);
    }
    flat.insert(flat.end(), scores[i].begin(), scores[i].end());
    offset.push_back(static_cast<index_t>(flat.size()));
  }
  std::vector<std::int32_t> slots(flat.size() + 1, -7);
  std::vector<index_t> count(static_cast<std::size_t>(rows), -1);
  Context<Cpu> ctx{{}};
  REQUIRE(prim::TopK<Cpu>::run(ctx, {flat.data(), offset.data(), rows}, always.data(), total.data(), {slots.data(), offset.data(), rows}, count.data(),
                               nullptr, ties) == Status::ok);
  REQUIRE(slots.back() == -7);
  for (index_t r = 0; r < rows; ++r) {
    const auto i = static_cast<std::size_t>(r);
    const std::vector<float>& row = scores[i];
    const auto n = static_cast<index_t>(row.size());
    std::vector<index_t> want(row.size());
    std::iota(want.begin(), want.end(), index_t{0});
    if (total[i] < n) {
      const auto end = [&](index_t place) { return place < always[i].prefix || place >= n - always[i].suffix; };
      std::sort(want.begin(), want.end(), [&](index_t a, index_t b) { return end(a) != end(b) ? end(a) : before(row, a, b, ties == prim::Ties::last); });
      want.resize(static_cast<std::size_t>(std::max(total[i], always[i].size())));
      std::sort(want.begin(), want.end());
    }
    REQUIRE(count[i] == static_cast<index_t>(want.size()));
    for (std::size_t j = 0; j < want.size(); ++j) REQUIRE(slots[static_cast<std::size_t>(offset[i]) + j] == want[j]);
  }
}

std::vector<Input> seeds() {
  std::vector<Input> list;
  for (const int few : {0, 1})
    for (const int rows : {0, 3}) {
      Input one{static_cast<std::byte>(rows), static_cast<std::byte>(few)};
      for (int r = 0; r <= rows; ++r) {
        for (const int x : {100 + r, 0, 4, 7, 20 * r, 0, few}) one.push_back(static_cast<std::byte>(x));
        for (int j = 0; j < (100 + r) * (few == 1 ? 1 : 4); ++j) one.push_back(static_cast<std::byte>(j * 37 % 251));
      }
      list.push_back(one);
    }
  return list;
}

}  // namespace

const Target top_k{"top_k", run, seeds};

}  // namespace kvcondense::fuzz
