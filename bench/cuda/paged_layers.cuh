#pragma once

// Layers of caches in device memory for attention to read: pages of 64 slots of 128 numbers,
// anywhere in one piece of memory that all kinds of pages share, one after the other in time.

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <kvcondense/backend/cuda/attend.cuh>
#include <kvcondense/prim/group_quant.hpp>

#include "device_time.cuh"

namespace bench {

inline constexpr index_t q_heads = 32, kv_heads = 8, dim = 128, page_slots = 64;

struct Size {
  index_t batch = 1, context = page_slots;
  index_t heads() const { return batch * kv_heads; }
  index_t pages() const { return heads() * context / page_slots; }  ///< of a column
};

/// What keys and values are stored as.
template <class K, class V>
struct Format {
  const char* name;
  K keys;
  V values;
  std::size_t key_bytes() const { return keys.page_bytes(page_slots, dim); }
  std::size_t value_bytes() const { return values.page_bytes(page_slots, dim); }
  /// What the pages of one layer hold, parameters and all.
  std::size_t layer_bytes(const Size& s) const {
    return static_cast<std::size_t>(s.pages()) * (key_bytes() + value_bytes());
  }
  /// Layers until so many bytes are read, and the memory for them.
  int layers(const Size& s, std::size_t bytes) const {
    return static_cast<int>(
        std::max<std::size_t>(1, (bytes + layer_bytes(s) - 1) / layer_bytes(s)));
  }
  std::size_t place_bytes() const { return (std::max(key_bytes(), value_bytes()) + 15) / 16 * 16; }
  std::size_t memory(const Size& s, std::size_t bytes) const {
    return 2 * static_cast<std::size_t>(s.pages()) * static_cast<std::size_t>(layers(s, bytes)) *
           place_bytes();
  }
};

/// Calls `use` for each: halves, and codes whose keys have scales per channel and 64 slots, values
/// per slot and 64 channels.
template <class Use>
void each_format(Use&& use) {
  const auto codes = [&]<int Bits>(const char* name) {
    using Codec = prim::GroupInt<Bits>;
    use(Format<Codec, Codec>{name, Codec{.axis = prim::GroupAxis::channel, .group_size = 64},
                             Codec{.axis = prim::GroupAxis::token, .group_size = 64}});
  };
  use(Format<prim::ExactRows, prim::ExactRows>{"f16", {DType::f16}, {DType::f16}});
  codes.template operator()<8>("8 bits");
  codes.template operator()<4>("4 bits");
  codes.template operator()<2>("2 bits");
}

/// Layers of one format and size, no two of which share a page; attention of one token over each.
class Layers {
 public:
  template <class K, class V>
  Layers(Context<Cuda>& ctx, Memory& memory, const Format<K, V>& format, const Size& size,
         std::size_t bytes, bool in_order)
      : name_(format.name),
        size_(size),
        layer_bytes_(format.layer_bytes(size)),
        count_(format.layers(size, bytes)) {
    std::vector<std::size_t> places(2 * static_cast<std::size_t>(size.pages() * count_));
    for (std::size_t i = 0; i < places.size(); ++i) places[i] = i * format.place_bytes();
    std::mt19937_64 random(1);
    for (std::size_t i = places.size(); !in_order && i > 1; --i)
      std::swap(places[i - 1], places[random() % i]);
    std::vector<prim::SlotRun> runs;
    std::vector<index_t> offset;
    for (std::size_t p = 0; p < places.size(); ++p) {
      const index_t page = static_cast<index_t>(p) % (size.context / page_slots);
      if (page == 0) offset.push_back(static_cast<index_t>(p));
      runs.push_back(
          {memory.data() + places[p], static_cast<std::int32_t>(page * page_slots), 0, true});
    }
    offset.push_back(static_cast<index_t>(runs.size()));
    std::vector<float> q(static_cast<std::size_t>(size.batch * q_heads * dim));
    for (float& x : q)
      x = 0x1p-22f * static_cast<float>(static_cast<int>(random() % 65536) -
                                        32768);  // weights of many slots count
    must(runs_.upload(ctx, runs), "runs");
    must(offset_.upload(ctx, offset), "offsets of runs");
    must(slots_.upload(ctx,
                       std::vector<index_t>(static_cast<std::size_t>(size.heads()), size.context)),
         "lengths");
    must(queries_.upload(ctx, q), "queries");
    must(out_.resize(queries_.size()), "outputs");
    must(workspace_.resize(static_cast<index_t>(
             prim::Attend<Cuda>::workspace_bytes(request(), size.heads(), size.context))),
         "workspace");
    must(ctx.wait(), "layers");
    attend_ = [this, format](Context<Cuda>& c, int layer, prim::AttendMath math) {
      const prim::PagedHeads<K, V> heads{format.keys,       format.values,         {DType::f16},
                                         column(2 * layer), column(2 * layer + 1), slots_.data(),
                                         size_.heads()};
      Context<Cuda> with = c.with_workspace(workspace_.bytes());
      return prim::Attend<Cuda>::run(with, request(), heads, size_.context, math);
    };
  }
  Layers(const Layers&) = delete;

  const char* name() const { return name_; }
  const Size& size() const { return size_; }
  int count() const { return count_; }
  std::size_t layer_bytes() const { return layer_bytes_; }
  std::size_t workspace_bytes() { return workspace_.bytes().size(); }

  void attend(Context<Cuda>& ctx, int layer, prim::AttendMath math) {
    must(attend_(ctx, layer, math), "Attend");
  }
  std::vector<float> outputs(Context<Cuda>& ctx) {
    std::vector<float> x(static_cast<std::size_t>(out_.size()));
    must(out_.download(ctx, std::span<float>(x)), "outputs");
    must(ctx.wait(), "Attend");
    return x;
  }

 private:
  prim::ColumnRuns column(int c) const {
    return {runs_.data(), offset_.data() + c * size_.heads(), page_slots};
  }
  prim::AttendRequest request() {
    prim::AttendRequest r;
    r.queries = dense_view(static_cast<const float*>(queries_.data()), size_.batch * q_heads,
                           index_t{1}, dim);
    r.out = dense_view(out_.data(), size_.batch * q_heads, index_t{1}, dim);
    return r;
  }

  const char* name_;
  Size size_;
  std::size_t layer_bytes_;
  int count_;
  cuda::DeviceArray<prim::SlotRun> runs_;
  cuda::DeviceArray<index_t> offset_, slots_;
  cuda::DeviceArray<float> queries_, out_;
  cuda::DeviceArray<std::byte> workspace_;
  std::function<Status(Context<Cuda>&, int layer, prim::AttendMath)> attend_;
};

}  // namespace bench
