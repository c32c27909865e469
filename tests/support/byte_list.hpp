#pragma once

#include <span>
#include <vector>

#include <kvcondense/core/bytes.hpp>

namespace kvcondense::test {

struct ByteList final : ByteSink {
  std::vector<std::byte> bytes;
  bool write(std::span<const std::byte> b) noexcept override {
    bytes.insert(bytes.end(), b.begin(), b.end());
    return true;
  }
};

}  // namespace kvcondense::test
