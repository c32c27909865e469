#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/bitstream/symbol_table.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>

// What every format of streams of keys and values has in common: a chunk is a head and parts, each with a checksum.

namespace kvcondense::io {

enum class KvSide : std::uint8_t { keys, values };

/// Where a chunk stands in its stream.
struct StreamPlace {
  index_t tokens = 0;
  index_t first = 0;      ///< tokens before it
  index_t total = 0;      ///< tokens of the whole stream
  index_t position = 0;   ///< of its first token
  bool raw_keys = false;  ///< keys carry no rotation
};

/// What a chunk begins with, in any format.
struct StreamHead {
  static constexpr std::uint64_t most_tokens = 0x7fffffff;

  DType dtype = DType::f16;  ///< of the cache that was written
  bool raw_keys = false;     ///< keys carry no rotation
  std::uint32_t layers = 1, kv_heads = 1, head_dim = 1, value_dim = 1;
  std::uint32_t tokens = 0, sub_chunk = 256;
  std::uint64_t first = 0;    ///< how many tokens chunks before this one hold
  std::uint64_t total = 0;    ///< tokens of all chunks
  std::int64_t position = 0;  ///< of the first token; consecutive from there

  index_t dim(KvSide side) const { return side == KvSide::keys ? head_dim : value_dim; }
  index_t channels(KvSide side) const { return kv_heads * dim(side); }
  index_t sub_chunks() const { return (index_t{tokens} + sub_chunk - 1) / sub_chunk; }
  index_t tokens_of(index_t sub) const { return std::min<index_t>(sub_chunk, tokens - sub * sub_chunk); }

  void take_shape(const CacheShape& shape) {
    dtype = shape.dtype;
    layers = static_cast<std::uint32_t>(shape.layers), kv_heads = static_cast<std::uint32_t>(shape.kv_heads);
    head_dim = static_cast<std::uint32_t>(shape.head_dim), value_dim = static_cast<std::uint32_t>(shape.values());
  }
  bool fits(const CacheShape& shape) const {
    return shape.layers == layers && shape.kv_heads == kv_heads && shape.head_dim == head_dim && shape.values() == value_dim;
  }
  /// invalid_argument for a place that cannot be.
  Status take_place(const StreamPlace& place) {
    const auto most = static_cast<index_t>(most_tokens);
    const bool ok = place.total <= most && place.first >= 0 && place.first <= place.total && place.tokens >= 0 &&
                    place.tokens <= place.total - place.first && place.position >= 0 && place.position <= most - place.tokens;
    if (!ok) return Status::invalid_argument;
    tokens = static_cast<std::uint32_t>(place.tokens), first = static_cast<std::uint64_t>(place.first);
    total = static_cast<std::uint64_t>(place.total), position = place.position, raw_keys = place.raw_keys;
    return Status::ok;
  }

  /// Bytes of the head, its checksum included.
  static constexpr std::size_t bytes = 88;

  /// What a format adds: `kind` but for its first number (dtype) and its sixth (raw_keys), `number`, `id`.
  struct Own {
    std::uint8_t kind[8] = {};
    std::uint32_t number = 0;
    std::uint64_t id = 0;
  };

  /// Returns the checksum, which the parts' checksums begin with.
  std::uint64_t write_head(ByteSink& sink, std::uint32_t magic, std::uint32_t version, Own own, Status& status) const {
    own.kind[0] = static_cast<std::uint8_t>(dtype), own.kind[5] = raw_keys;
    ByteWriter w(sink);
    w.put(magic), w.put(version);
    w.put(own.kind);
    for (const std::uint32_t n : {layers, kv_heads, head_dim, value_dim, tokens, sub_chunk, own.number, 0u}) w.put(n);
    w.put(first), w.put(total), w.put(position), w.put(own.id);
    const std::uint64_t sum = w.checksum();
    w.put(sum);
    status = w.status();
    return sum;
  }

  /// Errors   corrupt_data (no head, or one that cannot be), incompatible (another version).
  Status read_head(std::span<const std::byte> file, std::uint32_t magic, std::uint32_t version, Own& own, std::uint64_t& sum) {
    ByteReader r(file);
    std::uint32_t m = 0, v = 0, zero = 0;
    if (!r.read(m) || m != magic || !r.read(v)) return Status::corrupt_data;
    if (v != version) return Status::incompatible;
    if (!r.read(own.kind)) return Status::corrupt_data;
    for (std::uint32_t* n : {&layers, &kv_heads, &head_dim, &value_dim, &tokens, &sub_chunk, &own.number, &zero})
      if (!r.read(*n)) return Status::corrupt_data;
    if (!r.read(first) || !r.read(total) || !r.read(position) || !r.read(own.id) || !r.read(sum)) return Status::corrupt_data;
    Checksum check;
    check.add(file.first(bytes - sizeof sum));
    if (check.value() != sum || own.kind[0] > 2 || own.kind[5] > 1 || zero != 0) return Status::corrupt_data;
    dtype = static_cast<DType>(own.kind[0]), raw_keys = own.kind[5] != 0;
    const bool shape = layers >= 1 && layers <= 65536 && kv_heads >= 1 && kv_heads <= 65536 && head_dim >= 1 &&
                       head_dim <= max_head_dim && value_dim >= 1 && value_dim <= max_head_dim;
    const bool place = sub_chunk >= 1 && total <= most_tokens && first <= total && tokens <= total - first && position >= 0 &&
                       position <= static_cast<std::int64_t>(most_tokens - tokens);
    return shape && place ? Status::ok : Status::corrupt_data;
  }
};

/// The parts of a chunk, in the caller's bytes: length u64, body, checksum u64, one behind the other.
class ChunkParts {
 public:
  /// `bytes` may go on behind the chunk; a part is never shorter than `least`. corrupt_data where parts are missing.
  static Expected<ChunkParts> open(std::span<const std::byte> bytes, std::uint64_t head_sum, index_t count, std::uint64_t least) {
    ByteReader r(bytes.subspan(StreamHead::bytes));
    for (index_t p = 0; p < count; ++p) {
      std::uint64_t length = 0;
      std::span<const std::byte> body;
      if (!r.read(length) || length < least || !r.take(1, length - sizeof length, body)) return Status::corrupt_data;
    }
    ChunkParts c;
    c.bytes_ = bytes.first(bytes.size() - r.left());
    c.sum_ = head_sum, c.count_ = count;
    return c;
  }

  std::size_t bytes() const { return bytes_.size(); }
  std::uint64_t head_sum() const { return sum_; }

  /// Part `p` without its length and checksum.
  std::span<const std::byte> body(index_t p) const {
    std::size_t at = StreamHead::bytes;
    for (std::uint64_t length = 0;; at += static_cast<std::size_t>(length), --p) {
      std::memcpy(&length, bytes_.data() + at, sizeof length);
      if (p == 0) return bytes_.subspan(at + sizeof length, static_cast<std::size_t>(length) - 2 * sizeof length);
    }
  }
  /// corrupt_data unless a part is as it was written.
  Status check(index_t p) const {
    const auto b = body(p);
    std::uint64_t written = 0;
    std::memcpy(&written, b.data() + b.size(), sizeof written);
    Checksum sum = begin_sum(sum_, p);
    sum.add(b);
    return sum.value() == written ? Status::ok : Status::corrupt_data;
  }
  Status check() const {
    for (index_t p = 0; p < count_; ++p)
      if (const Status s = check(p); s != Status::ok) return s;
    return Status::ok;
  }

  /// A part's checksum knows its chunk and its place, so that parts cannot change places unseen: what it begins with.
  static Checksum begin_sum(std::uint64_t head_sum, index_t p) {
    Checksum sum;
    const std::uint64_t place[2] = {head_sum, static_cast<std::uint64_t>(p)};
    sum.add(std::as_bytes(std::span(place)));
    return sum;
  }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t sum_ = 0;
  index_t count_ = 0;
};

/// Where entropy-coded streams begin in a payload: ascending u32 from 0 to its size, one more than there are streams.
struct StreamOffsets {
  std::span<const std::byte> offsets, payload;

  /// Takes them from what is left of a part, all of it.
  Status read(ByteReader& r, index_t streams) {
    const bool ok = r.take(static_cast<std::uint64_t>(streams) + 1, 4, offsets) && r.take(r.left(), 1, payload);
    return ok && at(0) == 0 && at(streams) == payload.size() ? Status::ok : Status::corrupt_data;
  }
  std::uint32_t at(index_t i) const {
    std::uint32_t n = 0;
    std::memcpy(&n, offsets.data() + i * 4, 4);
    return n;
  }
  bool has(index_t i) const { return at(i) <= at(i + 1) && at(i + 1) <= payload.size(); }
  /// Only where there is one.
  std::span<const std::byte> stream(index_t i) const { return payload.subspan(at(i), at(i + 1) - at(i)); }
};

/// A table of frequencies as a part holds it: where symbols 1 .. n - 1 begin, u16 each; the first begins at 0. `starts` has
/// room for max_symbols. corrupt_data where it is none.
inline Status read_table(const std::byte* from, int symbols, int bits, std::uint16_t* starts, bitstream::SymbolTable& out) {
  starts[0] = 0;
  std::memcpy(starts + 1, from, static_cast<std::size_t>(symbols - 1) * 2);
  out = {starts, symbols, bits};
  return bitstream::check_table(out);
}

/// Puts the bytes of a part together.
class PartWriter {
 public:
  explicit PartWriter(MemoryResource<Cpu>& memory) : part_(memory) {}

  /// Forgets the last one, keeps its memory.
  Status begin() {
    part_.shrink(0);
    return put(std::uint64_t{0});
  }
  template <class T>
  Status put(const T& value) {
    return put_bytes(std::as_bytes(std::span<const T, 1>(&value, 1)));
  }
  Status put_bytes(std::span<const std::byte> bytes) {
    const auto n = static_cast<index_t>(bytes.size());
    const Status s = part_.reserve(part_.size() + n);
    for (index_t i = 0; s == Status::ok && i < n; ++i) part_.append_reserved(bytes[static_cast<std::size_t>(i)]);
    return s;
  }
  template <class Coder>
  Status put_table(const std::uint32_t* counts, int symbols) {
    std::uint16_t starts[bitstream::max_symbols];
    const auto n = static_cast<std::size_t>(symbols);
    Status s = bitstream::make_table({counts, n}, Coder::table_bits, {starts, n});
    for (std::size_t i = 1; s == Status::ok && i < n; ++i) s = put(starts[i]);
    return s;
  }
  /// Room for the offsets of so many streams, which `encode` then adds one by one.
  Status begin_streams(index_t streams) {
    offsets_at_ = part_.size(), stream_ = 0;
    Status s = Status::ok;
    for (index_t i = 0; s == Status::ok && i <= streams; ++i) s = put(std::uint32_t{0});
    payload_at_ = part_.size();
    return s;
  }
  /// out_of_range for a payload of 4 GiB or more.
  template <class Coder>
  Status encode(std::span<const std::uint8_t> symbols, const bitstream::SymbolTable& table) {
    if (!symbols.empty()) {
      const index_t at = part_.size();
      const std::size_t room = Coder::most_bytes(symbols.size());
      std::size_t bytes = 0;
      if (const Status s = part_.resize(at + static_cast<index_t>(room)); s != Status::ok) return s;
      if (const Status s = Coder::encode(symbols, table, {part_.data() + at, room}, bytes); s != Status::ok) return s;
      part_.shrink(at + static_cast<index_t>(bytes));
    }
    const index_t end = part_.size() - payload_at_;
    if (end > index_t{0xffffffff}) return Status::out_of_range;
    const auto offset = static_cast<std::uint32_t>(end);
    std::memcpy(part_.data() + offsets_at_ + ++stream_ * 4, &offset, sizeof offset);
    return Status::ok;
  }
  index_t size() const { return part_.size(); }
  const std::byte* at(index_t i) const { return part_.data() + i; }

  /// Length and checksum, then everything to the sink.
  Status finish(ByteSink& sink, std::uint64_t head_sum, index_t p) {
    const std::uint64_t length = static_cast<std::uint64_t>(part_.size()) + 8;
    std::memcpy(part_.data(), &length, sizeof length);
    Checksum sum = ChunkParts::begin_sum(head_sum, p);
    sum.add(part_.span().subspan(8));
    if (const Status s = put(sum.value()); s != Status::ok) return s;
    return sink.write(part_.span()) ? Status::ok : Status::io_error;
  }

 private:
  Buffer<std::byte> part_;
  index_t offsets_at_ = 0, payload_at_ = 0, stream_ = 0;
};

}  // namespace kvcondense::io
