#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/backend/cpu/low_rank.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/backend/cpu/slot_groups.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/corrected.hpp>

namespace kvcondense::prim {

/// Attention adds up three parts and never makes rows: the codec's, q . B against A or (weights . A) against B, and
/// one product per outlier.
///
/// Numbers   with corrections, `encode` repairs before the codec sees anything: NaN counts as 0, infinities and
///           magnitudes beyond `largest_coded` become the end of their vector's other numbers. It returns those, the
///           codec's repairs, and one for every outlier and every factor that fp16 does not hold.
template <class C>
struct PageCodec<Cpu, Corrected<C>> {
  using Codec = Corrected<C>;
  using Inner = PageCodec<Cpu, C>;

  static const char* kernel(const Codec& codec, PageSpan page, bool sums) {
    if constexpr (requires { Inner::kernel(codec.codec, page, sums); }) return Inner::kernel(codec.codec, page, sums);
    else return nullptr;
  }

  /// `ops`: by which the low-rank part is found. Those of another instruction set add in another order, which changes its last bits.
  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows, const cpu::RowOps& ops = cpu::row_ops()) {
    if (!codec.corrects(page.dim)) return Inner::encode(codec.codec, page, first, count, rows);
    return cpu::encode_groups(codec.chunk, first, {rows.data, count, rows.step},
                              [&](index_t slot, RowBlock<const float> chunk) { return encode_chunk(codec, page, slot, chunk, ops); });
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    Inner::decode(codec.codec, page, first, count, rows);
    float a[piece * Codec::most_rank], b[max_head_dim * Codec::most_rank];
    each_chunk(codec, page, first, count, [&](const Chunk& in, index_t from, index_t n, float* x) {
      in.read_b(b);
      in.each_piece(from, n, a, [&](index_t at, index_t m) {
        for (index_t i = 0; i < m; ++i)
          for (index_t j = 0; j < codec.rank; ++j) {
            float* row = x + (at + i) * rows.step;
            for (index_t c = 0; c < page.dim; ++c) row[c] += a[j * piece + i] * b[j * page.dim + c];
          }
      });
      in.each_outlier(from, n, [&](index_t i, index_t c, float v) { x[i * rows.step + c] += v; });
    }, rows.data, rows.step);
  }

  /// Only for chunks of one slot.
  static void move(const Codec& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot)
    requires requires { &Inner::move; }
  {
    Inner::move(codec.codec, to, to_slot, from, from_slot);
    std::memmove(Chunk(codec, to, to_slot).at, Chunk(codec, from, from_slot).at,
                 static_cast<std::size_t>(codec.chunk_bytes(to.dim)));
  }

  static void scores(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    Inner::scores(codec.codec, page, first, count, queries, out);
    float a[piece * Codec::most_rank], b[max_head_dim * Codec::most_rank];
    each_chunk(codec, page, first, count, [&](const Chunk& in, index_t from, index_t n, float* o) {
      in.read_b(b);
      in.each_piece(from, n, a, [&](index_t at, index_t m) {
        for (index_t r = 0; r < queries.rows; ++r)
          for (index_t j = 0; j < codec.rank; ++j) {
            const float along = cpu::dot(queries.data + r * queries.step, b + j * page.dim, page.dim);
            float* s = o + r * out.step + at;
            for (index_t i = 0; i < m; ++i) s[i] += along * a[j * piece + i];
          }
      });
      in.each_outlier(from, n, [&](index_t i, index_t c, float v) {
        for (index_t r = 0; r < queries.rows; ++r) o[r * out.step + i] += queries.data[r * queries.step + c] * v;
      });
    }, out.data, 1);
  }

  static void accumulate(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    Inner::accumulate(codec.codec, page, first, count, weights, out);
    float a[piece * Codec::most_rank], b[max_head_dim * Codec::most_rank];
    each_chunk(codec, page, first, count, [&](const Chunk& in, index_t from, index_t n, const float* w) {
      in.read_b(b);
      in.each_piece(from, n, a, [&](index_t at, index_t m) {
        for (index_t r = 0; r < weights.rows; ++r)
          for (index_t j = 0; j < codec.rank; ++j) {
            const float sum = cpu::dot(w + r * weights.step + at, a + j * piece, m);
            float* o = out.data + r * out.step;
            for (index_t c = 0; c < page.dim; ++c) o[c] += sum * b[j * page.dim + c];
          }
      });
      in.each_outlier(from, n, [&](index_t i, index_t c, float v) {
        for (index_t r = 0; r < weights.rows; ++r) out.data[r * out.step + c] += w[r * weights.step + i] * v;
      });
    }, weights.data, 1);
  }

 private:
  static constexpr index_t piece = 64;  ///< slots of A that are read together

  /// The corrections of one chunk: where they are, how they are read and written.
  struct Chunk {
    const Codec& codec;
    index_t dim, each, outliers;  ///< outliers of a vector, and of all
    bool wide;                    ///< places of two bytes
    std::byte *at, *addends, *places;

    Chunk(const Codec& c, PageSpan page, index_t index)
        : codec(c), dim(page.dim), each(2 * c.each_end(dim)), outliers(c.vectors(dim) * each), wide(c.place_bytes(dim) > 1),
          at(page.data + c.corrections_at(page.slots, dim) + index * c.chunk_bytes(dim)),
          addends(at + c.addends_at(dim)), places(at + c.places_at(dim)) {}

    void read_b(float* b) const { cpu::read_numbers(ParamType::f16, at + codec.b_at(), codec.rank * dim, b); }

    /// Calls f(i, m) with A of the slots [from + i, from + i + m) of the chunk in `a`, rows `piece` apart.
    template <class F>
    void each_piece(index_t from, index_t n, float* a, F&& f) const {
      for (index_t i = 0; i < n && codec.rank > 0; i += piece) {
        const index_t m = std::min(piece, n - i);
        for (index_t j = 0; j < codec.rank; ++j)
          cpu::read_numbers(ParamType::f16, at + 2 * (j * codec.chunk + from + i), m, a + j * piece);
        f(i, m);
      }
    }

    index_t place(index_t e) const {
      std::uint16_t two = static_cast<std::uint8_t>(places[wide ? 2 * e : e]);
      if (wide) std::memcpy(&two, places + 2 * e, sizeof two);
      return two;
    }
    void set_place(index_t e, std::uint16_t place) const {
      if (wide) std::memcpy(places + 2 * e, &place, sizeof place);
      else places[e] = static_cast<std::byte>(place);
    }
    float addend(index_t e) const {
      std::uint16_t bits;
      std::memcpy(&bits, addends + 2 * e, sizeof bits);
      return detail::half_value(bits);
    }

    /// Calls f(slot - from, channel, addend) for the outliers of the slots [from, from + n) of the chunk. One at a damaged place, behind its vector, is nowhere.
    template <class F>
    void each_outlier(index_t from, index_t n, F&& f) const {
      if (codec.axis == GroupAxis::token) {
        for (index_t i = 0, e = from * each; i < n; ++i)
          for (index_t k = 0; k < each; ++k, ++e)
            if (const index_t c = place(e); c < dim) f(i, c, addend(e));
        return;
      }
      for (index_t c = 0, e = 0; c < dim; ++c)
        for (index_t k = 0; k < each; ++k, ++e)
          if (const index_t i = place(e) - from; i >= 0 && i < n) f(i, c, addend(e));
    }
  };

  /// Calls f(chunk, from, n, data of its first slot) for the parts of chunks that lie in [first, first + count).
  template <class F, class T>
  static void each_chunk(const Codec& codec, PageSpan page, index_t first, index_t count, F&& f, T* data, index_t step) {
    if (!codec.corrects(page.dim)) return;
    cpu::each_group(codec.chunk, first, count, [&](index_t done, index_t n) {
      f(Chunk(codec, page, (first + done) / codec.chunk), (first + done) % codec.chunk, n, data + done * step);
    });
  }

  static index_t encode_chunk(const Codec& codec, PageSpan page, index_t slot, RowBlock<const float> rows, const cpu::RowOps& ops) {
    const Chunk to(codec, page, slot / codec.chunk);
    const index_t dim = page.dim;
    alignas(64) float block[Codec::most_numbers], rest[Codec::most_numbers];
    index_t repaired = take_outliers(to, rows, block, rest);
    repaired += Inner::encode(codec.codec, page, slot, codec.chunk, {block, codec.chunk, dim});
    float row[max_head_dim];
    for (index_t t = 0; t < codec.chunk; ++t) {
      Inner::decode(codec.codec, page, slot + t, 1, {row, 1, dim});
      for (index_t c = 0; c < dim; ++c) block[t * dim + c] -= row[c];
    }
    for (index_t e = 0; e < to.outliers; ++e) {
      float& error = block[number(codec, dim, e / to.each, to.place(e))];
      rest[e] += error;  // the mean's error, and what the outlier is beyond the mean
      error = 0.0f;
    }
    float a[Codec::most_slots * Codec::most_rank], b[max_head_dim * Codec::most_rank];
    if (codec.rank > 0) {
      cpu::fit_low_rank(block, codec.chunk, dim, codec.rank, codec.loops, a, b, ops);
      repaired += write(a, codec.rank * codec.chunk, to.at) + write(b, codec.rank * dim, to.at + codec.b_at());
    }
    for (index_t e = 0; e < to.outliers; ++e) {
      const index_t i = number(codec, dim, e / to.each, to.place(e));
      for (index_t j = 0; j < codec.rank; ++j) rest[e] -= a[j * codec.chunk + i / dim] * b[j * dim + i % dim];
    }
    return repaired + write(rest, to.outliers, to.addends);
  }

  /// Where number `place` of a vector is in a chunk of rows.
  static index_t number(const Codec& codec, index_t dim, index_t vector, index_t place) {
    return codec.axis == GroupAxis::channel ? place * dim + vector : vector * dim + place;
  }

  /// Rounds `x` to fp16 and stores it. Returns how many did not fit.
  static index_t write(float* x, index_t n, std::byte* to) {
    index_t repaired = 0;
    for (index_t i = 0; i < n; ++i) {
      bool saturated = false;
      x[i] = stored(ParamType::f16, x[i], saturated);
      repaired += static_cast<index_t>(saturated);
    }
    cpu::write_numbers(ParamType::f16, x, n, to);
    return repaired;
  }

  /// Copies rows into `block`, repaired, with the mean of its vector in the place of every outlier; what these were beyond
  /// the mean goes into `rest`, their places into the chunk. Of equal numbers the first are outliers.
  static index_t take_outliers(const Chunk& to, RowBlock<const float> rows, float* block, float* rest) {
    const Codec& codec = to.codec;
    const index_t dim = to.dim, n = codec.vector_size(dim), each = to.each;
    float x[Codec::most_slots];
    std::uint16_t order[Codec::most_slots];
    index_t repaired = 0;
    for (index_t v = 0; v < codec.vectors(dim); ++v) {
      GroupRange range;
      index_t bad = 0;
      for (index_t i = 0; i < n; ++i) {
        const index_t at = number(codec, dim, v, i);
        x[i] = rows.data[at / dim * rows.step + at % dim];
        range.include(x[i]);
        bad += static_cast<index_t>(needs_repair(x[i]));
      }
      if (bad > 0) {
        if (range.lo > range.hi) range.lo = range.hi = 0.0f;
        for (index_t i = 0; i < n; ++i) x[i] = std::clamp(without_nan(x[i]), range.lo, range.hi);
      }
      repaired += bad;
      double sum = 0.0;
      for (index_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
      const auto mean = static_cast<float>(sum / static_cast<double>(n));
      if (each > 0) {
        for (index_t i = 0; i < n; ++i) order[i] = static_cast<std::uint16_t>(i);
        std::uint16_t *half = order + each / 2, *chosen = order + each, *end = order + n;
        std::partial_sort(order, half, end, [&](auto i, auto j) { return x[i] != x[j] ? x[i] > x[j] : i < j; });
        std::partial_sort(half, chosen, end, [&](auto i, auto j) { return x[i] != x[j] ? x[i] < x[j] : i < j; });
        std::sort(order, chosen);
        for (index_t k = 0; k < each; ++k) {
          to.set_place(v * each + k, order[k]);
          rest[v * each + k] = x[order[k]] - mean;
          x[order[k]] = mean;
        }
      }
      for (index_t i = 0; i < n; ++i) block[number(codec, dim, v, i)] = x[i];
    }
    return repaired;
  }
};

}  // namespace kvcondense::prim
