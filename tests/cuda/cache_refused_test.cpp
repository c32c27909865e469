// Caches on CUDA whose codes are signs, of widths of their own or behind factors, and which are refused memory.

#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/bit_allocation.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/qjl.hpp>
#include <kvcondense/quant/smooth_attention.hpp>

#include "cache_refused.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: device memory that is refused loses no signs, widths or factors") {
  // Groups lose slots, and pages of them are joined.
  lose_nothing(recipe(evict::H2O{.heavy = 9, .recent = 6}, quant::Qjl{.bits = 32, .strong_bits = 8, .first_layers = 0, .channels = 2, .group_size = 2, .value_group = 8, .buffer = 2, .sinks = 2}), 5, 15);
  lose_nothing(recipe(evict::SinkWindow{.recent = 17, .sinks = 3}, quant::SmoothAttention<quant::GroupInt<4>>{.base = {.group_size = 8, .residual_window = 2, .sinks = 2}, .least = 9}), 5, 20);
  const std::vector<float> widths{3, 8};
  quant::BitAllocation bits{.group_size = 8};
  bits.key_widths = bits.value_widths = {widths.data(), 1, 2};
  lose_nothing(recipe(evict::SinkWindow{.recent = 17, .sinks = 3}, bits), 5, 20);
}
