#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>

namespace engine {

using kvcondense::Expected;
using kvcondense::index_t;
using kvcondense::Status;

/// One named tensor of a safetensors file. `begin` and `end` count bytes from the end of the
/// header.
struct TensorInfo {
  std::string name;
  std::string dtype;  ///< as the file spells it: "F32", "F16", "BF16", "I64", ...
  std::vector<index_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  index_t size() const;  ///< number of elements
};

/// "[2, 64]", for messages.
std::string shape_text(std::span<const index_t> shape);

/// A safetensors file, checked whole before anything is handed out.
///
/// Refused (`corrupt_data`): a header that is longer than the file or than 16 MiB, is no JSON,
/// nests or repeats names; an unknown dtype; a shape whose bytes differ from its offsets; offsets
/// that overlap, leave a hole or miss the end of the file. NaN and Inf in the data are data. `why`
/// gets one line that names the tensor or the byte.
class SafetensorsFile {
 public:
  static Expected<SafetensorsFile> parse(std::string bytes, std::string& why);
  static Expected<SafetensorsFile> read(const std::string& path, std::string& why);

  /// In the order of their bytes.
  std::span<const TensorInfo> tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;  ///< null when there is none
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The elements of an F32, F16 or BF16 tensor; `not_supported` for other dtypes.
  Expected<std::vector<float>> floats(std::string_view name, std::string& why) const;
  /// The elements of an I32 or I64 tensor; `not_supported` for other dtypes.
  Expected<std::vector<std::int64_t>> integers(std::string_view name, std::string& why) const;

 private:
  Status read_header(std::string_view header, std::uint64_t data_bytes, std::string& why);
  const TensorInfo* find_or_say(std::string_view name, std::string& why) const;

  std::string bytes_;
  std::size_t data_at_ = 0;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

/// Collects tensors and writes them as one safetensors file. `shape` must hold exactly the data.
///
/// A name given twice, the reserved name "__metadata__" or text that is not UTF-8 make bytes() fail
/// with `invalid_argument`.
class SafetensorsWriter {
 public:
  void metadata(std::string key, std::string value) {
    metadata_[std::move(key)] = std::move(value);
  }
  void f32(std::string name, std::vector<index_t> shape, std::span<const float> data);
  void f16(std::string name, std::vector<index_t> shape, std::span<const float> data);  ///< rounds
  void i32(std::string name, std::vector<index_t> shape, std::span<const std::int32_t> data);
  void i64(std::string name, std::vector<index_t> shape, std::span<const std::int64_t> data);

  Expected<std::string> bytes(std::string& why) const;
  Status write(const std::string& path, std::string& why) const;

 private:
  void add(std::string name, const char* dtype, std::vector<index_t> shape, std::size_t count,
           std::string_view bytes);

  std::map<std::string, std::string> metadata_;
  std::vector<TensorInfo> tensors_;
  std::string data_;
  std::string bad_;  ///< the first refused tensor, in words
};

}  // namespace engine
