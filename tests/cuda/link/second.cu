#include <kvcondense/cpu.hpp>  // what nvcc takes beside it
#include <kvcondense/cuda.cuh>

kvcondense::Status rank_elsewhere(kvcondense::Context<kvcondense::Cuda>& ctx, kvcondense::RaggedView<const float> scores,
                                  const kvcondense::index_t* total, kvcondense::RaggedView<std::int32_t> slots,
                                  kvcondense::index_t* count) {
  return kvcondense::prim::TopK<kvcondense::Cuda>::run(ctx, scores, nullptr, total, slots, count);
}
