#pragma once

#include <cstdint>
#include <initializer_list>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/quant/blocks/entropy_coder.hpp>

namespace kvcondense::quant {

/// What a symbol stands for.
enum class CacheGenForm : std::uint8_t {
  scaled,  ///< the released code: every token in steps of its largest magnitude
  delta,   ///< the paper: groups of tokens as differences to their first one
};

/// Which symbols share a table of frequencies.
enum class CacheGenTables : std::uint8_t {
  per_channel,  ///< a table for each channel of keys and of values, in every layer
  per_layer,    ///< one for all channels of a layer's keys, one for its values
};

/// A number for each layer: runs of layers that end at first_end and second_end of `of`, scaled to the model's depth.
template <class T>
struct ByDepth {
  T first, second, third;
  index_t first_end, second_end, of;

  constexpr T at(index_t layer, index_t layers) const {
    return layer * of < first_end * layers ? first : layer * of < second_end * layers ? second : third;
  }
};

/// Streams keys and values as entropy-coded symbols, from machine to machine or to a disk.
///
/// Idea     Numbers of a channel are alike, the more so the nearer their tokens: few levels and a table of their
///          frequencies need fewer bits than levels alone. Deeper layers bear fewer levels.
/// Source   CacheGen, arXiv:2310.07240; the released code for `scaled`, the paper for `delta`.
/// Needs    keys and values only. Not a stage of a cache: io/cachegen.hpp writes and reads the bytes.
/// Shapes   chunks of `chunk` tokens of all layers, each decodable alone; one stream for each (layer, keys or values,
///          channel, `sub_chunk` tokens), so that any of these is decoded alone, and all of them in parallel.
/// Cost     log2 of the symbols' perplexity per number; 4 bytes and on average half a byte per stream; `scales` per
///          token and head row; tables that travel with the data: 2 bytes per symbol but one, channel and chunk.
/// Numbers  `scaled` errs by half a step, scale / (bins / 2 - 1) / 2, at most, and the rounding of the scale. `delta` by
///          half a step of differences, `widths` deviations / 2. NaN is coded as 0, infinities as the token's largest
///          finite magnitude, both counted; a token of zeros is all middle symbols.
/// Differs  the released code codes with unrounded scales, divides by zero where a token is zero, has one table size for
///          all layers and a pickle around its bytes. The paper leaves open what a step of a difference is measured in;
///          here it is the channel's deviation within `sub_chunk` tokens, and grows where a difference would clip.
/// Errors   invalid_argument for bins that are odd or outside [4, 256], widths that are not positive, group below 2,
///          sub_chunk outside [1, 4096], chunk below 1, scales as bf16.
struct CacheGen {
  CacheGenForm form = CacheGenForm::scaled;
  EntropyCoder coder = EntropyCoder::range;
  CacheGenTables tables = CacheGenTables::per_channel;
  ByDepth<int> key_bins{32, 16, 16, 10, 20, 32};   ///< scaled: levels of keys, plus one or two
  ByDepth<int> value_bins{32, 16, 16, 2, 32, 32};  ///< scaled: of values
  ByDepth<float> widths{0.5f, 1.0f, 1.5f, 1, 2, 3};  ///< delta: a step, in standard deviations of differences
  index_t group = 10;       ///< delta: tokens that share an anchor
  index_t sub_chunk = 256;  ///< tokens of one stream
  index_t chunk = 1536;     ///< tokens of one set of tables
  DType scales = DType::f16;

  /// The released code's levels for a 32-layer model, 1 the smallest.
  static constexpr CacheGen level(int n) {
    CacheGen c;
    if (n == 1) c.key_bins.first = 16, c.key_bins.third = 12, c.value_bins.first = 16, c.value_bins.second = c.value_bins.third = 12;
    if (n >= 3) c.key_bins.second = c.key_bins.third = c.value_bins.second = c.value_bins.third = 32;
    return c;
  }
  static constexpr int levels = 3;

  constexpr int bins(bool keys, index_t layer, index_t layers) const {
    return (keys ? key_bins : value_bins).at(layer, layers);
  }

  constexpr Status validate() const {
    bool ok = group >= 2 && sub_chunk >= 1 && sub_chunk <= 4096 && chunk >= 1 && chunk <= 0x7fffffff && scales != DType::bf16;
    for (const ByDepth<int>& b : {key_bins, value_bins}) {
      for (const int n : {b.first, b.second, b.third}) ok = ok && n >= 4 && n <= max_bins && n % 2 == 0;
      ok = ok && sane(b);
    }
    for (const float w : {widths.first, widths.second, widths.third}) ok = ok && w > 0.0f && w < 1e6f;
    return ok && sane(widths) ? Status::ok : Status::invalid_argument;
  }

 private:
  static constexpr int max_bins = 256;
  template <class T>
  static constexpr bool sane(const ByDepth<T>& b) {
    return b.of >= 1 && b.of <= 65536 && b.first_end >= 0 && b.second_end >= b.first_end && b.second_end <= b.of;
  }
};

}  // namespace kvcondense::quant
