// EXPECT: kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
#include <kvcondense/prim/attend.hpp>

#ifdef KVCONDENSE_EXPECT_FAIL
auto size = sizeof(kvcondense::prim::Attend<kvcondense::Cpu>);
#else
auto size = sizeof(kvcondense::prim::AttendRequest);
#endif
