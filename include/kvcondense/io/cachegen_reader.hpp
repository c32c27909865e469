#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/io/cachegen_format.hpp>

namespace kvcondense::io {

/// A chunk of CacheGen in the caller's bytes: decodes any layer, keys or values alone, any sub-chunk of tokens.
///
///   auto chunk = CacheGenReader::open(bytes);
///   if (chunk && chunk->check() == Status::ok)
///     s = chunk->decode(layer, KvSide::keys, sub, out);  // out [kv_heads, chunk->head().tokens_of(sub), head_dim]
///
/// Cost     never allocates; keeps no copy. Opening reads the head and the length of each part. Parts may be decoded by
///          many threads at once.
/// Errors   whatever the bytes, nothing outside them is read and every loop ends. `open`: corrupt_data, incompatible
///          (another version; tables that are not those it was coded with), missing_input (it needs tables). `check`:
///          corrupt_data. `decode`: out_of_range, shape_mismatch, corrupt_data; `out` then holds anything. It does not
///          look at checksums: `check` does.
class CacheGenReader {
 public:
  /// `bytes` may go on behind the chunk. `tables`: the chunk whose tables this one was coded with, kept by the caller.
  static Expected<CacheGenReader> open(std::span<const std::byte> bytes, const CacheGenReader* tables = nullptr) {
    CacheGenReader c;
    std::uint64_t sum = 0;
    if (const Status s = c.head_.read(bytes, sum); s != Status::ok) return s;
    const auto parts = ChunkParts::open(bytes, sum, c.head_.parts(), least_part);
    if (!parts) return parts.status();
    c.parts_ = *parts;
    if (!c.head_.offline) return c;
    if (tables == nullptr) return Status::missing_input;
    if (tables->head_.offline || !tables->head_.tables_fit(c.head_) || tables->tables_id() != c.head_.tables_id)
      return Status::incompatible;
    c.tables_ = tables->parts_, c.tables_head_ = tables->head_;
    return c;
  }

  const CacheGenHead& head() const { return head_; }
  std::size_t bytes() const { return parts_.bytes(); }

  /// Whether a part is as it was written.
  Status check(index_t layer, KvSide side) const {
    if (layer < 0 || layer >= head_.layers) return Status::out_of_range;
    return parts_.check(2 * layer + static_cast<index_t>(side));
  }
  Status check() const { return parts_.check(); }

  /// Tokens [sub * sub_chunk, + tokens_of(sub)) of a layer's keys or values: out [kv_heads, tokens, dim].
  Status decode(index_t layer, KvSide side, index_t sub, TensorView<float, 3> out) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    if (out.extent[0] != head_.kv_heads || out.extent[1] != head_.tokens_of(sub) || out.extent[2] != head_.dim(side))
      return Status::shape_mismatch;
    CacheGenPart part;
    if (const Status s = read_part(layer, side, part); s != Status::ok) return s;
    return head_.coder == quant::EntropyCoder::rans ? decode_part<bitstream::Rans>(part, side, sub, out)
                                                     : decode_part<bitstream::RangeCoder>(part, side, sub, out);
  }

  /// A part's bytes by what they are, its tables those of another chunk where it has none.
  Status read_part(index_t layer, KvSide side, CacheGenPart& part) const {
    const index_t p = 2 * layer + static_cast<index_t>(side);
    if (const Status s = part.read(head_, side, parts_.body(p)); s != Status::ok) return s;
    if (!head_.offline) return Status::ok;
    CacheGenPart other;
    if (other.read(tables_head_, side, tables_.body(p)) != Status::ok || other.symbols != part.symbols)
      return Status::corrupt_data;
    part.tables = other.tables, part.anchor_table = other.anchor_table;
    return Status::ok;
  }

  /// One of the tables of a part, -1 the anchors'. `starts` has room for max_symbols.
  static Status table(const CacheGenPart& part, index_t i, int bits, std::uint16_t* starts, bitstream::SymbolTable& out) {
    if (i < 0) return read_table(part.anchor_table.data(), CacheGenPart::anchor_symbols, bits, starts, out);
    return read_table(part.tables.data() + i * (part.symbols - 1) * 2, part.symbols, bits, starts, out);
  }

  /// A number that differs when tables do. 0 for a chunk without tables of its own.
  std::uint64_t tables_id() const {
    if (head_.offline) return 0;
    Checksum sum;
    for (index_t p = 0; p < head_.parts(); ++p) {
      CacheGenPart part;
      if (part.read(head_, p % 2 == 0 ? KvSide::keys : KvSide::values, parts_.body(p)) != Status::ok) return 0;
      sum.add(part.tables), sum.add(part.anchor_table);
    }
    return sum.value();
  }

 private:
  static constexpr std::uint64_t least_part = 8 + 8 + 4 + 8;  // length, symbols, an offset, checksum

  /// The i-th number of scales or steps; corrupt_data where it is none.
  Status number(std::span<const std::byte> from, index_t i, float& out) const {
    if (head_.scales == DType::f32) {
      std::memcpy(&out, from.data() + i * 4, 4);
    } else {
      half h;
      std::memcpy(&h, from.data() + i * 2, 2);
      out = static_cast<float>(h);
    }
    return std::isfinite(out) && out >= 0.0f ? Status::ok : Status::corrupt_data;
  }
  static float finite(float x) { return prim::limit_to(x, std::numeric_limits<float>::max()); }

  template <class Coder>
  Status decode_part(const CacheGenPart& part, KvSide side, index_t sub, TensorView<float, 3> out) const {
    const index_t n = head_.tokens_of(sub), dim = head_.dim(side), channels = head_.channels(side);
    const index_t group = head_.delta() ? head_.group : n + 1, count = n - head_.anchors_in(n);
    const index_t first_scale = head_.delta() ? head_.anchors_before(sub) : sub * head_.sub_chunk;
    const int middle = head_.delta() ? bitstream::DeltaRule::anchor_middle : head_.middle(part.symbols);
    float steps[4096];  // of tokens, or of anchors
    for (index_t i = 0; i < (head_.delta() ? head_.anchors_in(n) : n); ++i) {
      if (const Status s = number(part.scales, first_scale + i, steps[i]); s != Status::ok) return s;
      steps[i] /= static_cast<float>(middle);
    }
    std::uint16_t starts[bitstream::max_symbols];
    bitstream::SymbolTable t;
    index_t stream = sub * head_.streams_per_sub(side);
    if (head_.delta()) {
      if (const Status s = table(part, -1, Coder::table_bits, starts, t); s != Status::ok) return s;
      if (!part.has(stream)) return Status::corrupt_data;
      const auto anchors = static_cast<std::size_t>(head_.anchors_in(n) * channels);
      const Status s = Coder::decode(part.stream(stream), t, anchors, [&](std::size_t i, int symbol) {
        const index_t a = static_cast<index_t>(i) / channels, c = static_cast<index_t>(i) % channels;
        out(c / dim, a * group, c % dim) = finite(bitstream::step_value(symbol, middle, steps[a]));
      });
      if (s != Status::ok) return s;
      ++stream;
    }
    for (index_t c = 0; c < channels; ++c, ++stream) {
      if (c == 0 || head_.table_count(side) > 1)
        if (const Status s = table(part, c, Coder::table_bits, starts, t); s != Status::ok) return s;
      if (!part.has(stream)) return Status::corrupt_data;
      const auto bytes = part.stream(stream);
      float* to = &out(c / dim, 0, c % dim);
      const index_t stride = out.stride[1];
      Status s = Status::ok;
      if (!head_.delta()) {
        s = Coder::decode(bytes, t, static_cast<std::size_t>(n), [&](std::size_t i, int symbol) {
          to[static_cast<index_t>(i) * stride] = finite(bitstream::step_value(symbol, middle, steps[i]));
        });
      } else if (count > 0) {
        float step = 0.0f;
        s = number(part.steps, sub * channels + c, step);
        if (s != Status::ok) return s;
        const int zero = head_.middle(part.symbols);
        index_t token = 0;
        s = Coder::decode(bytes, t, static_cast<std::size_t>(count), [&](std::size_t, int symbol) {
          if (++token % group == 0) ++token;
          to[token * stride] = finite(to[token / group * group * stride] + bitstream::step_value(symbol, zero, step));
        });
      } else if (!bytes.empty()) {
        s = Status::corrupt_data;
      }
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }

  CacheGenHead head_, tables_head_;
  ChunkParts parts_, tables_;
};

}  // namespace kvcondense::io
