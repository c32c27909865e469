#pragma once

// What tests of words over rows and numbers share: rows of a head on both backends, and comparisons.

#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/slot_rows.hpp>
#include <kvcondense/backend/cuda/slot_rows.cuh>

#include "device.hpp"

namespace kvcondense::test {

inline std::vector<float> normals(index_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n));
  for (float& v : x) v = normal(random);
  return x;
}

/// got as expected to `within` of `scale` or of the number itself, NaN where it is NaN.
inline void close(const std::vector<float>& got, const std::vector<float>& expected, float within, float scale = 0.0f) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]))) continue;
    if (!(std::fabs(got[i] - expected[i]) <= within * (scale + std::fabs(expected[i])))) FAIL_CHECK(i << ": " << got[i] << " instead of " << expected[i]);
  }
}

/// Float rows of heads on the device, one page a head: head h has `slots[h]` of `most` rows.
class DeviceRows {
 public:
  DeviceRows(Device& device, const std::vector<float>& x, const std::vector<index_t>& slots, index_t most, index_t dim)
      : pages_(device, x), runs_(device, runs_of(pages_, slots, most, dim)), first_(device, first_of(slots)), slots_(device, slots),
        rows_(prim::ExactRows{DType::f32}, {runs_.data(), first_.data(), 0}, slots_.data(), static_cast<index_t>(slots.size()), most, dim) {}
  const SlotRows<Cuda>& rows() const { return rows_; }
  std::vector<float> read() const { return pages_.read(); }

 private:
  static std::vector<prim::SlotRun> runs_of(OnDevice<float>& pages, const std::vector<index_t>& slots, index_t most, index_t dim) {
    std::vector<prim::SlotRun> runs;
    for (std::size_t h = 0; h < slots.size(); ++h)
      runs.push_back({reinterpret_cast<std::byte*>(pages.data()) + static_cast<index_t>(h) * most * dim * static_cast<index_t>(sizeof(float)), 0, 0, false});
    return runs;
  }
  static std::vector<index_t> first_of(const std::vector<index_t>& slots) {
    std::vector<index_t> first;
    for (std::size_t h = 0; h <= slots.size(); ++h) first.push_back(static_cast<index_t>(h));
    return first;
  }

  OnDevice<float> pages_;
  OnDevice<prim::SlotRun> runs_;
  OnDevice<index_t> first_, slots_;
  SlotRows<Cuda> rows_;
};

/// 0, n0, n0 + n1, ...
inline std::vector<index_t> offsets(const std::vector<index_t>& lengths) {
  std::vector<index_t> o{0};
  for (const index_t n : lengths) o.push_back(o.back() + n);
  return o;
}

}  // namespace kvcondense::test
