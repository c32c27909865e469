#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/quant/layer_predictor.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

template <class T>
TensorView<T, 2> view(T* x, index_t rows, index_t columns) { return {x, {rows, columns}, {columns, 1}}; }

Workspace room() {
  Workspace work;
  REQUIRE(work.reserve(1 << 18) == Status::ok);
  return work;
}

/// Mean square error of rows in two bits, one group per token.
double two_bits(const std::vector<float>& rows, index_t dim) {
  test::CodecPage<prim::GroupInt<2>> page({.params = prim::ParamType::f32}, rows, dim);
  const auto back = page.decoded();
  double sum = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) sum += std::pow(static_cast<double>(rows[i]) - static_cast<double>(back[i]), 2);
  return sum / static_cast<double>(rows.size());
}

}  // namespace

TEST_CASE("layer_predictor: the map and what two bits of the rest err are the worked example's", "[quant][layer_predictor][oracle]") {
  const auto o = test::load_oracle("quantization.json", "U_aquakv_predictor");
  const auto x = test::floats(o.at("K_prev_layer")), y = test::floats(o.at("K_layer")), want = test::floats(o.at("lstsq_[in+1][out]"));
  std::vector<float> weights(20), predicted(48);
  Workspace work = room();
  REQUIRE(quant::fit_layer_predictor(view(x.data(), 12, 4), view(y.data(), 12, 4), view(weights.data(), 5, 4), Scratch{work.bytes()}) == Status::ok);
  for (std::size_t i = 0; i < 20; ++i) REQUIRE(weights[i] == Approx(want[i]).epsilon(1e-5).margin(1e-6));
  REQUIRE(quant::predict_layer(view<const float>(weights.data(), 5, 4), view(x.data(), 12, 4), view(predicted.data(), 12, 4)) == Status::ok);
  std::vector<float> rest(48);
  for (std::size_t i = 0; i < 48; ++i) rest[i] = y[i] - predicted[i];
  REQUIRE(two_bits(y, 4) == Approx(o.at("mse_direct_2bit").get<double>()).epsilon(1e-5));
  REQUIRE(two_bits(rest, 4) == Approx(o.at("mse_residual_2bit").get<double>()).epsilon(1e-4));
  // Published: the rest's energy beside that of keys without their mean.
  double left = 0, all = 0, mean[4] = {};
  for (std::size_t i = 0; i < 48; ++i) mean[i % 4] += static_cast<double>(y[i]) / 12;
  for (std::size_t i = 0; i < 48; ++i) left += std::pow(static_cast<double>(rest[i]), 2), all += std::pow(static_cast<double>(y[i]) - mean[i % 4], 2);
  REQUIRE(left / all == Approx(o.at("residual_energy_ratio").get<double>()).epsilon(1e-4));
}

TEST_CASE("layer_predictor: a linear map is found exactly, and nothing else fits better", "[quant][layer_predictor]") {
  const index_t n = 9, m = 5, tokens = 60;
  const auto x = test::normal_rows(tokens, n, 1), map = test::normal_rows(n + 1, m, 2), noise = test::normal_rows(tokens, m, 3);
  std::vector<float> y(static_cast<std::size_t>(tokens * m)), weights(static_cast<std::size_t>((n + 1) * m)), back(y.size());
  REQUIRE(quant::predict_layer(view(map.data(), n + 1, m), view(x.data(), tokens, n), view(y.data(), tokens, m)) == Status::ok);
  Workspace work = room();
  const auto fit = [&](double ridge) {
    return quant::fit_layer_predictor(view(x.data(), tokens, n), view<const float>(y.data(), tokens, m), view(weights.data(), n + 1, m), Scratch{work.bytes()}, ridge);
  };
  REQUIRE(fit(0.0) == Status::ok);
  for (std::size_t i = 0; i < weights.size(); ++i) REQUIRE(weights[i] == Approx(map[i]).margin(1e-4));
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += noise[i];
  const auto error = [&](const std::vector<float>& w) {
    REQUIRE(quant::predict_layer(view(w.data(), n + 1, m), view(x.data(), tokens, n), view(back.data(), tokens, m)) == Status::ok);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += std::pow(static_cast<double>(y[i]) - static_cast<double>(back[i]), 2);
    return sum;
  };
  REQUIRE(fit(0.0) == Status::ok);
  const double least = error(weights);
  for (std::size_t i = 0; i < weights.size(); ++i)
    for (const float step : {-0.05f, 0.05f}) {
      auto other = weights;
      other[i] += step;
      REQUIRE(error(other) > least);
    }
  const auto plain = weights;
  REQUIRE(fit(0.5) == Status::ok);
  REQUIRE(error(weights) > least);
  double a = 0, b = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n * m); ++i) a += std::pow(static_cast<double>(plain[i]), 2), b += std::pow(static_cast<double>(weights[i]), 2);
  REQUIRE(b < a);
}

TEST_CASE("layer_predictor: inputs that leave the map open need a ridge, bad sizes and numbers are refused", "[quant][layer_predictor]") {
  std::vector<float> x = test::normal_rows(12, 4, 1), y = test::normal_rows(12, 4, 2), weights(20, 7.0f);
  const auto untouched = weights;
  Workspace work = room();
  const auto fit = [&](index_t tokens, index_t inputs, double ridge = 0.0) {
    return quant::fit_layer_predictor(view<const float>(x.data(), tokens, inputs), view<const float>(y.data(), tokens, 4), view(weights.data(), 5, 4), Scratch{work.bytes()}, ridge);
  };
  for (std::size_t t = 0; t < 12; ++t) x[4 * t + 3] = 2.0f * x[4 * t];
  REQUIRE(fit(12, 4) == Status::invalid_argument);
  REQUIRE(fit(3, 4) == Status::invalid_argument);  // fewer tokens than unknowns
  REQUIRE(fit(12, 4, -1.0) == Status::invalid_argument);
  REQUIRE(fit(0, 4) == Status::invalid_argument);
  REQUIRE(fit(12, 3) == Status::shape_mismatch);
  std::vector<std::byte> small(16);
  REQUIRE(quant::fit_layer_predictor(view<const float>(x.data(), 12, 4), view<const float>(y.data(), 12, 4), view(weights.data(), 5, 4), Scratch{small}, 1e-3) == Status::workspace_too_small);
  y[5] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(fit(12, 4, 1e-3) == Status::invalid_argument);
  y[5] = 0.0f;
  REQUIRE(weights == untouched);
  REQUIRE(fit(12, 4, 1e-3) == Status::ok);
  REQUIRE(quant::predict_layer(view<const float>(weights.data(), 5, 4), view<const float>(x.data(), 12, 3), view(y.data(), 12, 4)) == Status::shape_mismatch);
}
