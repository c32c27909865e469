#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/quant/bfp.hpp>
#include <kvcondense/quant/channel_order.hpp>

#include <quant/block_format.hpp>

using namespace kvcondense;
using quant::ChannelOrderRules;

namespace {

using Order = std::vector<std::int32_t>;

TensorView<const float, 2> matrix(const std::vector<float>& m, index_t rows) {
  return dense_view(m.data(), rows, static_cast<index_t>(m.size()) / rows);
}

Order ordered(const std::vector<float>& weights, index_t heads, index_t dim, const ChannelOrderRules& rules) {
  Order order(static_cast<std::size_t>(heads * dim));
  REQUIRE(quant::order_channels(matrix(weights, heads * dim), rules, dense_view(order.data(), heads, dim)) == Status::ok);
  return order;
}

std::vector<float> permuted(const std::vector<float>& weights, index_t rows, const Order& order, index_t kv_heads) {
  std::vector<float> out(weights.size());
  const auto to = dense_view(out.data(), rows, static_cast<index_t>(weights.size()) / rows);
  REQUIRE(quant::permute_rows(matrix(weights, rows),
                              dense_view(order.data(), kv_heads, static_cast<index_t>(order.size()) / kv_heads), to) == Status::ok);
  return out;
}

std::vector<float> times(const std::vector<float>& weights, index_t rows, const std::vector<float>& x) {
  std::vector<float> y(static_cast<std::size_t>(rows));
  for (std::size_t r = 0; r < y.size(); ++r) {
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(weights[r * x.size() + i]) * static_cast<double>(x[i]);
    y[r] = static_cast<float>(sum);
  }
  return y;
}

/// Turns every head of `row` by the angles of the KV head it belongs to.
void turn(std::vector<float>& row, index_t dim, index_t group, const std::vector<std::vector<float>>& frequency,
          index_t position, prim::RopePairing pairing) {
  for (index_t h = 0; h < static_cast<index_t>(row.size()) / dim; ++h) {
    const std::vector<float>& f = frequency[static_cast<std::size_t>(h / group)];
    std::vector<float> cos(f.size()), sin(f.size());
    for (std::size_t t = 0; t < f.size(); ++t) {
      cos[t] = static_cast<float>(std::cos(static_cast<double>(position) * static_cast<double>(f[t])));
      sin[t] = static_cast<float>(std::sin(static_cast<double>(position) * static_cast<double>(f[t])));
    }
    float* head = row.data() + h * dim;
    prim::rotate_row(head, head, cos.data(), sin.data(), static_cast<index_t>(f.size()), pairing);
  }
}

/// A projection whose rows have norms between 0.2 and 8, other ones in each head.
std::vector<float> uneven(index_t rows, index_t inputs, std::uint64_t seed) {
  std::vector<float> w(static_cast<std::size_t>(rows * inputs)), size(static_cast<std::size_t>(rows));
  test::fill_normal(w.data(), w.size(), seed);
  test::fill_normal(size.data(), size.size(), seed + 1);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] *= std::exp(size[i / static_cast<std::size_t>(inputs)]);
  return w;
}

}  // namespace

TEST_CASE("channel_order: the order by norms is the worked example's", "[quant][channel_order][oracle]") {
  const auto o = test::load_oracle("quantization.json", "H_bfp_ksort");
  const std::vector<float> k = test::floats(o.at("k"));  // rows of one input
  REQUIRE(ordered(k, 1, 16, {}) == o.at("perm_by_channel_norm_desc").get<Order>());
}

TEST_CASE("channel_order: queries and keys of permuted projections have the products they had", "[quant][channel_order]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256), group = GENERATE(1, 7, 16);
  constexpr index_t kv_heads = 2, inputs = 24;
  const std::vector<float> wk = uneven(kv_heads * dim, inputs, 3), wq = uneven(kv_heads * group * dim, inputs, 5);
  std::vector<float> x(inputs), y(inputs);
  test::fill_normal(x.data(), x.size(), 6);
  test::fill_normal(y.data(), y.size(), 7);
  const index_t rotary = GENERATE(0, 1, 2);  // none, half of the channels, all
  for (const prim::RopePairing pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved})
    for (const bool shared : {false, true}) {
      const ChannelOrderRules rules{.rotary_dim = rotary * dim / 2, .pairing = pairing, .shared = shared};
      const Order order = ordered(wk, kv_heads, dim, rules);
      const auto new_k = permuted(wk, kv_heads * dim, order, kv_heads), new_q = permuted(wq, kv_heads * group * dim, order, kv_heads);
      std::vector<float> plain(static_cast<std::size_t>(rules.rotary_dim / 2));
      for (std::size_t t = 0; t < plain.size(); ++t)
        plain[t] = static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(t) / static_cast<double>(dim)));
      std::vector<std::vector<float>> before(kv_heads, plain), after(kv_heads, plain);
      for (index_t h = 0; h < kv_heads; ++h)
        REQUIRE(quant::permute_angles(plain, rules, std::span(order).subspan(static_cast<std::size_t>(h * dim), static_cast<std::size_t>(dim)),
                                      after[static_cast<std::size_t>(h)]) == Status::ok);
      if (shared) REQUIRE(after[0] == after[1]);
      auto k = times(wk, kv_heads * dim, x), q = times(wq, kv_heads * group * dim, y);
      auto k2 = times(new_k, kv_heads * dim, x), q2 = times(new_q, kv_heads * group * dim, y);
      turn(k, dim, 1, before, 77, pairing), turn(q, dim, group, before, 1234, pairing);
      turn(k2, dim, 1, after, 77, pairing), turn(q2, dim, group, after, 1234, pairing);
      double worst = 0.0;
      bool moved = false;
      for (index_t h = 0; h < kv_heads * group; ++h) {
        double was = 0.0, is = 0.0, size = 0.0;
        for (index_t c = 0; c < dim; ++c) {
          const auto i = static_cast<std::size_t>(h * dim + c), j = static_cast<std::size_t>(h / group * dim + c);
          was += static_cast<double>(q[i]) * static_cast<double>(k[j]);
          is += static_cast<double>(q2[i]) * static_cast<double>(k2[j]);
          size += std::abs(static_cast<double>(q[i]) * static_cast<double>(k[j]));
          moved = moved || k[j] != k2[j];
        }
        worst = std::max(worst, std::abs(was - is) / size);
      }
      CAPTURE(dim, group, rules.rotary_dim, static_cast<int>(pairing), shared);
      REQUIRE(moved);
      REQUIRE(worst < 1e-5);
    }
}

TEST_CASE("channel_order: every channel once, pairs stay pairs, norms fall", "[quant][channel_order]") {
  constexpr index_t dim = 96, heads = 3, inputs = 8;
  const std::vector<float> w = uneven(heads * dim, inputs, 9);
  const auto square = [&](index_t h, index_t c) {
    double sum = 0.0;
    for (index_t i = 0; i < inputs; ++i) {
      const auto x = static_cast<double>(w[static_cast<std::size_t>((h * dim + c) * inputs + i)]);
      sum += x * x;
    }
    return sum;
  };
  for (const prim::RopePairing pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved})
    for (const index_t rotary : {index_t{0}, index_t{48}, dim}) {
      const ChannelOrderRules rules{.rotary_dim = rotary, .pairing = pairing};
      const Order order = ordered(w, heads, dim, rules);
      const index_t far = pairing == prim::RopePairing::half_split ? rotary / 2 : 1;
      const index_t step = pairing == prim::RopePairing::half_split ? 1 : 2;
      for (index_t h = 0; h < heads; ++h) {
        const auto old = [&](index_t c) { return static_cast<index_t>(order[static_cast<std::size_t>(h * dim + c)]); };
        Order sorted(order.begin() + h * dim, order.begin() + (h + 1) * dim);
        std::sort(sorted.begin(), sorted.end());
        for (index_t c = 0; c < dim; ++c) REQUIRE(sorted[static_cast<std::size_t>(c)] == c);
        double last = HUGE_VAL;
        for (index_t t = 0; t < rotary / 2; ++t) {
          REQUIRE(old(t * step + far) == old(t * step) + far);
          const double both = square(h, old(t * step)) + square(h, old(t * step + far));
          REQUIRE(both <= last);
          last = both;
        }
        last = HUGE_VAL;
        for (index_t c = rotary; c < dim; ++c) {
          REQUIRE(square(h, old(c)) <= last);
          last = square(h, old(c));
        }
      }
    }
}

TEST_CASE("channel_order: equal norms keep their order, numbers that are none come first", "[quant][channel_order]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(ordered({1.0f, -1.0f, 1.0f, 1.0f}, 1, 4, {}) == Order{0, 1, 2, 3});
  REQUIRE(ordered({1.0f, 2.0f, nan, 3.0f}, 1, 4, {}) == Order{2, 3, 1, 0});
  REQUIRE(ordered({1.0f, 2.0f, 1.0f, 1.0f, 3.0f, 1.0f}, 1, 6, {.rotary_dim = 6}) == Order{1, 0, 2, 4, 3, 5});
}

TEST_CASE("channel_order: a sorted key projection leaves keys of uneven channels less error", "[quant][channel_order][bfp]") {
  constexpr index_t dim = 128, inputs = 64, tokens = 512;
  std::vector<float> w(dim * inputs);
  test::fill_normal(w.data(), w.size(), 11);
  for (const index_t c : {5, 37, 69, 101, 20, 52, 84, 116})  // one or two strong channels in every block of 32
    for (index_t i = 0; i < inputs; ++i) w[static_cast<std::size_t>(c * inputs + i)] *= 12.0f;
  const auto error = [&](const std::vector<float>& weights) {
    std::vector<float> keys, x(inputs);
    for (index_t t = 0; t < tokens; ++t) {
      test::fill_normal(x.data(), x.size(), 100 + static_cast<std::uint64_t>(t));
      const auto k = times(weights, dim, x);
      keys.insert(keys.end(), k.begin(), k.end());
    }
    return test::mean_square(keys, test::BlockPage(quant::Bfp{}.key_codec(), keys, dim).decoded());
  };
  for (const index_t rotary : {index_t{0}, dim}) {
    const Order order = ordered(w, 1, dim, {.rotary_dim = rotary});
    CAPTURE(rotary);
    // One block of four gets all strong channels; two do where each takes its partner with it.
    REQUIRE(error(permuted(w, dim, order, 1)) < (rotary == 0 ? 0.6 : 0.8) * error(w));
  }
}

TEST_CASE("channel_order: shapes that disagree are refused, and nothing is written", "[quant][channel_order]") {
  std::vector<float> w(8 * 3), out(8 * 3, -7.0f), frequency(2), angles(2, -7.0f);
  Order order(8, -7);
  const auto view = dense_view(order.data(), index_t{2}, index_t{4});
  const auto rows = [&](index_t n) { return dense_view(static_cast<const float*>(w.data()), n, index_t{3}); };
  REQUIRE(quant::order_channels(rows(7), {}, view) == Status::shape_mismatch);
  for (const index_t rotary : {-2, 3, 6}) REQUIRE(quant::order_channels(rows(8), {.rotary_dim = rotary}, view) == Status::invalid_argument);
  REQUIRE(order == Order(8, -7));
  const auto to = dense_view(out.data(), index_t{8}, index_t{3});
  REQUIRE(quant::permute_rows(rows(8), view, to) == Status::invalid_argument);  // names no channel
  REQUIRE(quant::order_channels(rows(8), {}, view) == Status::ok);
  REQUIRE(quant::permute_rows(rows(6), view, to) == Status::shape_mismatch);
  REQUIRE(out == std::vector<float>(8 * 3, -7.0f));
  const ChannelOrderRules pairs{.rotary_dim = 4};
  REQUIRE(quant::permute_angles(frequency, pairs, Order{0, 1, 3, 2}, angles) == Status::invalid_argument);
  REQUIRE(quant::permute_angles(std::span(frequency).first(1), pairs, Order{0, 1, 2, 3}, angles) == Status::shape_mismatch);
  REQUIRE(angles == std::vector<float>(2, -7.0f));
}
