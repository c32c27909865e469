#pragma once

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/group_bits.hpp>

namespace kvcondense::prim {

/// Hands each call to GroupInt of the codec's width.
template <>
struct PageCodec<Cpu, GroupBits> {
  template <int Bits>
  using Of = PageCodec<Cpu, GroupInt<Bits>>;

  static index_t encode(const GroupBits& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    return codec.with([&]<int B>(const GroupInt<B>& c) { return Of<B>::encode(c, page, first, count, rows); });
  }
  static void decode(const GroupBits& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    codec.with([&]<int B>(const GroupInt<B>& c) { Of<B>::decode(c, page, first, count, rows); });
  }
  static const char* kernel(const GroupBits& codec, PageSpan page, bool sums) {
    return codec.with([&]<int B>(const GroupInt<B>& c) { return Of<B>::kernel(c, page, sums); });
  }
  static void move(const GroupBits& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    codec.with([&]<int B>(const GroupInt<B>& c) { Of<B>::move(c, to, to_slot, from, from_slot); });
  }
  static void scores(const GroupBits& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    codec.with([&]<int B>(const GroupInt<B>& c) { Of<B>::scores(c, page, first, count, queries, out); });
  }
  static void accumulate(const GroupBits& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    codec.with([&]<int B>(const GroupInt<B>& c) { Of<B>::accumulate(c, page, first, count, weights, out); });
  }
};

}  // namespace kvcondense::prim
