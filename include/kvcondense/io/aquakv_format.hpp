#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/core/dtype.hpp>
#include <kvcondense/io/fitted_head.hpp>
#include <kvcondense/quant/aquakv.hpp>
#include <kvcondense/quant/blocks/grid_rows.hpp>

namespace kvcondense::io {

/// What a chunk of AQUA-KV begins with; docs/streams.md says the layout in prose.
struct AquakvHead : FittedHead {
  static constexpr std::uint32_t magic = 0x41564b51;  // "QKVA"
  static constexpr std::uint32_t version = 1;

  std::uint32_t group = 0;  ///< most numbers that share a length

  index_t parts() const { return index_t{2} * layers; }
  static index_t part(index_t layer, KvSide side) { return 2 * layer + static_cast<index_t>(side); }
  quant::GridRows rows(KvSide side) const { return quant::GridRows::of(channels(side), group); }

  std::uint64_t write(ByteSink& sink, Status& status) const { return write_fitted(sink, magic, version, group, status); }

  /// Errors   corrupt_data (no head, or one that cannot be), incompatible (another version).
  Status read(std::span<const std::byte> file, std::uint64_t& sum) {
    if (const Status s = read_fitted(file, magic, version, group, sum); s != Status::ok) return s;
    return group >= 16 && group <= 1024 && (group & (group - 1)) == 0 ? Status::ok : Status::corrupt_data;
  }
};

/// The bytes of a coded part, by what they are.
struct AquakvPart : StreamOffsets {
  int symbols = 0;
  index_t pieces = 0;
  std::span<const std::byte> lengths, table;

  /// `body` is the part without its length and checksum.
  Status read(const AquakvHead& head, KvSide side, std::span<const std::byte> body) {
    ByteReader r(body);
    std::uint32_t n = 0, zero = 0;
    if (!r.read(n) || !r.read(zero) || zero != 0 || (n != 16 && n != 64 && n != 256)) return Status::corrupt_data;
    symbols = static_cast<int>(n), pieces = head.rows(side).pieces();
    if (!r.take(std::uint64_t{head.tokens} * static_cast<std::uint64_t>(pieces), 2, lengths) || !r.take(n - 1, 2, table))
      return Status::corrupt_data;
    return StreamOffsets::read(r, head.sub_chunks());
  }
  /// The lengths of a token's pieces; corrupt_data where they are none.
  Status lengths_of(index_t token, half* to) const {
    std::memcpy(to, lengths.data() + token * pieces * 2, static_cast<std::size_t>(pieces) * 2);
    for (index_t p = 0; p < pieces; ++p)
      if (const auto n = static_cast<float>(to[p]); !(n >= 0.0f && n <= largest_half)) return Status::corrupt_data;
    return Status::ok;
  }
};

}  // namespace kvcondense::io
