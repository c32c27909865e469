// Words of computation without a backend: the first include is missing.
// EXPECT: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
// EXPECT: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
// EXPECT: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
// EXPECT: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
// EXPECT: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/keep_rows.hpp>
#include <kvcondense/prim/lift_top.hpp>
#include <kvcondense/prim/rope.hpp>
#include <kvcondense/prim/top_k.hpp>

#ifndef KVCONDENSE_EXPECT_FAIL
#include <kvcondense/cpu.hpp>
#endif

using namespace kvcondense;

using Best = decltype(sizeof(prim::TopK<Cpu>));
using Rows = decltype(sizeof(prim::KeepRows<Cpu>));
using Look = decltype(sizeof(prim::Attend<Cpu>));
using Turn = decltype(sizeof(prim::Rope<Cpu>));
using Lift = decltype(sizeof(prim::LiftTop<Cpu>));
