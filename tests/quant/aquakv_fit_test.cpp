#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/aquakv_fit.hpp>
#include <support/memory.hpp>

#include <quant/codec_page.hpp>

using namespace kvcondense;
using quant::Aquakv;

namespace {

constexpr index_t tokens = 300, inputs = 12, channels = 32;

struct Layer {
  std::vector<float> below = test::normal_rows(tokens, inputs, 1), rows, map = std::vector<float>((inputs + 1) * channels);
  std::vector<float> given;

  Layer() {
    const auto truth = test::normal_rows(inputs + 1, channels, 2), noise = test::normal_rows(tokens, channels, 3);
    rows.resize(static_cast<std::size_t>(tokens * channels));
    REQUIRE(quant::predict_layer(view(truth, inputs + 1, channels), view(below, tokens, inputs), dense_view(rows.data(), tokens, channels)) == Status::ok);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += 0.2f * noise[i];
    given = rows;
  }
  static TensorView<const float, 2> view(const std::vector<float>& x, index_t n, index_t m) { return {x.data(), {n, m}, {m, 1}}; }
  Status fit(const Aquakv& method = {}, index_t layer = 1, bool keys = true, double ridge = 1e-4, MemoryResource<Cpu>& memory = heap_memory()) {
    return quant::fit_aquakv_side(method, keys, layer, view(below, tokens, inputs), dense_view(rows.data(), tokens, channels), map, ridge, memory);
  }
  double lost() const {
    double sum = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) sum += std::pow(static_cast<double>(rows[i] - given[i]), 2);
    return sum / static_cast<double>(rows.size());
  }
};

}  // namespace

TEST_CASE("aquakv_fit: rows become what a stream decodes, off by bits of what no map says", "[quant][aquakv_fit]") {
  double last = 1.0;
  for (const int bits : {2, 3, 4}) {
    Layer l;
    REQUIRE(l.fit({.key_bits = bits, .value_bits = 5 - bits == 1 ? 2 : 5 - bits}) == Status::ok);
    const double share = bits == 2 ? 0.1076 : bits == 3 ? 0.0298 : 0.0079;
    REQUIRE(l.lost() == Approx(0.04 * share).epsilon(0.2));  // noise of 0.2, squared
    REQUIRE(l.lost() < last);
    last = l.lost();
  }
  // The map is that of fit_layer_predictor.
  Layer l;
  std::vector<float> own(l.map.size());
  Workspace work;
  REQUIRE(work.reserve(quant::layer_predictor_bytes(inputs, channels) + 64) == Status::ok);
  REQUIRE(quant::fit_layer_predictor(Layer::view(l.below, tokens, inputs), Layer::view(l.given, tokens, channels), dense_view(own.data(), inputs + 1, channels),
                                     Scratch(work.bytes()), 1e-4) == Status::ok);
  REQUIRE(l.fit() == Status::ok);
  REQUIRE(l.map == own);
  Layer other;
  REQUIRE(other.fit({}, 1, true, 1.0) == Status::ok);
  REQUIRE(other.map != own);
}

TEST_CASE("aquakv_fit: the first layer is around its mean, in bits of its own", "[quant][aquakv_fit]") {
  Layer l;
  std::vector<float> mean(channels);
  const auto fit = [&](const Aquakv& m) {
    l.rows = l.given;
    REQUIRE(quant::fit_aquakv_side(m, true, 0, {nullptr, {tokens, 0}, {0, 1}}, dense_view(l.rows.data(), tokens, channels), mean) == Status::ok);
    return l.lost();
  };
  const double four = fit({}), two = fit({.first_bits = 2});
  REQUIRE(four < two / 5);
  for (index_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (index_t t = 0; t < tokens; ++t) sum += static_cast<double>(l.given[static_cast<std::size_t>(t * channels + c)]);
    REQUIRE(static_cast<double>(mean[static_cast<std::size_t>(c)]) == Approx(sum / tokens).margin(1e-5));
  }
}

TEST_CASE("aquakv_fit: what cannot be fitted is refused, and nothing is written", "[quant][aquakv_fit]") {
  Layer l;
  const auto map = l.map;
  REQUIRE(l.fit({.key_bits = 7}) == Status::invalid_argument);
  REQUIRE(l.fit({}, 1, true, -1.0) == Status::invalid_argument);
  l.map.pop_back();
  REQUIRE(l.fit() == Status::shape_mismatch);
  l.map = map;
  l.rows[5] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(l.fit() == Status::invalid_argument);
  std::vector<float> mean(channels, 7.0f);
  REQUIRE(quant::fit_aquakv_side({}, true, 0, {nullptr, {tokens, 0}, {0, 1}}, dense_view(l.rows.data(), tokens, channels), mean) == Status::invalid_argument);
  REQUIRE(mean == std::vector<float>(channels, 7.0f));
  l.rows[5] = l.given[5];
  test::CountingMemory memory;
  for (const long n : {0, 1}) {
    memory.refuse_from = memory.requests + n;
    REQUIRE(l.fit({}, 1, true, 1e-4, memory) == Status::out_of_memory);
  }
  REQUIRE(l.map == map);
  REQUIRE(l.rows == l.given);
  memory.refuse_from = -1;
  REQUIRE(l.fit({}, 1, true, 1e-4, memory) == Status::ok);
  REQUIRE(memory.live_bytes == 0);
}
