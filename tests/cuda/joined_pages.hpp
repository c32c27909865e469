#pragma once

// Pages of codes of which two become one.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <kvcondense/cuda.cuh>

#include "device.hpp"

namespace cuda_pages {

using namespace kvcondense;
using test::at;

/// Whether a slot of the first page, or of the second, goes on.
inline bool lives(index_t page, index_t slot, index_t slots) { return page == 0 ? slot % 3 == 1 : slot % 5 == 2 && slot < slots / 2; }

/// `pages`, which lie `each` bytes apart, when a device has joined what lives in the first two, in page `into`.
template <class Codec>
std::vector<std::byte> joined(const Codec& codec, const std::vector<std::byte>& pages, std::size_t each, index_t into, index_t slots, index_t dim) {
  test::Device device;
  test::OnDevice<std::byte> there(device, pages);
  test::OnDevice<float> scratch(device, std::vector<float>(at(codec.group_slots() * dim)));
  prim::JoinedPages job{there.data() + at(into) * each, {there.data(), there.data() + each}, {}};
  for (index_t p = 0; p < 2; ++p)
    for (index_t s = 0; s < slots; ++s) job.live[p][s / 32] |= static_cast<std::uint32_t>(lives(p, s, slots)) << s % 32;
  test::OnDevice<prim::JoinedPages> jobs(device, {job});
  test::OnDevice<index_t> chain(device, {0, 1});
  prim::GroupWork work;
  work.joins = jobs.data(), work.chain = chain.data(), work.chains = 1, work.rows = scratch.data();
  prim::ColumnParts column;
  column.coded.page_slots = slots, column.coded.dim = dim;
  REQUIRE(prim::GroupPages::join(device, prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim), column, work) == Status::ok);
  return there.read();
}

}  // namespace cuda_pages
