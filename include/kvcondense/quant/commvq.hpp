#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/complex_vq.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys as a length and sums of complex codewords, with which RoPE commutes, and values in the same way.
///
/// Idea     codebooks hold what a model's keys have in common; when a codeword is a complex number per rotation pair, turning
///          it is a product, and codes of keys before RoPE serve every position.
/// Source   CommVQ, arXiv:2506.18879.
/// Needs    keys and values; `key_books`, `value_books`: [stages, base, head_dim] numbers per head, as `fit_complex_book` and
///          `kvcondense-eval calibrate --method commvq` find them. The paper codes keys before RoPE: `commvq + rerotate`, with books of such keys.
/// Shapes   ComplexVq per token and head.
/// Cost     (2 * stages * log2(base) + 16) / head_dim bits per number in whole bytes: 2.125 for 21 stages of 64 words, heads of
///          128. Coding compares (1 + beam) * stages * base words; reading adds up 2 * stages words, once for all query heads.
/// Numbers  float32; lengths in fp16. Books decide the error.
/// Differs  lengths are per head, not per token. Pairs of words are found by a beam search, values coded by search as well
///          where the paper trains an encoder. Books are one per head.
/// Errors   missing_input without books; invalid_argument for books that are no whole stages, numbers that are none or beyond
///          1e6, more stages than a book has, odd heads, base outside 2 to 256, beam below 1, negative windows or sinks.
struct CommVq {
  static constexpr Descriptor about{"commvq", Stage::quant, "arXiv:2506.18879"};

  index_t base = 64;    ///< words of a stage
  index_t stages = 0;   ///< of a row; 0: all that the books have
  index_t beam = 4;     ///< words of a stage that are tried with every other
  prim::RopePairing pairing = prim::RopePairing::half_split;
  index_t residual_window = 0;
  index_t sinks = 0;    ///< slots at the start that stay exact
  HeadRows key_books{};
  HeadRows value_books{};

  prim::ComplexVq key_codec(const CacheShape& shape, HeadIndex at) const { return codec(key_books, shape.head_dim, at); }
  prim::ComplexVq value_codec(const CacheShape& shape, HeadIndex at) const { return codec(value_books, shape.values(), at); }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr const char* missing() const {
    return key_books.empty() ? "key_books" : value_books.empty() ? "value_books" : nullptr;
  }
  Status validate(const CacheShape& shape) const {
    if (missing() != nullptr) return Status::missing_input;
    const bool sane = base >= 2 && base <= prim::ComplexVq::most_base && beam >= 1 && beam <= prim::ComplexVq::most_base &&
                      stages >= 0 && residual_window >= 0;
    if (!sane || !book_fits(key_books, shape, shape.head_dim) || !book_fits(value_books, shape, shape.values()))
      return Status::invalid_argument;
    return codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  bool book_fits(const HeadRows& books, const CacheShape& shape, index_t dim) const {
    const index_t stage = base * dim;
    if (!books.fits(shape, books.numbers) || books.numbers < stage || books.numbers % stage != 0) return false;
    return stages <= books.numbers / stage && books.numbers / stage <= prim::ComplexVq::most_codes;
  }
  prim::ComplexVq codec(const HeadRows& books, index_t dim, HeadIndex at) const {
    const index_t there = base < 1 ? 1 : books.numbers / (base * dim);
    return {.book = books.row(at), .stages = static_cast<std::int32_t>(stages == 0 ? there : stages),
            .base = static_cast<std::int32_t>(base), .channels = static_cast<std::int32_t>(dim),
            .beam = static_cast<std::int32_t>(beam), .pairing = pairing};
  }
};

}  // namespace kvcondense::quant
