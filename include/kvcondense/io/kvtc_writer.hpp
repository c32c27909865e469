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
#include <kvcondense/io/kvtc_format.hpp>
#include <kvcondense/io/kvtc_transform.hpp>
#include <kvcondense/quant/kvtc_plan.hpp>

namespace kvcondense::io {

/// Writes chunks of KVTC.
///
///   auto writer = KvtcWriter::make(method, shape, transform, &rope);
///   s = writer->write(sink, place, false, [&](index_t layer, index_t first, auto keys, auto values) { fill both; return Status::ok; });
///
/// Needs    rows of a layer from token `first` of the chunk on, keys [kv_heads, n, head_dim] and values [kv_heads, n, value_dim],
///          asked for once per sub-chunk and layer. A transform of keys before rotation needs the rotation of those that have
///          one. The caller keeps transform and rotation.
/// Cost     memory for a sub-chunk of all layers in float and its components, a byte per component and token of a chunk, the bytes
///          that come out; kept between chunks.
/// Numbers  which blocks get bits is settled by `make`: plan_kvtc on the transform's energies.
/// Errors   `make`: invalid_argument, shape_mismatch (a transform of another model), out_of_memory. `write`: what rows returns,
///          invalid_argument (a place that cannot be), missing_input (no rotation), incompatible (a transform of rotated keys, and
///          keys without; a rotation wider than heads), out_of_range (a part of 4 GiB or more), out_of_memory, io_error; the sink
///          then holds a part of a chunk.
class KvtcWriter {
 public:
  static Expected<KvtcWriter> make(const quant::Kvtc& method, const CacheShape& shape, const KvtcTransform& transform,
                                   const prim::RopeTable* rope = nullptr, MemoryResource<Cpu>& memory = heap_memory()) {
    if (const Status s = kvcondense::validate(shape); s != Status::ok) return s;
    if (const Status s = method.validate(); s != Status::ok) return s;
    KvtcWriter w(transform, rope, memory);
    w.head_.take_shape(shape);
    w.head_.coder = method.coder, w.head_.sub_chunk = static_cast<std::uint32_t>(method.sub_chunk);
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      if (transform.side(side).dim != w.head_.row(side)) return Status::shape_mismatch;
      index_t count = transform.used(side);
      if (method.rank > 0) count = std::min(count, method.rank);
      const double bits = static_cast<double>(side == KvSide::keys ? method.key_bits : method.value_bits);
      const auto budget = static_cast<index_t>(bits * static_cast<double>(w.head_.row(side) * method.sub_chunk));
      const std::span<const float> energy(transform.side(side).energy, static_cast<std::size_t>(count));
      Side& own = w.side(side);
      if (const Status s = quant::plan_kvtc(method, energy, budget, own.plan, memory); s != Status::ok) return s;
      for (const quant::KvtcBlock& b : own.plan) own.components += b.count;
    }
    return w;
  }

  /// `exact`: tokens as the cache's type holds them.
  template <class Rows>
  Status write(ByteSink& sink, const StreamPlace& place, bool exact, Rows&& rows) {
    KvtcHead& h = head_;
    if (const Status s = h.take_place(place); s != Status::ok) return s;
    h.exact = exact, h.turned = transform_.raw_keys() && !place.raw_keys;
    if (place.raw_keys && !transform_.raw_keys()) return Status::incompatible;
    if (h.turned && rope_ == nullptr) return Status::missing_input;
    if (h.turned && 2 * rope_->pairs() > h.head_dim) return Status::incompatible;
    h.arrays = transform_.id(h.turned ? rope_ : nullptr);
    Status s = Status::ok;
    const std::uint64_t sum = h.write(sink, s);
    for (const KvSide side : {KvSide::keys, KvSide::values})
      if (s == Status::ok) s = begin(side);
    for (index_t sub = 0; s == Status::ok && sub < h.sub_chunks(); ++sub) {
      const index_t n = h.tokens_of(sub), key_row = h.channels(KvSide::keys) * n, value_row = h.channels(KvSide::values) * n;
      s = keys_.rows.resize(h.layers * key_row);
      if (s == Status::ok) s = values_.rows.resize(h.layers * value_row);
      for (index_t l = 0; s == Status::ok && l < h.layers; ++l)
        s = rows(l, sub * h.sub_chunk, dense_view(keys_.rows.data() + l * key_row, h.kv_heads, n, h.head_dim),
                 dense_view(values_.rows.data() + l * value_row, h.kv_heads, n, h.value_dim));
      for (const KvSide side : {KvSide::keys, KvSide::values})
        if (s == Status::ok) s = exact ? exactly(side, n) : code(side, sub);
    }
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
      if (s == Status::ok && !exact)
        s = h.coder == quant::EntropyCoder::rans ? put_streams<bitstream::Rans>(side) : put_streams<bitstream::RangeCoder>(side);
      if (s == Status::ok) s = this->side(side).part.finish(sink, sum, static_cast<index_t>(side));
    }
    return s;
  }

  /// The blocks that components get, best first.
  std::span<const quant::KvtcBlock> plan(KvSide side) const { return (side == KvSide::keys ? keys_ : values_).plan.span(); }
  /// NaN and infinities that were replaced so far.
  index_t repaired() const { return repaired_; }

 private:
  struct Side {
    explicit Side(MemoryResource<Cpu>& memory)
        : plan(memory), rows(memory), centred(memory), z(memory), run(memory), symbols(memory), scales(memory), part(memory) {}

    Buffer<quant::KvtcBlock> plan;
    index_t components = 0;
    Buffer<float> rows;     ///< [layers, heads, tokens, dim] of a sub-chunk
    Buffer<float> centred;  ///< [tokens, layers * heads * dim]
    Buffer<float> z;        ///< [tokens, components]
    Buffer<float> run;      ///< of a block
    Buffer<std::uint8_t> symbols;  ///< sub-chunk by sub-chunk, block by block, token by token
    Buffer<half> scales;           ///< scale and shift of each block, sub-chunk by sub-chunk
    PartWriter part;
  };

  KvtcWriter(const KvtcTransform& transform, const prim::RopeTable* rope, MemoryResource<Cpu>& memory)
      : transform_(transform), rope_(rope), keys_(memory), values_(memory) {}

  Side& side(KvSide s) { return s == KvSide::keys ? keys_ : values_; }

  Status begin(KvSide s) {
    Side& own = side(s);
    own.symbols.shrink(0), own.scales.shrink(0);
    return own.part.begin();
  }

  Status exactly(KvSide s, index_t n) {
    Side& own = side(s);
    const std::span<const float> numbers(own.rows.data(), static_cast<std::size_t>(n * head_.row(s)));
    return put_exact(own.part, head_.dtype, numbers, repaired_);
  }

  /// Appends a sub-chunk's symbols and scales.
  Status code(KvSide s, index_t sub) {
    Side& own = side(s);
    const KvtcHead& h = head_;
    const HeadBases& b = transform_.side(s);
    const index_t n = h.tokens_of(sub), dim = h.dim(s), row = h.row(s), width = own.components;
    Status status = own.centred.resize(n * row);
    own.z.shrink(0);
    if (status == Status::ok) status = own.z.resize(n * width);
    if (status == Status::ok) status = own.symbols.reserve(own.symbols.size() + n * width);
    if (status == Status::ok) status = own.scales.reserve(own.scales.size() + 2 * own.plan.size());
    if (status != Status::ok) return status;
    const bool turn = h.turned && s == KvSide::keys;
    for (index_t head = 0; head < h.layers * h.kv_heads; ++head)
      for (index_t t = 0; t < n; ++t) {
        float* to = own.centred.data() + t * row + head * dim;
        // Numbers that are none, and what a rotation makes of them and their partners, count as the mean.
        repaired_ += row_to_code(own.rows.data() + (head * n + t) * dim, dim, turn ? rope_ : nullptr, h.position + sub * h.sub_chunk + t, to);
        for (index_t d = 0; d < dim; ++d) {
          const float mean = b.mean == nullptr ? 0.0f : b.mean[head * dim + d];
          to[d] = std::isnan(to[d]) ? 0.0f : to[d] - mean;
        }
      }
    const TensorView<float, 2> z{own.z.data(), {n, width}, {width, 1}};
    if (width > 0) transform_.project(s, TensorView<const float, 2>{own.centred.data(), {n, row}, {row, 1}}, z);
    index_t first = 0;
    for (const quant::KvtcBlock& block : own.plan) {
      const index_t count = block.count;
      if (status = own.run.resize(n * count); status != Status::ok) return status;
      own.run.shrink(n * count);
      for (index_t j = 0; j < count; ++j) {
        const float unit = 1.0f / std::sqrt(b.energy[first + j]);
        for (index_t t = 0; t < n; ++t)
          own.run[t * count + j] = prim::limit_to(prim::without_nan(z(t, first + j) * unit), largest_half);
      }
      const quant::KvtcScale scale = quant::fit_kvtc_scale(block.type, own.run.span());
      own.scales.append_reserved(half(scale.scale)), own.scales.append_reserved(half(scale.shift));
      for (const float x : own.run) own.symbols.append_reserved(scale.symbol(block.type, x));
      first += count;
    }
    return Status::ok;
  }

  /// Plan, scales, tables, offsets and payload.
  template <class Coder>
  Status put_streams(KvSide s) {
    Side& own = side(s);
    const KvtcHead& h = head_;
    Status status = own.part.put(static_cast<std::uint32_t>(own.plan.size()));
    if (status == Status::ok) status = own.part.put(std::uint32_t{0});
    for (const quant::KvtcBlock& b : own.plan) {
      if (status == Status::ok) status = own.part.put(b.count);
      if (status == Status::ok) status = own.part.put(static_cast<std::uint16_t>(b.type));
    }
    if (status == Status::ok) status = own.part.put_bytes(std::as_bytes(own.scales.span()));
    std::uint32_t counts[quant::kvtc_types][bitstream::max_symbols] = {};
    index_t table_at[quant::kvtc_types] = {};
    const auto each = [&](auto&& use) {
      index_t at = 0;
      for (index_t sub = 0; sub < h.sub_chunks(); ++sub)
        for (const quant::KvtcBlock& b : own.plan) {
          const index_t n = h.tokens_of(sub) * b.count;
          use(b.type, own.symbols.span().subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(n)));
          at += n;
        }
    };
    each([&](quant::KvtcType type, std::span<const std::uint8_t> run) {
      for (const std::uint8_t x : run) ++counts[static_cast<std::size_t>(type)][x];
    });
    for (int t = 1; t < quant::kvtc_types; ++t) {
      const auto type = static_cast<quant::KvtcType>(t);
      const bool used = std::any_of(own.plan.begin(), own.plan.end(), [&](const quant::KvtcBlock& b) { return b.type == type; });
      table_at[t] = own.part.size();
      if (used && status == Status::ok) status = own.part.put_table<Coder>(counts[t], quant::symbols_of(type));
    }
    if (status == Status::ok) status = own.part.begin_streams(KvtcPart::stream_count(h, own.plan.size()));
    each([&](quant::KvtcType type, std::span<const std::uint8_t> run) {
      std::uint16_t starts[bitstream::max_symbols];
      bitstream::SymbolTable table;
      const std::byte* at = own.part.at(table_at[static_cast<std::size_t>(type)]);
      if (status == Status::ok) status = read_table(at, quant::symbols_of(type), Coder::table_bits, starts, table);
      if (status == Status::ok) status = own.part.encode<Coder>(run, table);
    });
    return status;
  }

  KvtcTransform transform_;
  const prim::RopeTable* rope_ = nullptr;
  KvtcHead head_;
  index_t repaired_ = 0;
  Side keys_, values_;
};

}  // namespace kvcondense::io
