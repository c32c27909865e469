#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <span>

#include <kvcondense/backend/cuda/found_scales.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_bits.hpp>

namespace kvcondense::cache {

/// Bytes [begin, end) of a page lie between its codes and their parameters, and are nobody's.
struct PageGap {
  std::size_t begin = 0, end = 0;
};
template <class C>
PageGap gap_of(const C& codec, index_t slots, index_t dim) {
  if constexpr (requires { codec.numbers(); }) return gap_of(codec.numbers(), slots, dim);
  else if constexpr (requires { codec.params_at(slots, dim); }) return {static_cast<std::size_t>(slots * codec.row_bytes(dim)), static_cast<std::size_t>(codec.params_at(slots, dim))};
  else return {};
}
inline PageGap gap_of(const prim::GroupBits& codec, index_t slots, index_t dim) {
  return codec.with([&](const auto& c) { return gap_of(c, slots, dim); });
}

/// The codec of a column as kernels take it: tables of the heads' codecs in device memory, where it has some.
template <class Codec>
class CudaCodec {
  using Form = prim::DeviceForm<Codec>;

 public:
  /// Pages have so many slots.
  CudaCodec(const Codec& codec, index_t slots, index_t dim, MemoryResource<Cuda>& memory)
      : codec_(codec), slots_(slots), dim_(dim), tables_(memory), prints_(heap_memory()), bytes_(heap_memory()), gaps_(heap_memory()), waits_(heap_memory()) {}

  /// All heads have the codec, whose fingerprint, as the recipe names it, is `print`.
  Status make(index_t heads, std::int64_t print) {
    if (const Status s = prints_.resize(heads); s != Status::ok) return s;
    if (const Status s = bytes_.resize(heads); s != Status::ok) return s;
    if (const Status s = gaps_.resize(heads); s != Status::ok) return s;
    std::fill_n(prints_.data(), heads, print), std::fill_n(bytes_.data(), heads, codec_.page_bytes(slots_, dim_));
    std::fill_n(gaps_.data(), heads, gap_of(prim::cuda_kernels::stored_codec(codec_), slots_, dim_));
    if (const Status s = waits_.resize(heads); s != Status::ok) return s;
    forget();
    return fill(prim::finds_state<Codec> ? heads : 1, [&](index_t) -> const Codec& { return codec_; });
  }
  /// Behind `make`: head h has `of(h)`, which has tables of as many numbers, and stores a row in as many bytes unless they say in how many.
  template <class Of>
  Status describe(Of&& of) {
    bool differ = false;
    for (index_t h = 0; h < prints_.size() && !differ; ++h) differ = of(h).fingerprint() != prints_[h];
    if (!differ) return Status::ok;
    return fill(prints_.size(), [&](index_t h) {
      const Codec codec = of(h);
      prints_[h] = codec.fingerprint();
      if (prim::table_sizes<Codec>) bytes_[h] = codec.page_bytes(slots_, dim_), gaps_[h] = gap_of(prim::cuda_kernels::stored_codec(codec), slots_, dim_);
      return codec;
    });
  }

  prim::DeviceCodec<Codec> on_device() const { return Form::of(codec_, tables_.data(), step_, dim_); }
  std::int64_t fingerprint(index_t head) const { return prints_[head]; }
  /// Of a page of a head.
  std::size_t page_bytes(index_t head) const { return bytes_[head]; }
  /// Of such a page, for files.
  void clear_gap(index_t head, std::span<std::byte> page) const { std::ranges::fill(page.subspan(gaps_[head].begin, gaps_[head].end - gaps_[head].begin), std::byte{}); }
  // Where tables are states that a step finds.
  bool waits(index_t head) const { return waits_[head]; }
  void found(index_t head) { waits_[head] = false; }
  prim::FoundStates states() const {
    if constexpr (prim::finds_state<Codec>) return {tables_.data(), step_};
    else return {};
  }
  float* state(index_t head) { return tables_.data() + head * step_; }
  const float* state(index_t head) const { return tables_.data() + head * step_; }
  index_t state_floats() const { return prim::finds_state<Codec> ? Form::floats(codec_, dim_) : 0; }
  Status find(Context<Cuda>& ctx, const prim::ExactRows& exact, const prim::ColumnParts& column, const prim::KeptSlots& due) {
    if constexpr (prim::finds_state<Codec>) return prim::FoundScales::find(ctx, codec_.transform, tables_.data(), step_, exact, column, due);
    else return Status::ok;
  }
  Status fork(const Context<Cuda>& ctx, CudaCodec& out) const {
    if constexpr (!prim::finds_state<Codec>) return Status::ok;
    std::copy_n(waits_.data(), waits_.size(), out.waits_.data());
    return out.tables_.copy_from(ctx, tables_);
  }
  Status clear(const Context<Cuda>& ctx) {
    if constexpr (!prim::finds_state<Codec>) return Status::ok;
    forget();
    return tables_.fill_bytes(ctx, 0);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(tables_.size()) * sizeof(float); }

 private:
  void forget() { std::fill_n(waits_.data(), waits_.size(), prim::finds_state<Codec>); }
  /// Waits for the copy.
  template <class Of>
  Status fill(index_t tables, Of&& of) {
    const index_t floats = Form::floats(codec_, dim_);
    Buffer<float> host(heap_memory());
    Status s = host.resize(tables * floats);
    if (s == Status::ok) s = tables_.resize(host.size());
    if (s != Status::ok) return s;
    for (index_t t = 0; t < tables; ++t) {
      const Codec codec = of(t);
      assert(Form::floats(codec, dim_) == floats);
      Form::fill(codec, dim_, host.data() + t * floats);
    }
    if (floats == 0) return Status::ok;
    step_ = tables > 1 || prim::finds_state<Codec> ? floats : 0;
    s = cuda::settled(cudaMemcpyAsync(tables_.data(), host.data(), tables_.bytes().size(), cudaMemcpyHostToDevice, nullptr));
    return s == Status::ok ? cuda::settled(cudaStreamSynchronize(nullptr)) : s;
  }

  Codec codec_;
  index_t slots_, dim_;
  cuda::DeviceArray<float> tables_;
  index_t step_ = 0;             ///< floats from a head's tables to the next's; 0: all heads share them
  Buffer<std::int64_t> prints_;  ///< per head
  Buffer<std::size_t> bytes_;    ///< per head
  Buffer<PageGap> gaps_;         ///< per head
  Buffer<bool> waits_;           ///< per head: a step is still to find its state
};

}  // namespace kvcondense::cache
