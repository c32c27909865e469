// Two files that both include the CUDA backend and start the same kernels are one program. It does not run here: where
// no device is, it says so and leaves with 0 when that is what it was told.

#include <kvcondense/cuda.cuh>

kvcondense::Status rank_elsewhere(kvcondense::Context<kvcondense::Cuda>& ctx, kvcondense::RaggedView<const float> scores,
                                  const kvcondense::index_t* total, kvcondense::RaggedView<std::int32_t> slots,
                                  kvcondense::index_t* count);

bool has_host_cache(const kvcondense::CacheShape& shape);

int main() {
  using namespace kvcondense;
  if (!has_host_cache({})) return 4;
  Expected<Context<Cuda>> ctx = Context<Cuda>::make(nullptr);
  if (!ctx) return ctx.status() == Status::no_device ? 0 : 1;
  if (prim::TopK<Cuda>::run(*ctx, {}, nullptr, nullptr, {}, nullptr) != Status::ok) return 2;
  return rank_elsewhere(*ctx, {}, nullptr, {}, nullptr) == Status::ok ? 0 : 3;
}
