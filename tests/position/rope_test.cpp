#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/position/rope.hpp>

#include <support/oracle.hpp>

using namespace kvcondense;
using position::RopeConfig;
using position::RopeScaling;

namespace {

prim::RopeAngles angles_of(const RopeConfig& config, index_t dim) {
  const auto angles = prim::rope_angles(config, dim);
  REQUIRE(angles.status() == Status::ok);
  return *angles;
}

void require_frequencies(const RopeConfig& config, index_t dim, const nlohmann::json& want) {
  const auto angles = angles_of(config, dim);
  REQUIRE(angles.pairs == static_cast<index_t>(want.size()));
  for (std::size_t t = 0; t < want.size(); ++t) REQUIRE(angles.frequency[t] == Approx(want[t].get<double>()).epsilon(1e-6));
}

bool valid(const RopeConfig& config, index_t dim = 8) { return prim::validate_rope(config, dim) == Status::ok; }

}  // namespace

TEST_CASE("rope: frequencies of every scaling are the worked ones", "[position][rope][oracle]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "rope");
  require_frequencies({}, 8, o.at("inv_freq_d8"));
  require_frequencies({.scaling = RopeScaling::linear, .factor = 4.0}, 8, o.at("linear_factor4"));
  const RopeConfig ntk{.scaling = RopeScaling::dynamic_ntk, .factor = 2.0, .original_length = 2048, .length = 4096};
  require_frequencies(ntk, 8, o.at("dynamic_ntk").at("inv"));
  const RopeConfig yarn{.scaling = RopeScaling::yarn, .factor = 4.0, .original_length = 4096};
  require_frequencies(yarn, 8, o.at("yarn_d8").at("inv"));
  REQUIRE(angles_of(yarn, 8).attention_factor == Approx(o.at("yarn_d8").at("attention_factor").get<double>()));
  const RopeConfig llama3{.base = 5e5, .scaling = RopeScaling::llama3, .factor = 8.0};
  require_frequencies(llama3, 16, o.at("llama3_d16_base5e5"));

  const auto at = [](const prim::RopeAngles& a, std::vector<int> index, const nlohmann::json& want) {
    for (std::size_t i = 0; i < index.size(); ++i)
      REQUIRE(a.frequency[index[i]] == Approx(want[i].get<double>()).epsilon(1e-6));
  };
  at(angles_of(llama3, 128), {0, 20, 28, 30, 35, 63}, o.at("llama3_d128_base5e5_idx_0_20_28_30_35_63"));
  at(angles_of(yarn, 128), {0, 15, 31, 46, 63}, o.at("yarn_d128").at("inv_idx_0_15_31_46_63"));

  const std::vector<float> near(4, 1.0f), far{1.0f, 2.0f, 4.0f, 8.0f};
  RopeConfig longrope{.scaling = RopeScaling::longrope, .factor = 32.0, .original_length = 4096, .table = near, .long_table = far};
  REQUIRE(angles_of(longrope, 8).attention_factor ==
          Approx(o.at("longrope_attention_factor_factor32_orig4096").get<double>()));
  require_frequencies(longrope, 8, o.at("inv_freq_d8"));
  longrope.length = 4097;
  for (int t = 0; t < 4; ++t)
    REQUIRE(angles_of(longrope, 8).frequency[t] == Approx(std::pow(10.0, -t) / std::exp2(t)).epsilon(1e-6));
}

TEST_CASE("rope: ends of a ramp that fall together, and a low frequency of its own", "[position][rope]") {
  // After two positions no pair has turned once: all but the first, which has no ramp to be on, are divided.
  const auto yarn = angles_of({.scaling = RopeScaling::yarn, .factor = 4.0, .original_length = 2}, 8);
  for (int t = 0; t < 4; ++t) REQUIRE(yarn.frequency[t] == Approx(std::pow(10.0, -t) / (t == 0 ? 1.0 : 4.0)).epsilon(1e-6));
  const double low = 2.0, high = 8.0, factor = 8.0, original = 1000.0;
  const auto llama = angles_of({.scaling = RopeScaling::llama3, .factor = factor, .original_length = 1000, .low_frequency = low, .high_frequency = high}, 64);
  int divided = 0, mixed = 0, plain = 0;
  for (int t = 0; t < 32; ++t) {
    const double f = std::pow(1e4, -t / 32.0), turns = original * f / (2.0 * std::acos(-1.0));  // in the original length
    const double mix = (turns - low) / (high - low);
    const double want = mix >= 1 ? f : mix <= 0 ? f / factor : (1 - mix) * f / factor + mix * f;
    (mix >= 1 ? plain : mix <= 0 ? divided : mixed) += 1;
    REQUIRE(llama.frequency[t] == Approx(want).epsilon(1e-6));
  }
  REQUIRE((plain > 3 && mixed > 1 && divided > 3));
}

TEST_CASE("rope: a dynamic scaling begins where the original length ends", "[position][rope]") {
  const auto at = [](index_t length) {
    return angles_of({.scaling = RopeScaling::dynamic_ntk, .factor = 2.0, .original_length = 2048, .length = length}, 8).frequency[3];
  };
  REQUIRE(at(2048) == angles_of({}, 8).frequency[3]);
  REQUIRE(at(0) == at(2048));
  REQUIRE(at(2049) < at(2048));
}

TEST_CASE("rope: a caller's frequencies are used as they are", "[position][rope]") {
  const std::vector<float> table{0.5f, 0.25f};
  const auto angles = angles_of({.rotary_dim = 4, .scaling = RopeScaling::table, .attention_factor = 1.5, .table = table}, 8);
  REQUIRE(angles.pairs == 2);
  REQUIRE((angles.frequency[0] == 0.5f && angles.frequency[1] == 0.25f));
  REQUIRE(angles.attention_factor == 1.5f);
}

TEST_CASE("rope: numbers out of range are refused", "[position][rope]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  REQUIRE(valid({}));
  REQUIRE_FALSE(valid({}, 1));
  REQUIRE_FALSE(valid({}, 7));
  REQUIRE(valid({.rotary_dim = 6}, 7));
  REQUIRE_FALSE(valid({.rotary_dim = 10}));
  REQUIRE_FALSE(valid({.rotary_dim = -2}));
  for (const double bad : {0.0, 1.0, -5.0, nan, inf}) REQUIRE_FALSE(valid({.base = bad}));
  for (const double bad : {0.0, -1.0, nan, inf}) REQUIRE_FALSE(valid({.scaling = RopeScaling::linear, .factor = bad}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::yarn, .factor = 0.5}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::yarn, .factor = 2.0, .original_length = 0}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::llama3, .factor = 2.0, .low_frequency = 4.0, .high_frequency = 4.0}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::dynamic_ntk, .factor = 2.0}, 2));
  for (const double bad : {nan, -1.0, 1e7}) REQUIRE_FALSE(valid({.attention_factor = bad}));
  REQUIRE_FALSE(valid({}, 0));
  REQUIRE_FALSE(valid({}, 258));
  for (const RopeScaling scaling : {RopeScaling::dynamic_ntk, RopeScaling::llama3, RopeScaling::yarn, RopeScaling::longrope}) {
    const std::vector<float> ones(4, 1.0f);
    const auto with = [&](double factor, index_t original, index_t length) {
      return valid({.scaling = scaling, .factor = factor, .original_length = original, .length = length, .table = ones, .long_table = ones});
    };
    REQUIRE(with(2.0, 2, 0));
    REQUIRE_FALSE(with(2.0, 1, 0));
    REQUIRE_FALSE(with(2.0, 2, -1));
    REQUIRE(with(0.5, 2, 0) == (scaling == RopeScaling::llama3));
  }
  REQUIRE_FALSE(valid({.scaling = RopeScaling::llama3, .factor = 2.0, .low_frequency = 0.0, .high_frequency = 4.0}));
  for (const double bad : {0.0, -1.0, nan, 1e30}) {
    REQUIRE_FALSE(valid({.scaling = RopeScaling::yarn, .factor = 2.0, .beta_fast = bad}));
    REQUIRE_FALSE(valid({.scaling = RopeScaling::yarn, .factor = 2.0, .beta_slow = bad}));
  }
  REQUIRE_FALSE(valid({.scaling = static_cast<RopeScaling>(99)}));
  REQUIRE(prim::rope_angles({.base = 0.0}, 8).status() == Status::invalid_argument);
  const std::vector<float> three(3, 1.0f), zero(4, 0.0f), four(4, 1.0f);
  REQUIRE_FALSE(valid({.scaling = RopeScaling::table}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::table, .table = three}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::longrope, .table = four}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::longrope, .table = four, .long_table = zero}));
  REQUIRE_FALSE(valid({.scaling = RopeScaling::longrope, .table = three, .long_table = four}));
  REQUIRE(valid({.scaling = RopeScaling::longrope, .table = four, .long_table = four}));
  REQUIRE(position::validate_rope({}, CacheShape{.head_dim = 7}) == Status::invalid_argument);
}

TEST_CASE("rope: fingerprints differ where rotations differ", "[position][rope]") {
  const std::vector<float> a{1.0f, 2.0f}, b{1.0f, 2.5f};
  std::vector<RopeConfig> all(9);
  all[1].pairing = position::RopePairing::interleaved;
  all[2].rotary_dim = 64;
  all[3].base = 5e5;
  all[4].scaling = RopeScaling::yarn;
  all[5].factor = 2.0;
  all[6].table = a;
  all[7].table = b;
  all[8].long_table = a;
  for (std::size_t i = 0; i < all.size(); ++i)
    for (std::size_t j = 0; j < all.size(); ++j)
      REQUIRE((prim::fingerprint(all[i]) == prim::fingerprint(all[j])) == (i == j));
}
