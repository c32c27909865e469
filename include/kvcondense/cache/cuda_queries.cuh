#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/attend_columns.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/open_slots.cuh>
#include <kvcondense/backend/cuda/query_rows.cuh>
#include <kvcondense/backend/cuda/turn_rows.cuh>
#include <kvcondense/cache/cuda_rotation.cuh>
#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::cache {

/// The newest queries that steps have seen, on the device: two tables of `most` rows of every query head. A step writes what the window will
/// be into the one that is not in use, and it becomes the window when the step is done.
class CudaQueryWindow {
 public:
  explicit CudaQueryWindow(MemoryResource<Cuda>& memory) : numbers_(memory), positions_(heap_memory()) {}

  Status make(index_t rows, const CacheShape& shape) {
    most_ = rows, heads_ = shape.q_heads, dim_ = shape.head_dim;
    if (const Status s = positions_.reserve(rows, true); s != Status::ok) return s;
    return numbers_.resize(2 * rows * heads_ * dim_);
  }
  index_t most() const { return most_; }
  std::size_t bytes() const { return static_cast<std::size_t>(numbers_.size()) * sizeof(float); }
  /// Rows that the window has behind a step that brings these.
  index_t after(index_t rows) const { return std::min(most_, size_ + rows); }

  index_t size() const { return size_; }
  index_t position(index_t row) const { return positions_[row]; }
  /// [q_heads, after(queries), head_dim]: earlier queries and those of a step.
  Status join(const Context<Cuda>& ctx, TensorView<const float, 3> queries) {
    return prim::QueryRows::join(ctx, rows(half_, size_), queries, rows(1 - half_, after(queries.extent[1])));
  }
  TensorView<const float, 3> joined(index_t fresh) const { return rows(1 - half_, after(fresh)); }
  /// Behind a step for which rows were joined; `newest`: ordinal of its last token.
  void settle(std::span<const index_t> positions, index_t newest) {
    const auto fresh = static_cast<index_t>(positions.size()), size = after(fresh), come = std::min(fresh, size);
    positions_.erase_front(size_ - (size - come));
    for (const index_t p : positions.last(static_cast<std::size_t>(come))) positions_.append_reserved(p);
    size_ = size, half_ = 1 - half_, end_ = newest + 1;
  }
  /// The same rows in an empty window of the host. Waits for the stream.
  Status download(const Context<Cuda>& ctx, QueryWindow& out) const {
    Buffer<float> table(heap_memory());
    if (const Status s = table.resize(most_ * heads_ * dim_); s != Status::ok || table.empty()) return s;
    const Status s = cuda::settled(cudaMemcpyAsync(table.data(), rows(half_, 0).data, table.span().size_bytes(), cudaMemcpyDeviceToHost, ctx.stream()));
    if (const Status done = ctx.wait(); s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
    for (index_t i = 0; i < size_; ++i) {
      float* to = out.push_row(positions_[i]);
      for (index_t h = 0; h < heads_; ++h) std::copy_n(table.data() + (h * most_ + i) * dim_, dim_, to + h * dim_);
    }
    out.set_end(end_);
    return Status::ok;
  }
  /// Of an empty one; `end`: ordinal behind the newest row. Waits for the stream.
  Status upload(const Context<Cuda>& ctx, const QueryWindow& in, index_t end) {
    Buffer<float> table(heap_memory());
    if (const Status s = table.resize(most_ * heads_ * dim_); s != Status::ok || table.empty()) return s;
    for (index_t i = 0; i < in.size(); ++i) {
      for (index_t h = 0; h < heads_; ++h) std::copy_n(in.row(i) + h * dim_, dim_, table.data() + (h * most_ + i) * dim_);
      positions_.append_reserved(in.position(i));
    }
    const Status s = cuda::settled(cudaMemcpyAsync(rows(half_, 0).data, table.data(), table.span().size_bytes(), cudaMemcpyHostToDevice, ctx.stream()));
    size_ = in.size(), end_ = end;
    const Status done = ctx.wait();
    return s != Status::ok ? s : done;
  }
  /// Another one of the same shape gets the same rows.
  Status fork(const Context<Cuda>& ctx, CudaQueryWindow& out) const {
    out.size_ = size_, out.half_ = half_, out.end_ = end_;
    if (const Status s = out.positions_.copy_from(positions_); s != Status::ok) return s;
    return out.numbers_.copy_from(ctx, numbers_);
  }
  /// Forgets queries of tokens from ordinal `tokens` on.
  void truncate(index_t tokens) {
    size_ = std::max<index_t>(0, size_ - std::max<index_t>(0, end_ - tokens));
    end_ = std::min(end_, tokens);
    positions_.shrink(size_);
  }

 private:
  TensorView<float, 3> rows(index_t half, index_t n) const {
    return {const_cast<float*>(numbers_.data()) + half * most_ * heads_ * dim_, {heads_, n, dim_}, {most_ * dim_, dim_, 1}};
  }

  cuda::DeviceArray<float> numbers_;
  Buffer<index_t> positions_;  ///< of the tokens of the rows
  index_t most_ = 0, heads_ = 0, dim_ = 0;
  index_t size_ = 0, half_ = 0;
  index_t end_ = 0;  ///< ordinal behind the newest row
};

/// The newest queries of a step, and where they stand, for what comes behind it.
struct NewestQueries {
  TensorView<const float, 3> queries{};
  Buffer<index_t> positions{heap_memory()};

  /// At most `most` of them; `of`: positions of the tokens of the step, of which queries are those of the newest.
  Status take(const TensorView<const float, 3>& all, index_t most, std::span<const index_t> of) {
    const index_t n = std::min({all.extent[1], most, static_cast<index_t>(of.size())});
    queries = all, queries.data += (all.extent[1] - n) * all.stride[1], queries.extent[1] = n;
    if (const Status s = positions.resize(n); s != Status::ok) return s;
    std::ranges::copy(of.last(static_cast<std::size_t>(n)), positions.begin());
    return Status::ok;
  }
};

/// What queries are before they meet keys.
struct ColumnQueries {
  index_t reach = 0;                                ///< see QueryTurn
  const prim::ControlComponent* control = nullptr;  ///< a component of them that does not count; null: all do
};

/// The queries of a step and those before it, over the slots of a layer.
template <class L>
class CudaLayerColumns final : public QueryColumns<Cuda> {
 public:
  /// queries: of the newest pending tokens, joined to the window where there is one. `shape` with the softmax scale that the stored keys need.
  CudaLayerColumns(const L& layer, const CacheShape& shape, const CudaRotation& rotation, bool rotated_input, const ColumnQueries& form, TensorView<const float, 3> queries,
                   std::span<std::byte> scratch)
      : layer_(&layer), shape_(shape), rotation_(&rotation), rotated_input_(rotated_input), form_(form), queries_(queries), scratch_(scratch) {}

  static std::size_t workspace_bytes(const CacheShape& shape, const CudaRotation& rotation, const ColumnQueries& form, index_t rows, index_t slots) {
    prim::ColumnRequest r;
    r.rows = rows;
    const bool made = rotation.made() || form.control != nullptr;
    const std::size_t turned = made ? Scratch::align + static_cast<std::size_t>(form.reach > 0 ? 2 : 1) * Scratch::bytes_for<float>(shape.q_heads * rows * shape.head_dim) : 0;
    return turned + prim::AttendColumns<Cuda>::workspace_bytes(r, shape.q_heads, shape.kv_heads, slots);
  }

  index_t rows() const noexcept override {
    const index_t now = queries_.extent[1];
    return std::max(now, layer_->window.after(now));
  }
  Status run(Context<Cuda>& ctx, const prim::ColumnRequest& request) const noexcept override {
    if (request.rows < 0 || request.rows > rows()) return Status::out_of_range;
    Context<Cuda> own = ctx.with_workspace(scratch_);
    TensorView<const float, 3> q = request.rows <= queries_.extent[1] ? queries_ : layer_->window.joined(queries_.extent[1]);
    q.data += (q.extent[1] - request.rows) * q.stride[1], q.extent[1] = request.rows;  // the newest of them
    prim::KeyTurn keys{};
    if (rotation_->made() || form_.control != nullptr)
      if (const Status s = prepare(own, q, keys); s != Status::ok) return s;
    return prim::AttendColumns<Cuda>::run(own, request, q, shape_.softmax_scale, layer_->heads(keys), layer_->longest(), layer_->tokens());
  }

 private:
  /// Rows lose the component that does not count, and become those that stand at the slots of their tokens, in front of the scratch.
  Status prepare(Context<Cuda>& own, TensorView<const float, 3>& rows, prim::KeyTurn& keys) const {
    Scratch scratch(scratch_);
    const index_t n = rows.extent[1], now = queries_.extent[1], pending = layer_->counters.pending;
    float* const turned = scratch.take<float>(shape_.q_heads * n * shape_.head_dim);
    float* const far = form_.reach > 0 ? scratch.take<float>(shape_.q_heads * n * shape_.head_dim) : turned;
    if (turned == nullptr || far == nullptr) return Status::workspace_too_small;
    if (rotation_->made()) keys = rotation_->view();
    Buffer<index_t> positions(heap_memory());
    if (const Status s = positions.reserve(n); s != Status::ok) return s;
    for (index_t r = 0; (rotated_input_ || form_.control != nullptr) && r < n; ++r) {
      const index_t step = r - (n - now);  // in this step's queries, or before them
      positions.append_reserved(step >= 0 ? layer_->pending_positions[pending - now + step] : layer_->window.position(layer_->window.size() + step));
    }
    const TensorView<float, 3> out = dense_view(turned, shape_.q_heads, n, shape_.head_dim);
    const prim::RopeAngles& angles = rotation_->angles();
    Status s = Status::ok;
    if (form_.control != nullptr) s = prim::OpenSlots::clear(own, *form_.control, positions.span(), rows, out), rows = out;
    const std::span<const index_t> from = rotated_input_ ? positions.span() : std::span<const index_t>();
    if (form_.reach > 0) {
      const TensorView<float, 3> to = dense_view(far, shape_.q_heads, n, shape_.head_dim);
      if (s == Status::ok) s = prim::TurnRows::to_place(own, angles, rows, from, form_.reach, to);
      keys.far = to, keys.reach = form_.reach;
    }
    if (s == Status::ok && rotation_->made())  // in place where they were made already: a thread reads its pair before it writes it
      s = prim::TurnRows::to_slots(own, angles, rows, from, layer_->tokens(), layer_->device_slots(), shape_.kv_heads, out);
    own = own.with_workspace(scratch.rest());
    rows = out;
    return s;
  }

  const L* layer_;
  CacheShape shape_;
  const CudaRotation* rotation_;
  bool rotated_input_;  ///< queries were rotated to their positions
  ColumnQueries form_;
  TensorView<const float, 3> queries_;
  std::span<std::byte> scratch_;
};

}  // namespace kvcondense::cache
