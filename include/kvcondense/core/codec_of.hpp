#pragma once

#include <kvcondense/core/shape.hpp>

namespace kvcondense {

/// The codec of a quant stage's keys. Most stages need no shape to say it; those whose tables depend on the size
/// of a head take it: `key_codec(shape)`.
template <class Quant>
constexpr auto key_codec_of(const Quant& q, const CacheShape& shape) {
  if constexpr (requires { q.key_codec(shape); }) return q.key_codec(shape);
  else return q.key_codec();
}
template <class Quant>
constexpr auto value_codec_of(const Quant& q, const CacheShape& shape) {
  if constexpr (requires { q.value_codec(shape); }) return q.value_codec(shape);
  else return q.value_codec();
}

}  // namespace kvcondense
