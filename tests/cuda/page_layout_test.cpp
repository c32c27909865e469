// Pages of codes laid out anew on CUDA: what the CPU writes in one layout becomes what it writes in the other.

#include <cstddef>
#include <vector>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cuda/page_layout.cuh>

#include "page_pair.hpp"

using namespace kvcondense;
using cuda_pages::rows_of;

namespace {

/// Pages of the host, in one layout and in the other, are each other's copies on the device.
template <int Bits>
void lay(const prim::GroupInt<Bits>& codec, index_t slots, index_t dim) {
  using Codec = prim::GroupInt<Bits>;
  INFO(Bits << " bits, " << slots << " slots of " << dim << ", groups of " << codec.group_size);
  const Codec rows = codec.with(prim::CodeLayout::rows);
  const std::vector<float> x = rows_of(slots, dim, 17);
  const auto written = [&](const Codec& c) {
    std::vector<std::byte> page(c.page_bytes(slots, dim));
    prim::PageCodec<Cpu, Codec>::encode(c, prim::PageSpan{page.data(), slots, dim}, 0, slots, {x.data(), slots, dim});
    return page;
  };
  const std::vector<std::byte> in_rows = written(rows), in_lanes = written(codec);
  REQUIRE((codec.layout_of(slots, dim) == prim::CodeLayout::rows || in_rows != in_lanes));
  test::each_way([&] {
    test::Device device;
    test::OnDevice<std::byte> from_rows(device, in_rows), from_lanes(device, in_lanes);
    test::OnDevice<std::byte> to_rows(device, std::vector<std::byte>(in_rows.size(), std::byte{0xa5})), to_lanes(device, std::vector<std::byte>(in_lanes.size(), std::byte{0x5a}));
    REQUIRE(prim::PageLayout::copy(device, rows, from_rows.data(), codec, to_lanes.data(), slots, dim) == Status::ok);
    REQUIRE(prim::PageLayout::copy(device, codec, from_lanes.data(), rows, to_rows.data(), slots, dim) == Status::ok);
    CHECK(to_lanes.read() == in_lanes);
    CHECK(to_rows.read() == in_rows);
    Codec other = rows;
    other.form = prim::GroupForm::float_zero;
    CHECK(prim::PageLayout::copy(device, codec, from_lanes.data(), other, to_rows.data(), slots, dim) == Status::invalid_argument);
  });
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("cuda pages: codes laid out anew", "", ((int Bits), Bits), 2, 3, 4, 8) {
  using enum prim::GroupAxis;
  for (const index_t dim : {64, 80, 96, 256}) {  // 80: values in rows where they do not fill lanes
    const prim::GroupInt<Bits> by_token{.axis = token, .group_size = dim / 2, .params = prim::ParamType::f32}, by_channel{.axis = channel, .group_size = 32};
    for (const auto& codec : {by_token, by_channel})
      for (const auto& laid : {codec.for_scores(), codec.for_sums()}) lay(laid, 64, dim);
  }
  lay(prim::GroupInt<Bits>{.axis = token, .group_size = 0, .form = prim::GroupForm::symmetric}.for_scores(), 192, 128);
  lay(prim::GroupInt<Bits>{.axis = channel, .group_size = 64, .params = prim::ParamType::bf16}.for_sums(), 128, 128);
  lay(prim::GroupInt<Bits>{.axis = token, .group_size = 16}.for_sums(), 48, 64);  // too few slots
}
