#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense {

/// The codec and the flush rule of a quant stage's keys or values in one head. Most stages need nothing to say
/// them; those whose tables depend on the size of a head take the shape, those that treat layers or heads
/// differently also which one it is: `key_codec(shape, at)`, `key_flush(shape, at)`. The type is the same for all heads.
template <class Quant>
constexpr auto key_codec_of(const Quant& q, const CacheShape& shape, HeadIndex at = {}) {
  if constexpr (requires { q.key_codec(shape, at); }) return q.key_codec(shape, at);
  else if constexpr (requires { q.key_codec(shape); }) return q.key_codec(shape);
  else return q.key_codec();
}
template <class Quant>
constexpr auto value_codec_of(const Quant& q, const CacheShape& shape, HeadIndex at = {}) {
  if constexpr (requires { q.value_codec(shape, at); }) return q.value_codec(shape, at);
  else if constexpr (requires { q.value_codec(shape); }) return q.value_codec(shape);
  else return q.value_codec();
}
template <class Quant>
constexpr Flush key_flush_of(const Quant& q, const CacheShape& shape, HeadIndex at = {}) {
  if constexpr (requires { q.key_flush(shape, at); }) return q.key_flush(shape, at);
  else return q.key_flush();
}
template <class Quant>
constexpr Flush value_flush_of(const Quant& q, const CacheShape& shape, HeadIndex at = {}) {
  if constexpr (requires { q.value_flush(shape, at); }) return q.value_flush(shape, at);
  else return q.value_flush();
}

/// Whether heads may have codecs of their own. Where they have not, one is made for all: tables may be costly.
template <class Quant>
constexpr bool differs_per_head(const Quant& q) {
  constexpr HeadIndex at{};
  if constexpr (requires { q.differs_per_head(); }) return q.differs_per_head();
  else return requires(const CacheShape& s) { q.key_codec(s, at); } || requires(const CacheShape& s) { q.value_codec(s, at); } ||
              requires(const CacheShape& s) { q.key_flush(s, at); } || requires(const CacheShape& s) { q.value_flush(s, at); };
}

}  // namespace kvcondense
