#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_bits.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// What shares a scale below an allocation of bits.
enum class BitLayout : std::uint8_t {
  token,  ///< channels of a token, keys and values; tokens are coded at once
  kivi,   ///< tokens of a key channel, channels of a value; the newest tokens stay exact
};

/// Stores keys and values of every layer and head in a number of bits of its own.
///
/// Idea     layers differ in what an error of their keys and values costs, and keys, whose errors pass through softmax, cost
///          more than values: bits go where they save most.
/// Source   KVTuner, arXiv:2502.04420.
/// Needs    keys and values only. `key_widths`, `value_widths`: bits of each head, as `allocate_bits` or `pareto_front` find
///          them; without them keys have `key_bits`, values `value_bits`, and the first and last `boundary` layers the
///          next width of 2, 4, 8.
/// Shapes   GroupBits, by `layout`.
/// Cost     bits + 32 / group_size per number.
/// Numbers  those of group_int: minimum form, fp16 parameters, half to even; error at most half a step.
/// Errors   invalid_argument for widths other than 1 to 8, tables that do not fit the cache, a group that does not
///          divide its row, block or page, negative windows, sinks or boundary.
struct BitAllocation {
  static constexpr Descriptor about{"bit_allocation", Stage::quant, "arXiv:2502.04420"};

  int key_bits = 4;
  int value_bits = 2;
  index_t boundary = 2;  ///< first and last layers with more bits
  BitLayout layout = BitLayout::token;
  index_t group_size = 32;
  index_t residual_window = 32;  ///< of layout kivi
  index_t sinks = 0;             ///< slots at the start that stay exact
  HeadTable key_widths{};
  HeadTable value_widths{};

  constexpr prim::GroupBits key_codec(const CacheShape& shape, HeadIndex at) const {
    return {width(key_widths, key_bits, shape, at), key_axis(), group_size};
  }
  constexpr prim::GroupBits value_codec(const CacheShape& shape, HeadIndex at) const {
    return {width(value_widths, value_bits, shape, at), prim::GroupAxis::token, group_size};
  }
  constexpr Flush key_flush() const {
    return layout == BitLayout::kivi ? block_flush(std::max(group_size, residual_window)) : immediate_flush();
  }
  constexpr Flush value_flush() const { return layout == BitLayout::kivi ? fifo_flush(residual_window) : immediate_flush(); }

  Status validate(const CacheShape& shape) const {
    const bool sane = key_bits >= 1 && key_bits <= 8 && value_bits >= 1 && value_bits <= 8 && boundary >= 0 && residual_window >= 0;
    if (!sane || !widths_fit(key_widths, shape) || !widths_fit(value_widths, shape)) return Status::invalid_argument;
    return codecs_fit(*this, shape) ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::GroupAxis key_axis() const {
    return layout == BitLayout::kivi ? prim::GroupAxis::channel : prim::GroupAxis::token;
  }
  constexpr int width(const HeadTable& table, int usual, const CacheShape& shape, HeadIndex at) const {
    if (!table.empty()) return static_cast<int>(table(at));
    const bool edge = at.layer < boundary || at.layer >= shape.layers - boundary;
    return !edge ? usual : usual < 2 ? 2 : usual < 4 ? 4 : 8;
  }
  static constexpr bool widths_fit(const HeadTable& table, const CacheShape& shape) {
    if (table.empty()) return true;
    if (!table.fits(shape)) return false;
    for (index_t i = 0; i < table.size(); ++i) {
      const float w = table.data[i];
      if (!(w >= 1.0f && w <= 8.0f) || static_cast<float>(static_cast<int>(w)) != w) return false;
    }
    return true;
  }
};

}  // namespace kvcondense::quant
