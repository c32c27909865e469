#include <limits>

#include <catch2/catch.hpp>
#include <kvcondense/cost/model.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

TEST_CASE("cost model: every number of a shape counts", "[cost][model]") {
  const cost::Model m{4, 192, 512, 6, 2, 64, 256, true};
  REQUIRE(m.validate() == Status::ok);
  // The shipped model: 4 (2 192 384 + 2 192 128 + 3 192 512 + 2 192) + 256 192 + 192.
  REQUIRE(m.parameters() == 2016960.0);
  REQUIRE(m.kv_bytes_per_token() == 2.0 * 4 * 2 * 64 * 2);
  REQUIRE(m.kv_bytes_per_token(0.5) == m.kv_bytes_per_token() / 4);

  for (auto change : {&cost::Model::layers, &cost::Model::hidden, &cost::Model::intermediate, &cost::Model::q_heads,
                      &cost::Model::kv_heads, &cost::Model::head_dim, &cost::Model::vocab}) {
    cost::Model other = m;
    other.*change *= 2;
    CHECK(other.parameters() > m.parameters());
    other.*change = 0;
    CHECK(other.validate() == Status::invalid_argument);
    other.*change = index_t{1} << 40;
    CHECK(other.validate() == Status::invalid_argument);
  }
  cost::Model untied = m;
  untied.tied = false;
  REQUIRE(untied.parameters() - m.parameters() == 256.0 * 192);
  cost::Model odd = m;
  odd.kv_heads = 4;
  REQUIRE(odd.validate() == Status::invalid_argument);
}

TEST_CASE("cost model: a batch's cache is as large as ALISA says", "[cost][model][oracle]") {
  const auto check = test::load_oracle("eviction.json", "alisa_swa").at("kv_bytes_check");  // b sequences, l layers, h numbers a layer
  const index_t hidden = check.at("h"), head_dim = 128;
  const cost::Model m{.layers = check.at("l"), .hidden = hidden, .q_heads = hidden / head_dim, .kv_heads = hidden / head_dim, .head_dim = head_dim};
  REQUIRE(m.kv_bytes_per_token() * check.at("b").get<double>() * check.at("tokens").get<double>() == check.at("bytes").get<double>());
}

TEST_CASE("cost device: peaks are positive", "[cost][model]") {
  const cost::Device d{312e12, 2e12, 80e9, 20e9};
  REQUIRE(d.validate() == Status::ok);
  REQUIRE(d.ridge() == 156.0);
  for (auto change : {&cost::Device::flops, &cost::Device::bandwidth, &cost::Device::memory, &cost::Device::link}) {
    cost::Device other = d;
    for (const double bad : {0.0, -1.0, 1e300, std::numeric_limits<double>::quiet_NaN()}) {
      other.*change = bad;
      CHECK(other.validate() == Status::invalid_argument);
    }
  }
}
