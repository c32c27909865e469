#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/quant/blocks/entropy_coder.hpp>

namespace kvcondense::quant {

/// How the numbers of a block of components are coded.
enum class KvtcType : std::uint8_t { none, int2, int4, int8, fp8 };
inline constexpr int kvtc_types = 5;

constexpr int bits_of(KvtcType t) {
  return t == KvtcType::none ? 0 : t == KvtcType::int2 ? 2 : t == KvtcType::int4 ? 4 : 8;
}
constexpr int symbols_of(KvtcType t) { return 1 << bits_of(t); }

/// Neighbouring components that share a type, and in every sub-chunk a scale, a shift and a stream of symbols.
struct KvtcBlock {
  std::uint16_t count = 1;
  KvtcType type = KvtcType::none;

  friend bool operator==(const KvtcBlock&, const KvtcBlock&) = default;
};

/// Stores keys and values of all layers of a token as one row, in few of its principal components.
///
/// Idea     Layers and heads say much the same of a token. In the principal components of all of them together a few
///          coordinates hold most of the energy and get bits; most get none.
/// Source   KVTC, arXiv:2511.01815.
/// Needs    a transform of the model, found from calibration text: mean, basis and energies of keys and of values
///          (`kvcondense-eval calibrate --method kvtc`). Keys are best calibrated before rotation; whoever writes and reads
///          rotated ones brings the rotation then. Not a stage of a cache: io/kvtc.hpp writes and reads the bytes.
/// Shapes   the first `sinks` and last `window` tokens exact, chunks of `chunk` tokens between them; one stream for each
///          (keys or values, block, `sub_chunk` tokens). Any layer is decoded alone, of any sub-chunk.
/// Cost     at most `key_bits` and `value_bits` per number before entropy coding, blocks' 64 bits per sub-chunk (a scale, a
///          shift, an offset) counted; writing and reading layers * kv_heads * dim multiplications per number and
///          component that is coded. The transform takes 4 bytes for each number of a token's row and component.
/// Numbers  components in units of the calibration's deviation; integers around a scale and a shift of 16 bits that leave
///          the least square error of a block, found among ranges, and coded with; fp8 is E4M3 around a mean. What no
///          component has is lost. NaN and infinities count as the calibration's mean.
/// Differs  the paper's entropy coder is DEFLATE, here the range coder or rANS with a table per type and chunk. Its scales are
///          of what components are; here components are divided by their deviation first, so that the error which the
///          allocation sums up, energy times error of the type, is the error of every component in a block.
/// Errors   invalid_argument for bits that are negative or above 8, blocks that are none or above 65535, errors that are
///          negative or none, chunk below 1, sub_chunk outside [1, 1024], negative rank, sinks or window.
struct Kvtc {
  float key_bits = 1.0f;    ///< per number of keys, before entropy coding
  float value_bits = 1.0f;
  index_t rank = 0;         ///< components that may get bits; 0: all that the transform has
  std::array<index_t, 5> blocks{1, 16, 64, 256, 1024};  ///< sizes; zeros are none
  /// What is left of a component's energy by type, of normal numbers (section on errors in docs/streams.md); infinity keeps a
  /// type out. With these int8 serves every block better than fp8.
  std::array<double, kvtc_types> error{1.0, 0.12, 0.0116, 8.8e-5, 7.0e-4};
  index_t sinks = 4;         ///< first tokens, stored exactly
  index_t window = 128;      ///< last tokens, stored exactly
  index_t sub_chunk = 256;   ///< tokens of one stream
  index_t chunk = 1536;      ///< tokens of one set of tables
  EntropyCoder coder = EntropyCoder::range;

  /// 0.5, 1, 2, 4 bits per number, keys and values alike, before entropy coding.
  static constexpr Kvtc level(int n) {
    Kvtc k;
    k.key_bits = k.value_bits = n <= 1 ? 0.5f : n == 2 ? 1.0f : n == 3 ? 2.0f : 4.0f;
    return k;
  }
  static constexpr int levels = 4;

  /// What a block costs beside its codes, in bits per sub-chunk.
  static constexpr index_t block_bits = 64;

  Status validate() const {
    bool ok = sinks >= 0 && window >= 0 && rank >= 0 && sub_chunk >= 1 && sub_chunk <= 1024 && chunk >= 1 && chunk <= 0x7fffffff;
    for (const float b : {key_bits, value_bits}) ok = ok && b >= 0.0f && b <= 8.0f;
    index_t most = 0;
    for (const index_t n : blocks) ok = ok && n >= 0 && n <= 65535, most = n > most ? n : most;
    for (const double e : error) ok = ok && e >= 0.0;
    return ok && most > 0 && std::isfinite(error[0]) ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::quant
