#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/backend_memory.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::reuse {

/// Old tokens [begin, end) give way to `tokens` new ones: begin == end inserts, tokens == 0 deletes.
struct TextEdit {
  index_t begin = 0;
  index_t end = 0;
  index_t tokens = 0;
};

/// Old tokens [begin, end) stay and move by `shift`.
struct KeptRun {
  index_t begin = 0;
  index_t end = 0;
  index_t shift = 0;
};

/// Edits a text that is already in a cache: what stays is turned to its new positions, only what is new is computed.
///
/// Idea     under rotary positions a stored key moves by a rotation; an edit moves all that stands behind it by the
///          same number of positions. Values know no positions.
/// Source   PIE (Positional Integrity Encoding), arXiv:2407.03157.
/// Needs    the edits, in order and apart; keys as they are stored, rotated by the frequencies that `angles` has.
/// Shapes   keys and values [kv_heads, old tokens, dim] to [kv_heads, new tokens, dim]; rows of new tokens are not
///          touched. Tokens behind an edit keep what they knew of the old text: that is the approximation.
/// Cost     one rotation per key that moves, one copy of all others; no workspace. `copy` takes room for a run's rows of one layer, and waits
///          for a backend whose words are not done when they return.
/// Numbers  angles in double from the whole shift, never a turn of a turn: nothing drifts within one edit. Codes are
///          decoded, turned and coded anew, so repeated edits of coded keys add up; stages that store keys raw
///          (`reindex`, `rerotate`) need none of this. An attention factor is in the stored key already and stays.
/// Errors   invalid_argument: edits that overlap, are out of order or negative; out_of_range: beyond the text;
///          shape_mismatch; not_supported: frequencies that depend on the length; out_of_memory.
class Pie {
 public:
  static constexpr Descriptor about{"pie", Stage::reuse, "arXiv:2407.03157"};

  explicit Pie(MemoryResource<Cpu>& memory = heap_memory()) : kept_(memory), edits_(memory) {}

  Status plan(std::span<const TextEdit> edits, index_t old_tokens) {
    index_t at = 0;
    for (const TextEdit& e : edits) {
      if (e.begin < at || e.end < e.begin || e.tokens < 0 || e.tokens > (index_t{1} << 40)) return Status::invalid_argument;
      if (e.end > old_tokens) return Status::out_of_range;
      at = e.end;
    }
    const auto n = static_cast<index_t>(edits.size());
    if (const Status s = kept_.reserve(n + 1); s != Status::ok) return s;
    if (const Status s = edits_.reserve(n); s != Status::ok) return s;
    kept_.shrink(0), edits_.shrink(0);
    index_t from = 0, shift = 0;
    const auto keep = [&](index_t end) {
      if (end > from) kept_.append_reserved({from, end, shift});
    };
    for (const TextEdit& e : edits) {
      keep(e.begin);
      edits_.append_reserved({e.begin + shift, e.begin + shift + e.tokens, 0});
      shift += e.tokens - (e.end - e.begin);
      from = e.end;
    }
    keep(old_tokens);
    old_ = old_tokens, new_ = old_tokens + shift;
    return Status::ok;
  }

  index_t old_tokens() const { return old_; }
  index_t new_tokens() const { return new_; }
  std::span<const KeptRun> kept() const { return kept_.span(); }
  /// New positions [begin, end) that each edit's tokens take, in order; `shift` is 0.
  std::span<const KeptRun> fresh() const { return edits_.span(); }
  /// Where an old token is now; -1: gone. Indexes of pages whose tokens moved are stale.
  index_t position(index_t token) const {
    const KeptRun* run = std::upper_bound(kept_.begin(), kept_.end(), token, [](index_t t, const KeptRun& r) { return t < r.end; });
    return run == kept_.end() || token < run->begin ? -1 : token + run->shift;
  }
  /// Tokens that an engine must compute: what is new.
  index_t computed() const {
    index_t n = 0;
    for (const KeptRun& f : edits_) n += f.end - f.begin;
    return n;
  }

  /// Puts one layer's kept rows where they belong. Old and new arrays may not overlap.
  template <Backend B>
  Status run(Context<B>& ctx, const prim::RopeAngles& angles, const KvView<const float>& from, const KvView<float>& to) const {
    if (from.keys.extent[1] != old_ || from.values.extent[1] != old_ || to.keys.extent[1] != new_ || to.values.extent[1] != new_)
      return Status::shape_mismatch;
    for (const KeptRun& k : kept_) {
      if (const Status s = turn(ctx, angles, part(from.keys, k.begin, k.end), k.shift, part(to.keys, k.begin + k.shift, k.end + k.shift)); s != Status::ok)
        return s;
      const prim::RopeAngles none{};
      if (const Status s = turn(ctx, none, part(from.values, k.begin, k.end), 0, part(to.values, k.begin + k.shift, k.end + k.shift)); s != Status::ok)
        return s;
    }
    return Status::ok;
  }

  /// Turns rows by one number of positions, the same for all: a run of an edit, a chunk that moved.
  template <Backend B>
  static Status turn(Context<B>& ctx, const prim::RopeAngles& angles, TensorView<const float, 3> rows, index_t shift, TensorView<float, 3> out) {
    return prim::Rope<B>::shift(ctx, angles, rows, shift, out);
  }

  /// Appends a run that stays to `to` from a cache that holds every old token in every head, all layers, at its new
  /// positions. The tokens are pending then: new tokens may be computed on them, and a `step` of each layer ends them.
  template <Backend B, class Cache>
  static Status copy(Context<B>& ctx, const prim::RopeConfig& rope, const Cache& from, Cache& to, const KeptRun& run,
                     MemoryResource<B>& memory = BackendMemory<B>::resource()) {
    const auto& shape = from.shape();
    const index_t n = run.end - run.begin, dim = shape.head_dim, width = shape.values();
    if (rope.scaling == prim::RopeScaling::dynamic_ntk || rope.scaling == prim::RopeScaling::longrope || raw_keys(from)) return Status::not_supported;
    for (index_t l = 0; l < shape.layers; ++l)
      for (index_t h = 0; h < shape.kv_heads; ++h)
        if (from.slots(l, h) != from.length(l)) return Status::not_supported;
    if (run.begin < 0 || n < 0 || run.end > from.length()) return Status::out_of_range;
    const auto angles = prim::rope_angles(rope, dim);
    if (!angles) return angles.status();
    typename BackendMemory<B>::template Array<float> rows(memory);
    Buffer<index_t> positions(heap_memory());
    if (const Status s = rows.resize(shape.kv_heads * n * (dim + width)); s != Status::ok) return s;
    if (const Status s = positions.resize(n); s != Status::ok) return s;
    for (index_t i = 0; i < n; ++i) positions[i] = run.begin + run.shift + i;
    const auto keys = dense_view(rows.data(), shape.kv_heads, n, dim);
    const auto values = dense_view(rows.data() + shape.kv_heads * n * dim, shape.kv_heads, n, width);
    Status s = Status::ok;
    for (index_t l = 0; l < shape.layers && s == Status::ok; ++l) {
      for (index_t h = 0; h < shape.kv_heads && s == Status::ok; ++h)
        s = read(ctx, from, l, h, run.begin, dense_view(keys.data + h * keys.stride[0], n, dim), dense_view(values.data + h * values.stride[0], n, width));
      if (s == Status::ok) s = turn(ctx, *angles, keys, run.shift, keys);
      if (s == Status::ok) s = to.append(ctx, l, keys, values, positions.span());
    }
    const Status done = ctx.wait();  // rows go back when this returns
    return s == Status::ok ? done : s;
  }

 private:
  template <class Cache>
  static bool raw_keys(const Cache& from) {
    if constexpr (requires { from.recipe(); }) return from.recipe().position.raw_keys;
    else return from.capabilities().raw_keys;
  }
  /// Rows where words of the context's backend find them: caches beside the host want to know on which stream.
  template <class Context, class Cache>
  static Status read(Context& ctx, const Cache& from, index_t layer, index_t head, index_t first, TensorView<float, 2> keys, TensorView<float, 2> values) {
    if constexpr (requires { from.read(ctx, layer, head, first, keys, values); }) return from.read(ctx, layer, head, first, keys, values);
    else return from.read(layer, head, first, keys, values);
  }
  template <class T>
  static TensorView<T, 3> part(TensorView<T, 3> rows, index_t begin, index_t end) {
    rows.data += begin * rows.stride[1];
    rows.extent[1] = end - begin;
    return rows;
  }

  Buffer<KeptRun> kept_, edits_;
  index_t old_ = 0, new_ = 0;
};

}  // namespace kvcondense::reuse
