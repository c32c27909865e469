#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/cost/deployment.hpp>
#include <kvcondense/cost/known.hpp>
#include <limits>
#include <support/oracle.hpp>

using namespace kvcondense;
using cost::Deployment;
using test::near;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "deployment_cost_model"); }

Deployment worked() {
  const auto hw = oracle().at("hardware");
  Deployment d;
  d.model = *cost::find_model("yi-34b");
  d.device = {hw.at("flops").get<double>(), hw.at("hbm_bw").get<double>(), hw.at("hbm").get<double>(),
              hw.at("pcie").get<double>()};
  d.parameters = oracle().at("rounded_params_used").get<double>();
  return d;
}

}  // namespace

TEST_CASE("deployment: the worked case at every context", "[cost][deployment]") {
  const Deployment d = worked();
  const auto all = oracle();
  REQUIRE(d.validate() == Status::ok);
  REQUIRE(d.device.ridge() == near(all.at("ridge_flop_per_byte")));
  for (const auto& [context, want] : all.at("contexts").items()) {
    CAPTURE(context);
    const double c = std::stod(context);
    CHECK(d.cache_bytes(c) == near(want.at("kv_bytes")));
    CHECK(d.room(c) == near(want.at("concurrency_1gpu")));
    CHECK(d.users(c) == want.at("concurrency_1gpu_floor").get<index_t>());
    CHECK(d.users(c, 2) == want.at("concurrency_2gpu_floor").get<index_t>());
    CHECK(d.prefill_flops(c) - d.attention_flops(c) == near(want.at("prefill_flops_linear")));
    CHECK(d.attention_flops(c) == near(want.at("prefill_flops_attention_causal")));
    CHECK(d.prefill_seconds(c) == near(want.at("prefill_s_causal")));
    CHECK(d.prefill_seconds(c, cost::PrefillAttention::full) == near(want.at("prefill_s_full_square")));
    CHECK(d.decode_seconds(c) == near(want.at("decode_s_per_token")));
    CHECK(250 * d.decode_seconds(c) == near(want.at("decode_250_tokens_s")));
    CHECK(d.switch_seconds(c) == near(want.at("switch_s_one_way")));
    CHECK(2 * d.switch_seconds(c) == near(want.at("switch_s_round_trip")));
  }
  const auto& session = all.at("session");
  CHECK(d.session_seconds(session.at("params").at("C").get<double>(), session.at("params").at("rounds").get<double>(),
                          session.at("params").at("out_tokens").get<double>()) == near(session.at("single_user_seconds")));

  const auto& variants = all.at("variants");
  Deployment large = d;
  large.device.memory = variants.at("hbm_80GiB_bytes").get<double>();
  for (const auto& [context, want] : variants.at("concurrency_80GiB").items())
    CHECK(large.room(std::stod(context)) == near(want));
  Deployment half = d;
  half.recipe.prefill = 0.5;
  for (const auto& [context, want] : variants.at("prefill_half_causal_attention_term").items())
    CHECK(half.prefill_seconds(std::stod(context)) == near(want));
}

TEST_CASE("deployment: each factor of a recipe acts on its own limit", "[cost][deployment]") {
  const Deployment d = worked();
  const double c = 50000;
  Deployment held = d, read = d, switched = d;
  held.recipe.held = 0.25, read.recipe.read = 0.25, switched.recipe.switched = 0.25;
  CHECK(held.users(c) == 3);  // 12e9 bytes of room for caches of 3.072e9
  CHECK(held.decode_seconds(c) == d.decode_seconds(c));
  CHECK(read.users(c) == d.users(c));
  CHECK(read.decode_bytes(c) == Approx(68e9 + 12.288e9 / 4));
  CHECK(read.decode_bytes(c, 5) == Approx(68e9 + 5 * 12.288e9 / 4));
  CHECK(switched.switch_seconds(c) == Approx(d.switch_seconds(c) / 4));
  CHECK(switched.decode_seconds(c) == d.decode_seconds(c));
  Deployment codes = d;
  codes.bytes_per_weight = 0.5;
  CHECK(codes.users(c) == 5);  // 63e9 bytes of room
}

TEST_CASE("deployment: weights that do not fit leave no user", "[cost][deployment]") {
  Deployment d = worked();
  d.device.memory = 40e9;
  CHECK(d.users(4096) == 0);
  CHECK(d.users(4096, 2) == 11);
  d.device.memory = 80e9;
  d.recipe.held = 0.0;
  CHECK(d.users(4096) > 1000000);  // nothing per user: as many as one likes, and no overflow
}

TEST_CASE("deployment: what is no number is refused", "[cost][deployment]") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double bad : {-0.5, nan, 1e9}) {
    Deployment d = worked();
    d.recipe.read = bad;
    CHECK(d.validate() == Status::invalid_argument);
  }
  Deployment d = worked();
  d.bytes_per_weight = 0.0;
  CHECK(d.validate() == Status::invalid_argument);
  d = worked();
  d.device.link = nan;
  CHECK(d.validate() == Status::invalid_argument);
  d = worked();
  d.model.layers = 0;
  CHECK(d.validate() == Status::invalid_argument);
  d = worked();
  d.parameters = nan;
  CHECK(d.validate() == Status::invalid_argument);
}

TEST_CASE("deployment: attention on other devices moves bytes that no context changes", "[cost][deployment]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "offload").at("lamina");
  const double bytes = cost::split_attention_bytes(o.at("d_model").get<double>(), o.at("G").get<double>(), o.at("B").get<double>(),
                                                   o.at("L").get<double>(), o.at("e").get<double>());
  CHECK(bytes == o.at("bytes_per_iter").get<double>());
  CHECK(bytes / 50e9 == near(o.at("seconds_at_50GBs")));
}
