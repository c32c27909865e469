#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/io/fitted_head.hpp>
#include <kvcondense/quant/blocks/kvtc_codes.hpp>
#include <kvcondense/quant/kvtc.hpp>

namespace kvcondense::io {

/// What a chunk of KVTC begins with; docs/streams.md says the layout in prose.
struct KvtcHead : FittedHead {
  static constexpr std::uint32_t magic = 0x4354564b;  // "KVTC"
  static constexpr std::uint32_t version = 1;
  static constexpr index_t parts = 2;  ///< keys, values

  /// Numbers of a token, all layers.
  index_t row(KvSide side) const { return layers * channels(side); }

  std::uint64_t write(ByteSink& sink, Status& status) const { return write_fitted(sink, magic, version, 0, status); }

  /// Errors   corrupt_data (no head, or one that cannot be), incompatible (another version).
  Status read(std::span<const std::byte> file, std::uint64_t& sum) {
    std::uint32_t number = 0;
    const Status s = read_fitted(file, magic, version, number, sum);
    return s == Status::ok && number != 0 ? Status::corrupt_data : s;
  }
};

/// The bytes of a coded part, by what they are.
struct KvtcPart : StreamOffsets {
  index_t blocks = 0;
  index_t components = 0;  ///< of all blocks
  std::span<const std::byte> plan, scales, tables;
  index_t table_at[quant::kvtc_types] = {};  ///< where the table of a type begins; -1: there is none

  /// `body` is the part without its length and checksum; a transform has `most` components.
  Status read(const KvtcHead& head, index_t most, std::span<const std::byte> body) {
    ByteReader r(body);
    std::uint32_t n = 0, zero = 0;
    if (!r.read(n) || !r.read(zero) || zero != 0 || n > static_cast<std::uint64_t>(most) || !r.take(n, 4, plan))
      return Status::corrupt_data;
    blocks = n, components = 0;
    bool used[quant::kvtc_types] = {};
    for (index_t b = 0; b < blocks; ++b) {
      const quant::KvtcBlock block = at_block(b);
      const auto type = static_cast<std::size_t>(block.type);
      if (block.count < 1 || type < 1 || type >= quant::kvtc_types || plan[static_cast<std::size_t>(b) * 4 + 3] != std::byte{0})
        return Status::corrupt_data;
      components += block.count, used[type] = true;
    }
    if (components > most) return Status::corrupt_data;
    index_t bytes = 0;
    for (int t = 0; t < quant::kvtc_types; ++t) {
      table_at[t] = used[t] ? bytes : -1;
      if (used[t]) bytes += (quant::symbols_of(static_cast<quant::KvtcType>(t)) - 1) * 2;
    }
    const std::uint64_t streams = static_cast<std::uint64_t>(stream_count(head, blocks));
    if (!r.take(static_cast<std::uint64_t>(head.sub_chunks()) * n, 4, scales) || !r.take(static_cast<std::uint64_t>(bytes), 1, tables)) return Status::corrupt_data;
    return StreamOffsets::read(r, static_cast<index_t>(streams));
  }
  /// One per block and sub-chunk; without blocks one, empty, per sub-chunk, so that tokens are never free and a few bytes cannot
  /// claim any number of them.
  static index_t stream_count(const KvtcHead& head, index_t blocks) { return head.sub_chunks() * std::max<index_t>(blocks, 1); }
  quant::KvtcBlock at_block(index_t b) const {
    quant::KvtcBlock block;
    std::memcpy(&block.count, plan.data() + b * 4, 2);
    std::memcpy(&block.type, plan.data() + b * 4 + 2, 1);
    return block;
  }
  /// Of a block in a sub-chunk. corrupt_data where it is no scale.
  Status scale(index_t sub, index_t b, quant::KvtcScale& out) const {
    half numbers[2];
    std::memcpy(numbers, scales.data() + (sub * blocks + b) * 4, 4);
    out = {static_cast<float>(numbers[0]), static_cast<float>(numbers[1])};
    return std::isfinite(out.scale) && out.scale >= 0.0f && std::isfinite(out.shift) ? Status::ok : Status::corrupt_data;
  }
};

}  // namespace kvcondense::io
