#include <catch2/catch.hpp>
#include <cost/near.hpp>
#include <kvcondense/cost/kinetics_law.hpp>
#include <limits>
#include <support/oracle.hpp>

using namespace kvcondense;
using cost::KineticsLaw;
using test::near;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "kinetics").at("cost"); }

KineticsLaw worked() {
  const auto o = oracle();
  return {.parameters = o.at("P").get<double>(),      .layers = o.at("L").get<index_t>(),
          .q_heads = o.at("Hq").get<index_t>(),       .kv_heads = o.at("Hkv").get<index_t>(),
          .head_dim = o.at("head_dim").get<index_t>(), .prompt = o.at("C").get<double>(),
          .generated = o.at("T").get<double>(),       .answers = o.at("n_trials").get<double>(),
          .flop_per_byte = o.at("I").get<double>()};
}

}  // namespace

TEST_CASE("kinetics law: the worked case", "[cost][kinetics_law]") {
  const auto o = oracle();
  const KineticsLaw law = worked();
  REQUIRE(law.validate() == Status::ok);
  const double budget = o.at("B").get<double>();
  CHECK(law.dense().flops == near(o.at("dense_flops")));
  CHECK(law.dense().bytes == near(o.at("dense_bytes_shared_prompt")));
  CHECK(law.dense().equivalent == near(o.at("dense_eflops")));
  CHECK(law.slots(budget) == near(o.at("S_ideal")));
  CHECK(law.sparse(budget).flops == near(o.at("sparse_flops")));
  CHECK(law.sparse(budget).bytes == near(o.at("sparse_bytes")));
  CHECK(law.sparse(budget).equivalent == near(o.at("sparse_eflops")));
  const auto blocks = law.blocks(budget, o.at("block").get<double>());
  CHECK(blocks.flops == near(o.at("block_flops")));
  CHECK(blocks.bytes == near(o.at("block_bytes")));
  CHECK(blocks.equivalent == near(o.at("block_eflops")));
}

TEST_CASE("kinetics law: slots are what steps attend, counted one by one", "[cost][kinetics_law]") {
  KineticsLaw law = worked();
  law.prompt = 100, law.generated = 5000;
  const double budget = 700;
  double sum = 0;
  for (int t = 0; t < 5000; ++t) sum += std::min(budget, 100.0 + t + 0.5);  // mid-step, as the integral counts
  CHECK(law.slots(budget) == Approx(sum));
  CHECK(law.slots(50) == 50 * 5000);
}

TEST_CASE("kinetics law: every number matters", "[cost][kinetics_law]") {
  const KineticsLaw law = worked();
  const auto differs = [&](auto change) {
    KineticsLaw other = law;
    change(other);
    return other.dense().equivalent != law.dense().equivalent;
  };
  CHECK(differs([](KineticsLaw& l) { l.parameters *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.layers *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.q_heads *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.kv_heads *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.head_dim *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.prompt *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.generated *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.answers *= 2; }));
  CHECK(differs([](KineticsLaw& l) { l.flop_per_byte *= 2; }));
  CHECK(law.blocks(1024, 32).equivalent < law.blocks(1024, 16).equivalent);
  CHECK(law.sparse(512).equivalent < law.sparse(1024).equivalent);
  KineticsLaw bad = law;
  bad.generated = std::numeric_limits<double>::quiet_NaN();
  CHECK(bad.validate() == Status::invalid_argument);
  bad = law;
  bad.kv_heads = 0;
  CHECK(bad.validate() == Status::invalid_argument);
}
