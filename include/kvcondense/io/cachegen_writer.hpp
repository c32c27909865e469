#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/io/cachegen_reader.hpp>

namespace kvcondense::io {

/// Writes chunks of CacheGen.
///
///   auto writer = CacheGenWriter::make(method, shape);
///   s = writer->write(sink, {.tokens = n, .total = n}, [&](index_t layer, auto keys, auto values) { fill both; return Status::ok; });
///
/// Needs    rows of a layer, keys [kv_heads, tokens, head_dim] and values [kv_heads, tokens, value_dim], asked for once
///          per chunk and layer, in order.
/// Cost     memory for one layer of a chunk: its rows in float, a byte per number, and the bytes that come out; kept
///          between chunks.
/// Errors   `make`: invalid_argument, incompatible (tables of another shape, form, coder or number of bins). `write`: what
///          rows returns, invalid_argument (a place that cannot be), out_of_range (a part of 4 GiB or more),
///          out_of_memory, io_error; the sink then holds a part of a chunk.
class CacheGenWriter {
 public:
  /// `tables`: a chunk with tables of its own, whose tables are used instead of new ones. The caller keeps its bytes.
  static Expected<CacheGenWriter> make(const quant::CacheGen& method, const CacheShape& shape,
                                       const CacheGenReader* tables = nullptr, MemoryResource<Cpu>& memory = heap_memory()) {
    if (const Status s = kvcondense::validate(shape); s != Status::ok) return s;
    if (const Status s = method.validate(); s != Status::ok) return s;
    CacheGenWriter w(method, memory);
    CacheGenHead& h = w.head_;
    h.take_shape(shape);
    h.form = method.form, h.coder = method.coder, h.tables = method.tables, h.scales = method.scales;
    h.sub_chunk = static_cast<std::uint32_t>(method.sub_chunk);
    h.group = static_cast<std::uint32_t>(std::min<index_t>(method.group, 4096));  // no sub-chunk is longer
    if (tables == nullptr) return w;
    h.offline = true, h.tables_id = tables->tables_id();
    if (tables->head().offline || !tables->head().tables_fit(h)) return Status::incompatible;
    w.tables_ = *tables;
    for (index_t p = 0; p < h.parts(); ++p) {
      CacheGenPart part;
      const KvSide side = p % 2 == 0 ? KvSide::keys : KvSide::values;
      if (const Status s = tables->read_part(p / 2, side, part); s != Status::ok) return s;
      if (!h.delta() && part.symbols != w.bins(p / 2, side)) return Status::incompatible;
    }
    return w;
  }

  template <class Rows>
  Status write(ByteSink& sink, const StreamPlace& place, Rows&& rows) {
    CacheGenHead& h = head_;
    if (const Status s = h.take_place(place); s != Status::ok) return s;
    Status s = Status::ok;
    head_sum_ = h.write(sink, s);
    const index_t keys = h.channels(KvSide::keys) * place.tokens, values = h.channels(KvSide::values) * place.tokens;
    if (s == Status::ok) s = rows_.resize(keys + values);
    for (index_t l = 0; s == Status::ok && l < h.layers; ++l) {
      const auto k = dense_view(rows_.data(), h.kv_heads, place.tokens, h.head_dim);
      const auto v = dense_view(rows_.data() + keys, h.kv_heads, place.tokens, h.value_dim);
      s = rows(l, k, v);
      if (s == Status::ok) s = write_part(sink, l, KvSide::keys, k);
      if (s == Status::ok) s = write_part(sink, l, KvSide::values, v);
    }
    return s;
  }

  /// NaN and infinities that were replaced so far.
  index_t repaired() const { return repaired_; }

 private:
  CacheGenWriter(const quant::CacheGen& method, MemoryResource<Cpu>& memory)
      : method_(method), rows_(memory), scales_(memory), steps_(memory), symbols_(memory), anchors_(memory), part_(memory) {}

  int bins(index_t layer, KvSide side) const { return method_.bins(side == KvSide::keys, layer, head_.layers); }

  Status write_part(ByteSink& sink, index_t layer, KvSide side, TensorView<const float, 3> rows) {
    int symbols = 0;
    CacheGenPart given;
    if (head_.offline)
      if (const Status s = tables_->read_part(layer, side, given); s != Status::ok) return s;
    Status s = symbolize(layer, side, rows, given.symbols, symbols);
    if (s != Status::ok) return s;
    s = part_.begin();
    if (s == Status::ok) s = part_.put(static_cast<std::uint32_t>(symbols));
    if (s == Status::ok) s = part_.put(std::uint32_t{0});
    for (const Buffer<float>* numbers : {&scales_, &steps_})
      for (index_t i = 0; s == Status::ok && i < numbers->size(); ++i)
        s = head_.scales == DType::f32 ? part_.put((*numbers)[i]) : part_.put(half((*numbers)[i]));
    if (s == Status::ok)
      s = head_.coder == quant::EntropyCoder::rans ? streams<bitstream::Rans>(side, symbols, given)
                                                   : streams<bitstream::RangeCoder>(side, symbols, given);
    return s == Status::ok ? part_.finish(sink, head_sum_, 2 * layer + static_cast<index_t>(side)) : s;
  }

  /// Fills scales_, steps_, anchors_, and symbols_: sub-chunk by sub-chunk, channel by channel.
  Status symbolize(index_t layer, KvSide side, TensorView<const float, 3> rows, int given, int& symbols) {
    const CacheGenHead& h = head_;
    const index_t channels = h.channels(side);
    const int wide = 63;
    symbols = h.delta() ? (given != 0 ? given : wide) : bins(layer, side);
    Status s = scales_.resize(h.scale_count());
    if (s == Status::ok) s = steps_.resize(h.step_count(side));
    if (s == Status::ok) s = anchors_.resize(h.anchors() * channels);
    if (s == Status::ok) s = symbols_.resize((h.tokens - h.anchors()) * channels);
    if (s != Status::ok) return s;
    const auto piece = [](auto& buffer, index_t from, index_t n) { return std::span(buffer.data() + from, static_cast<std::size_t>(n)); };
    for (index_t sub = 0; sub < h.sub_chunks(); ++sub) {
      const index_t n = h.tokens_of(sub), first = sub * h.sub_chunk, before = h.anchors_before(sub), anchors = h.anchors_in(n);
      TensorView<const float, 3> some = rows;
      some.data += first * rows.stride[1], some.extent[1] = n;
      const auto to = piece(symbols_, (first - before) * channels, (n - anchors) * channels);
      if (h.delta())
        repaired_ += bitstream::delta_symbols(
            some, {h.group, method_.widths.at(layer, h.layers), h.middle(symbols), h.scales}, piece(scales_, before, anchors),
            piece(anchors_, before * channels, anchors * channels), piece(steps_, sub * channels, channels), to);
      else
        repaired_ += bitstream::scaled_symbols(some, h.middle(symbols), h.scales, piece(scales_, first, n), to);
    }
    if (!h.delta() || given != 0) return Status::ok;
    // Symbols that nobody uses need no place in tables.
    const int middle = h.middle(symbols);
    int reach = 1;
    for (const std::uint8_t x : symbols_) reach = std::max(reach, std::abs(x - middle));
    for (std::uint8_t& x : symbols_) x = static_cast<std::uint8_t>(x - (middle - reach));
    symbols = 2 * reach + 1;
    return Status::ok;
  }

  /// The symbols of a channel in a sub-chunk.
  std::span<const std::uint8_t> run(KvSide side, index_t sub, index_t channel) const {
    const index_t count = head_.tokens_of(sub) - head_.anchors_in(head_.tokens_of(sub));
    const index_t from = (sub * head_.sub_chunk - head_.anchors_before(sub)) * head_.channels(side) + channel * count;
    return symbols_.span().subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(count));
  }

  /// Tables, offsets and payload.
  template <class Coder>
  Status streams(KvSide side, int symbols, const CacheGenPart& given) {
    const CacheGenHead& h = head_;
    const index_t channels = h.channels(side), shared = h.table_count(side) == 1 ? channels : 1;
    const index_t tables_at = part_.size();
    std::uint32_t counts[bitstream::max_symbols];
    const auto count = [&](std::span<const std::uint8_t> run) {
      for (const std::uint8_t x : run) ++counts[x];
    };
    Status s = Status::ok;
    for (index_t c = 0; !h.offline && s == Status::ok && c < channels; c += shared) {
      std::fill_n(counts, symbols, 0u);
      for (index_t sub = 0; sub < h.sub_chunks(); ++sub)
        for (index_t i = 0; i < shared; ++i) count(run(side, sub, c + i));
      s = part_.put_table<Coder>(counts, symbols);
    }
    if (!h.offline && h.delta() && s == Status::ok) {
      std::fill_n(counts, CacheGenPart::anchor_symbols, 0u);
      count(anchors_.span());
      s = part_.put_table<Coder>(counts, CacheGenPart::anchor_symbols);
    }
    const index_t anchor_table_at = part_.size() - (h.delta() ? (CacheGenPart::anchor_symbols - 1) * 2 : 0);
    if (s == Status::ok) s = part_.begin_streams(h.streams(side));
    const auto encode = [&](std::span<const std::uint8_t> run, index_t table) {
      std::uint16_t starts[bitstream::max_symbols];
      bitstream::SymbolTable t;
      Status bad = Status::ok;
      if (h.offline)
        bad = CacheGenReader::table(given, table, Coder::table_bits, starts, t);
      else if (table < 0)
        bad = read_table(part_.at(anchor_table_at), CacheGenPart::anchor_symbols, Coder::table_bits, starts, t);
      else
        bad = read_table(part_.at(tables_at + table * (symbols - 1) * 2), symbols, Coder::table_bits, starts, t);
      return bad == Status::ok ? part_.encode<Coder>(run, t) : bad;
    };
    for (index_t sub = 0; s == Status::ok && sub < h.sub_chunks(); ++sub) {
      const index_t anchors = h.anchors_in(h.tokens_of(sub)) * channels, before = h.anchors_before(sub) * channels;
      if (h.delta()) s = encode(anchors_.span().subspan(static_cast<std::size_t>(before), static_cast<std::size_t>(anchors)), -1);
      for (index_t c = 0; s == Status::ok && c < channels; ++c) s = encode(run(side, sub, c), c / shared);
    }
    return s;
  }

  quant::CacheGen method_;
  CacheGenHead head_;
  std::optional<CacheGenReader> tables_;
  std::uint64_t head_sum_ = 0;
  index_t repaired_ = 0;
  Buffer<float> rows_, scales_, steps_;
  Buffer<std::uint8_t> symbols_, anchors_;
  PartWriter part_;
};

}  // namespace kvcondense::io
