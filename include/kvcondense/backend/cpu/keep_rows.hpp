#pragma once

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/keep_rows.hpp>

namespace kvcondense::prim {

/// Threads share the heads.
template <>
struct KeepRows<Cpu> {
  template <class Codec>
  static Status rows(Context<Cpu>& ctx, const Codec& codec, const PageTable& table, RaggedView<const std::int32_t> keep,
                     const index_t* count) {
    if (codec.group_slots() != 1) return Status::not_supported;
    if constexpr (requires { &PageCodec<Cpu, Codec>::move; }) {
      ctx.parallel(table.heads, [&](index_t h, index_t) {
        const auto page = [&](index_t slot) {
          return PageSpan{table.pages[table.offset[h] + slot / table.page_slots], table.page_slots, table.dim};
        };
        for (index_t i = 0; i < count[h]; ++i) {
          const index_t from = keep.row(h)[i];
          if (from != i) PageCodec<Cpu, Codec>::move(codec, page(i), i % table.page_slots, page(from), from % table.page_slots);
        }
      });
      return Status::ok;
    } else {
      return Status::not_supported;
    }
  }

  static Status numbers(Context<Cpu>& ctx, RaggedView<const std::int32_t> keep, const index_t* count, RaggedView<float> numbers) {
    ctx.parallel(numbers.heads, [&](index_t h, index_t) {
      for (index_t i = 0; i < count[h]; ++i) numbers.row(h)[i] = numbers.row(h)[keep.row(h)[i]];
    });
    return Status::ok;
  }
};

}  // namespace kvcondense::prim
