#include <initializer_list>
#include <limits>

#include <catch2/catch.hpp>

#include <kvcondense/cost/deployment.hpp>
#include <kvcondense/cost/flexgen.hpp>
#include <kvcondense/cost/io_bound.hpp>
#include <kvcondense/cost/kinetics_law.hpp>
#include <kvcondense/cost/roofline.hpp>

// Whichever of its numbers is none, a model of costs refuses it: one that is wrong alone, all others as they should be.

using namespace kvcondense;

namespace {

constexpr double none = std::numeric_limits<double>::quiet_NaN();

/// `number` finds one in a model.
template <class Model, class Number, class T>
void refuses(const Model& good, Number number, std::initializer_list<T> bad) {
  REQUIRE(good.validate() == Status::ok);
  for (const T x : bad) {
    Model other = good;
    number(other) = x;
    CAPTURE(x);
    CHECK(other.validate() == Status::invalid_argument);
  }
}

}  // namespace

TEST_CASE("cost: a deployment refuses factors and weights that are none", "[cost][deployment]") {
  using cost::Deployment;
  Deployment d;
  d.model = {.layers = 2, .hidden = 64, .intermediate = 128, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .vocab = 100};
  d.device = {1e12, 1e11, 1e10, 1e10};
  refuses(d, [](Deployment& x) -> double& { return x.recipe.held; }, {-1.0, 1e6, none});
  refuses(d, [](Deployment& x) -> double& { return x.recipe.read; }, {-1.0, 1e6, none});
  refuses(d, [](Deployment& x) -> double& { return x.recipe.switched; }, {-1.0, 1e6, none});
  refuses(d, [](Deployment& x) -> double& { return x.recipe.prefill; }, {-1.0, 1e6, none});
  refuses(d, [](Deployment& x) -> double& { return x.parameters; }, {-1.0, 1e18, none});
  refuses(d, [](Deployment& x) -> double& { return x.bytes_per_weight; }, {0.0, 8.5, none});
}

TEST_CASE("cost: FlexGen refuses sizes, speeds and placements that are none", "[cost][flexgen]") {
  using cost::FlexGen, cost::OffloadMachine, cost::Placement;
  const FlexGen f{.layers = 2, .hidden = 64, .intermediate = 128, .prompt = 100, .generated = 10, .block_batch = 4, .device_batch = 2};
  for (double FlexGen::*const size : {&FlexGen::layers, &FlexGen::hidden, &FlexGen::intermediate, &FlexGen::prompt, &FlexGen::generated,
                                      &FlexGen::block_batch, &FlexGen::device_batch, &FlexGen::cache_factor})
    refuses(f, [&](FlexGen& x) -> double& { return x.*size; }, {0.0, -1.0, 1e18, none});
  using Machine = OffloadMachine;
  for (double Machine::*const speed :
       {&Machine::host_to_device, &Machine::device_to_host_cache, &Machine::device_to_host_hidden, &Machine::disk_to_host, &Machine::host_to_disk_cache,
        &Machine::host_to_disk_hidden, &Machine::host_to_disk_decode, &Machine::matmul_prefill, &Machine::matmul_decode, &Machine::batched_prefill,
        &Machine::batched_decode, &Machine::host_attention})
    refuses(f, [&](FlexGen& x) -> double& { return x.machine.*speed; }, {0.0, -1.0, 1e18, none});
  for (Placement FlexGen::*const placed : {&FlexGen::weights, &FlexGen::cache, &FlexGen::activations})
    for (const Placement bad : {Placement{-0.5, 1.0, 0.5}, Placement{1.0, -0.5, 0.5}, Placement{1.0, 0.5, -0.5}, Placement{0.5, 0.4, 0.0},
                                Placement{0.5, 0.4, 0.2}, Placement{none, 0.5, 0.5}}) {
      FlexGen x = f;
      x.*placed = bad;
      CHECK(x.validate() == Status::invalid_argument);
    }
}

TEST_CASE("cost: the law of long answers refuses what is none", "[cost][kinetics_law]") {
  using Law = cost::KineticsLaw;
  const Law law{.parameters = 1e9, .layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .prompt = 0, .generated = 100};
  for (index_t Law::*const size : {&Law::layers, &Law::q_heads, &Law::kv_heads, &Law::head_dim})
    refuses(law, [&](Law& x) -> index_t& { return x.*size; }, {index_t{0}, index_t{-1}});
  for (double Law::*const size : {&Law::parameters, &Law::generated, &Law::answers, &Law::flop_per_byte})
    refuses(law, [&](Law& x) -> double& { return x.*size; }, {0.0, -1.0, 1e30, none});
  refuses(law, [](Law& x) -> double& { return x.prompt; }, {-1.0, 1e15, none});
}

TEST_CASE("cost: a bound and a roofline refuse what is none", "[cost][io_bound][roofline]") {
  using cost::IoBound, cost::Roofline;
  for (double IoBound::*const size : {&IoBound::tokens, &IoBound::head_dim, &IoBound::on_chip})
    refuses(IoBound{100, 64, 1e5}, [&](IoBound& x) -> double& { return x.*size; }, {0.0, -1.0, 1e15, none});
  Roofline r;
  r.device = {1e12, 1e11, 1e10, 1e10};
  for (double cost::Device::*const peak : {&cost::Device::flops, &cost::Device::bandwidth})
    refuses(r, [&](Roofline& x) -> double& { return x.device.*peak; }, {0.0, -1.0, 1e30, none});
  for (double cost::NumberBytes::*const size : {&cost::NumberBytes::weight, &cost::NumberBytes::activation, &cost::NumberBytes::cache})
    refuses(r, [&](Roofline& x) -> double& { return x.bytes.*size; }, {0.0, -1.0, 1e30, none});
}
