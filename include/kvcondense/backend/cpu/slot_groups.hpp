#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>

// Runs of slots of a page whose groups of `each` slots share parameters.

namespace kvcondense::prim::cpu {

/// Codes whole groups; encode(slot, rows) does one and returns the repaired numbers.
template <class F>
index_t encode_groups(index_t each, index_t first, RowBlock<const float> rows, F&& encode) {
  index_t repaired = 0;
  for (index_t i = 0; i < rows.rows; i += each)
    repaired += encode(first + i, RowBlock<const float>{rows.data + i * rows.step, each, rows.step});
  return repaired;
}

/// Calls use(done, n) for the pieces of [first, first + count) that lie in one group each: slots first + done and up.
template <class F>
void each_group(index_t each, index_t first, index_t count, F&& use) {
  for (index_t done = 0; done < count;) {
    const index_t n = std::min(each - (first + done) % each, count - done);
    use(done, n);
    done += n;
  }
}

}  // namespace kvcondense::prim::cpu
