#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/prim/bipolar_int.hpp>

namespace kvcondense::prim::cuda_kernels {

/// Pages of GroupInt whose rows are planes of bits. Queries stay exact: a product has the numbers that the codes stand for.
template <int Bits>
struct RowPage<BipolarInt<Bits>> : RowPage<GroupInt<Bits>> {
  using Base = RowPage<GroupInt<Bits>>;
  using typename Base::Scratch;

  __device__ RowPage(const BipolarInt<Bits>& c, std::byte* page, int page_slots, int row) : Base(c.numbers(), page, page_slots, row) {}
  __device__ int code(int slot, int c) const { return plane_code(this->row(slot), this->dim, Bits, c); }
  __device__ float value(int slot, int c) const {
    const int group = c / this->group_channels();
    return this->number(code(slot, c), this->scale(slot, group), this->offset(slot, group));
  }
  __device__ void write_codes(int slot, const std::uint8_t* codes, int thread, int threads) const {
    for (int b = thread; b < this->row_bytes(); b += threads) {
      const int plane = b / (this->dim / 8), from = b % (this->dim / 8) * 8;
      unsigned byte = 0;
      for (int c = 0; c < 8; ++c) byte |= (static_cast<unsigned>(codes[from + c]) >> plane & 1u) << c;
      this->row(slot)[b] = static_cast<std::byte>(byte);
    }
  }
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    return encode_groups(*this, slot, rows, i, s.codes);
  }
};

}  // namespace kvcondense::prim::cuda_kernels
