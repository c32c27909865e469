#pragma once

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// The run-time numbers of a cache. Any positive head ratio and any head size up to 256 works.
struct CacheShape {
  index_t layers = 1;
  index_t q_heads = 1;
  index_t kv_heads = 1;
  index_t head_dim = 64;
  index_t value_dim = 0;          ///< 0 means head_dim
  DType dtype = DType::f16;       ///< how exact parts store a number
  index_t page_slots = 64;        ///< slots of one page, the unit of allocation; caches take at most 256 (cache/page.hpp)
  float softmax_scale = 0.0f;     ///< 0 means 1 / sqrt(head_dim)

  index_t values() const { return value_dim == 0 ? head_dim : value_dim; }
  index_t group() const { return q_heads / kv_heads; }  ///< query heads per kv head
};

/// One KV head of a model.
struct HeadIndex {
  index_t layer = 0;
  index_t head = 0;
};

inline constexpr index_t max_head_dim = 256;

/// `invalid_argument` unless every number is in range and q_heads is a multiple of kv_heads.
inline Status validate(const CacheShape& s) {
  const bool positive = s.layers > 0 && s.q_heads > 0 && s.kv_heads > 0 && s.page_slots > 0;
  const bool dims = s.head_dim > 0 && s.head_dim <= max_head_dim && s.value_dim >= 0 && s.values() <= max_head_dim;
  // Bounds far above any model keep every product of these numbers inside index_t.
  const bool sane = s.layers <= 65536 && s.q_heads <= 65536 && s.page_slots <= 65536;
  const bool scale = s.softmax_scale >= 0.0f && s.softmax_scale < 1e30f;
  if (!positive || !dims || !sane || !scale || s.q_heads % s.kv_heads != 0) return Status::invalid_argument;
  return Status::ok;
}

}  // namespace kvcondense
