#pragma once

#include <unistd.h>
#include <filesystem>
#include <string>
#include <vector>

#include <catch2/catch.hpp>
#include <engine/safetensors.hpp>
#include <eval/output_file.hpp>
#include <eval/recording.hpp>
#include <support/fill.hpp>

namespace eval::test {

/// A name of this test's own, for tests run side by side: the file or folder that it made there goes with the object.
class TempFile {
 public:
  explicit TempFile(const std::string& name)
      : path_((std::filesystem::temp_directory_path() /
               ("kvcondense-eval-" + std::to_string(getpid()) + "-" + name))
                  .string()) {}
  ~TempFile() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::vector<float> normal(index_t count, std::uint64_t seed) {
  std::vector<float> out(static_cast<std::size_t>(count));
  kvcondense::test::fill_normal(out.data(), out.size(), seed);
  return out;
}

/// Random rows of a small model: rotated as they stand, or raw with `rope`.
inline Recording random_recording(index_t tokens, const CacheShape& shape) {
  Recording r(shape);
  r.tokens = tokens;
  std::uint64_t seed = 1;
  for (Recording::Layer& l : r.layers) {
    l.q = normal(tokens * shape.q_heads * shape.head_dim, seed++);
    l.k = normal(tokens * shape.kv_heads * shape.head_dim, seed++);
    l.v = normal(tokens * shape.kv_heads * shape.head_dim, seed++);
  }
  return r;
}

/// Puts a recording into a writer as a dump would hold it.
inline void add_tensors(engine::SafetensorsWriter& writer, const Recording& r) {
  for (std::size_t l = 0; l < r.layers.size(); ++l) {
    const std::string n = std::to_string(l);
    writer.f32("q." + n, {r.tokens, r.shape.q_heads, r.shape.head_dim}, r.layers[l].q);
    writer.f32("k." + n, {r.tokens, r.shape.kv_heads, r.shape.head_dim}, r.layers[l].k);
    writer.f32("v." + n, {r.tokens, r.shape.kv_heads, r.shape.head_dim}, r.layers[l].v);
  }
}

inline void write_qkv(const Recording& r, const std::string& path) {
  OutputFile(path).write(qkv_bytes(r));
}

inline void write(const engine::SafetensorsWriter& writer, const std::string& path) {
  std::string why;
  const auto status = writer.write(path, why);
  INFO(why);
  REQUIRE(status == kvcondense::Status::ok);
}

}  // namespace eval::test
