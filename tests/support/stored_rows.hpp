#pragma once

#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::test {

/// The keys or the values of all slots of a head, as they read back.
template <class C>
std::vector<float> stored(const C& cache, index_t l, index_t h, bool values) {
  const CacheShape& s = cache.shape();
  const index_t n = cache.slots(l, h);
  std::vector<float> k(static_cast<std::size_t>(n * s.head_dim)), v(static_cast<std::size_t>(n * s.values()));
  REQUIRE(cache.read(l, h, 0, dense_view(k.data(), n, s.head_dim), dense_view(v.data(), n, s.values())) == Status::ok);
  return values ? v : k;
}

}  // namespace kvcondense::test
