#include <eval/output_file.hpp>

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <eval/error.hpp>
#include <kvcondense/io/file.hpp>

namespace eval {
namespace {

namespace fs = std::filesystem;

Error refusal(const std::string& path) { return Error(path + ": cannot be written"); }

/// Pipes and devices have no name to give away: they are written as they stand.
bool is_stream(const std::string& path) {
  std::error_code error;
  const fs::file_status s = fs::status(path, error);
  return fs::exists(s) && !fs::is_regular_file(s);
}

/// What a link names, so that the link stays one.
fs::path target_of(const std::string& path) {
  std::error_code error;
  fs::path target =
      fs::is_symlink(path, error) ? fs::weakly_canonical(path, error) : fs::path(path);
  return error ? fs::path(path) : target;
}

}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path) {
  if (!wanted()) return;
  std::error_code error;
  if (fs::is_directory(path, error)) throw Error(path + ": is a directory");
  // A rename would replace even a file that its owner made read-only.
  if (fs::exists(path, error) && ::access(path.c_str(), W_OK) != 0) throw refusal(path);
  if (!is_stream(path) && !kvcondense::io::FileSink(target_of(path)).write({})) throw refusal(path);
}

void OutputFile::write(std::string_view bytes) const {
  if (is_stream(path_)) {
    std::ofstream out(path_, std::ios::binary);
    if (!out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())).flush())
      throw refusal(path_);
    return;
  }
  kvcondense::io::FileSink file(target_of(path_));
  file.write(std::as_bytes(std::span(bytes)));
  if (file.finish() != kvcondense::Status::ok) throw refusal(path_);
}

}  // namespace eval
