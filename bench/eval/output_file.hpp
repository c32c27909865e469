#pragma once

#include <string>
#include <string_view>

namespace eval {

/// Where a result goes. Tried before the work begins, so that a wrong path costs no minutes, and
/// written whole or not at all: until write() ends well an older file stays as it is.
class OutputFile {
 public:
  /// An empty path is a result that nobody asked for. Throws Error when it cannot be written.
  explicit OutputFile(const std::string& path);

  bool wanted() const { return !path_.empty(); }
  const std::string& path() const { return path_; }
  void write(std::string_view bytes) const;  ///< throws Error

 private:
  std::string path_;
};

}  // namespace eval
