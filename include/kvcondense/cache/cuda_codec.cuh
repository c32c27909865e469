#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/find_rows.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/cache/segment.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/corrected.hpp>
#include <kvcondense/prim/group_bits.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::cache {

/// Bytes [begin, end) of a page lie between its codes and their parameters, and are nobody's.
struct PageGap {
  std::size_t begin = 0, end = 0;
};
template <class C>
PageGap gap_of(const C& codec, index_t slots, index_t dim) {
  const auto gap = [&](index_t row, index_t params) { return PageGap{static_cast<std::size_t>(slots * row), static_cast<std::size_t>(params)}; };
  if constexpr (requires { codec.numbers(); }) return gap_of(codec.numbers(), slots, dim);
  else if constexpr (requires { codec.high_bytes(dim); }) return gap(codec.low_bytes(dim) + codec.high_bytes(dim), codec.params_at(slots, dim));
  else if constexpr (requires { codec.params_at(slots, dim); }) return gap(codec.row_bytes(dim), codec.params_at(slots, dim));
  else return {};
}
/// What fills up the corrections of a chunk is written with them.
template <class C>
PageGap gap_of(const prim::Corrected<C>& codec, index_t slots, index_t dim) {
  return gap_of(codec.codec, slots, dim);
}
inline PageGap gap_of(const prim::GroupBits& codec, index_t slots, index_t dim) {
  return codec.with([&](const auto& c) { return gap_of(c, slots, dim); });
}
template <class T, class C>
PageGap gap_of(const prim::Transformed<T, C>& codec, index_t slots, index_t dim) {
  return gap_of(codec.codec, slots, codec.transform.stored_dim(dim));
}

/// The codec of a column as kernels take it: tables of the heads' codecs in device memory, where it has some. Maps that are found from the rows which
/// are coded first are found once per head, by the host, from sums that the device makes.
template <class Codec>
class CudaCodec {
  using Form = prim::DeviceForm<Codec>;
  using Parts = prim::CodecParts<Codec>;
  /// The map that rows meet first.
  static constexpr const auto& first_of(const Codec& codec) {
    if constexpr (requires { Parts::transform(codec).second; }) return Parts::transform(codec).first;
    else return Parts::transform(codec);
  }

 public:
  /// Whether maps may be found from rows.
  static constexpr bool finds = prim::found_from_rows<typename prim::FirstMap<typename Parts::Transform>::type>;

  /// `page_slots`: of a page of codes.
  CudaCodec(const Codec& codec, index_t dim, index_t page_slots, MemoryResource<Cuda>& memory)
      : codec_(codec), dim_(dim), page_slots_(page_slots), tables_(memory), heads_(heap_memory()), host_(heap_memory()), states_(heap_memory()), summed_(heap_memory()), sums_(memory) {}

  /// All heads have the codec, whose fingerprint, as the recipe names it, is `print`.
  Status make(index_t heads, std::int64_t print) {
    if (const Status s = heads_.resize(heads); s != Status::ok) return s;
    if (const Status s = codecs_.fill(heap_memory(), heads, [&](index_t) { return codec_; }); s != Status::ok) return s;
    std::fill_n(heads_.data(), heads, head_of(codec_, print));
    return fill(heads_[0].state > 0 ? heads : 1);  // each finds its own
  }
  /// Behind `make`: head h has `of(h)`. It stores a row in as many bytes as the others, or as many numbers of it as it says (prim::Latent).
  template <class Of>
  Status describe(Of&& of) {
    bool differ = false;
    for (index_t h = 0; h < heads_.size() && !differ; ++h) differ = of(h).fingerprint() != heads_[h].print;
    if (!differ) return Status::ok;
    ObjectArray<Codec> own;
    if (const Status s = own.fill(heap_memory(), heads_.size(), of); s != Status::ok) return s;
    codecs_.swap(own);
    for (index_t h = 0; h < heads_.size(); ++h) heads_[h] = head_of(codecs_[h], codecs_[h].fingerprint());
    return fill(heads_.size());
  }

  prim::DeviceCodec<Codec> on_device() const {
    prim::DeviceCodec<Codec> c = Form::of(codec_, tables_.data(), step_, dim_);
    if constexpr (requires { c.map.uneven; })
      c.map.uneven = std::any_of(heads_.begin(), heads_.end(), [&](const Head& h) { return h.stored_dim != heads_[0].stored_dim; });
    return c;
  }
  std::int64_t fingerprint(index_t head) const { return heads_[head].print; }
  /// Of what codes rows, whatever map is in front of it.
  std::int64_t code_fingerprint(index_t head) const { return heads_[head].code_print; }
  index_t stored_dim(index_t head) const { return heads_[head].stored_dim; }
  std::size_t page_bytes(index_t head) const { return heads_[head].page_bytes; }
  /// Of a page of codes, for files.
  void clear_gap(index_t head, std::span<std::byte> page) const {
    const PageGap& gap = heads_[head].gap;
    std::ranges::fill(page.subspan(gap.begin, gap.end - gap.begin), std::byte{});
  }
  std::size_t bytes() const { return static_cast<std::size_t>(tables_.size() + sums_.size()) * sizeof(float); }

  // Maps that are found.

  /// Numbers that a head finds, and that any does at most.
  index_t state_floats(index_t head) const { return heads_[head].state; }
  index_t state_floats() const { return state_step_; }
  bool waits(index_t head) const { return heads_[head].state > 0 && !heads_[head].found; }
  prim::MapFlags flags() const {
    if constexpr (finds)
      if (state_floats() > 0) return {tables_.data() + Form::found_at, step_};
    return {};
  }
  /// Whether a head that waits may find its map in a step: `may_code(head)` in it.
  template <class May>
  bool may_find(May&& may_code) const {
    for (index_t h = 0; h < heads_.size(); ++h)
      if (waits(h) && may_code(h)) return true;
    return false;
  }
  /// Room for `find` in such a step, which needs no memory then.
  Status reserve_finding() {
    const Status s = summed_.resize(heads_.size() * finding_floats());
    return s == Status::ok ? sums_.resize(summed_.size()) : s;
  }
  /// Whether there is such room: from `reserve_finding` until `find`, which a refused step does not come to.
  bool finding() const { return sums_.size() > 0; }
  /// It goes back; only while no kernel uses it.
  void leave_finding() {
    summed_ = Buffer<float>(heap_memory());
    static_cast<void>(sums_.resize(0));  // to less is never refused
  }
  /// Heads that wait get their maps by the rows that they code now, where they do. Waits for the stream: the device tells how many those are.
  Status find(Context<Cuda>& ctx, const prim::FirstRows& first, std::span<const prim::PartCounts> told) {
    if (const Status s = ctx.wait(); s != Status::ok) return s;
    const index_t each = finding_floats();
    const auto now = [&](index_t h) { return waits(h) && told[static_cast<std::size_t>(h)].coded > 0; };
    index_t some = 0;
    for (index_t h = 0; h < heads_.size(); ++h) some += now(h);
    if (some == 0) return leave_finding(), Status::ok;
    Status s = Status::ok;
    if constexpr (finds) s = prim::FindRows::observe(ctx, first_of(codec_), first, sums_.data(), each);
    if (s == Status::ok) s = sums_.download(ctx, {summed_.data(), static_cast<std::size_t>(summed_.size())});
    const Status done = ctx.wait();
    if (s == Status::ok) s = done;
    for (index_t h = 0; h < heads_.size() && s == Status::ok; ++h) {
      if (!now(h)) continue;
      float* const state = summed_.data() + h * each;
      if constexpr (finds) prim::FindRows::settle(first_of(codecs_[h]), dim_, first.group * first.queries.extent[1], state);
      s = put_state(ctx, h, state);
    }
    leave_finding();
    return s;
  }
  /// The same of a map that was found for several heads at once, of which `head` has this part: state_floats(head) numbers. Waits for the copy.
  Status settle(const Context<Cuda>& ctx, index_t head, const float* state) { return put_state(ctx, head, state); }
  /// What a head has found, for files; empty before.
  std::span<const float> state(index_t head) const {
    const auto n = static_cast<std::size_t>(waits(head) ? 0 : state_floats(head));
    return {states_.data() + head * state_step_, n};
  }
  /// From a file: `bytes` of state_floats(head) numbers.
  Status restore(const Context<Cuda>& ctx, index_t head, std::span<const std::byte> bytes) {
    Buffer<float> state(heap_memory());
    if (const Status s = state.resize(state_floats(head)); s != Status::ok) return s;
    std::memcpy(state.data(), bytes.data(), bytes.size());
    if constexpr (finds)
      if (!prim::FindRows::good(first_of(codecs_[head]), dim_, state.data())) return Status::corrupt_data;
    return put_state(ctx, head, state.data());
  }
  /// One that was made alike finds what this one has found.
  Status fork(const Context<Cuda>& ctx, CudaCodec& out) const {
    if (state_floats() == 0) return Status::ok;
    std::copy(states_.begin(), states_.end(), out.states_.begin());
    for (index_t h = 0; h < heads_.size(); ++h) out.heads_[h].found = heads_[h].found;
    return out.tables_.copy_from(ctx, tables_);
  }
  /// What was found is forgotten; only while no kernel uses it.
  Status clear(const Context<Cuda>& ctx) {
    leave_finding();
    Status s = Status::ok;
    if constexpr (finds)
      for (index_t h = 0; h < heads_.size() && state_floats() > 0; ++h) {
        heads_[h].found = false;
        if (s == Status::ok) s = cuda::settled(cudaMemsetAsync(tables_.data() + h * step_ + Form::found_at, 0, sizeof(float), ctx.stream()));
      }
    return s;
  }

 private:
  struct Head {
    std::int64_t print = 0, code_print = 0;
    index_t stored_dim = 0;      ///< numbers of a stored row
    index_t state = 0;           ///< numbers that it finds
    std::size_t page_bytes = 0;  ///< of a page of codes
    PageGap gap{};
    bool found = false;          ///< its map
  };
  Head head_of(const Codec& codec, std::int64_t print) const {
    const index_t state = finds ? prim::floats_of(Parts::transform(codec), dim_) : 0;
    return {print, cache::code_fingerprint(Parts::stored(codec)), Parts::transform(codec).stored_dim(dim_), state, codec.page_bytes(page_slots_, dim_), gap_of(codec, page_slots_, dim_)};
  }
  index_t finding_floats() const {
    index_t most = 0;
    for (index_t h = 0; h < heads_.size() && state_step_ > 0; ++h) most = std::max(most, prim::finding_floats_of(Parts::transform(codecs_[h]), dim_));
    return most;
  }

  /// A head has found its map. Waits for the copy of its table.
  Status put_state(const Context<Cuda>& ctx, index_t head, const float* state) {
    if constexpr (finds) {
      std::fill(host_.begin(), host_.end(), 0.0f);
      Form::fill(codecs_[head], dim_, host_.data(), state);
      // What stands behind the map is the codec's own, and there.
      const auto bytes = static_cast<std::size_t>(Form::found_floats(codecs_[head], dim_)) * sizeof(float);
      const Status s = cuda::settled(cudaMemcpyAsync(tables_.data() + head * step_, host_.data(), bytes, cudaMemcpyHostToDevice, ctx.stream()));
      const Status done = ctx.wait();
      if (s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
      std::copy_n(state, state_floats(head), states_.data() + head * state_step_);
      heads_[head].found = true;
    }
    return Status::ok;
  }
  /// Tables of the first heads' codecs, and room for what heads find. Waits for the copy.
  Status fill(index_t tables) {
    index_t floats = 0;
    for (index_t t = 0; t < tables; ++t) floats = std::max(floats, Form::floats(codecs_[t], dim_));
    state_step_ = 0;
    for (const Head& h : heads_) state_step_ = std::max(state_step_, h.state);
    Buffer<float> host(heap_memory());
    Status s = host.resize(tables * floats);
    if (s == Status::ok) s = states_.resize(heads_.size() * state_step_);
    if (s == Status::ok) s = host_.resize(state_step_ > 0 ? floats : 0);
    if (s == Status::ok) s = tables_.resize(host.size());
    if (s != Status::ok) return s;
    for (index_t t = 0; t < tables; ++t) Form::fill(codecs_[t], dim_, host.data() + t * floats);
    if (floats == 0) return Status::ok;
    step_ = tables > 1 || state_step_ > 0 ? floats : 0;
    s = cuda::settled(cudaMemcpyAsync(tables_.data(), host.data(), tables_.bytes().size(), cudaMemcpyHostToDevice, nullptr));
    return s == Status::ok ? cuda::settled(cudaStreamSynchronize(nullptr)) : s;
  }

  Codec codec_;
  index_t dim_, page_slots_;
  cuda::DeviceArray<float> tables_;
  index_t step_ = 0;    ///< floats from a head's tables to the next's; 0: all heads share them
  ObjectArray<Codec> codecs_;  ///< per head
  Buffer<Head> heads_;
  Buffer<float> host_;    ///< a table on its way, of maps that are found
  Buffer<float> states_;  ///< per head, what it found
  index_t state_step_ = 0;
  Buffer<float> summed_;  ///< sums of first rows of the heads, as they come from the device
  cuda::DeviceArray<float> sums_;
};

}  // namespace kvcondense::cache
