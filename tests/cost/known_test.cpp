#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/cost/known.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

TEST_CASE("known models: bytes of a token and parameters as published", "[cost][known]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "deployment_cost_model");
  const auto& bytes = oracle.at("models_kv_bytes_per_token");
  int checked = 0;
  for (const auto& [name, want] : bytes.items()) {
    std::string lower = name;
    for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const cost::Model* m = cost::find_model(lower);
    CAPTURE(name);
    REQUIRE(m != nullptr);
    REQUIRE(m->kv_bytes_per_token() == want.get<double>());
    ++checked;
  }
  REQUIRE(checked == 5);
  const cost::Model* yi = cost::find_model("yi-34b");
  REQUIRE(yi != nullptr);
  REQUIRE(yi->kv_bytes_per_token() == oracle.at("kv_bytes_per_token").get<double>());
  REQUIRE(yi->parameters() == oracle.at("exact_params").get<double>());
  cost::Model heads = *yi;
  heads.kv_heads = heads.q_heads;
  REQUIRE(heads.kv_bytes_per_token() == oracle.at("mha_variant_kv_bytes_per_token").get<double>());
}

TEST_CASE("known devices: ridges, and names that are none", "[cost][known]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "roofline");
  const cost::Device* a6000 = cost::find_device("a6000");
  REQUIRE(a6000 != nullptr);
  REQUIRE(a6000->ridge() == test::near(oracle.at("hw_A6000").at("ridge")));
  const auto deployment = test::load_oracle("retrieval_reuse_storage.json", "deployment_cost_model");
  REQUIRE(cost::find_device("a100-80g")->ridge() == test::near(deployment.at("ridge_with_2039GBs")));
  for (const cost::KnownDevice& d : cost::known_devices) CHECK(d.device.validate() == Status::ok);
  for (const cost::KnownModel& m : cost::known_models) CHECK(m.model.validate() == Status::ok);
  REQUIRE(cost::find_device("A100") == nullptr);
  REQUIRE(cost::find_model("") == nullptr);
}
