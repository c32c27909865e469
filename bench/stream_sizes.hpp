#pragma once

// What programs that measure streams of a recorded context share.

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include <eval/recording.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/io/stream_chunk.hpp>

#ifdef KVCONDENSE_BENCH_ZSTD
#include <zstd.h>
#endif

namespace sizes {

using namespace kvcondense;
using io::KvSide;

struct Sink final : ByteSink {
  std::vector<std::byte> bytes;
  bool write(std::span<const std::byte> b) noexcept override {
    bytes.insert(bytes.end(), b.begin(), b.end());
    return true;
  }
};

inline void require(Status s) {
  if (s != Status::ok) throw std::runtime_error(to_string(s));
}

inline float number(const eval::Recording& r, KvSide side, index_t l, index_t h, index_t t, index_t d) {
  const auto& layer = r.layers[static_cast<std::size_t>(l)];
  const auto& x = side == KvSide::keys ? layer.k : layer.v;
  return x[static_cast<std::size_t>((t * r.shape.kv_heads + h) * r.shape.head_dim + d)];
}

/// Rows of a layer from token `first` on, as writers ask for them.
inline void fill(const eval::Recording& r, KvSide side, index_t l, index_t first, TensorView<float, 3> x) {
  for (index_t h = 0; h < x.extent[0]; ++h)
    for (index_t t = 0; t < x.extent[1]; ++t)
      for (index_t d = 0; d < x.extent[2]; ++d) x(h, t, d) = number(r, side, l, h, first + t, d);
}

/// Bits after zstd at its level 19; NaN without zstd.
inline double zstd_bits([[maybe_unused]] const void* bytes, [[maybe_unused]] std::size_t size) {
#ifdef KVCONDENSE_BENCH_ZSTD
  std::vector<char> out(ZSTD_compressBound(size));
  return 8.0 * static_cast<double>(ZSTD_compress(out.data(), out.size(), bytes, size, 19));
#else
  return std::nan("");
#endif
}

/// Squared errors over squares, as a root.
struct Error {
  double error = 0, square = 0;
  void add(double want, double got) { error += std::pow(want - got, 2), square += want * want; }
  double value() const { return square > 0 ? std::sqrt(error / square) : 0.0; }
};

/// Decodes a chunk: decode(layer, side, sub, out) fills the rows of a sub-chunk, use(layer, head, token of the context, channel,
/// number) takes them.
template <class Decode, class Use>
void each_number(const eval::Recording& r, const io::StreamHead& h, KvSide side, Decode&& decode, Use&& use) {
  for (index_t l = 0; l < r.shape.layers; ++l)
    for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
      const index_t n = h.tokens_of(sub), first = static_cast<index_t>(h.first) + sub * h.sub_chunk;
      std::vector<float> x(static_cast<std::size_t>(h.channels(side) * n));
      const auto out = dense_view(x.data(), r.shape.kv_heads, n, h.dim(side));
      require(decode(l, side, sub, out));
      for (index_t k = 0; k < r.shape.kv_heads; ++k)
        for (index_t t = 0; t < n; ++t)
          for (index_t d = 0; d < h.dim(side); ++d) use(l, k, first + t, d, out(k, t, d));
    }
}

}  // namespace sizes
