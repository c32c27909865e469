#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/io/stream_chunk.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/rope.hpp>

// What formats that need something of the model do alike with rows: keys are turned back before they are coded and forth when they
// are read, and some tokens go exactly.

namespace kvcondense::io {

/// `id`, and with a rotation which one.
inline std::uint64_t id_with_rotation(std::uint64_t id, const prim::RopeTable* rope) {
  if (rope == nullptr) return id;
  Checksum sum;
  const prim::RopeAngles& a = rope->angles();
  const std::uint64_t own[] = {id, static_cast<std::uint64_t>(a.pairs), static_cast<std::uint64_t>(a.pairing)};
  sum.add(std::as_bytes(std::span(own)));
  sum.add(std::as_bytes(std::span(a.frequency, static_cast<std::size_t>(a.pairs))));
  return sum.value();
}

/// A row as it is coded: turned back where `rope` is not null. NaN stands for numbers that are none and what a rotation makes of
/// them and their partners. Returns how many are none.
inline index_t row_to_code(const float* x, index_t dim, const prim::RopeTable* rope, index_t position, float* to) {
  index_t repaired = 0;
  for (index_t d = 0; d < dim; ++d) {
    const bool bad = prim::needs_repair(x[d]);
    repaired += bad;
    to[d] = bad ? std::nanf("") : x[d];
  }
  if (rope != nullptr) rope->rotate(to, -position);
  return repaired;
}

/// A decoded row as caches take it.
inline void row_from_code(float* row, index_t dim, const prim::RopeTable* rope, index_t position) {
  if (rope != nullptr) rope->rotate(row, position);
  // Only forged bytes, or huge numbers of a calibration, lead beyond floats.
  for (index_t d = 0; d < dim; ++d) row[d] = prim::limit_to(prim::without_nan(row[d]), std::numeric_limits<float>::max());
}

/// Numbers as a cache's type holds them; NaN becomes 0, infinities the largest number. Adds to `repaired` how many.
inline Status put_exact(PartWriter& part, DType type, std::span<const float> numbers, index_t& repaired) {
  const float largest = largest_of(type);
  Status s = Status::ok;
  for (const float number : numbers) {
    repaired += !std::isfinite(number);
    const float x = prim::limit_to(prim::without_nan(number), largest);
    if (s == Status::ok) s = type == DType::f32 ? part.put(x) : type == DType::f16 ? part.put(half(x)) : part.put(bfloat16(x));
  }
  return s;
}

/// out [heads, tokens, dim] from numbers that lie in this order. corrupt_data where one is none.
inline Status read_exact(const std::byte* from, DType type, TensorView<float, 3> out) {
  const std::size_t size = size_of(type);
  for (index_t h = 0; h < out.extent[0]; ++h)
    for (index_t t = 0; t < out.extent[1]; ++t)
      for (index_t d = 0; d < out.extent[2]; ++d, from += size) {
        float x = 0.0f;
        if (type == DType::f32) {
          std::memcpy(&x, from, 4);
        } else {
          std::uint16_t bits = 0;
          std::memcpy(&bits, from, 2);
          x = type == DType::f16 ? kvcondense::detail::half_value(bits) : kvcondense::detail::bfloat16_value(bits);
        }
        if (!std::isfinite(x)) return Status::corrupt_data;
        out(h, t, d) = x;
      }
  return Status::ok;
}

}  // namespace kvcondense::io
