#pragma once

// The library without a backend: include kvcondense/cpu.hpp (or kvcondense/cuda.cuh) as well.
#include <kvcondense/version.hpp>
