#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// A page of stored rows that attention is about to read.
struct PageUse {
  const std::byte* data = nullptr;  ///< where it lies
  std::size_t bytes = 0;
  std::uint32_t stamp = 0;  ///< of what is in it, another one whenever that changes; 0: rows still come in
};

/// Says where pages are read from: where they lie, or copies that are closer. Given to a call of `attend`, which names every page
/// that it will read once, before it reads any.
///
/// Errors   where `bring` returns one, the call returns it and has written nothing.
/// Threads  one call of `attend` at a time; `find` from all of its workers.
template <Backend B>
class PageProvider {
 public:
  virtual ~PageProvider() = default;
  /// A call of `attend` names its pages.
  virtual void begin() noexcept = 0;
  virtual Status bring(const PageUse& page) noexcept = 0;
  /// Where a page that was brought in this call is read.
  virtual const std::byte* find(const PageUse& page) const noexcept = 0;
  /// A page that a later call is likely to name. A hint.
  virtual void expect(const PageUse&) noexcept {}
};

/// Memory that is slow to read in place and can be read in pieces.
class SlowMemory {
 public:
  virtual ~SlowMemory() = default;
  /// Copies what lies at `from`; false when not all of it could be read.
  virtual bool fetch(const std::byte* from, std::span<std::byte> to) noexcept = 0;
  /// These bytes are likely to be fetched soon. A hint.
  virtual void expect(const std::byte*, std::size_t) noexcept {}
};

}  // namespace kvcondense
