#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/io/aquakv_format.hpp>
#include <kvcondense/io/aquakv_maps.hpp>

namespace kvcondense::io {

/// A chunk of AQUA-KV in the caller's bytes: decodes any sub-chunk of tokens, its layers one after another from the first.
///
///   auto chunk = AquakvReader::open(bytes, maps, &rope);
///   for (index_t l = 0; l < layers && s == Status::ok; ++l) {
///     s = chunk->advance(l, sub, rows, scratch);  // rows: of layer l - 1, then of layer l
///     s = chunk->expand(l, KvSide::keys, sub, rows, out);  // out [kv_heads, chunk->head().tokens_of(sub), head_dim]
///   }
///
/// `decode` is that for one layer and side: it goes through all layers below.
///
/// Needs    the maps that it was written with, and the rotation of keys where the head says `turned`; both are kept by the
///          caller, as are the bytes.
/// Cost     never allocates; keeps no copy. Opening reads the head and the lengths of the parts. One reader may serve many threads.
/// Errors   whatever the bytes, nothing outside them is read and every loop ends. `open`: corrupt_data, incompatible (another
///          version, model, maps or rotation), missing_input (keys were turned, and no rotation is given). `check`:
///          corrupt_data. `advance`, `expand`, `decode`: out_of_range, shape_mismatch, workspace_too_small, corrupt_data; what
///          they were to fill then holds anything. They do not look at checksums: `check` does.
class AquakvReader {
 public:
  /// `bytes` may go on behind the chunk.
  static Expected<AquakvReader> open(std::span<const std::byte> bytes, const AquakvMaps& maps, const prim::RopeTable* rope = nullptr) {
    AquakvReader c;
    std::uint64_t sum = 0;
    if (const Status s = c.head_.read(bytes, sum); s != Status::ok) return s;
    const auto parts = ChunkParts::open(bytes, sum, c.head_.parts(), 16);
    if (!parts) return parts.status();
    c.parts_ = *parts, c.maps_ = maps;
    for (const KvSide side : {KvSide::keys, KvSide::values})
      if (c.head_.layers != maps.layers() || c.head_.channels(side) != maps.channels(side)) return Status::incompatible;
    if (c.head_.turned && rope == nullptr) return Status::missing_input;
    c.rope_ = c.head_.turned ? rope : nullptr;
    if (c.head_.arrays != maps.id(c.rope_)) return Status::incompatible;
    if (c.rope_ != nullptr && 2 * c.rope_->pairs() > c.head_.head_dim) return Status::incompatible;
    return c;
  }

  const AquakvHead& head() const { return head_; }
  std::size_t bytes() const { return parts_.bytes(); }

  /// Whether a layer's keys or values are as they were written.
  Status check(index_t layer, KvSide side) const { return parts_.check(AquakvHead::part(layer, side)); }
  Status check() const { return parts_.check(); }

  /// A layer's bytes by what they are; not of exact chunks.
  Status read_part(index_t layer, KvSide side, AquakvPart& part) const {
    if (head_.exact) return Status::not_supported;
    return part.read(head_, side, parts_.body(AquakvHead::part(layer, side)));
  }

  /// Numbers of a side of `AquakvRows` for any sub-chunk.
  index_t row_numbers(KvSide side) const { return head_.exact ? 0 : most_tokens() * head_.channels(side); }
  /// Rows of a sub-chunk in `keys` and `values`, which have room for `row_numbers` of their side.
  AquakvRows rows(index_t sub, float* keys, float* values) const {
    const index_t n = head_.tokens_of(sub);
    return {dense_view(keys, n, head_.channels(KvSide::keys)), dense_view(values, n, head_.channels(KvSide::values))};
  }

  /// Scratch that `advance` needs.
  std::size_t advance_bytes() const {
    if (head_.exact) return Scratch::align;
    index_t floats = 0, halves = 0;
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      floats = std::max(floats, most_tokens() * head_.channels(side) + head_.rows(side).stored());
      halves = std::max(halves, head_.rows(side).pieces());
    }
    return Scratch::align + Scratch::bytes_for<float>(floats) + Scratch::bytes_for<half>(halves);
  }
  /// From the rows of layer - 1, as they are coded, to those of `layer`; for layer 0 `rows` may hold anything.
  Status advance(index_t layer, index_t sub, const AquakvRows& rows, Scratch scratch) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    if (head_.exact) return Status::ok;
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      const TensorView<float, 2>& x = rows.side(side);
      if (x.extent[0] != head_.tokens_of(sub) || x.extent[1] != head_.channels(side) || x.stride[1] != 1) return Status::shape_mismatch;
    }
    for (const KvSide side : {KvSide::keys, KvSide::values}) {  // values follow from keys of their own layer
      const Status s = head_.coder == quant::EntropyCoder::rans ? advance_side<bitstream::Rans>(side, layer, sub, rows, scratch)
                                                                : advance_side<bitstream::RangeCoder>(side, layer, sub, rows, scratch);
      if (s != Status::ok) return s;
    }
    return Status::ok;
  }

  /// A layer's rows of a sub-chunk as a cache takes them, from those that `advance` left: out [kv_heads, tokens_of(sub), dim]. The
  /// numbers of a row of out lie side by side.
  Status expand(index_t layer, KvSide side, index_t sub, const AquakvRows& rows, TensorView<float, 3> out) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    const index_t n = head_.tokens_of(sub), dim = head_.dim(side);
    if (out.extent[0] != head_.kv_heads || out.extent[1] != n || out.extent[2] != dim || (dim > 1 && out.stride[2] != 1))
      return Status::shape_mismatch;
    if (head_.exact) return exact_rows(layer, side, sub, out);
    const TensorView<float, 2>& from = rows.side(side);
    if (from.extent[0] != n || from.extent[1] != head_.channels(side)) return Status::shape_mismatch;
    for (index_t h = 0; h < head_.kv_heads; ++h)
      for (index_t t = 0; t < n; ++t) {
        for (index_t d = 0; d < dim; ++d) out(h, t, d) = from(t, h * dim + d);
        row_from_code(&out(h, t, 0), dim, side == KvSide::keys ? rope_ : nullptr, head_.position + sub * head_.sub_chunk + t);
      }
    return Status::ok;
  }

  /// Scratch that `decode` needs.
  std::size_t scratch_bytes() const {
    return advance_bytes() + Scratch::bytes_for<float>(row_numbers(KvSide::keys)) + Scratch::bytes_for<float>(row_numbers(KvSide::values));
  }
  /// Tokens [sub * sub_chunk, + tokens_of(sub)) of a layer's keys or values: out [kv_heads, tokens, dim], the numbers of a
  /// row side by side.
  Status decode(index_t layer, KvSide side, index_t sub, TensorView<float, 3> out, Scratch scratch) const {
    if (layer < 0 || layer >= head_.layers || sub < 0 || sub >= head_.sub_chunks()) return Status::out_of_range;
    float* keys = scratch.take<float>(row_numbers(KvSide::keys));
    float* values = scratch.take<float>(row_numbers(KvSide::values));
    if (keys == nullptr || values == nullptr) return Status::workspace_too_small;
    const AquakvRows x = rows(sub, keys, values);
    for (index_t l = 0; l <= layer && !head_.exact; ++l)
      if (const Status s = advance(l, sub, x, scratch); s != Status::ok) return s;
    return expand(layer, side, sub, x, out);
  }

 private:
  index_t most_tokens() const { return std::min<index_t>(head_.sub_chunk, head_.tokens); }

  template <class Coder>
  Status advance_side(KvSide side, index_t layer, index_t sub, const AquakvRows& rows, Scratch scratch) const {
    const index_t n = head_.tokens_of(sub), channels = head_.channels(side), first = sub * head_.sub_chunk;
    const quant::GridRows code = head_.rows(side);
    float* predicted = scratch.take<float>(n * channels + code.stored());
    half* lengths = scratch.take<half>(code.pieces());
    if (predicted == nullptr || lengths == nullptr) return Status::workspace_too_small;
    const auto next = dense_view(predicted, n, channels);
    if (const Status s = maps_.predict(side, layer, rows, next); s != Status::ok) return s;
    AquakvPart part;
    if (const Status s = read_part(layer, side, part); s != Status::ok) return s;
    std::uint16_t starts[bitstream::max_symbols];
    bitstream::SymbolTable table;
    if (const Status s = read_table(part.table.data(), part.symbols, Coder::table_bits, starts, table); s != Status::ok) return s;
    if (!part.has(sub)) return Status::corrupt_data;
    const auto grid = part.symbols == 16 ? quant::normal_grid(2) : part.symbols == 64 ? quant::normal_grid(3) : quant::normal_grid(4);
    float* points = predicted + n * channels;
    const auto pairs = static_cast<std::size_t>(code.pairs());
    bool good = true;
    const Status s = Coder::decode(part.stream(sub), table, static_cast<std::size_t>(n) * pairs, [&](std::size_t i, int symbol) {
      const quant::PlanePoint g = grid[static_cast<std::size_t>(symbol)];
      points[2 * (i % pairs)] = g.x, points[2 * (i % pairs) + 1] = g.y;
      if (i % pairs + 1 < pairs) return;
      const auto t = static_cast<index_t>(i / pairs);
      good = good && part.lengths_of(first + t, lengths) == Status::ok;
      if (good) code.add(lengths, points, &next(t, 0));
    });
    if (s != Status::ok || !good) return Status::corrupt_data;
    for (index_t t = 0; t < n; ++t)
      for (index_t c = 0; c < channels; ++c) rows.side(side)(t, c) = next(t, c);
    return Status::ok;
  }

  /// Of exact chunks: sub-chunk by sub-chunk, head by head.
  Status exact_rows(index_t layer, KvSide side, index_t sub, TensorView<float, 3> out) const {
    const auto body = parts_.body(AquakvHead::part(layer, side));
    const index_t row = head_.channels(side) * static_cast<index_t>(size_of(head_.dtype));
    if (static_cast<index_t>(body.size()) != head_.tokens * row) return Status::corrupt_data;
    return read_exact(body.data() + sub * head_.sub_chunk * row, head_.dtype, out);
  }

  AquakvHead head_;
  ChunkParts parts_;
  AquakvMaps maps_;
  const prim::RopeTable* rope_ = nullptr;
};

}  // namespace kvcondense::io
