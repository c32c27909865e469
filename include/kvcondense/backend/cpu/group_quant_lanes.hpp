#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/prim/group_quant.hpp>

// Codes in lanes: where they are, one slot at a time and sixteen at a time.

namespace kvcondense::prim::cpu {

/// Codes of one page in `slot_lanes` or `channel_lanes`.
template <int Bits>
struct CodeLanes {
  static constexpr index_t fields = 8 / Bits, outputs = 16 * fields;
  static constexpr unsigned mask = (1u << Bits) - 1u;

  std::byte* data;
  CodeLayout layout;
  index_t dim;

  /// Where the block with this slot and channel begins.
  std::byte* block(index_t slot, index_t channel) const {
    return layout == CodeLayout::slot_lanes ? data + (slot / outputs * (dim / 4) + channel / 4) * 64
                                            : data + (slot / 4 * (dim / outputs) + channel / outputs) * 64;
  }

  /// Codes of one slot, `dim` of them.
  void put(index_t slot, const std::uint8_t* codes) const {
    if (layout == CodeLayout::slot_lanes) {
      const index_t lane = slot % 16;
      const auto shift = static_cast<unsigned>(slot % outputs / 16 * Bits);
      std::uint32_t spread = 0;  // the field of four bytes
      std::memset(&spread, static_cast<int>(mask << shift), sizeof spread);
      for (index_t c = 0; c < dim; c += 4) {
        std::uint32_t word, four;
        std::memcpy(&word, block(slot, c) + 4 * lane, sizeof word);
        std::memcpy(&four, codes + c, sizeof four);
        word = (word & ~spread) | (four << shift);
        std::memcpy(block(slot, c) + 4 * lane, &word, sizeof word);
      }
      return;
    }
    for (index_t c = 0; c < dim; c += outputs) {
      std::byte* to = block(slot, c) + slot % 4;
      for (index_t lane = 0; lane < 16; ++lane) {
        unsigned byte = 0;
        for (index_t f = 0; f < fields; ++f) byte |= static_cast<unsigned>(codes[c + 16 * f + lane]) << (f * Bits);
        to[4 * lane] = static_cast<std::byte>(byte);
      }
    }
  }

  void get(index_t slot, std::uint8_t* codes) const {
    if (layout == CodeLayout::slot_lanes) {
      const auto shift = static_cast<unsigned>(slot % outputs / 16 * Bits);
      for (index_t c = 0; c < dim; ++c)
        codes[c] = static_cast<std::uint8_t>((static_cast<unsigned>(block(slot, c)[4 * (slot % 16) + c % 4]) >> shift) & mask);
      return;
    }
    for (index_t c = 0; c < dim; c += outputs) {
      const std::byte* from = block(slot, c) + slot % 4;
      for (index_t f = 0; f < fields; ++f)
        for (index_t lane = 0; lane < 16; ++lane)
          codes[c + 16 * f + lane] = static_cast<std::uint8_t>((static_cast<unsigned>(from[4 * lane]) >> (f * Bits)) & mask);
    }
  }

  /// Moves a slot's codes; `to` is a page of the same size.
  void move_to(const CodeLanes& to, index_t to_slot, index_t slot) const {
    std::uint8_t codes[max_head_dim];
    get(slot, codes);
    to.put(to_slot, codes);
  }

  /// Raw codes of `count` slots as floats, rows `width` apart; padding columns, and rows to a multiple of four, are zero.
  void unpack(index_t first, index_t count, index_t width, float* KVCONDENSE_RESTRICT tile) const {
    std::uint8_t codes[max_head_dim];
    for (index_t i = 0; i < count; ++i) {
      get(first + i, codes);
      float* t = tile + i * width;
      for (index_t c = 0; c < dim; ++c) t[c] = static_cast<float>(codes[c]);
      for (index_t c = dim; c < width; ++c) t[c] = 0.0f;
    }
    for (index_t i = count * width; i < (count + 3) / 4 * 4 * width; ++i) tile[i] = 0.0f;
  }
};

}  // namespace kvcondense::prim::cpu
