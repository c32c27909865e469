#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// The codec of a column as kernels take it: tables of the heads' codecs in device memory, where it has some.
template <class Codec>
class CudaCodec {
  using Form = prim::DeviceForm<Codec>;

 public:
  /// `page_slots`: of a page of codes.
  CudaCodec(const Codec& codec, index_t dim, index_t page_slots, MemoryResource<Cuda>& memory)
      : codec_(codec), dim_(dim), page_slots_(page_slots), tables_(memory), heads_(heap_memory()) {}

  /// All heads have the codec, whose fingerprint, as the recipe names it, is `print`.
  Status make(index_t heads, std::int64_t print) {
    if (const Status s = heads_.resize(heads); s != Status::ok) return s;
    std::fill_n(heads_.data(), heads, head_of(codec_, print));
    return fill(1, [&](index_t) -> const Codec& { return codec_; });
  }
  /// Behind `make`: head h has `of(h)`. It stores a row in as many bytes as the others, or as many numbers of it as it says (prim::Latent).
  template <class Of>
  Status describe(Of&& of) {
    bool differ = false;
    for (index_t h = 0; h < heads_.size() && !differ; ++h) differ = of(h).fingerprint() != heads_[h].print;
    if (!differ) return Status::ok;
    return fill(heads_.size(), [&](index_t h) {
      const Codec codec = of(h);
      heads_[h] = head_of(codec, codec.fingerprint());
      return codec;
    });
  }

  prim::DeviceCodec<Codec> on_device() const {
    prim::DeviceCodec<Codec> c = Form::of(codec_, tables_.data(), step_, dim_);
    if constexpr (requires { c.map.uneven; })
      c.map.uneven = std::any_of(heads_.begin(), heads_.end(), [&](const Head& h) { return h.stored_dim != heads_[0].stored_dim; });
    return c;
  }
  std::int64_t fingerprint(index_t head) const { return heads_[head].print; }
  index_t stored_dim(index_t head) const { return heads_[head].stored_dim; }
  std::size_t page_bytes(index_t head) const { return heads_[head].page_bytes; }
  std::size_t bytes() const { return static_cast<std::size_t>(tables_.size()) * sizeof(float); }

 private:
  struct Head {
    std::int64_t print = 0;
    index_t stored_dim = 0;      ///< numbers of a stored row
    std::size_t page_bytes = 0;  ///< of a page of codes
  };
  Head head_of(const Codec& codec, std::int64_t print) const {
    return {print, prim::CodecParts<Codec>::transform(codec).stored_dim(dim_), codec.page_bytes(page_slots_, dim_)};
  }

  /// Waits for the copy.
  template <class Of>
  Status fill(index_t tables, Of&& of) {
    index_t floats = 0;
    for (index_t t = 0; t < tables; ++t) floats = std::max(floats, Form::floats(of(t), dim_));
    Buffer<float> host(heap_memory());
    Status s = host.resize(tables * floats);
    if (s == Status::ok) s = tables_.resize(host.size());
    if (s != Status::ok) return s;
    for (index_t t = 0; t < tables; ++t) Form::fill(of(t), dim_, host.data() + t * floats);
    if (floats == 0) return Status::ok;
    step_ = tables > 1 ? floats : 0;
    s = cuda::settled(cudaMemcpyAsync(tables_.data(), host.data(), tables_.bytes().size(), cudaMemcpyHostToDevice, nullptr));
    return s == Status::ok ? cuda::settled(cudaStreamSynchronize(nullptr)) : s;
  }

  Codec codec_;
  index_t dim_, page_slots_;
  cuda::DeviceArray<float> tables_;
  index_t step_ = 0;    ///< floats from a head's tables to the next's; 0: all heads share them
  Buffer<Head> heads_;  ///< per head
};

}  // namespace kvcondense::cache
