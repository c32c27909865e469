#pragma once

#include <cstddef>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/status.hpp>
#include <support/byte_list.hpp>

namespace kvcondense::test {

/// The file of a cache.
template <class C>
std::vector<std::byte> saved(const C& cache) {
  ByteList file;
  if constexpr (requires { cache.save(file); })
    REQUIRE(cache.save(file) == Status::ok);
  else
    REQUIRE(save(cache, file) == Status::ok);
  return file.bytes;
}

}  // namespace kvcondense::test
