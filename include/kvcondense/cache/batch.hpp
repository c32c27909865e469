#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense {

/// The rows of one request among those of a step.
struct BatchRows {
  index_t request = 0;
  index_t tokens = 1;
  Phase phase = Phase::automatic;
};

/// Many sequences of one recipe over one memory resource, as engines run them: requests come and go between steps, a step
/// brings some tokens of some of them, a prompt in chunks beside generated tokens, packed one behind the other.
///
/// Idea     begin_request ... [ begin_step, forward per layer, end_step ] ... end_request. Within a step tokens are appended
///          and attended; what evicts, folds and codes runs when the step ends, so that a step can be taken back.
/// Needs    C: a Cache or an AnyCache that nothing was appended to, of a recipe whose steps look at no more than attention
///          and queries; an executor, or none. A chunk of a prompt is a step of its rows with Phase::prefill_chunk, its end
///          the end of that step.
/// Shapes   queries [q_heads, rows, head_dim], keys [kv_heads, rows, head_dim], values, out [q_heads, rows, value_dim]: rows
///          of all requests of the step, in the order of `begin_step`; positions of all of them, or none.
/// Cost     one task per request of a step and layer; scratch per worker, for the request of the step that needs most; until
///          the step ends a float per slot and layer where its recipe reads attention, the queries where it reads those.
/// Numbers  those of each sequence alone, bit for bit, whatever runs beside it and on however many threads.
/// Errors   `status(i)` says how request i of the step fares; the others go on. One that was refused, or not given all layers
///          (order_violation), is as it was before the step, once that ends. Where memory is refused while a step ends, tokens
///          stay pending, and `end_step`, called again when some is back, goes on from there: as long as `owed()` says so,
///          since a status stays with a request that was taken back. A request whose step fails for another reason when
///          layers before have had theirs loses the step's tokens, but what those layers let go does not come back: end it.
///          forward: shape_mismatch where a view does not hold the rows of the step; nothing was read then. begin_step:
///          order_violation while a step is owed, or over tokens that are pending in any layer; shape_mismatch,
///          out_of_range, out_of_memory; nothing has begun then.
/// Threads  one caller. The resource is called from the executor's threads.
template <class C>
class Batch {
 public:
  /// Room for `most` requests at once; `workers`: of the executor that `forward` and `end_step` get.
  static Expected<Batch> make(C empty, index_t most, MemoryResource<Cpu>& memory, index_t workers = 1) {
    if (most < 1 || workers < 1) return Status::invalid_argument;
    if (empty.length() != 0) return Status::order_violation;
    if (!empty.capabilities().needs.within(Input::attention | Input::queries)) return Status::missing_input;
    Batch b(std::move(empty), memory);
    if (const Status s = b.requests_.fill(memory, most, [](index_t) { return std::optional<Request>(); }); s != Status::ok) return s;
    if (const Status s = b.scratch_.fill(memory, workers, [](index_t) { return Workspace(); }); s != Status::ok) return s;
    if (const Status s = b.step_.reserve(most, true); s != Status::ok) return s;
    return b;
  }

  /// A request with nothing in it. out_of_memory also where all places are taken.
  Expected<index_t> begin_request() { return enter(empty_); }
  /// One that begins with all that another holds: a prompt that both share. Neither ever alters what the other sees.
  Expected<index_t> begin_request(index_t like) {
    if (!running(like)) return Status::out_of_range;
    if (waits(cache(like))) return Status::order_violation;
    return enter(requests_[like]->cache);
  }
  /// Between steps, or while one is owed memory: that request is then out of it, and nothing is wrong with it.
  Status end_request(index_t request) {
    if (!running(request)) return Status::out_of_range;
    if (open_) return Status::order_violation;
    if (owed())
      for (Part& p : parts())
        if (p.rows.request == request) p.layer = layers(), p.status = Status::ok;
    requests_[request].reset();
    return Status::ok;
  }

  bool running(index_t request) const { return request >= 0 && request < requests_.size() && requests_[request].has_value(); }
  /// Of a running one.
  const C& cache(index_t request) const { return requests_[request]->cache; }
  /// For calls between steps: drafts that are taken back, ranges that go, turns, files.
  C& cache(index_t request) { return requests_[request]->cache; }

  Status begin_step(std::span<const BatchRows> rows) {
    if (open_ || owed()) return Status::order_violation;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const BatchRows& r = rows[i];
      if (!running(r.request)) return Status::out_of_range;
      for (std::size_t j = 0; j < i; ++j)
        if (rows[j].request == r.request) return Status::shape_mismatch;
      if (r.tokens < 1) return Status::shape_mismatch;
      const C& c = cache(r.request);
      if (waits(c)) return Status::order_violation;
      index_t slots = 0;
      for (index_t l = 0; l < layers(); ++l)
        for (index_t h = 0; h < shape().kv_heads; ++h) slots = std::max(slots, c.slots(l, h));
      bytes = std::max(bytes, c.workspace_bytes((slots + r.tokens + 255) / 256 * 256, r.tokens));
    }
    for (Workspace& w : scratch_)
      if (const Status s = w.reserve(bytes, *memory_); s != Status::ok) return s;
    step_.shrink(0);
    total_ = 0;
    for (const BatchRows& r : rows) {
      step_.append_reserved({r, total_, cache(r.request).length()});
      total_ += r.tokens;
    }
    open_ = true;
    return Status::ok;
  }

  /// Appends and attends one layer of every request of the step. The first refusal among those of this call, if any.
  template <class K, class V>
  Status forward(index_t layer, TensorView<const float, 3> queries, TensorView<K, 3> keys, TensorView<V, 3> values, TensorView<float, 3> out,
                 std::span<const index_t> positions = {}, Executor* executor = nullptr) {
    if (!open_) return Status::order_violation;
    if (layer < 0 || layer >= layers()) return Status::out_of_range;
    const auto holds = [&](const auto& view, index_t heads, index_t dim) {
      return view.extent[0] == heads && view.extent[1] == total_ && view.extent[2] == dim;
    };
    const CacheShape& s = shape();
    const bool fits = holds(queries, s.q_heads, s.head_dim) && holds(keys, s.kv_heads, s.head_dim) &&
                      holds(values, s.kv_heads, s.values()) && holds(out, s.q_heads, s.values());
    if (!fits || (!positions.empty() && static_cast<index_t>(positions.size()) != total_)) return Status::shape_mismatch;
    return each(executor, [&](Part& p, Context<Cpu> ctx) {
      const auto of = [&](auto view) {
        view.data += p.first * view.stride[1];
        view.extent[1] = p.rows.tokens;
        return view;
      };
      const auto at = positions.empty() ? positions : positions.subspan(static_cast<std::size_t>(p.first), static_cast<std::size_t>(p.rows.tokens));
      p.status = enter_rows(*requests_[p.rows.request], p, ctx, layer, of(queries), of(keys), of(values), of(out), at);
    });
  }

  /// Runs the steps of all layers; takes back the tokens of requests that were refused. The first status of the step that is not
  /// ok, that of a request taken back among them: whether to call again is what `owed()` says.
  Status end_step(Executor* executor = nullptr) {
    if (!open_ && !owed()) return Status::order_violation;
    open_ = false;
    for (Part& p : parts()) {
      if (p.stepping || p.layer == layers()) continue;  // owed, or ended
      for (index_t l = 0; p.status == Status::ok && l < layers(); ++l)
        if (cache(p.rows.request).pending(l) != p.rows.tokens) p.status = Status::order_violation;
      if (p.status != Status::ok) take_back(p);
    }
    return each(executor, [&](Part& p, Context<Cpu> ctx) {
      Request& r = *requests_[p.rows.request];
      for (p.stepping = true; p.layer < layers(); ++p.layer)
        if (p.status = run_step(r, p, ctx); p.status != Status::ok) {
          if (p.status != Status::out_of_memory) take_back(p);
          return;
        }
    }, true);
  }

  /// Of the last step: how its i-th request fared.
  Status status(index_t i) const { return step_[i].status; }
  /// Whether a step is over but for memory that was refused.
  bool owed() const {
    return !open_ && std::any_of(step_.begin(), step_.end(), [&](const Part& p) { return p.layer < layers(); });
  }

 private:
  /// What one request keeps until its step ends.
  struct Request {
    C cache;
    ObjectArray<Buffer<float>> mass, queries;  ///< per layer
  };
  struct Part {
    BatchRows rows;
    index_t first = 0;   ///< its first row
    index_t before = 0;  ///< tokens before the step
    index_t layer = 0;   ///< the first one whose step is to come
    bool stepping = false;
    Status status = Status::ok;
  };

  Batch(C empty, MemoryResource<Cpu>& memory) : empty_(std::move(empty)), memory_(&memory), step_(memory) {}

  const CacheShape& shape() const { return empty_.shape(); }
  index_t layers() const { return shape().layers; }
  std::span<Part> parts() { return {step_.begin(), static_cast<std::size_t>(step_.size())}; }

  /// Whether any layer has tokens that no step has seen: of a step that memory was refused to, layers behind it do.
  bool waits(const C& c) const {
    for (index_t l = 0; l < layers(); ++l)
      if (c.pending(l) != 0) return true;
    return false;
  }

  Expected<index_t> enter(const C& from) {
    if (open_) return Status::order_violation;
    const auto free = std::find_if(requests_.begin(), requests_.end(), [](const auto& r) { return !r.has_value(); });
    if (free == requests_.end()) return Status::out_of_memory;
    auto cache = from.fork();
    if (!cache) return cache.status();
    Request r{std::move(*cache), {}, {}};
    for (auto* lists : {&r.mass, &r.queries})
      if (const Status s = lists->fill(*memory_, layers(), [&](index_t) { return Buffer<float>(*memory_); }); s != Status::ok) return s;
    free->emplace(std::move(r));
    return static_cast<index_t>(free - requests_.begin());
  }

  /// run(part, context) for requests that are well, or `again`: that have steps to come.
  template <class F>
  Status each(Executor* executor, F&& run, bool again = false) {
    if (executor != nullptr && executor->workers() > scratch_.size()) return Status::workspace_too_small;
    Context<Cpu>({}, executor).parallel(step_.size(), [&](index_t i, index_t worker) {
      Part& p = step_[i];
      if (again ? p.layer < layers() : p.status == Status::ok) run(p, Context<Cpu>(scratch_[worker].bytes()));
    });
    for (const Part& p : parts())
      if (p.status != Status::ok) return p.status;
    return Status::ok;
  }

  template <class K, class V>
  Status enter_rows(Request& r, const Part& p, Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<K, 3> keys,
                    TensorView<V, 3> values, TensorView<float, 3> out, std::span<const index_t> positions) {
    if (const Status s = r.cache.append(ctx, layer, keys, values, positions, queries); s != Status::ok) return s;
    AttendOutputs measure;
    Buffer<float>&mass = r.mass[layer], &kept = r.queries[layer];
    mass.shrink(0), kept.shrink(0);
    if (r.cache.wants_mass(layer, p.rows.phase)) {
      if (const Status s = mass.resize(r.cache.total_slots(layer)); s != Status::ok) return s;
      measure.mass = r.cache.ragged(layer, mass.data());
    }
    if (const Capabilities can = empty_.capabilities(); can.needs.has(Input::queries)) {
      const index_t heads = shape().q_heads, dim = shape().head_dim, n = p.rows.tokens;
      if (const Status s = kept.resize(heads * n * dim); s != Status::ok) return s;
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < n; ++i)
          for (index_t d = 0; d < dim; ++d) kept[(h * n + i) * dim + d] = queries(h, i, d);
    }
    return r.cache.attend(ctx, layer, queries, out, measure);
  }

  Status run_step(Request& r, const Part& p, Context<Cpu>& ctx) {
    Buffer<float>&mass = r.mass[p.layer], &kept = r.queries[p.layer];
    StepInputs in;
    if (!mass.empty()) in.attention = {r.cache.ragged(p.layer, mass.data()), r.cache.mass_rows(p.rows.tokens)};
    if (!kept.empty()) in.queries = dense_view<const float>(kept.data(), shape().q_heads, p.rows.tokens, shape().head_dim);
    if (const Status s = r.cache.step(ctx, p.layer, in, p.rows.phase); s != Status::ok) return s;
    mass.shrink(0), kept.shrink(0);
    if (p.rows.tokens > 1) mass.give_back(0), kept.give_back(0);
    return Status::ok;
  }

  /// The request is as it was before the step, but for what layers dropped whose step is over.
  void take_back(Part& p) {
    (void)cache(p.rows.request).truncate(p.before);
    p.layer = layers();
  }

  C empty_;
  MemoryResource<Cpu>* memory_;
  ObjectArray<std::optional<Request>> requests_;
  ObjectArray<Workspace> scratch_;
  Buffer<Part> step_;
  index_t total_ = 0;
  bool open_ = false;
};

}  // namespace kvcondense
