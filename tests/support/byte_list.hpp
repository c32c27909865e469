#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <kvcondense/core/bytes.hpp>

namespace kvcondense::test {

/// Takes what is written, as long as there is room.
struct ByteList final : ByteSink {
  std::vector<std::byte> bytes;
  std::size_t room = SIZE_MAX;
  bool write(std::span<const std::byte> more) noexcept override {
    if (bytes.size() + more.size() > room) return false;
    bytes.insert(bytes.end(), more.begin(), more.end());
    return true;
  }
};

}  // namespace kvcondense::test
