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
    if (const Status s = c.head_.read(bytes, c.sum_); s != Status::ok) return s;
    ByteReader r(bytes.subspan(CacheGenHead::bytes));
    for (index_t p = 0; p < c.head_.parts(); ++p) {
      std::uint64_t length = 0;
      std::span<const std::byte> body;
      if (!r.read(length) || length < least_part || !r.take(1, length - sizeof length, body)) return Status::corrupt_data;
    }
    c.bytes_ = bytes.first(bytes.size() - r.left());
    if (!c.head_.offline) return c;
    if (tables == nullptr) return Status::missing_input;
    if (tables->head_.offline || !tables->head_.tables_fit(c.head_) || tables->tables_id() != c.head_.tables_id)
      return Status::incompatible;
    c.tables_ = tables->bytes_, c.tables_head_ = tables->head_;
    return c;
  }

  const CacheGenHead& head() const { return head_; }
  std::size_t bytes() const { return bytes_.size(); }
  std::uint64_t sum() const { return sum_; }

  /// Whether a part is as it was written.
  Status check(index_t layer, KvSide side) const {
    if (layer < 0 || layer >= head_.layers) return Status::out_of_range;
    return check_part(2 * layer + static_cast<index_t>(side));
  }
  Status check() const {
    for (index_t p = 0; p < head_.parts(); ++p)
      if (const Status s = check_part(p); s != Status::ok) return s;
    return Status::ok;
  }

  /// Tokens [sub * sub_chunk, + tokens_of(sub)) of a layer's keys or values: out [kv_heads, tokens, dim].
  Status decode(index_t layer, KvSide side, index_t sub, TensorView<float, 3> out) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    if (out.extent[0] != head_.kv_heads || out.extent[1] != head_.tokens_of(sub) || out.extent[2] != head_.dim(side))
      return Status::shape_mismatch;
    CacheGenPart part;
    if (const Status s = read_part(layer, side, part); s != Status::ok) return s;
    return head_.coder == quant::CacheGenCoder::rans ? decode_part<bitstream::Rans>(part, side, sub, out)
                                                     : decode_part<bitstream::RangeCoder>(part, side, sub, out);
  }

  /// A part's bytes by what they are, its tables those of another chunk where it has none.
  Status read_part(index_t layer, KvSide side, CacheGenPart& part) const {
    const index_t p = 2 * layer + static_cast<index_t>(side);
    if (const Status s = part.read(head_, side, body(bytes_, p)); s != Status::ok) return s;
    if (!head_.offline) return Status::ok;
    CacheGenPart other;
    if (other.read(tables_head_, side, body(tables_, p)) != Status::ok || other.symbols != part.symbols)
      return Status::corrupt_data;
    part.tables = other.tables, part.anchor_table = other.anchor_table;
    return Status::ok;
  }

  /// One of the tables of a part, -1 the anchors'. `starts` has room for max_symbols.
  static Status table(const CacheGenPart& part, index_t i, int bits, std::uint16_t* starts, bitstream::SymbolTable& out) {
    const int n = i < 0 ? CacheGenPart::anchor_symbols : part.symbols;
    const auto size = static_cast<std::size_t>(n - 1) * 2;
    starts[0] = 0;
    std::memcpy(starts + 1, i < 0 ? part.anchor_table.data() : part.tables.data() + static_cast<std::size_t>(i) * size, size);
    out = {starts, n, bits};
    return bitstream::check_table(out);
  }

  /// A number that differs when tables do. 0 for a chunk without tables of its own.
  std::uint64_t tables_id() const {
    if (head_.offline) return 0;
    Checksum sum;
    for (index_t p = 0; p < head_.parts(); ++p) {
      CacheGenPart part;
      if (part.read(head_, p % 2 == 0 ? KvSide::keys : KvSide::values, body(bytes_, p)) != Status::ok) return 0;
      sum.add(part.tables), sum.add(part.anchor_table);
    }
    return sum.value();
  }

  /// A part's checksum knows its chunk and its place, so that parts cannot change places unseen: what it begins with.
  static Checksum part_sum(std::uint64_t head_sum, index_t p) {
    Checksum sum;
    const std::uint64_t place[2] = {head_sum, static_cast<std::uint64_t>(p)};
    sum.add(std::as_bytes(std::span(place)));
    return sum;
  }

 private:
  static constexpr std::uint64_t least_part = 8 + 8 + 4 + 8;  // length, symbols, an offset, checksum

  /// Part `p` without its length and checksum. Only for bytes that `open` has stepped through.
  static std::span<const std::byte> body(std::span<const std::byte> bytes, index_t p) {
    std::size_t at = CacheGenHead::bytes;
    for (std::uint64_t length = 0;; at += static_cast<std::size_t>(length), --p) {
      std::memcpy(&length, bytes.data() + at, sizeof length);
      if (p == 0) return bytes.subspan(at + sizeof length, static_cast<std::size_t>(length) - 2 * sizeof length);
    }
  }
  Status check_part(index_t p) const {
    const auto b = body(bytes_, p);
    std::uint64_t written = 0;
    std::memcpy(&written, b.data() + b.size(), sizeof written);
    Checksum sum = part_sum(sum_, p);
    sum.add(b);
    return sum.value() == written ? Status::ok : Status::corrupt_data;
  }

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
      if (!part.has_stream(stream)) return Status::corrupt_data;
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
      if (!part.has_stream(stream)) return Status::corrupt_data;
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
  std::uint64_t sum_ = 0;
  std::span<const std::byte> bytes_, tables_;
};

}  // namespace kvcondense::io
