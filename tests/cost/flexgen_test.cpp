#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/cost/flexgen.hpp>
#include <limits>
#include <support/oracle.hpp>

using namespace kvcondense;
using cost::FlexGen;
using test::near;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "flexgen"); }

FlexGen worked() {
  const auto c = oracle().at("config");
  const auto number = [&](const char* key) { return c.at(key).get<double>(); };
  const auto placed = [&](const char* key) {
    const auto& x = c.at(key);
    return cost::Placement{x[0].get<double>(), x[1].get<double>(), x[2].get<double>()};
  };
  return {.layers = number("l"),
          .hidden = number("h1"),
          .intermediate = number("h2"),
          .prompt = number("s"),
          .generated = number("n"),
          .block_batch = number("block_size"),
          .device_batch = number("gpu_batch"),
          .weights = placed("weights_gcn"),
          .cache = placed("cache_gcn"),
          .activations = placed("hidden_gcn")};
}

void check(const cost::OffloadTimes& t, const nlohmann::json& want) {
  CHECK(t.host_to_device == near(want.at("ctog")));
  CHECK(t.device_to_host == near(want.at("gtoc")));
  CHECK(t.disk_to_host == near(want.at("dtoc")));
  CHECK(t.host_to_disk == near(want.at("ctod")));
  CHECK(t.compute == near(want.at("comp")));
  CHECK(t.layer == near(want.at("T_code")));
  CHECK(t.overlapped == near(want.at("T_max_rule")));
}

}  // namespace

TEST_CASE("flexgen: the worked case", "[cost][flexgen]") {
  const auto o = oracle();
  const FlexGen f = worked();
  REQUIRE(f.validate() == Status::ok);
  CHECK(f.layer_weight_bytes() == near(o.at("layer_weight_bytes")));
  check(f.prefill(), o.at("prefill"));
  check(f.decode(), o.at("decode"));
  CHECK(f.host_attention() == near(o.at("decode").at("cpu_flops_effective")));
  CHECK(f.seconds() == near(o.at("total_s")));
  CHECK(f.tokens_per_second() == near(o.at("throughput_tok_s")));
  CHECK(f.overlapped_tokens_per_second() == near(o.at("throughput_max_rule")));
}

TEST_CASE("flexgen: where things lie decides which lane is busy", "[cost][flexgen]") {
  FlexGen f = worked();
  f.cache = {1, 0, 0};
  CHECK(f.prefill().device_to_host == 0.0);
  CHECK(f.decode().compute != worked().decode().compute);
  f.cache = {0, 0, 1};
  CHECK(f.decode().disk_to_host > 0.0);
  CHECK(f.decode().host_to_disk > 0.0);
  CHECK(f.prefill().host_to_disk > 0.0);
  f = worked();
  f.weights = {0, 0.5, 0.5};
  CHECK(f.prefill().disk_to_host > 0.0);
  CHECK(f.prefill().host_to_device > worked().prefill().host_to_device);
  f = worked();
  f.activations = {0, 1, 0};
  CHECK(f.decode().device_to_host > 0.0);
  f.cache_factor = 0.25;
  CHECK(f.prefill().device_to_host < 0.51 * worked().prefill().device_to_host + 0.5);
  CHECK(f.decode().compute < worked().decode().compute);
  f.device_batch = 8;
  CHECK(f.host_attention() < worked().host_attention());
  f.hidden = 1024;
  CHECK(f.host_attention() == Approx(0.0123e12 * 0.8782));  // a = 3, b = 2
}

TEST_CASE("flexgen: placements that do not add up are refused", "[cost][flexgen]") {
  FlexGen f = worked();
  f.cache = {0.5, 0.4, 0};
  CHECK(f.validate() == Status::invalid_argument);
  f.cache = {1.5, -0.5, 0};
  CHECK(f.validate() == Status::invalid_argument);
  f = worked();
  f.machine.disk_to_host = 0;
  CHECK(f.validate() == Status::invalid_argument);
  f = worked();
  f.prompt = std::numeric_limits<double>::quiet_NaN();
  CHECK(f.validate() == Status::invalid_argument);
}

TEST_CASE("flexgen: lanes side by side and one after another", "[cost][flexgen]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "offload")["overlap"];
  const auto term = [&](const char* name) { return o["terms"][name].get<double>(); };
  const cost::OffloadTimes t{.host_to_device = term("ctog"), .device_to_host = term("gtoc"), .disk_to_host = term("dtoc"),
                             .host_to_disk = term("ctod"), .compute = term("comp")};
  REQUIRE(t.slowest() == o["overlapped"].get<double>());
  REQUIRE(t.serial() == o["serial"].get<double>());
}
