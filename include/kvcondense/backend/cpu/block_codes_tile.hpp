#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/scaled_tiles.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/block_codes.hpp>

// BlockCodes rows, unpacked by code book: element numbers in a tile, scales beside it.

namespace kvcondense::prim::cpu {

/// Both numbers of a byte of E2M1 codes, the low one first: one look-up for two codes.
inline constexpr auto e2m1_pairs = [] {
  std::array<float, 512> all{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    all[2 * b] = mini_float_value(float_e2m1, b & 15u);
    all[2 * b + 1] = mini_float_value(float_e2m1, b >> 4);
  }
  return all;
}();

/// Signed integers of a row, in their units.
template <int Bits>
void unpack_integers(const std::byte* row, index_t dim, float* KVCONDENSE_RESTRICT out) {
  std::uint8_t codes[max_head_dim + code_step];
  unpack_codes<Bits>(row, dim, codes);
  for (index_t c = 0; c < dim; ++c) out[c] = static_cast<float>(integer_value(Bits, codes[c]));
}

/// Elements of one row of codes. May write one number beyond `dim`.
inline void unpack_elements(BlockElement element, const std::byte* row, index_t dim, float* KVCONDENSE_RESTRICT out) {
  const auto look_up = [&](const float* values, const std::uint8_t* codes) {
    for (index_t c = 0; c < dim; ++c) out[c] = values[codes[c]];
  };
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(row);
  std::uint8_t codes[max_head_dim + code_step];
  switch (element) {
    case BlockElement::e2m1:
      for (index_t k = 0; k < (dim + 1) / 2; ++k) std::memcpy(out + 2 * k, &e2m1_pairs[2 * std::size_t{bytes[k]}], 8);
      return;
    case BlockElement::e2m3: unpack_codes<6>(row, dim, codes); return look_up(mini_float_values<float_e2m3>.data(), codes);
    case BlockElement::e3m2: unpack_codes<6>(row, dim, codes); return look_up(mini_float_values<float_e3m2>.data(), codes);
    case BlockElement::e4m3: return look_up(mini_float_values<float_e4m3>.data(), bytes);
    case BlockElement::e5m2: return look_up(mini_float_values<float_e5m2>.data(), bytes);
    case BlockElement::int2: return unpack_integers<2>(row, dim, out);
    case BlockElement::int3: return unpack_integers<3>(row, dim, out);
    case BlockElement::int4: return unpack_integers<4>(row, dim, out);
    case BlockElement::int5: return unpack_integers<5>(row, dim, out);
    case BlockElement::int6: return unpack_integers<6>(row, dim, out);
    case BlockElement::int7: return unpack_integers<7>(row, dim, out);
    case BlockElement::int8:
    case BlockElement::ggml: break;
  }
  for (index_t c = 0; c < dim; ++c) out[c] = static_cast<float>(static_cast<std::int8_t>(bytes[c]));
}

/// Stored scales of one row, to out[j * step]; elements' own unit is in them.
inline void read_scales(const BlockCodes& codec, const std::byte* row, index_t dim, float* out, index_t step) {
  const std::byte* at = row + codec.code_bytes(dim);
  const float unit = unit_of(codec.element);
  const index_t groups = codec.groups(dim), bytes = codec.scale_bytes();
  for (index_t j = 0; j < groups; ++j) {
    std::uint32_t stored = 0;
    std::memcpy(&stored, at + j * bytes, static_cast<std::size_t>(bytes));
    const float s = codec.scale == BlockScale::e4m3 ? mini_float_values<float_e4m3>[stored] * codec.factor
                                                    : block_scale_value(codec.scale, stored, codec.factor);
    out[j * step] = s * unit;
  }
}

inline float half_at(const std::byte* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return detail::half_value(bits);
}

/// `n` nibbles of a SPLIT_HALF run: out[k] and out[k + n / 2] from byte k.
template <GgmlType T, int N>
void unpack_nibbles(const std::uint8_t* in, float* KVCONDENSE_RESTRICT out) {
  if constexpr (T == GgmlType::mxfp4 || T == GgmlType::nvfp4) {
    for (int k = 0; k < N / 2; ++k) {
      const float* pair = &e2m1_pairs[2 * std::size_t{in[k]}];
      out[k] = pair[0];
      out[k + N / 2] = pair[1];
    }
  } else {
    std::int32_t low[N / 2], high[N / 2];
    for (int k = 0; k < N / 2; ++k) low[k] = in[k] & 15, high[k] = in[k] >> 4;
    for (int k = 0; k < N / 2; ++k) out[k] = static_cast<float>(low[k] + ggml_element(T, 0));
    for (int k = 0; k < N / 2; ++k) out[k + N / 2] = static_cast<float>(high[k] + ggml_element(T, 0));
  }
}

/// Elements, scales and minima of one block.
template <GgmlType T>
void unpack_ggml(const std::byte* block, float* KVCONDENSE_RESTRICT out, float* scale, float* base, index_t step) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(block);
  if constexpr (T == GgmlType::nvfp4) {
    for (int g = 0; g < 4; ++g) {
      unpack_nibbles<T, 16>(bytes + 4 + 8 * g, out + 16 * g);
      scale[g * step] = ue4m3_value(bytes[g]);
    }
  } else if constexpr (T == GgmlType::mxfp4) {
    unpack_nibbles<T, 32>(bytes + 1, out);
    scale[0] = e8m0_value(bytes[0]);
  } else {
    scale[0] = half_at(block);
    if constexpr (has_minimum(T)) base[0] = half_at(block + 2);
    const std::uint8_t* codes = bytes + (has_minimum(T) ? 4 : 2);
    if constexpr (T == GgmlType::q8_0) {
      for (int k = 0; k < 32; ++k) out[k] = static_cast<float>(static_cast<std::int8_t>(codes[k]));
    } else if constexpr (T == GgmlType::q4_0 || T == GgmlType::q4_1) {
      unpack_nibbles<T, 32>(codes, out);
    } else {
      std::uint32_t fifth;
      std::memcpy(&fifth, codes, sizeof fifth);
      unpack_nibbles<T, 32>(codes + 4, out);
      std::uint32_t high[32];
      for (std::uint32_t k = 0; k < 32; ++k) high[k] = ((fifth >> k) & 1u) << 4;
      for (int k = 0; k < 32; ++k) out[k] += static_cast<float>(static_cast<std::int32_t>(high[k]));
    }
  }
}

struct BlockTile : ScaledTile {
  BlockTile(const BlockCodes& codec, index_t row_dim)
      : ScaledTile(row_dim, codec.group(row_dim), codec.is_ggml() && has_minimum(codec.ggml)) {}

  void load(const BlockCodes& codec, PageSpan page, index_t slot, index_t n) {
    const index_t step = codec.row_bytes(dim);
    const std::byte* row = page.data + slot * step;
    if (codec.is_ggml()) {
      const GgmlShape shape = ggml_shape(codec.ggml);
      const index_t each = shape.numbers / shape.group;  // groups of a block
      with_ggml_type(codec.ggml, [&]<GgmlType T>() {
        for (index_t i = 0; i < n; ++i, row += step)
          for (index_t b = 0; b < dim / shape.numbers; ++b)
            unpack_ggml<T>(row + b * shape.bytes, elements + i * width + b * shape.numbers,
                           scale + b * each * tile_slots + i, base + b * each * tile_slots + i, tile_slots);
      });
      return;
    }
    for (index_t i = 0; i < n; ++i, row += step) {
      float* out = elements + i * width;
      unpack_elements(codec.element, row, dim, out);
      if (dim % 2 != 0) out[dim] = 0.0f;
      read_scales(codec, row, dim, scale + i, tile_slots);
    }
  }
};

}  // namespace kvcondense::prim::cpu
