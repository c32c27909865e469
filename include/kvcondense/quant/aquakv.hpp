#pragma once

#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/quant/blocks/entropy_coder.hpp>
#include <kvcondense/quant/blocks/normal_grid.hpp>

namespace kvcondense::quant {

/// Stores what a layer's keys and values have beyond what the layer below says of them.
///
/// Idea     Keys of neighbouring layers are much alike, and values follow from keys and the values below. A linear map that was
///          found once predicts most of a layer; what is left is small, and small differences need few bits.
/// Source   AQUA-KV, arXiv:2501.19392, with the quantizer of HIGGS, arXiv:2411.17525.
/// Needs    maps from layer to layer, found from calibration text (`kvcondense-eval calibrate --method aquakv`, or
///          quant/layer_predictor.hpp), of keys before rotation; whoever writes and reads rotated ones brings the rotation.
///          Not a stage of a cache: a key is the sum of what all layers below say, so attention over the codes of layer l would
///          decode l layers of every token in every step. io/aquakv.hpp writes and reads the bytes.
/// Shapes   the first `sinks` and last `window` tokens exact, chunks of `chunk` tokens between them; one part per layer and
///          side, one stream in it per `sub_chunk` tokens. Layers are decoded from the first on, tokens in any order.
/// Cost     bits per number before entropy coding and 16 bits for `group` numbers; writing and reading, per token and layer,
///          channels^2 multiplications for keys and twice that for values. Maps take three times channels^2 numbers a layer.
/// Numbers  predictions are of decoded rows, so that errors do not add up from layer to layer. What is left of a row: a length
///          of 16 bits, coded with as it is stored, and pairs of its Hadamard transform as the nearest of 16, 64 or 256 points that
///          suit normal numbers. NaN and infinities count as predicted.
/// Differs  the first layer is coded around its mean. Rows are cut into groups of the largest power of two, from 16 to `group`,
///          that divides their length, where the paper fills up with zeros to 1024. Maps are in float32. Codes go through an
///          entropy coder.
/// Errors   invalid_argument for bits outside 2 to 4, a group that is no power of two from 16 to 1024, chunk below 1, sub_chunk
///          outside [1, 1024], negative sinks or window.
struct Aquakv {
  int key_bits = 2;    ///< per number, before entropy coding
  int value_bits = 2;
  int first_bits = 4;  ///< of the first layer, which nothing predicts
  index_t group = 1024;      ///< most numbers that share a length
  index_t sinks = 4;         ///< first tokens, stored exactly
  index_t window = 128;      ///< last tokens, stored exactly
  index_t sub_chunk = 256;   ///< tokens of one stream
  index_t chunk = 1536;      ///< tokens of one set of tables
  EntropyCoder coder = EntropyCoder::range;

  int bits(bool keys, index_t layer) const { return layer == 0 ? first_bits : keys ? key_bits : value_bits; }

  Status validate() const {
    bool ok = sinks >= 0 && window >= 0 && sub_chunk >= 1 && sub_chunk <= 1024 && chunk >= 1 && chunk <= 0x7fffffff;
    for (const int b : {key_bits, value_bits, first_bits}) ok = ok && b >= 2 && b <= 4;
    ok = ok && group >= 16 && group <= 1024 && (group & (group - 1)) == 0;
    return ok ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
