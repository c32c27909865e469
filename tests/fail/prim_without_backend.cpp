// EXPECT: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/prim/top_k.hpp>

#ifndef KVCONDENSE_EXPECT_FAIL
#include <kvcondense/cpu.hpp>
#endif

using namespace kvcondense;

using Word = decltype(sizeof(prim::TopK<Cpu>));
