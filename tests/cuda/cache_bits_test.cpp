// Caches on CUDA whose heads have codes of widths of their own.

#include <string>
#include <vector>

#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/quant/bit_allocation.hpp>
#include <kvcondense/quant/qjl.hpp>
#include <kvcondense/quant/turboquant.hpp>

#include <support/model_facts.hpp>

#include "cache_live.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache codec: bit_allocation") {
  const CacheShape layers{.layers = 3, .q_heads = 3, .kv_heads = 1, .head_dim = 64, .page_slots = 16};
  stays(quant::BitAllocation{.boundary = 1, .sinks = 2}, "bit_allocation(boundary=1, sinks=2)", layers);
  // Heads of a layer differ: rows of 3 and of 8 bits, values of 5 and of 1.
  const std::vector<float> keys{3, 8, 4, 2}, values{5, 1, 2, 7};
  any::ModelFacts facts;
  quant::BitAllocation bits{.group_size = 16};
  facts.key_widths = bits.key_widths = {keys.data(), 2, 2}, facts.value_widths = bits.value_widths = {values.data(), 2, 2};
  leaves(bits, "bit_allocation(group=16)", small, facts);
  bits.layout = quant::BitLayout::kivi, bits.residual_window = 16, bits.sinks = 1;
  leaves(bits, "bit_allocation(group=16, layout=kivi, residual=16, sinks=1)", small, facts);
}

TEST_CASE("cuda cache codec: bit_allocation, bytes of tombstones are those of each head's slots") {
  const std::vector<float> keys{3, 8, 4, 2};
  any::ModelFacts facts;
  quant::BitAllocation bits{.layout = quant::BitLayout::kivi, .group_size = 16, .residual_window = 32};
  facts.key_widths = bits.key_widths = {keys.data(), 2, 2};
  Pair pair(recipe(bits), "bit_allocation(layout=kivi, group=16, residual=32)", small, facts);
  pair.forward(32);
  pair.remove(3, 9);
  std::size_t dead = 0;
  for (const float width : keys) dead += 6 * prim::GroupBits{static_cast<int>(width), prim::GroupAxis::channel, 16}.page_bytes(16, 64) / 16;
  CHECK(pair.on_device().report(pair.device())->dead_bytes == dead);
}

TEST_CASE("cuda cache codec: bit_allocation, files have no bytes that are nobody's") {
  // Five rows of 30 bytes, and of 18: parameters begin behind them at a multiple of four.
  Pair pair(recipe(quant::BitAllocation{.key_bits = 3, .value_bits = 3, .boundary = 0, .group_size = 16}), "bit_allocation(key_bits=3, value_bits=3, boundary=0, group=16)", odd);
  pair.forward(13);
  test::ByteList host, device;
  REQUIRE(pair.on_host().save(host) == Status::ok);
  REQUIRE(save(pair.device(), pair.on_device(), device) == Status::ok);
  REQUIRE(device.bytes == host.bytes);
}

TEST_CASE("cuda cache: widths of layers and signs of coordinates") {
  const CacheShape shape{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  const test::RandomModel model(shape);
  const lowrank::Pca pca{.window = 4, .bases = model.facts().bases};
  const auto of_coordinates = [&](const std::string& text, const auto& quant) {
    INFO(text);
    Pair pair(recipe(pca, quant), "pca(window=4) + " + text, shape, model.facts());
    pair.allow(2e-6f);
    lives(pair, 1e-4f);
  };
  of_coordinates("bit_allocation(boundary=1)", quant::BitAllocation{.boundary = 1});
  of_coordinates("turboquant(key_bits=2, sketch=true)", quant::TurboQuant{.key_bits = 2, .sketch = true});
  of_coordinates("qjl(channels=0, buffer=4)", quant::Qjl{.channels = 0, .buffer = 4});
}
