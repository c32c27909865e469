#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <system_error>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::io {

/// A file that appears whole or not at all: bytes go to `<path>.partial`, `finish` gives it its name.
///
///   io::FileSink file("prompt.kvc");
///   Status s = save(cache, file);
///   if (s == Status::ok) s = file.finish();
///
/// Cost     buffered by the standard library; no memory of a resource.
/// Errors   io_error from `finish` when opening, a write, closing or renaming failed. Then, and without
///          `finish`, an older file at `path` is untouched and the partial one is removed.
class FileSink final : public ByteSink {
 public:
  explicit FileSink(std::filesystem::path path) : path_(std::move(path)), partial_(path_) {
    partial_ += ".partial";
    opened_ = file_.open(partial_, std::ios::out | std::ios::binary | std::ios::trunc) != nullptr;
    failed_ = !opened_;
  }
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  ~FileSink() override { abandon(); }

  bool write(std::span<const std::byte> bytes) noexcept override {
    const auto size = static_cast<std::streamsize>(bytes.size());
    failed_ = failed_ || file_.sputn(reinterpret_cast<const char*>(bytes.data()), size) != size;
    return !failed_;
  }

  Status finish() {
    // Closing writes what is still buffered: a full disk may show only here.
    std::error_code renamed;
    if (!failed_ && file_.close() != nullptr) std::filesystem::rename(partial_, path_, renamed);
    else renamed = std::make_error_code(std::errc::io_error);
    if (renamed) {
      abandon();
      return Status::io_error;
    }
    opened_ = false;
    failed_ = true;
    return Status::ok;
  }

 private:
  void abandon() noexcept {
    failed_ = true;
    if (!std::exchange(opened_, false)) return;
    file_.close();
    std::error_code ignored;
    std::filesystem::remove(partial_, ignored);
  }

  std::filesystem::path path_, partial_;
  std::filebuf file_;
  bool opened_ = false;
  bool failed_ = false;
};

/// All bytes of a file, for `load`.
///
/// Errors   io_error when it cannot be opened or read to its end, out_of_range when it has more than
///          `most` bytes (nothing is asked of `memory` then), out_of_memory.
inline Expected<Buffer<std::byte>> read_file(const std::filesystem::path& path,
                                             std::uint64_t most = std::uint64_t{1} << 40,
                                             MemoryResource<Cpu>& memory = heap_memory()) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) return Status::io_error;
  const std::uint64_t size = std::filesystem::file_size(path, failed);
  if (failed) return Status::io_error;
  if (size > most) return Status::out_of_range;
  std::filebuf file;
  if (file.open(path, std::ios::in | std::ios::binary) == nullptr) return Status::io_error;
  Buffer<std::byte> bytes(memory);
  if (const Status s = bytes.reserve(static_cast<index_t>(size), true); s != Status::ok) return s;
  if (const Status s = bytes.resize(static_cast<index_t>(size)); s != Status::ok) return s;
  const auto want = static_cast<std::streamsize>(size);
  if (file.sgetn(reinterpret_cast<char*>(bytes.data()), want) != want) return Status::io_error;
  return bytes;
}

}  // namespace kvcondense::io
