#pragma once

// Emulation A: CUDA kernels as host C++, one fiber per CUDA thread. backend/cuda/dialect.cuh includes this in
// place of the CUDA headers where KVCONDENSE_CUDA_FIBERS is defined.

#include "dialect.hpp"
#include "graph.hpp"
#include "launch.hpp"
#include "names.hpp"
#include "runtime.hpp"
