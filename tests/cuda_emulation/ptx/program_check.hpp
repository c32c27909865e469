#pragma once
// For tests that nvcc compiles: checks without a framework, and buffers on the device.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace ptx::test {

inline int failed = 0, passed = 0;
inline void expect(bool ok, std::string const& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED: %s\n", what.c_str());
}
inline void expect_text(std::string const& text, std::string const& wanted, std::string const& what) {
  expect(text.find(wanted) != text.npos, what + ": wanted '" + wanted + "' in '" + text + "'");
}
inline void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("FAILED: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
inline int report() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || passed == 0;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(std::vector<T> const& values) : count_(values.size()) {
    must(cudaMalloc(&data_, count_ * sizeof(T)));
    must(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  explicit Buffer(std::size_t count) : Buffer(std::vector<T>(count)) {}
  ~Buffer() { cudaFree(data_); }
  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;
  T* data() const { return data_; }
  std::vector<T> get() const {
    std::vector<T> out(count_);
    must(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

}  // namespace ptx::test
