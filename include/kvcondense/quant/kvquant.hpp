#pragma once

#include <array>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/nuq_rows.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores keys in levels that lie unevenly in calibrated ranges of channels, values in those of their own range, and about one
/// number in a hundred exactly.
///
/// Idea     levels belong where numbers are, and where errors cost most; few numbers outside a narrow range are cheaper to keep
///          apart than a range that holds them.
/// Source   KVQuant, arXiv:2401.18079.
/// Needs    keys and values; `key_lower`, `key_upper`: thresholds of every key channel; `key_levels`, `value_levels`: 2^bits levels
///          per head, ascending (without them those of a normal density). `find_thresholds` and `fit_levels_1d` make
///          them. The paper codes keys before RoPE: `kvquant + rerotate`, with thresholds of such keys.
/// Shapes   NuqRows per token and head.
/// Cost     bits + 24 * n / head_dim per number, n = 2 * (floor(outliers / 2 * head_dim) + 1): 4.375 of 4 bits and 1 % as set here
///          with heads of 128; 32 / head_dim more for values. One product per outlier and score.
/// Numbers  thresholds as given, float32; ranges of values and addends of outliers in fp16. More outliers than fit become
///          the ends of their range.
/// Differs  lists of outliers are per token and head, with places of one byte, where the reference code keeps 42 for all heads
///          in 64 bits each. Moments of codes are not matched again (Q-Norm).
/// Errors   missing_input without thresholds; invalid_argument for bits other than 1 to 4, a part of outliers outside 0 to 1 / 2,
///          arrays that do not fit the cache, levels that do not ascend, thresholds that are no numbers or crossed,
///          and negative windows or sinks.
struct KvQuant {
  static constexpr Descriptor about{"kvquant", Stage::quant, "arXiv:2401.18079"};

  int bits = 4;
  float outliers = 0.01f;  ///< part of a row; 0: none
  index_t residual_window = 0;
  index_t sinks = 4;       ///< slots at the start that stay exact
  HeadRows key_lower{};
  HeadRows key_upper{};
  HeadRows key_levels{};
  HeadRows value_levels{};

  prim::NuqRows key_codec(const CacheShape& shape, HeadIndex at) const {
    return {width(), count(shape.head_dim), static_cast<std::int32_t>(shape.head_dim), key_lower.row(at), key_upper.row(at),
            levels(key_levels, at)};
  }
  prim::NuqRows value_codec(const CacheShape& shape, HeadIndex at) const {
    return {width(), count(shape.values()), 0, nullptr, nullptr, levels(value_levels, at)};
  }
  constexpr Flush key_flush() const { return fifo_flush(residual_window); }
  constexpr Flush value_flush() const { return fifo_flush(residual_window); }

  constexpr const char* missing() const {
    return key_lower.empty() ? "key_lower" : key_upper.empty() ? "key_upper" : nullptr;
  }
  Status validate(const CacheShape& shape) const {
    if (missing() != nullptr) return Status::missing_input;
    if (bits < 1 || bits > 4 || !(outliers >= 0.0f && outliers <= 0.5f) || residual_window < 0) return Status::invalid_argument;
    const index_t n = index_t{1} << bits;
    if (!key_lower.fits(shape, shape.head_dim) || !key_upper.fits(shape, shape.head_dim)) return Status::invalid_argument;
    if (!key_levels.empty() && !key_levels.fits(shape, n)) return Status::invalid_argument;
    if (!value_levels.empty() && !value_levels.fits(shape, n)) return Status::invalid_argument;
    return codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr std::int32_t width() const { return bits < 1 || bits > 4 ? 1 : bits; }  // `validate` refuses the others
  constexpr std::int32_t count(index_t dim) const {
    return outliers > 0.0f ? 2 * (static_cast<std::int32_t>(outliers / 2.0f * static_cast<float>(dim)) + 1) : 0;
  }
  std::array<float, 16> levels(const HeadRows& given, HeadIndex at) const {
    if (given.empty()) return prim::normal_levels(width());
    std::array<float, 16> out{};
    for (std::size_t i = 0; i < std::size_t{1} << width(); ++i) out[i] = given.row(at)[i];
    return out;
  }
};

}  // namespace kvcondense::quant
