// Device algorithms of CUB, unmodified, against the standard library.

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_reduce.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>
#include <cub/device/device_segmented_reduce.cuh>
#include <cub/device/device_select.cuh>

#include <algorithm>
#include <numeric>
#include <random>

#include "program_check.hpp"

using namespace ptx::test;

namespace {

template <class F>
void two_phase(F f) {
  std::size_t bytes = 0;
  must(f(nullptr, bytes));
  Buffer<unsigned char> storage(bytes);
  must(f(storage.data(), bytes));
  must(cudaDeviceSynchronize());
}

struct Data {
  int n, segments = 7;
  std::vector<float> keys;
  std::vector<int> values, offsets;
  explicit Data(int count) : n(count), keys(count), values(count), offsets(segments + 1) {
    std::mt19937 random(static_cast<unsigned>(count));
    std::iota(values.begin(), values.end(), 0);
    for (float& x : keys) x = static_cast<float>(static_cast<int>(random() % 2000) - 1000) / 8;  // with ties
    for (int i = 0; i <= segments; ++i) offsets[i] = static_cast<int>(static_cast<long>(n) * i * i / (segments * segments));
  }
};

void select(Data const& d) {
  std::vector<unsigned char> flags(d.n);
  for (int i = 0; i < d.n; ++i) flags[i] = d.keys[i] > 20;
  std::vector<int> want;
  for (int i = 0; i < d.n; ++i)
    if (flags[i]) want.push_back(i);
  Buffer<int> in(d.values), out(d.n), count(1);
  Buffer<unsigned char> flagged(flags);
  two_phase([&](void* t, std::size_t& b) {
    return cub::DeviceSelect::Flagged(t, b, in.data(), flagged.data(), out.data(), count.data(), d.n);
  });
  auto got = out.get();
  got.resize(count.get()[0]);
  expect(got == want, "DeviceSelect::Flagged of " + std::to_string(d.n));
}

void scan(Data const& d) {
  std::vector<int> in(d.n), want(d.n), inclusive(d.n);
  for (int i = 0; i < d.n; ++i) in[i] = i * 7 % 13 - 3;
  std::exclusive_scan(in.begin(), in.end(), want.begin(), 0);
  std::inclusive_scan(in.begin(), in.end(), inclusive.begin());
  Buffer<int> from(in), to(d.n);
  two_phase([&](void* t, std::size_t& b) { return cub::DeviceScan::ExclusiveSum(t, b, from.data(), to.data(), d.n); });
  expect(to.get() == want, "DeviceScan::ExclusiveSum of " + std::to_string(d.n));
  two_phase([&](void* t, std::size_t& b) { return cub::DeviceScan::InclusiveSum(t, b, from.data(), to.data(), d.n); });
  expect(to.get() == inclusive, "DeviceScan::InclusiveSum of " + std::to_string(d.n));
}

void reduce(Data const& d) {
  Buffer<float> keys(d.keys), out(1), each(d.segments);
  Buffer<int> offsets(d.offsets);
  // Multiples of 1/8 below 2^20: the sum is exact in any order.
  two_phase([&](void* t, std::size_t& b) { return cub::DeviceReduce::Sum(t, b, keys.data(), out.data(), d.n); });
  expect(out.get()[0] == std::accumulate(d.keys.begin(), d.keys.end(), 0.0F), "DeviceReduce::Sum of " + std::to_string(d.n));
  two_phase([&](void* t, std::size_t& b) { return cub::DeviceReduce::Max(t, b, keys.data(), out.data(), d.n); });
  expect(out.get()[0] == *std::max_element(d.keys.begin(), d.keys.end()), "DeviceReduce::Max of " + std::to_string(d.n));
  two_phase([&](void* t, std::size_t& b) {
    return cub::DeviceSegmentedReduce::Sum(t, b, keys.data(), each.data(), d.segments, offsets.data(), offsets.data() + 1);
  });
  auto const got = each.get();
  bool right = true;
  for (int s = 0; s < d.segments; ++s)
    right &= got[s] == std::accumulate(d.keys.begin() + d.offsets[s], d.keys.begin() + d.offsets[s + 1], 0.0F);
  expect(right, "DeviceSegmentedReduce::Sum of " + std::to_string(d.n));
}

void sort(Data const& d) {
  auto const before = [&](int a, int b) { return d.keys[a] > d.keys[b]; };
  std::vector<int> all(d.values), segmented(d.values);
  std::stable_sort(all.begin(), all.end(), before);
  for (int s = 0; s < d.segments; ++s)
    std::stable_sort(segmented.begin() + d.offsets[s], segmented.begin() + d.offsets[s + 1], before);
  Buffer<float> keys(d.keys), keys_out(d.n);
  Buffer<int> values(d.values), out(d.n), offsets(d.offsets);
  two_phase([&](void* t, std::size_t& b) {
    return cub::DeviceRadixSort::SortPairsDescending(t, b, keys.data(), keys_out.data(), values.data(), out.data(), d.n);
  });
  expect(out.get() == all, "DeviceRadixSort of " + std::to_string(d.n));
  two_phase([&](void* t, std::size_t& b) {
    return cub::DeviceSegmentedRadixSort::SortPairsDescending(t, b, keys.data(), keys_out.data(), values.data(), out.data(),
                                                              d.n, d.segments, offsets.data(), offsets.data() + 1);
  });
  expect(out.get() == segmented, "DeviceSegmentedRadixSort of " + std::to_string(d.n));
}

}  // namespace

int main() {
  for (int const n : {1, 31, 700, 20000}) {
    Data const data(n);
    select(data);
    scan(data);
    reduce(data);
    sort(data);
  }
  return report();
}
