#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include <kvcondense/bitstream/token_symbols.hpp>
#include <kvcondense/io/stream_chunk.hpp>
#include <kvcondense/quant/cachegen.hpp>

namespace kvcondense::io {

/// What a chunk of CacheGen begins with; docs/streams.md says the layout in prose.
struct CacheGenHead : StreamHead {
  static constexpr std::uint32_t magic = 0x4743564b;  // "KVCG"
  static constexpr std::uint32_t version = 1;

  quant::CacheGenForm form = quant::CacheGenForm::scaled;
  quant::EntropyCoder coder = quant::EntropyCoder::range;
  quant::CacheGenTables tables = quant::CacheGenTables::per_channel;
  DType scales = DType::f16;
  bool offline = false;         ///< tables are those of another chunk
  std::uint32_t group = 10;
  std::uint64_t tables_id = 0;  ///< which tables, where they are not here

  index_t parts() const { return 2 * static_cast<index_t>(layers); }  ///< keys, values of layer 0, 1, ...
  bool delta() const { return form == quant::CacheGenForm::delta; }
  int table_bits() const { return coder == quant::EntropyCoder::rans ? 12 : 16; }

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

  /// Returns the checksum, which the parts' checksums begin with.
  std::uint64_t write(ByteSink& sink, Status& status) const {
    Own own{.number = group, .id = tables_id};
    own.kind[1] = static_cast<std::uint8_t>(form), own.kind[2] = static_cast<std::uint8_t>(coder);
    own.kind[3] = static_cast<std::uint8_t>(tables), own.kind[4] = static_cast<std::uint8_t>(scales), own.kind[6] = offline;
    return write_head(sink, magic, version, own, status);
  }

  /// Errors   corrupt_data (no head, or one that cannot be), incompatible (another version).
  Status read(std::span<const std::byte> file, std::uint64_t& sum) {
    Own own;
    if (const Status s = read_head(file, magic, version, own, sum); s != Status::ok) return s;
    for (const int i : {1, 2, 3, 4, 6})
      if (own.kind[i] > 1) return Status::corrupt_data;
    form = static_cast<quant::CacheGenForm>(own.kind[1]), coder = static_cast<quant::EntropyCoder>(own.kind[2]);
    tables = static_cast<quant::CacheGenTables>(own.kind[3]), scales = static_cast<DType>(own.kind[4]);
    offline = own.kind[6] != 0, group = own.number, tables_id = own.id;
    return own.kind[7] == 0 && sub_chunk <= 4096 && group >= 2 && group <= most_tokens ? Status::ok : Status::corrupt_data;
  }
};

/// Bytes of a part, by what they are.
struct CacheGenPart : StreamOffsets {
  int symbols = 0;
  std::span<const std::byte> scales, steps, tables, anchor_table;

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
                    (head.offline || !head.delta() || take(anchor_symbols - 1, 2, anchor_table));
    return ok ? StreamOffsets::read(r, head.streams(side)) : Status::corrupt_data;
  }
};

}  // namespace kvcondense::io
