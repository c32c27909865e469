#include <kvcondense/cpu.hpp>  // what nvcc takes beside it
#include <kvcondense/cuda.cuh>

kvcondense::Status rank_elsewhere(kvcondense::Context<kvcondense::Cuda>& ctx, kvcondense::RaggedView<const float> scores,
                                  const kvcondense::index_t* total, kvcondense::RaggedView<std::int32_t> slots,
                                  kvcondense::index_t* count) {
  return kvcondense::prim::TopK<kvcondense::Cuda>::run(ctx, scores, nullptr, total, slots, count);
}

// A cache of the host in a program of the device's: nvcc's front end is a compiler of its own.
bool has_host_cache(const kvcondense::CacheShape& shape) {
  return kvcondense::make_cache<kvcondense::Cpu>(shape, kvcondense::recipe(kvcondense::lowrank::XKv{}, kvcondense::quant::Fp8{})).has_value();
}
