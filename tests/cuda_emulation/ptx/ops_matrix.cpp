// mma, ldmatrix, movmatrix.
//
// Fragments: lane 4g+t holds, of a register with E elements, row g (columns for B) and the E
// elements from t*E on; further registers go down 8 rows, then right 4E columns. The sum over k
// is exact where a double is, and rounded once: how a device cuts inside the sum is not modelled.

#include <algorithm>

#include "access.hpp"
#include "lanes.hpp"
#include "numbers.hpp"
#include "opcodes.hpp"

namespace ptx {
namespace {

using I = Instruction const&;

void need_whole_warp(Mask m) {
  if (m != all_lanes) throw Fault("matrix operation by part of a warp");
}

double element(Type type, u32 word, u32 n) {
  u32 const bits = word >> (n * type.bits);
  if (type.kind == Kind::floating) return static_cast<double>(widen_f16(static_cast<u16>(bits)));
  if (type.kind == Kind::bfloat) return static_cast<double>(widen_bf16(static_cast<u16>(bits)));
  u32 const shift = 32U - type.bits;
  return type.is_signed() ? static_cast<double>(static_cast<i32>(bits << shift) >> shift)
                          : static_cast<double>(bits << shift >> shift);
}

constexpr u32 max_k = 64;

// sums[row][column] of A B, exact for integers.
void product(Warp& w, I i, u32 rows, double (&sums)[16][8]) {
  auto const &a = i.o[1].parts, &b = i.o[2].parts;
  Type const type_a = i.mod.types[1], type_b = i.mod.types[2];
  u32 const per_word = 32U / type_a.bits, k_count = static_cast<u32>(b.size()) * 4 * per_word;
  double left[16][max_k], right[max_k][8];
  for (u32 r = 0; r < a.size(); ++r) {
    u32 const* const words = w.in<u32>(a[r]);
    u32 const down = rows == 16 ? r % 2 * 8 : 0, across = (rows == 16 ? r / 2 : r) * 4 * per_word;
    for (u32 l = 0; l < warp_size; ++l)
      for (u32 e = 0; e < per_word; ++e)
        left[l / 4 + down][across + l % 4 * per_word + e] = element(type_a, words[l], e);
  }
  for (u32 r = 0; r < b.size(); ++r) {
    u32 const* const words = w.in<u32>(b[r]);
    for (u32 l = 0; l < warp_size; ++l)
      for (u32 e = 0; e < per_word; ++e)
        right[r * 4 * per_word + l % 4 * per_word + e][l / 4] = element(type_b, words[l], e);
  }
  for (u32 x = 0; x < rows; ++x) {
    for (u32 k = 0; k < k_count; ++k)
      for (u32 y = 0; y < 8; ++y) sums[x][y] += left[x][k] * right[k][y];
  }
}

// f of the exact sum and the accumulator's register, for each of D's registers.
template <class F>
void accumulate(Warp& w, I i, Mask m, F f) {
  need_whole_warp(m);
  u32 const rows = i.mod.words[3].starts_with("m16") ? 16 : 8;
  double sums[16][8] = {};
  product(w, i, rows, sums);
  u32 out[4][warp_size];
  std::size_t const count = i.o[0].parts.size();
  for (u32 r = 0; r < count; ++r) {
    u32 const* const c = w.in<u32>(i.o[3].parts[r]);
    for (u32 l = 0; l < warp_size; ++l) out[r][l] = f(r, sums, l / 4, l % 4 * 2, c[l]);
  }
  for (u32 r = 0; r < count; ++r) w.out(i.o[0].parts[r], m, out[r]);
}

void mma_f32(Warp& w, I i, Mask m) {
  accumulate(w, i, m, [](u32 r, double const (&sums)[16][8], u32 row, u32 column, u32 c) {
    double const sum = sums[row + r / 2 * 8][column + r % 2];
    return std::bit_cast<u32>(canonical(static_cast<float>(sum + static_cast<double>(std::bit_cast<float>(c)))));
  });
}

void mma_f16(Warp& w, I i, Mask m) {
  accumulate(w, i, m, [](u32 r, double const (&sums)[16][8], u32 row, u32 column, u32 c) {
    auto const one = [&](u32 n) {
      return u32{round_f16(sums[row + r * 8][column + n] +
                           static_cast<double>(widen_f16(static_cast<u16>(c >> (16 * n)))))};
    };
    return one(0) | one(1) << 16;
  });
}

void mma_integer(Warp& w, I i, Mask m) {
  bool const clamp = i.mod.has("satfinite");
  accumulate(w, i, m, [&](u32 r, double const (&sums)[16][8], u32 row, u32 column, u32 c) {
    i64 const sum = static_cast<i64>(sums[row + r / 2 * 8][column + r % 2]) + static_cast<i32>(c);
    return static_cast<u32>(clamp ? std::clamp<i64>(sum, INT32_MIN, INT32_MAX) : sum);
  });
}

// Element (row, column) of an 8x8 matrix of 16 bits held in one register.
u32 held(u32 const* words, u32 row, u32 column) {
  return words[row * 4 + column / 2] >> (16 * (column & 1)) & 0xffff;
}

void movmatrix(Warp& w, I i, Mask m) {
  need_whole_warp(m);
  u32 const* const a = w.in<u32>(i.o[1]);
  u32 out[warp_size];
  for (u32 l = 0; l < warp_size; ++l) {
    u32 const row = l / 4, column = l % 4 * 2;
    out[l] = held(a, column, row) | held(a, column + 1, row) << 16;
  }
  w.out(i.o[0], m, out);
}

void ldmatrix(Warp& w, I i, Mask m) {
  need_whole_warp(m);
  bool const transposed = i.mod.has("trans");
  u32 const count_matrices = static_cast<u32>(i.o[0].parts.size());
  Mask const addressing = count_matrices == 4 ? all_lanes : (Mask{1} << (8 * count_matrices)) - 1;
  u8* rows[warp_size];
  locate_all(w, i, i.o[1], addressing, 16, Access::read, rows);
  u32 out[4][warp_size];
  for (u32 x = 0; x < count_matrices; ++x) {
    auto const at = [&](u32 row, u32 column) {
      u16 value;
      std::memcpy(&value, rows[x * 8 + row] + 2 * column, sizeof value);
      return u32{value};
    };
    for (u32 l = 0; l < warp_size; ++l) {
      u32 const row = l / 4, column = l % 4 * 2;
      out[x][l] = transposed ? at(column, row) | at(column + 1, row) << 16
                             : at(row, column) | at(row, column + 1) << 16;
    }
  }
  for (u32 x = 0; x < count_matrices; ++x) w.out(i.o[0].parts[x], m, out[x]);
}

}  // namespace

void define_matrix(Opcodes& all) {
  auto const together = [&](std::string pattern, std::string operands, Handler run) {
    all.add(std::move(pattern), std::move(operands), run, Flow::next, Together::warp);
  };
  std::string const mma = "mma.sync.aligned.";
  together(mma + "m16n8k8.row.col.f32.{f16.f16,bf16.bf16}.f32", "V4=V2V1V4", mma_f32);
  together(mma + "m16n8k16.row.col.f32.{f16.f16,bf16.bf16}.f32", "V4=V4V2V4", mma_f32);
  together(mma + "m16n8k8.row.col.f16.f16.f16.f16", "V2=V2V1V2", mma_f16);
  together(mma + "m16n8k16.row.col.f16.f16.f16.f16", "V2=V4V2V2", mma_f16);
  std::string const bytes = ".row.col{,.satfinite}.s32.{u8,s8}.{u8,s8}.s32",
                    nibbles = ".row.col{,.satfinite}.s32.{u4,s4}.{u4,s4}.s32";
  together(mma + "m8n8k16" + bytes, "V2=V1V1V2", mma_integer);
  together(mma + "m16n8k16" + bytes, "V4=V2V1V4", mma_integer);
  together(mma + "m16n8k32" + bytes, "V4=V4V2V4", mma_integer);
  together(mma + "m8n8k32" + nibbles, "V2=V1V1V2", mma_integer);
  together(mma + "m16n8k32" + nibbles, "V4=V2V1V4", mma_integer);
  together(mma + "m16n8k64" + nibbles, "V4=V4V2V4", mma_integer);
  together("movmatrix.sync.aligned.m8n8.trans.b16", "r=r", movmatrix);
  std::string const load = "ldmatrix.sync.aligned.m8n8.", tail = "{,.trans}{,.shared,.shared::cta}.b16";
  together(load + "x1" + tail, "V1=a", ldmatrix);
  together(load + "x2" + tail, "V2=a", ldmatrix);
  together(load + "x4" + tail, "V4=a", ldmatrix);
}

}  // namespace ptx
