#pragma once

// Everything that runs on a CUDA device: the words of the CUDA backend. For files that nvcc compiles.
#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
