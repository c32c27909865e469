// Caches on CUDA whose keys are signs and lengths alone.

#include <string>

#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/quant/qjl.hpp>

#include "cache_live.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache codec: qjl") {
  quant::Qjl qjl{.group_size = 16, .value_group = 16, .buffer = 16, .sinks = 2};
  stays(qjl, "qjl(group=16, value_group=16, buffer=16, sinks=2)", small);
  // Groups lose slots and are joined: what signs say is coded again.
  leaves(qjl, "qjl(group=16, value_group=16, buffer=16, sinks=2)", common);
  qjl = {.bits = 128, .strong_bits = 64, .first_layers = 0, .channels = 3, .group_size = 4, .value_group = 16, .buffer = 8, .seed = 5};
  leaves(qjl, "qjl(bits=128, strong_bits=64, first_layers=0, channels=3, group=4, value_group=16, buffer=8, seed=5)", odd);
  // Without strong channels slots move alone; layers have rows of different sizes.
  qjl = {.bits = 64, .first_layers = 1, .first_bits = 136, .channels = 0, .group_size = 16, .buffer = 4};
  leaves(qjl, "qjl(bits=64, first_layers=1, first_bits=136, channels=0, group=16, buffer=4)", small);
  // Strong channels of each slot by itself.
  CHECK(make_cache<Cuda>(small, recipe(quant::Qjl{.group_size = 1})).status() == Status::invalid_argument);
}
