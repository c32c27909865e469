#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/cluster_rows.hpp>
#include <kvcondense/prim/mini_float.hpp>

namespace kvcondense::prim {

/// Levels, form, type of parameters, rounding, clip, groups, where groups end; then, of each channel, its place in the order of groups, its group,
/// and which channel stands at that place.
template <>
struct CodecTable<ClusterRows> {
  static constexpr int ends_at = 6, order_at = ends_at + static_cast<int>(ClusterRows::most_groups);
  static index_t floats(const ClusterRows&, index_t dim) { return order_at + 3 * dim; }
  static void fill(const ClusterRows& codec, index_t dim, float* out) {
    const ClusterOrder order = codec.order(dim);
    out[0] = static_cast<float>(codec.levels), out[1] = static_cast<float>(codec.form), out[2] = static_cast<float>(codec.params);
    out[3] = static_cast<float>(codec.rounding), out[4] = codec.clip, out[5] = static_cast<float>(order.groups);
    for (index_t g = 0; g < ClusterRows::most_groups; ++g) out[ends_at + g] = static_cast<float>(g < order.groups ? order.end[g] : dim);
    out += order_at;
    for (index_t g = 0, k = 0; g < order.groups; ++g)
      for (; k < order.end[g]; ++k) {
        const std::int32_t c = order.channel[k];
        out[c] = static_cast<float>(k), out[dim + c] = static_cast<float>(g), out[2 * dim + k] = static_cast<float>(c);
      }
  }
};

namespace cuda_kernels {

template <>
struct RowPage<Tabled<ClusterRows>> {
  const float* table;
  std::byte* data;
  int dim, levels, bits, groups, codes, param_bytes, bytes;
  GroupForm form;
  ClusterParam params;

  __device__ RowPage(const float* t, std::byte* page, int, int row)
      : table(t), data(page), dim(row), levels(static_cast<int>(t[0])), bits(levels <= 2 ? 1 : levels <= 4 ? 2 : levels == 8 ? 3 : 4), groups(static_cast<int>(t[5])),
        codes(levels == 3 ? (row + 4) / 5 : (row * bits + 7) / 8), form(static_cast<GroupForm>(static_cast<int>(t[1]))),
        params(static_cast<ClusterParam>(static_cast<int>(t[2]))) {
    param_bytes = params == ClusterParam::f16 ? 2 : params == ClusterParam::f32 ? 4 : 1;
    bytes = codes + 2 * groups * param_bytes;
  }
  __device__ RowPage(const Tabled<ClusterRows>& c, std::byte* page, int slots, int row) : RowPage(c.table, page, slots, row) {}

  __device__ std::byte* row(int slot) const { return data + slot * bytes; }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, bytes, 0}; }
  __device__ float value(int slot, int c) const {
    const std::byte* at = row(slot);
    const int place = order(c), group = order(dim + c);
    const int code = levels == 3 ? static_cast<int>(Trit5{}.get(at, place)) : row_code(at, bits, place);
    const float scale = param(at, group), offset = param(at, groups + group);
    return __fadd_rn(__fmul_rn(static_cast<float>(code), scale), form == GroupForm::minimum ? offset : __fmul_rn(-offset, scale));
  }

  struct Scratch {
    std::uint8_t codes[max_head_dim];
  };
  /// A group after the other.
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const auto x = rows.row(i);
    const int lane = cuda::lane_of_warp();
    const ClusterRows codec{.levels = levels, .form = form, .params = params};  // ranges are clipped here, where products are not fused with what follows
    const auto rounding = static_cast<Rounding>(static_cast<int>(table[3]));
    const float clip = table[4];
    std::byte* const to = row(slot);
    int bad = 0;
    for (int g = 0, from = 0; g < groups; ++g) {
      const int end = static_cast<int>(table[CodecTable<ClusterRows>::ends_at + g]);
      GroupRange range = warp_range([&](int k) { return x(order(2 * dim + k)); }, from, end, rows.counted, bad);
      if (range.lo < range.hi) range.lo = __fmul_rn(range.lo, clip), range.hi = __fmul_rn(range.hi, clip);
      const GroupParams p = fit_clipped(codec, range);
      if (lane == 0) {
        put_param(to, g, p.scale), put_param(to, groups + g, p.offset);
        bad += static_cast<int>(p.saturated);
      }
      const float least = form == GroupForm::minimum ? p.offset : 0.0f;
      const int zero = form == GroupForm::minimum ? 0 : static_cast<int>(p.offset);
      for (int k = from + lane; k < end; k += cuda::warp_lanes) {
        const float v = limit_to(without_nan(x(order(2 * dim + k))), 2.0f * largest_coded);
        const int code = round_code(rounding, limit_to(__fmul_rn(v - least, p.inverse), 0x1p20f)) + zero;
        s.codes[k] = static_cast<std::uint8_t>(code < 0 ? 0 : code < levels ? code : levels - 1);
      }
      from = end;
    }
    __syncwarp();
    if (levels != 3) pack_row(bits, s.codes, dim, to);
    else
      for (int b = lane; b < codes; b += cuda::warp_lanes) {
        unsigned byte = 0;
        for (int k = (5 * b + 5 < dim ? 5 * b + 5 : dim) - 1; k >= 5 * b; --k) byte = 3 * byte + s.codes[k];
        to[b] = static_cast<std::byte>(byte);
      }
    return cuda::warp_sum(bad);
  }

 private:
  __device__ int order(int i) const { return static_cast<int>(table[CodecTable<ClusterRows>::order_at + i]); }
  __device__ float param(const std::byte* at, int i) const {
    const std::byte* from = at + codes + i * param_bytes;
    if (params == ClusterParam::f16) return half_at(from);
    std::uint32_t bits32 = 0;
    for (int b = 0; b < param_bytes; ++b) bits32 |= static_cast<std::uint32_t>(from[b]) << (8 * b);
    return params == ClusterParam::f32 ? detail::bit_cast<float>(bits32) : mini_float_value<float_e4m3>(bits32);
  }
  __device__ void put_param(std::byte* at, int i, float v) const {
    std::byte* to = at + codes + i * param_bytes;
    const std::uint32_t stored_bits32 = params == ClusterParam::f32   ? detail::bit_cast<std::uint32_t>(v)
                                        : params == ClusterParam::f16 ? kvcondense::detail::half_bits(v)
                                                                      : mini_float_code<float_e4m3, Rounding::half_even>(v);
    for (int b = 0; b < param_bytes; ++b) to[b] = static_cast<std::byte>(stored_bits32 >> (8 * b) & 255u);
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
