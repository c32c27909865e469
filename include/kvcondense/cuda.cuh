#pragma once

// Everything that runs on a CUDA device: the words of the CUDA backend, the cache over them, and the methods. For files that nvcc compiles.
#include <kvcondense/backend/cuda/words.cuh>
#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/cache/cuda_layer.cuh>
#include <kvcondense/cache/cuda_snapshot.cuh>
#include <kvcondense/kvcondense.hpp>
