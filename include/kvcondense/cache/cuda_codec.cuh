#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// The codec of a column as kernels take it: tables of the heads' codecs in device memory, where it has some.
template <class Codec>
class CudaCodec {
  using Form = prim::DeviceForm<Codec>;

 public:
  CudaCodec(const Codec& codec, MemoryResource<Cuda>& memory) : codec_(codec), tables_(memory), prints_(heap_memory()) {}

  /// All heads have the codec whose fingerprint, as the recipe names it, is `print`, until `describe`.
  Status make(index_t heads, std::int64_t print) {
    const Status s = prints_.resize(heads);
    std::fill_n(prints_.data(), prints_.size(), print);
    return s;
  }
  /// The codecs of the heads, `of(head)`, which store a row in as many bytes each; `differs`: they have tables of their own. Waits for the copy.
  template <class Of>
  Status describe(Of&& of, index_t dim, bool differs) {
    const index_t heads = prints_.size(), tables = differs ? heads : 1, floats = Form::floats(of(index_t{0}), dim);
    Buffer<float> host(heap_memory());
    Status s = host.resize(tables * floats);
    if (s == Status::ok) s = tables_.resize(host.size());
    if (s != Status::ok) return s;
    for (index_t h = 0; h < heads; ++h) {
      const auto codec = of(h);
      prints_[h] = codec.fingerprint();
      if (h < tables) Form::fill(codec, dim, host.data() + h * floats);
    }
    step_ = differs ? floats : 0;
    if (host.size() == 0) return Status::ok;
    s = cuda::settled(cudaMemcpyAsync(tables_.data(), host.data(), tables_.bytes().size(), cudaMemcpyHostToDevice, nullptr));
    return s == Status::ok ? cuda::settled(cudaStreamSynchronize(nullptr)) : s;
  }

  prim::DeviceCodec<Codec> on_device() const { return Form::of(codec_, tables_.data(), step_); }
  std::int64_t fingerprint(index_t head) const { return prints_[head]; }
  std::size_t bytes() const { return static_cast<std::size_t>(tables_.size()) * sizeof(float); }

 private:
  Codec codec_;
  cuda::DeviceArray<float> tables_;
  index_t step_ = 0;             ///< floats from a head's tables to the next's; 0: all heads share them
  Buffer<std::int64_t> prints_;  ///< per head
};

}  // namespace kvcondense::cache
