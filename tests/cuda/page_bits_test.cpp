// Pages on CUDA of codes whose width is a number: the same bytes as on the CPU, which are those of a codec of that width.

#include <kvcondense/backend/cpu/group_bits.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "page_pair.hpp"

using namespace kvcondense;
using cuda_pages::compare;

TEST_CASE("cuda pages: codes of a width that is a number") {
  using enum prim::GroupAxis;
  for (int bits = 1; bits <= 8; ++bits)
    for (const index_t dim : {64, 80, 256}) {
      const auto params = static_cast<prim::ParamType>(bits % 3);
      compare(prim::GroupBits{.bits = bits, .axis = token, .group_size = bits % 2 == 0 ? 16 : 0, .params = params}, 20, dim, {{0, 20}, {3, 9}});
      compare(prim::GroupBits{.bits = bits, .axis = channel, .group_size = bits % 2 == 0 ? 4 : 48, .params = params}, 48, dim, {{0, 48}, {0, 0}});
    }
  // Other forms, which nothing stores, are the CPU's.
  CHECK(prim::table_serves(prim::GroupBits{}));
  CHECK_FALSE(prim::table_serves(prim::GroupBits{.form = prim::GroupForm::symmetric}));
}
