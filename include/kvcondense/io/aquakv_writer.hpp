#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/bitstream/range_coder.hpp>
#include <kvcondense/bitstream/rans.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/io/aquakv_format.hpp>
#include <kvcondense/io/aquakv_maps.hpp>

namespace kvcondense::io {

/// Writes chunks of AQUA-KV.
///
///   auto writer = AquakvWriter::make(method, shape, maps, &rope);
///   s = writer->write(sink, place, false, [&](index_t layer, index_t first, auto keys, auto values) { fill both; return Status::ok; });
///
/// Needs    rows of a layer, keys [kv_heads, n, head_dim] and values [kv_heads, n, value_dim], asked for once per layer, all tokens
///          of the chunk at once (`first` is 0), layers in order. Maps of keys before rotation need the rotation of those that
///          have one. The caller keeps maps and rotation.
/// Cost     memory for four times a layer's rows of a chunk in float, and a byte for every two numbers; kept between chunks.
/// Numbers  what is predicted from is what a reader decodes, number by number the same where both compute alike.
/// Errors   `make`: invalid_argument, shape_mismatch (maps of another model). `write`: what rows returns, invalid_argument (a place
///          that cannot be), missing_input (no rotation), incompatible (maps of rotated keys, and keys without; a rotation wider
///          than heads), out_of_range (a part of 4 GiB or more), out_of_memory, io_error; the sink then holds a part of a chunk.
class AquakvWriter {
 public:
  static Expected<AquakvWriter> make(const quant::Aquakv& method, const CacheShape& shape, const AquakvMaps& maps,
                                     const prim::RopeTable* rope = nullptr, MemoryResource<Cpu>& memory = heap_memory()) {
    if (const Status s = kvcondense::validate(shape); s != Status::ok) return s;
    if (const Status s = method.validate(); s != Status::ok) return s;
    AquakvWriter w(method, maps, rope, memory);
    w.head_.take_shape(shape);
    w.head_.coder = method.coder, w.head_.sub_chunk = static_cast<std::uint32_t>(method.sub_chunk);
    w.head_.group = static_cast<std::uint32_t>(method.group);
    for (const KvSide side : {KvSide::keys, KvSide::values})
      if (maps.layers() != shape.layers || maps.channels(side) != w.head_.channels(side)) return Status::shape_mismatch;
    return w;
  }

  /// `exact`: tokens as the cache's type holds them.
  template <class Rows>
  Status write(ByteSink& sink, const StreamPlace& place, bool exact, Rows&& rows) {
    AquakvHead& h = head_;
    if (const Status s = h.take_place(place); s != Status::ok) return s;
    h.exact = exact, h.turned = maps_.raw_keys() && !place.raw_keys;
    if (place.raw_keys && !maps_.raw_keys()) return Status::incompatible;
    if (h.turned && rope_ == nullptr) return Status::missing_input;
    if (h.turned && 2 * rope_->pairs() > h.head_dim) return Status::incompatible;
    h.arrays = maps_.id(h.turned ? rope_ : nullptr);
    Status s = Status::ok;
    const std::uint64_t sum = h.write(sink, s);
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      Side& own = this->side(side);
      const index_t numbers = h.tokens * h.channels(side);
      for (Buffer<float>* to : {&own.given, &own.decoded, &own.next})
        if (s == Status::ok) s = to->resize(numbers);
    }
    for (index_t l = 0; s == Status::ok && l < h.layers; ++l) {
      s = rows(l, index_t{0}, dense_view(keys_.given.data(), h.kv_heads, index_t{h.tokens}, index_t{h.head_dim}),
               dense_view(values_.given.data(), h.kv_heads, index_t{h.tokens}, index_t{h.value_dim}));
      for (const KvSide side : {KvSide::keys, KvSide::values}) {
        if (s == Status::ok) s = part_.begin();
        if (s == Status::ok) s = exact ? exactly(side) : code(side, l);
        if (s == Status::ok) s = part_.finish(sink, sum, AquakvHead::part(l, side));
      }
    }
    return s;
  }

  /// NaN and infinities that were replaced so far.
  index_t repaired() const { return repaired_; }

 private:
  struct Side {
    explicit Side(MemoryResource<Cpu>& memory) : given(memory), decoded(memory), next(memory) {}

    Buffer<float> given;    ///< [heads, tokens, dim]
    Buffer<float> decoded;  ///< [tokens, channels], of the layer that was written last
    Buffer<float> next;     ///< of this one
  };

  AquakvWriter(const quant::Aquakv& method, const AquakvMaps& maps, const prim::RopeTable* rope, MemoryResource<Cpu>& memory)
      : method_(method), maps_(maps), rope_(rope), keys_(memory), values_(memory), row_(memory), symbols_(memory),
        lengths_(memory), part_(memory) {}

  Side& side(KvSide s) { return s == KvSide::keys ? keys_ : values_; }
  TensorView<float, 2> rows_of(Buffer<float>& x, KvSide s) { return dense_view(x.data(), index_t{head_.tokens}, head_.channels(s)); }

  /// Sub-chunk by sub-chunk, head by head.
  Status exactly(KvSide s) {
    const index_t dim = head_.dim(s);
    Status status = Status::ok;
    for (index_t sub = 0; sub < head_.sub_chunks(); ++sub)
      for (index_t head = 0; status == Status::ok && head < head_.kv_heads; ++head) {
        const float* from = side(s).given.data() + (head * head_.tokens + sub * head_.sub_chunk) * dim;
        status = put_exact(part_, head_.dtype, {from, static_cast<std::size_t>(head_.tokens_of(sub) * dim)}, repaired_);
      }
    return status;
  }

  Status code(KvSide s, index_t layer) {
    Side& own = side(s);
    const AquakvHead& h = head_;
    const quant::GridRows rows = h.rows(s);
    const auto grid = quant::normal_grid(method_.bits(s == KvSide::keys, layer));
    const index_t dim = h.dim(s), channels = h.channels(s), tokens = h.tokens;
    Status status = row_.resize(channels + rows.stored());
    if (status == Status::ok) status = symbols_.resize(tokens * rows.pairs());
    if (status == Status::ok) status = lengths_.resize(tokens * rows.pieces());
    const AquakvRows below{rows_of(keys_.decoded, KvSide::keys), rows_of(values_.decoded, KvSide::values)};
    const auto next = rows_of(own.next, s);
    if (status == Status::ok) status = maps_.predict(s, layer, below, next);
    if (status != Status::ok) return status;
    float* left = row_.data();
    float* scratch = left + channels;
    const bool turn = h.turned && s == KvSide::keys;
    for (index_t t = 0; t < tokens; ++t) {
      for (index_t head = 0; head < h.kv_heads; ++head)
        repaired_ += row_to_code(own.given.data() + (head * tokens + t) * dim, dim, turn ? rope_ : nullptr, h.position + t, left + head * dim);
      // Numbers that are none, and what a rotation makes of them and their partners, count as predicted.
      for (index_t c = 0; c < channels; ++c) left[c] = prim::limit_to(prim::without_nan(left[c] - next(t, c)), largest_half);
      rows.encode(grid, left, lengths_.data() + t * rows.pieces(), symbols_.data() + t * rows.pairs(), scratch);
      rows.take_points(grid, symbols_.data() + t * rows.pairs(), scratch);
      rows.add(lengths_.data() + t * rows.pieces(), scratch, &next(t, 0));
    }
    own.next.swap(own.decoded);
    return h.coder == quant::EntropyCoder::rans ? put_streams<bitstream::Rans>(grid, rows) : put_streams<bitstream::RangeCoder>(grid, rows);
  }

  /// Lengths, table, offsets and payload.
  template <class Coder>
  Status put_streams(std::span<const quant::PlanePoint> grid, const quant::GridRows& rows) {
    const int symbols = static_cast<int>(grid.size());
    Status s = part_.put(static_cast<std::uint32_t>(symbols));
    if (s == Status::ok) s = part_.put(std::uint32_t{0});
    if (s == Status::ok) s = part_.put_bytes(std::as_bytes(lengths_.span()));
    std::uint32_t counts[bitstream::max_symbols] = {};
    for (const std::uint8_t x : symbols_) ++counts[x];
    const index_t table_at = part_.size();
    if (s == Status::ok) s = part_.put_table<Coder>(counts, symbols);
    if (s == Status::ok) s = part_.begin_streams(head_.sub_chunks());
    for (index_t sub = 0; s == Status::ok && sub < head_.sub_chunks(); ++sub) {
      std::uint16_t starts[bitstream::max_symbols];
      bitstream::SymbolTable table;
      s = read_table(part_.at(table_at), symbols, Coder::table_bits, starts, table);
      const auto from = static_cast<std::size_t>(sub * head_.sub_chunk * rows.pairs());
      const auto n = static_cast<std::size_t>(head_.tokens_of(sub) * rows.pairs());
      if (s == Status::ok) s = part_.encode<Coder>(symbols_.span().subspan(from, n), table);
    }
    return s;
  }

  quant::Aquakv method_;
  AquakvMaps maps_;
  const prim::RopeTable* rope_ = nullptr;
  AquakvHead head_;
  index_t repaired_ = 0;
  Side keys_, values_;
  Buffer<float> row_;
  Buffer<std::uint8_t> symbols_;  ///< token by token
  Buffer<half> lengths_;          ///< token by token
  PartWriter part_;
};

}  // namespace kvcondense::io
