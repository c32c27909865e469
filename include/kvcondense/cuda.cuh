#pragma once

// Everything that runs on a CUDA device: the words of the CUDA backend, and the cache over them. For files that nvcc compiles.
#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/backend/cuda/attend_columns.cuh>
#include <kvcondense/backend/cuda/chunk_pool.cuh>
#include <kvcondense/backend/cuda/column_pool.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/hadamard.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/rope.cuh>
#include <kvcondense/backend/cuda/row_direction.cuh>
#include <kvcondense/backend/cuda/row_norm.cuh>
#include <kvcondense/backend/cuda/slot_exposure.cuh>
#include <kvcondense/backend/cuda/slot_numbers.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/softmax_rows.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/backend/cuda/token_numbers.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/cache/cuda_layer.cuh>
