// EXPECT: kvcondense: include kvcondense/cuda.cuh for a cache on CUDA.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

#ifdef KVCONDENSE_EXPECT_FAIL
using Mine = Cache<Cuda, decltype(recipe())>;
#else
using Mine = Cache<Cpu, decltype(recipe())>;
#endif

index_t length(const Mine& cache) { return cache.length(); }
