#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/io/kvtc_format.hpp>
#include <kvcondense/io/kvtc_transform.hpp>

namespace kvcondense::io {

/// A chunk of KVTC in the caller's bytes: decodes any layer, keys or values alone, any sub-chunk of tokens.
///
///   auto chunk = KvtcReader::open(bytes, transform, &rope);
///   if (chunk && chunk->check() == Status::ok)
///     s = chunk->decode(layer, KvSide::keys, sub, out, scratch);  // out [kv_heads, chunk->head().tokens_of(sub), head_dim]
///
/// For all layers of a sub-chunk it is cheaper to call `components` once and `expand` for each layer.
///
/// Needs    the transform that it was written with, and the rotation of keys where the head says `turned`; both are kept by the
///          caller, as are the bytes.
/// Cost     never allocates; keeps no copy. Opening reads the head and the lengths of the parts. One reader may serve many threads.
/// Errors   whatever the bytes, nothing outside them is read and every loop ends. `open`: corrupt_data, incompatible (another
///          version, model, transform or rotation), missing_input (keys were turned, and no rotation is given). `check`:
///          corrupt_data. `decode`, `components`, `expand`: out_of_range, shape_mismatch, workspace_too_small, corrupt_data; what
///          they were to fill then holds anything. They do not look at checksums: `check` does.
class KvtcReader {
 public:
  /// `bytes` may go on behind the chunk.
  static Expected<KvtcReader> open(std::span<const std::byte> bytes, const KvtcTransform& transform,
                                   const prim::RopeTable* rope = nullptr) {
    KvtcReader c;
    std::uint64_t sum = 0;
    if (const Status s = c.head_.read(bytes, sum); s != Status::ok) return s;
    const auto parts = ChunkParts::open(bytes, sum, KvtcHead::parts, 16);
    if (!parts) return parts.status();
    c.parts_ = *parts, c.transform_ = transform;
    for (const KvSide side : {KvSide::keys, KvSide::values})
      if (c.head_.row(side) != transform.side(side).dim) return Status::incompatible;
    if (c.head_.turned && rope == nullptr) return Status::missing_input;
    c.rope_ = c.head_.turned ? rope : nullptr;
    if (c.head_.arrays != transform.id(c.rope_)) return Status::incompatible;
    if (c.rope_ != nullptr && 2 * c.rope_->pairs() > c.head_.head_dim) return Status::incompatible;
    return c;
  }

  const KvtcHead& head() const { return head_; }
  std::size_t bytes() const { return parts_.bytes(); }

  /// Whether keys or values are as they were written.
  Status check(KvSide side) const { return parts_.check(static_cast<index_t>(side)); }
  Status check() const { return parts_.check(); }

  /// A side's bytes by what they are; not of exact chunks.
  Status read_part(KvSide side, KvtcPart& part) const {
    if (head_.exact) return Status::not_supported;
    return part.read(head_, transform_.used(side), parts_.body(static_cast<index_t>(side)));
  }
  /// Components that are coded; 0 in an exact chunk. corrupt_data.
  Expected<index_t> component_count(KvSide side) const {
    if (head_.exact) return index_t{0};
    KvtcPart part;
    if (const Status s = read_part(side, part); s != Status::ok) return s;
    return part.components;
  }

  /// The components of a sub-chunk: z [tokens_of(sub), component_count(side)].
  Status components(KvSide side, index_t sub, TensorView<float, 2> z) const {
    if (sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    if (head_.exact) return z.extent[0] == head_.tokens_of(sub) && z.extent[1] == 0 ? Status::ok : Status::shape_mismatch;
    KvtcPart part;
    if (const Status s = read_part(side, part); s != Status::ok) return s;
    if (z.extent[0] != head_.tokens_of(sub) || z.extent[1] != part.components) return Status::shape_mismatch;
    return head_.coder == quant::EntropyCoder::rans ? decode_blocks<bitstream::Rans>(part, side, sub, z)
                                                    : decode_blocks<bitstream::RangeCoder>(part, side, sub, z);
  }

  /// A layer's rows of a sub-chunk from its components: out [kv_heads, tokens_of(sub), dim]. The numbers of a row of z, and
  /// of out, lie side by side.
  Status expand(index_t layer, KvSide side, index_t sub, TensorView<const float, 2> z, TensorView<float, 3> out) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    const index_t n = head_.tokens_of(sub), dim = head_.dim(side);
    if (out.extent[0] != head_.kv_heads || out.extent[1] != n || out.extent[2] != dim) return Status::shape_mismatch;
    if (head_.exact) return exact_rows(layer, side, sub, out);
    if (z.extent[0] != n || z.extent[1] < 0 || z.extent[1] > transform_.side(side).columns) return Status::shape_mismatch;
    if ((z.extent[1] > 1 && z.stride[1] != 1) || (dim > 1 && out.stride[2] != 1)) return Status::shape_mismatch;
    transform_.expand(side, layer, z, out);
    const bool turn = side == KvSide::keys && rope_ != nullptr;
    for (index_t h = 0; h < head_.kv_heads; ++h)
      for (index_t t = 0; t < n; ++t)
        row_from_code(&out(h, t, 0), dim, turn ? rope_ : nullptr, head_.position + sub * head_.sub_chunk + t);
    return Status::ok;
  }

  /// Scratch that `decode` needs.
  std::size_t scratch_bytes(KvSide side) const {
    const auto n = component_count(side);
    return Scratch::align + Scratch::bytes_for<float>(n ? *n * std::min<index_t>(head_.sub_chunk, head_.tokens) : 0);
  }
  /// Tokens [sub * sub_chunk, + tokens_of(sub)) of a layer's keys or values: out [kv_heads, tokens, dim], the numbers of a
  /// row side by side.
  Status decode(index_t layer, KvSide side, index_t sub, TensorView<float, 3> out, Scratch scratch) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    const auto n = component_count(side);
    if (!n) return n.status();
    float* z = scratch.take<float>(*n * head_.tokens_of(sub));
    if (z == nullptr) return Status::workspace_too_small;
    const TensorView<float, 2> view{z, {head_.tokens_of(sub), *n}, {*n, 1}};
    if (const Status s = components(side, sub, view); s != Status::ok) return s;
    return expand(layer, side, sub, view, out);
  }

 private:
  template <class Coder>
  Status decode_blocks(const KvtcPart& part, KvSide side, index_t sub, TensorView<float, 2> z) const {
    const float* energy = transform_.side(side).energy;
    const index_t n = head_.tokens_of(sub);
    std::uint16_t starts[bitstream::max_symbols];
    bitstream::SymbolTable table;
    index_t first = 0;
    for (index_t b = 0; b < part.blocks; ++b) {
      const auto [count, type] = part.at_block(b);
      quant::KvtcScale scale;
      if (const Status s = part.scale(sub, b, scale); s != Status::ok) return s;
      const std::byte* at = part.tables.data() + part.table_at[static_cast<std::size_t>(type)];
      if (const Status s = read_table(at, quant::symbols_of(type), Coder::table_bits, starts, table); s != Status::ok) return s;
      const index_t stream = sub * part.blocks + b, width = count;
      if (!part.has(stream)) return Status::corrupt_data;
      float values[bitstream::max_symbols];
      bool good = true;
      for (int s = 0; s < table.symbols; ++s) values[s] = scale.value(type, s);
      const quant::KvtcType kind = type;
      const Status s = Coder::decode(part.stream(stream), table, static_cast<std::size_t>(n * width), [&](std::size_t i, int symbol) {
        good = good && quant::kvtc_symbol_counts(kind, symbol);
        z(static_cast<index_t>(i) / width, first + static_cast<index_t>(i) % width) = values[symbol];
      });
      if (s != Status::ok || !good) return Status::corrupt_data;
      for (index_t j = first; j < first + width; ++j) {
        const float deviation = std::sqrt(energy[j]);
        for (index_t t = 0; t < n; ++t) z(t, j) *= deviation;
      }
      first += width;
    }
    return Status::ok;
  }

  /// Of exact chunks: sub-chunk by sub-chunk, layer by layer, head by head.
  Status exact_rows(index_t layer, KvSide side, index_t sub, TensorView<float, 3> out) const {
    const auto body = parts_.body(static_cast<index_t>(side));
    const index_t n = head_.tokens_of(sub), size = static_cast<index_t>(size_of(head_.dtype));
    if (static_cast<index_t>(body.size()) != head_.tokens * head_.row(side) * size) return Status::corrupt_data;
    const std::byte* from = body.data() + (sub * head_.sub_chunk * head_.row(side) + layer * n * head_.channels(side)) * size;
    return read_exact(from, head_.dtype, out);
  }

  KvtcHead head_;
  ChunkParts parts_;
  KvtcTransform transform_;
  const prim::RopeTable* rope_ = nullptr;
};

}  // namespace kvcondense::io
