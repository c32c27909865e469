#pragma once

// Shapes that heads come in, and methods by which slots move and leave, for tests of what caches on CUDA store.

#include <kvcondense/core/shape.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>

namespace cuda_cache {

using kvcondense::CacheShape;
using kvcondense::DType;

// Query heads a KV head: 3, 7, 4, 1, 16; heads of 64, 80, 128, 256 and 96.
inline const CacheShape small{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
inline const CacheShape odd{.q_heads = 7, .kv_heads = 1, .head_dim = 80, .value_dim = 48, .page_slots = 5};
inline const CacheShape common{.layers = 2, .q_heads = 8, .kv_heads = 2, .head_dim = 128, .dtype = DType::f32, .page_slots = 64};
inline const CacheShape wide{.q_heads = 2, .kv_heads = 2, .head_dim = 256, .dtype = DType::bf16, .page_slots = 8};
inline const CacheShape wide_halves{.q_heads = 2, .kv_heads = 2, .head_dim = 256, .page_slots = 8};
inline const CacheShape shared{.q_heads = 16, .kv_heads = 1, .head_dim = 96, .page_slots = 16};

inline constexpr kvcondense::evict::H2O heavy{.heavy = 20, .recent = 8};
inline constexpr kvcondense::evict::SinkWindow ends{.recent = 20, .sinks = 3};

}  // namespace cuda_cache
