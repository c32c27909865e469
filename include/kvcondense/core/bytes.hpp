#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// Where bytes go. `write` returns false when it could not take all of them.
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  virtual bool write(std::span<const std::byte> bytes) noexcept = 0;
};

/// 64-bit FNV-1a. Finds every flipped bit and every lost byte; it does not stop a forger, so readers
/// still check every number.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) hash_ = (hash_ ^ static_cast<std::uint64_t>(b)) * 0x100000001b3ull;
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xcbf29ce484222325ull;
};

/// Writes little-endian values to a sink and sums them up. After the first failure nothing is written.
class ByteWriter {
 public:
  explicit ByteWriter(ByteSink& sink) : sink_(&sink) {}

  void bytes(std::span<const std::byte> data) {
    if (status_ != Status::ok) return;
    sum_.add(data);
    if (!sink_->write(data)) status_ = Status::io_error;
  }
  template <class T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(std::as_bytes(std::span<const T, 1>(&value, 1)));
  }
  std::uint64_t checksum() const { return sum_.value(); }
  /// Nothing more is written.
  void fail(Status why) {
    if (status_ == Status::ok) status_ = why;
  }
  Status status() const { return status_; }

 private:
  ByteSink* sink_;
  Checksum sum_;
  Status status_ = Status::ok;
};

/// Reads from a byte span that nobody vouches for. After the first failure every read fails.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <class T>
  bool read(T& out) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (failed_ || left_.size() < sizeof(T)) return failed_ = true, false;
    std::memcpy(&out, left_.data(), sizeof(T));
    left_ = left_.subspan(sizeof(T));
    return true;
  }

  /// count * size bytes, checked for overflow and against what is really there.
  bool take(std::uint64_t count, std::uint64_t size, std::span<const std::byte>& out) {
    if (failed_ || (size != 0 && count > left_.size() / size)) return failed_ = true, false;
    out = left_.first(static_cast<std::size_t>(count * size));
    left_ = left_.subspan(out.size());
    return true;
  }

  std::size_t left() const { return left_.size(); }
  bool failed() const { return failed_; }

 private:
  std::span<const std::byte> left_;
  bool failed_ = false;
};

}  // namespace kvcondense
