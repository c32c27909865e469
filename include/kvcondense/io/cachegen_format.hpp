#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>

#include <kvcondense/bitstream/symbol_table.hpp>
#include <kvcondense/bitstream/token_symbols.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/quant/cachegen.hpp>

namespace kvcondense::io {

enum class KvSide : std::uint8_t { keys, values };

/// What a chunk of CacheGen begins with; docs/file_format.md says the layout in prose.
struct CacheGenHead {
  static constexpr std::uint32_t magic = 0x4743564b;  // "KVCG"
  static constexpr std::uint32_t version = 1;
  static constexpr std::uint64_t most_tokens = 0x7fffffff;

  DType dtype = DType::f16;  ///< of the cache that was written; for information
  quant::CacheGenForm form = quant::CacheGenForm::scaled;
  quant::CacheGenCoder coder = quant::CacheGenCoder::range;
  quant::CacheGenTables tables = quant::CacheGenTables::per_channel;
  DType scales = DType::f16;
  bool raw_keys = false;     ///< keys carry no rotation
  bool offline = false;      ///< tables are those of another chunk
  std::uint32_t layers = 1, kv_heads = 1, head_dim = 1, value_dim = 1;
  std::uint32_t tokens = 0, sub_chunk = 256, group = 10;
  std::uint64_t first = 0;     ///< how many tokens chunks before this one hold
  std::uint64_t total = 0;     ///< tokens of all chunks
  std::int64_t position = 0;   ///< of the first token; consecutive from there
  std::uint64_t tables_id = 0; ///< which tables, where they are not here

  index_t dim(KvSide side) const { return side == KvSide::keys ? head_dim : value_dim; }
  index_t channels(KvSide side) const { return kv_heads * dim(side); }
  index_t parts() const { return 2 * static_cast<index_t>(layers); }  ///< keys, values of layer 0, 1, ...
  bool delta() const { return form == quant::CacheGenForm::delta; }
  int table_bits() const { return coder == quant::CacheGenCoder::rans ? 12 : 16; }

  index_t sub_chunks() const { return (index_t{tokens} + sub_chunk - 1) / sub_chunk; }
  index_t tokens_of(index_t sub) const { return std::min<index_t>(sub_chunk, tokens - sub * sub_chunk); }
  index_t anchors_in(index_t n) const { return delta() ? (n + group - 1) / group : 0; }
  index_t anchors_before(index_t sub) const { return sub * anchors_in(sub_chunk); }
  index_t anchors() const {
    const index_t whole = tokens / sub_chunk;
    return anchors_before(whole) + anchors_in(tokens % sub_chunk);
  }
  /// Numbers in the order in which a part has them.
  index_t scale_count() const { return delta() ? anchors() : tokens; }
  index_t step_count(KvSide side) const { return delta() ? sub_chunks() * channels(side) : 0; }
  index_t table_count(KvSide side) const { return tables == quant::CacheGenTables::per_layer ? 1 : channels(side); }
  index_t streams_per_sub(KvSide side) const { return channels(side) + delta(); }
  index_t streams(KvSide side) const { return sub_chunks() * streams_per_sub(side); }
  int middle(int symbols) const { return delta() ? (symbols - 1) / 2 : symbols / 2 - 1; }
  bool valid_symbols(std::uint32_t n) const { return delta() ? n >= 3 && n <= 255 && n % 2 == 1 : n >= 4 && n <= 256 && n % 2 == 0; }

  /// Whether `o` chunks may be coded with tables of chunks like this one.
  bool tables_fit(const CacheGenHead& o) const {
    return form == o.form && coder == o.coder && tables == o.tables && layers == o.layers && kv_heads == o.kv_heads &&
           head_dim == o.head_dim && value_dim == o.value_dim;
  }

  /// Bytes of the head, its checksum included.
  static constexpr std::size_t bytes = 88;

  /// Returns the checksum, which the parts' checksums begin with.
  std::uint64_t write(ByteSink& sink, Status& status) const {
    ByteWriter w(sink);
    w.put(magic), w.put(version);
    for (const int b : {static_cast<int>(dtype), static_cast<int>(form), static_cast<int>(coder), static_cast<int>(tables),
                        static_cast<int>(scales), static_cast<int>(raw_keys), static_cast<int>(offline), 0})
      w.put(static_cast<std::uint8_t>(b));
    for (const std::uint32_t n : {layers, kv_heads, head_dim, value_dim, tokens, sub_chunk, group, 0u}) w.put(n);
    w.put(first), w.put(total), w.put(position), w.put(tables_id);
    const std::uint64_t sum = w.checksum();
    w.put(sum);
    status = w.status();
    return sum;
  }

  /// Errors   corrupt_data (no head, or one that cannot be), incompatible (another version).
  Status read(std::span<const std::byte> file, std::uint64_t& sum) {
    ByteReader r(file);
    std::uint32_t m = 0, v = 0, zero = 0;
    std::uint8_t kind[8];
    if (!r.read(m) || m != magic || !r.read(v)) return Status::corrupt_data;
    if (v != version) return Status::incompatible;
    if (!r.read(kind)) return Status::corrupt_data;
    for (std::uint32_t* n : {&layers, &kv_heads, &head_dim, &value_dim, &tokens, &sub_chunk, &group, &zero})
      if (!r.read(*n)) return Status::corrupt_data;
    if (!r.read(first) || !r.read(total) || !r.read(position) || !r.read(tables_id) || !r.read(sum)) return Status::corrupt_data;
    Checksum check;
    check.add(file.first(bytes - sizeof sum));
    const bool kinds = kind[0] <= 2 && kind[1] <= 1 && kind[2] <= 1 && kind[3] <= 1 && kind[4] <= 1 && kind[5] <= 1 &&
                       kind[6] <= 1 && kind[7] == 0 && zero == 0;
    if (check.value() != sum || !kinds) return Status::corrupt_data;
    dtype = static_cast<DType>(kind[0]), form = static_cast<quant::CacheGenForm>(kind[1]);
    coder = static_cast<quant::CacheGenCoder>(kind[2]), tables = static_cast<quant::CacheGenTables>(kind[3]);
    scales = static_cast<DType>(kind[4]), raw_keys = kind[5] != 0, offline = kind[6] != 0;
    const bool shape = layers >= 1 && layers <= 65536 && kv_heads >= 1 && kv_heads <= 65536 && head_dim >= 1 &&
                       head_dim <= max_head_dim && value_dim >= 1 && value_dim <= max_head_dim;
    const bool steps = sub_chunk >= 1 && sub_chunk <= 4096 && group >= 2 && group <= most_tokens;
    const bool place = total <= most_tokens && first <= total && tokens <= total - first && position >= 0 &&
                       position <= static_cast<std::int64_t>(most_tokens - tokens);
    return shape && steps && place ? Status::ok : Status::corrupt_data;
  }
};

/// Bytes of a part, by what they are.
struct CacheGenPart {
  int symbols = 0;
  std::span<const std::byte> scales, steps, tables, anchor_table, offsets, payload;

  static constexpr int anchor_symbols = 2 * bitstream::DeltaRule::anchor_middle + 1;

  /// `body` is the part without its length and checksum.
  Status read(const CacheGenHead& head, KvSide side, std::span<const std::byte> body) {
    ByteReader r(body);
    std::uint32_t n = 0, zero = 0;
    if (!r.read(n) || !r.read(zero) || zero != 0 || !head.valid_symbols(n)) return Status::corrupt_data;
    symbols = static_cast<int>(n);
    const auto take = [&](index_t count, std::uint64_t size, std::span<const std::byte>& to) {
      return r.take(static_cast<std::uint64_t>(count), size, to);
    };
    const std::size_t number = size_of(head.scales);
    const bool ok = take(head.scale_count(), number, scales) && take(head.step_count(side), number, steps) &&
                    (head.offline || take(head.table_count(side), (n - 1) * 2, tables)) &&
                    (head.offline || !head.delta() || take(anchor_symbols - 1, 2, anchor_table)) &&
                    take(head.streams(side) + 1, 4, offsets) && take(static_cast<index_t>(r.left()), 1, payload);
    return ok && offset(0) == 0 && offset(head.streams(side)) == payload.size() ? Status::ok : Status::corrupt_data;
  }
  std::uint32_t offset(index_t i) const {
    std::uint32_t at = 0;
    std::memcpy(&at, offsets.data() + i * 4, 4);
    return at;
  }
  bool has_stream(index_t i) const { return offset(i) <= offset(i + 1) && offset(i + 1) <= payload.size(); }
  /// Only where there is one.
  std::span<const std::byte> stream(index_t i) const { return payload.subspan(offset(i), offset(i + 1) - offset(i)); }
};

}  // namespace kvcondense::io
