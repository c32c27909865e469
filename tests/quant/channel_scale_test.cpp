#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/prim/channel_scale.hpp>

#include <support/fill.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

using Map = prim::RowTransform<Cpu, prim::ChannelScale>;
using Rule = prim::ChannelScale::Rule;

std::vector<float> flat(const nlohmann::json& rows) {
  std::vector<float> all;
  for (const auto& r : rows)
    for (const auto& x : r) all.push_back(x.get<float>());
  return all;
}

/// The state that rows and queries [tokens, dim] of one query head give.
std::vector<float> found(Rule rule, std::vector<float> rows, const std::vector<float>& q, index_t dim, index_t piece = 1000) {
  const prim::ChannelScale t{rule};
  std::vector<float> state(static_cast<std::size_t>(t.state_floats(dim)), 0.0f);
  const auto n = static_cast<index_t>(rows.size()) / dim;
  for (index_t at = 0; at < n; at += piece) Map::observe(t, dim, {rows.data() + at * dim, std::min(piece, n - at), dim}, state.data());
  Map::settle(t, dim, {dense_view(q.data(), 1, static_cast<index_t>(q.size()) / dim, dim), 0, 1}, state.data());
  return state;
}

/// Rows through `bits` per row and back.
template <int Bits>
std::vector<float> coded(std::vector<float> rows, index_t dim, std::vector<std::byte>* bytes = nullptr) {
  using Page = prim::PageCodec<Cpu, prim::GroupInt<Bits>>;
  const prim::GroupInt<Bits> codec{.params = prim::ParamType::f32};
  const auto n = static_cast<index_t>(rows.size()) / dim;
  std::vector<std::byte> page(codec.page_bytes(n, dim));
  (void)Page::encode(codec, {page.data(), n, dim}, 0, n, {rows.data(), n, dim});
  Page::decode(codec, {page.data(), n, dim}, 0, n, {rows.data(), n, dim});
  if (bytes != nullptr) *bytes = page;
  return rows;
}

}  // namespace

TEST_CASE("channel_scale: MiKV's balancer of the worked example, and what two bits make of it", "[quant][channel_scale][oracle]") {
  const auto o = test::load_oracle("quantization.json", "F_mikv_balancer");
  const auto k = flat(o.at("K")), q = flat(o.at("Q"));
  const auto state = found(Rule::balance, k, q, 4, 3);
  const auto want = test::floats(o.at("balancer"));
  for (std::size_t c = 0; c < 4; ++c) REQUIRE(state[c] == Approx(want[c]).epsilon(1e-6));
  auto balanced = k, asked = q;
  Map::forward({Rule::balance}, state.data(), 4, {balanced.data(), 4, 4});
  Map::query({Rule::balance}, state.data(), 4, {asked.data(), 4, 4});
  const auto want_k = flat(o.at("K_balanced")), want_q = flat(o.at("Q_balanced"));
  for (std::size_t i = 0; i < 16; ++i) REQUIRE((balanced[i] == Approx(want_k[i]).epsilon(1e-6) && asked[i] == Approx(want_q[i]).epsilon(1e-6)));
  const auto error = [&](const std::vector<float>& keys, const std::vector<float>& queries) {
    double off = 0, all = 0;
    for (std::size_t i = 0; i < 4; ++i)
      for (std::size_t t = 0; t < 4; ++t) {
        double got = 0;
        for (std::size_t c = 0; c < 4; ++c) got += static_cast<double>(queries[i * 4 + c]) * static_cast<double>(keys[t * 4 + c]);
        const auto exact = o.at("logits_exact")[i][t].get<double>();
        off += (got - exact) * (got - exact), all += exact * exact;
      }
    return std::sqrt(off / all);
  };
  REQUIRE(error(balanced, asked) < 1e-6);  // nothing changes before codes
  REQUIRE(error(coded<2>(k, 4), q) == Approx(o.at("rel_err_2bit_raw").get<double>()).epsilon(1e-3));
  REQUIRE(error(coded<2>(balanced, 4), asked) == Approx(o.at("rel_err_2bit_balanced").get<double>()).epsilon(1e-3));
}

TEST_CASE("channel_scale: ZipCache's channel scales of the worked example, codes and rows", "[quant][channel_scale][oracle]") {
  const auto o = test::load_oracle("quantization.json", "G2_zipcache_channel_separable");
  const auto x = flat(o.at("X"));
  const auto state = found(Rule::root_max, x, {}, 8);
  const auto want = test::floats(o.at("channel_scale"));
  for (std::size_t c = 0; c < 8; ++c) REQUIRE(1.0f / state[c] == Approx(want[c]).epsilon(1e-6));
  auto rows = x;
  Map::forward({Rule::root_max}, state.data(), 8, {rows.data(), 3, 8});
  std::vector<std::byte> bytes;
  rows = coded<4>(rows, 8, &bytes);
  for (std::size_t r = 0; r < 3; ++r)
    for (std::size_t c = 0; c < 8; ++c)
      REQUIRE(((static_cast<int>(bytes[r * 4 + c / 2]) >> (c % 2 * 4)) & 15) == o.at("codes")[r][c].get<int>());
  Map::backward({Rule::root_max}, state.data(), 8, {rows.data(), 3, 8});
  const auto back = flat(o.at("dequant"));
  const auto mse = [&](const std::vector<float>& got) {
    double sum = 0;
    for (std::size_t i = 0; i < 24; ++i) sum += std::pow(static_cast<double>(got[i] - x[i]), 2) / 24;
    return sum;
  };
  for (std::size_t i = 0; i < 24; ++i) REQUIRE(rows[i] == Approx(back[i]).epsilon(1e-4).margin(1e-4));
  REQUIRE(mse(rows) == Approx(o.at("mse").get<double>()).epsilon(1e-3));
  REQUIRE(mse(coded<4>(x, 8)) == Approx(o.at("mse_plain_tokenwise").get<double>()).epsilon(1e-3));
}

TEST_CASE("channel_scale: errors on outlier channels follow the published trends", "[quant][channel_scale][oracle]") {
  const auto tables = test::load_oracle("quantization.json", "Y2_trends").at("tables");
  constexpr index_t tokens = 4096, dim = 128;
  std::vector<float> k(static_cast<std::size_t>(tokens * dim)), q(static_cast<std::size_t>(256 * dim));
  test::fill_normal(k.data(), k.size(), 4), test::fill_normal(q.data(), q.size(), 5);
  for (std::size_t i = 0; i < k.size(); ++i)
    if (i % 32 == 5) k[i] *= 10.0f;
  for (const Rule rule : {Rule::balance, Rule::root_max}) {
    const auto state = found(rule, k, q, dim);
    auto rows = k;
    Map::forward({rule}, state.data(), dim, {rows.data(), tokens, dim});
    using Page = prim::PageCodec<Cpu, prim::GroupInt<2>>;
    const prim::GroupInt<2> codec{.group_size = 32};
    std::vector<std::byte> page(codec.page_bytes(tokens, dim));
    (void)Page::encode(codec, {page.data(), tokens, dim}, 0, tokens, {rows.data(), tokens, dim});
    Page::decode(codec, {page.data(), tokens, dim}, 0, tokens, {rows.data(), tokens, dim});
    Map::backward({rule}, state.data(), dim, {rows.data(), tokens, dim});
    double sum = 0;
    for (std::size_t i = 0; i < k.size(); ++i) sum += std::pow(static_cast<double>(rows[i] - k[i]), 2);
    const auto& want = tables.at("G32").at(rule == Rule::balance ? "balancer_per_token" : "cstq_per_token");
    REQUIRE(sum / static_cast<double>(k.size()) == Approx(want.at("mse").get<double>()).epsilon(0.1));
  }
}

TEST_CASE("channel_scale: channels without numbers stay, and factors stay in bounds", "[quant][channel_scale]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> k{0, nan, inf, 1e-30f, 1e30f, 2, -3, 4}, q{1, 1, 1, 1, 1, 0, nan, 1};
  const auto balance = found(Rule::balance, k, q, 8), root = found(Rule::root_max, k, q, 8);
  for (std::size_t c = 0; c < 3; ++c) REQUIRE((balance[c] == 1.0f && root[c] == 1.0f));
  REQUIRE((balance[3] == 256.0f && balance[4] == 1.0f / 256.0f && balance[5] == 1.0f && balance[6] == 1.0f && balance[7] == 0.5f));
  REQUIRE((root[3] == 256.0f && root[4] == 1.0f / 256.0f && root[7] == 0.5f));
  for (std::size_t c = 0; c < 8; ++c) REQUIRE(balance[8 + c] == 1.0f / balance[c]);
  REQUIRE(prim::ChannelScale{}.state_floats(64) == 0);
}
