// The cache: every call turns arrays into views, lets other Python threads run, and calls AnyCache.

#include <algorithm>
#include <mutex>
#include <optional>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/workspace.hpp>

#include "arrays.hpp"

namespace kvcondense::python {
namespace {

class BytesSink final : public ByteSink {
 public:
  std::string bytes;
  bool write(std::span<const std::byte> more) noexcept override {
    try {
      bytes.append(reinterpret_cast<const char*>(more.data()), more.size());
    } catch (const std::bad_alloc&) {
      return false;
    }
    return true;
  }
};

/// A cache, its scratch memory, and the lock that lets its calls come from any thread.
class PyCache {
  template <class F>
  auto locked(F&& f) {
    py::gil_scoped_release others;
    const std::lock_guard<std::mutex> mine(lock_);
    return f();
  }

 public:
  PyCache(const CacheShape& shape, const std::string& recipe, const py::dict& model) : facts_(std::make_shared<Facts>(model)) {
    auto made = [&] {
      py::gil_scoped_release others;
      return any::make(recipe, shape, any::on<Cpu>, heap_memory(), facts_->facts);
    }();
    if (!made) {
      const auto at = made.position();
      raise(made.status(), std::string(made.message()), at == any::MakeResult::no_position ? -1 : static_cast<std::int64_t>(at));
    }
    cache_.emplace(*std::move(made));
    shape_ = cache_->shape();
  }
  PyCache(any::AnyCache cache, std::shared_ptr<Facts> facts) : shape_(cache.shape()), facts_(std::move(facts)) { cache_.emplace(std::move(cache)); }

  const CacheShape& shape() const { return shape_; }
  std::string text() {
    return locked([&] { return std::string(cache_->text()); });
  }

  void append(index_t layer, const py::object& k, const py::object& v, const py::object& positions, const py::object& queries) {
    Rows keys(k, "k"), values(v, "v");
    agree(keys, values);
    const Rows asking = queries.is_none() ? Rows() : Rows(queries, "queries").widened();
    const Positions at(positions);
    alone("append", [&](Context<Cpu>& ctx) {
      return with_rows(keys, values, [&](auto kk, auto vv) { return cache_->append(ctx, layer, kk, vv, at.numbers(), asking.view<float>()); });
    }, keys.extent(1));
  }

  py::object attend(index_t layer, const py::object& q, bool mass, bool lse) {
    const Rows queries = Rows(q, "q").widened();
    check_layer("attend", layer);
    Floats out = outputs(queries);
    const TensorView<float, 3> to = view_of(out);
    std::vector<float> sums;
    py::array_t<float> logs(lse ? std::vector<py::ssize_t>{queries.extent(0), queries.extent(1)} : std::vector<py::ssize_t>{0, 0});
    float* logs_data = logs.mutable_data();
    alone("attend", [&](Context<Cpu>& ctx) {
      AttendOutputs measure;
      if (mass) sums.resize(static_cast<std::size_t>(cache_->total_slots(layer))), measure.mass = cache_->ragged(layer, sums.data());
      if (lse) measure.lse = dense_view(logs_data, queries.extent(0), queries.extent(1));
      return cache_->attend(ctx, layer, queries.view<float>(), to, measure);
    }, queries.extent(1));
    if (!mass && !lse) return out;
    py::list all;
    all.append(out);
    if (mass) all.append(array_of(sums));
    if (lse) all.append(logs);
    return py::tuple(all);
  }

  void step(index_t layer, const std::string& phase, const std::optional<Floats>& mass, std::optional<index_t> mass_rows, const py::kwargs& given) {
    Given inputs(given);
    const Phase at = phase_of(phase);
    check_layer("step", layer);
    const char* lacks = nullptr;
    const auto run = [&](Context<Cpu>& ctx) {
      if (mass) {
        if (mass->size() != cache_->total_slots(layer)) return Status::shape_mismatch;
        const RaggedView<float> own = cache_->ragged(layer, nullptr);
        const index_t rows = mass_rows ? *mass_rows : cache_->mass_rows(cache_->pending(layer));
        inputs.in.attention = {{mass->data(), own.offset, own.heads}, rows};
      }
      const Status s = cache_->step(ctx, layer, inputs.in, at);
      if (s == Status::missing_input) lacks = cache_->missing(layer, inputs.in, at);
      return s;
    };
    alone("step", run, 0, &lacks);
  }

  Floats forward(index_t layer, const py::object& q, const py::object& k, const py::object& v, const py::object& positions,
                 const std::string& phase, const py::kwargs& given) {
    Given inputs(given);
    const Phase at = phase_of(phase);
    const Rows queries = Rows(q, "q").widened();
    Rows keys(k, "k"), values(v, "v");
    agree(keys, values);
    check_layer("forward", layer);
    Floats out = outputs(queries);
    const TensorView<float, 3> to = view_of(out);
    const Positions where(positions);
    const char* lacks = nullptr;
    const auto run = [&](Context<Cpu>& ctx) {
      const Status s = with_rows(keys, values, [&](auto kk, auto vv) {
        return cache_->forward(ctx, layer, queries.view<float>(), kk, vv, to, where.numbers(), at, inputs.in);
      });
      if (s == Status::missing_input) {
        lacks = missing_beside_attention(inputs.in, keys.extent(1), at);
      }
      return s;
    };
    alone("forward", run, keys.extent(1), &lacks);
    return out;
  }

  void turn(index_t incoming) {
    alone("turn", [&](Context<Cpu>& ctx) { return cache_->turn(ctx, incoming); });
  }
  void truncate(index_t tokens) {
    alone("truncate", [&](Context<Cpu>&) { return cache_->truncate(tokens); });
  }
  void remove(index_t first, index_t last) {
    alone("remove", [&](Context<Cpu>& ctx) { return cache_->remove(ctx, first, last); });
  }
  void reset() {
    py::gil_scoped_release others;
    const std::lock_guard<std::mutex> mine(lock_);
    cache_->reset();
  }
  std::unique_ptr<PyCache> fork() {
    std::shared_ptr<Facts> facts;
    std::optional<any::AnyCache> copy;
    alone("fork", [&](Context<Cpu>&) {
      auto made = cache_->fork();
      if (!made) return made.status();
      copy.emplace(std::move(*made)), facts = facts_;  // both before a reorder of another thread
      return Status::ok;
    });
    return std::make_unique<PyCache>(std::move(*copy), std::move(facts));
  }
  py::bytes save() {
    BytesSink sink;
    alone("save", [&](Context<Cpu>&) { return cache_->save(sink); });
    return sink.bytes;
  }
  void load(const py::buffer& file) {
    const py::buffer_info info = file.request();
    bool dense = true;
    py::ssize_t step = info.itemsize;
    for (py::ssize_t i = info.ndim - 1; i >= 0; --i)
      dense = dense && info.strides[static_cast<std::size_t>(i)] == step, step *= info.shape[static_cast<std::size_t>(i)];
    if (!dense) raise(Status::invalid_argument, "load: bytes lie one behind the other");
    const std::span<const std::byte> bytes(static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize));
    alone("load", [&](Context<Cpu>&) { return cache_->load(bytes); });
  }

  py::tuple read(index_t layer, index_t head, index_t first, std::optional<index_t> count) {
    check_head("read", layer, head);
    const index_t n = count ? *count : std::max<index_t>(0, slots(layer, head) - first);
    if (first < 0 || n < 0) raise(Status::out_of_range, "read: out_of_range: slots begin at 0");
    const index_t dim = shape_.head_dim, value_dim = shape_.values();
    Floats keys({n, dim}), values({n, value_dim});
    float *to_keys = keys.mutable_data(), *to_values = values.mutable_data();
    alone("read", [&](Context<Cpu>&) {
      return cache_->read(layer, head, first, dense_view(to_keys, n, dim), dense_view(to_values, n, value_dim));
    });
    return py::make_tuple(keys, values);
  }
  py::array_t<std::int64_t> tokens(index_t layer, index_t head) {
    check_head("tokens", layer, head);
    const std::lock_guard<std::mutex> mine(lock_);
    std::vector<std::int64_t> all(static_cast<std::size_t>(cache_->slots(layer, head)));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = cache_->token(layer, head, static_cast<index_t>(i));
    return array_of(all);
  }
  index_t slots(index_t layer, index_t head) {
    check_head("slots", layer, head);
    return locked([&] { return cache_->slots(layer, head); });
  }
  /// A number of a layer.
  template <class F>
  auto of_layer(const char* call, index_t layer, F&& f) {
    check_layer(call, layer);
    return locked([&] { return f(*cache_); });
  }
  py::dict report() {
    const Report r = locked([&] { return cache_->report(); });
    py::dict d;
    d["exact_bytes"] = r.exact_bytes, d["coded_bytes"] = r.coded_bytes, d["side_bytes"] = r.side_bytes, d["index_bytes"] = r.index_bytes;
    d["fixed_bytes"] = r.fixed_bytes, d["dead_bytes"] = r.dead_bytes, d["shared_bytes"] = r.shared_bytes, d["dense_bytes"] = r.dense_bytes;
    d["tokens"] = r.tokens, d["slots"] = r.slots, d["budget_asked"] = r.budget_asked, d["budget_met"] = r.budget_met;
    d["evictions"] = r.evictions, d["evicted_slots"] = r.evicted_slots, d["merged_slots"] = r.merged_slots, d["across_rows"] = r.across_rows;
    d["nan_scores"] = r.nan_scores, d["repaired_numbers"] = r.repaired_numbers, d["coded_again"] = r.coded_again, d["kernel"] = r.kernel;
    d["bytes"] = r.bytes(), d["ratio"] = r.ratio();
    return d;
  }
  py::dict capabilities() {
    const Capabilities k = locked([&] { return cache_->capabilities(); });
    py::dict d;
    d["changes_length"] = k.changes_length, d["probes"] = k.probes, d["raw_keys"] = k.raw_keys, d["rotated_input"] = k.rotated_input;
    d["lossy_slots"] = k.lossy_slots, d["reads_part"] = k.reads_part, d["joins_tokens"] = k.joins_tokens, d["turns_keys"] = k.turns_keys, d["found_maps"] = k.found_maps;
    d["rollback_exact"] = k.rollback_exact, d["prefix_exact"] = k.prefix_exact;
    py::list needs;
    for (const Input i : all_inputs)
      if (k.needs.has(i)) needs.append(to_string(i));
    d["needs"] = needs;
    return d;
  }

  static void reorder(const std::vector<PyCache*>& caches, const std::vector<index_t>& map) {
    if (caches.size() != map.size()) raise(Status::shape_mismatch, "reorder: one number per cache");
    std::vector<PyCache*> in_order(caches);
    std::sort(in_order.begin(), in_order.end());
    if (std::adjacent_find(in_order.begin(), in_order.end()) != in_order.end()) raise(Status::invalid_argument, "reorder: a cache is there twice");
    const auto same = [](const CacheShape& a, const CacheShape& b) {
      return a.layers == b.layers && a.q_heads == b.q_heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim && a.values() == b.values();
    };
    for (const PyCache* c : caches)
      if (!same(c->shape_, caches[0]->shape_)) raise(Status::incompatible, "reorder: caches of different shapes");
    for (const index_t i : map)
      if (i < 0 || i >= static_cast<index_t>(caches.size())) raise(Status::out_of_range, "reorder: there is no cache " + std::to_string(i));
    Status s = Status::ok;
    std::vector<std::shared_ptr<Facts>> facts(map.size());  // here, so that arrays that nobody needs any more die with the interpreter's lock held
    {
      py::gil_scoped_release others;
      std::vector<std::unique_lock<std::mutex>> locks;
      for (PyCache* c : in_order) locks.emplace_back(c->lock_);
      std::vector<any::AnyCache> next;
      for (std::size_t i = 0; i < map.size() && s == Status::ok; ++i) {
        auto copy = caches[static_cast<std::size_t>(map[i])]->cache_->fork();
        if (copy) next.push_back(std::move(*copy));
        else s = copy.status();
      }
      for (std::size_t i = 0; i < map.size(); ++i) facts[i] = caches[static_cast<std::size_t>(map[i])]->facts_;
      for (std::size_t i = 0; i < map.size() && s == Status::ok; ++i) *caches[i]->cache_ = std::move(next[i]), caches[i]->facts_.swap(facts[i]);
    }
    require(s, "reorder");
  }

 private:
  void check_layer(const char* call, index_t layer) const {
    if (layer < 0 || layer >= shape_.layers) raise(Status::out_of_range, std::string(call) + ": there is no layer " + std::to_string(layer));
  }
  void check_head(const char* call, index_t layer, index_t head) const {
    check_layer(call, layer);
    if (head < 0 || head >= shape_.kv_heads) raise(Status::out_of_range, std::string(call) + ": there is no KV head " + std::to_string(head));
  }
  Floats outputs(const Rows& queries) const { return Floats({queries.extent(0), queries.extent(1), shape_.values()}); }
  static TensorView<float, 3> view_of(Floats& out) { return dense_view(out.mutable_data(), out.shape(0), out.shape(1), out.shape(2)); }

  /// The first input that is not there, but for those that forward makes.
  const char* missing_beside_attention(const StepInputs& in, index_t tokens, Phase phase) const {
    kvcondense::Inputs needs = cache_->capabilities().needs;
    if (phase != Phase::probe) needs = needs.without(Input::hidden_norms);
    for (const Input i : all_inputs)
      if (i != Input::attention && i != Input::queries && needs.has(i) && check_input(in, i, shape_, tokens) == Status::missing_input)
        return to_string(i);
    return nullptr;
  }

  /// Runs a call with scratch memory for it, this cache's alone, while other Python threads go on.
  template <class F>
  void alone(const char* name, F&& call, index_t tokens = 0, const char** detail = nullptr) {
    Status s = Status::ok;
    {
      py::gil_scoped_release others;
      const std::lock_guard<std::mutex> mine(lock_);
      index_t most = 0, pending = 0;
      for (index_t l = 0; l < shape_.layers; ++l) {
        pending = std::max(pending, cache_->pending(l));
        for (index_t h = 0; h < shape_.kv_heads; ++h) most = std::max(most, cache_->slots(l, h));
      }
      const index_t room = (most + tokens + 255) / 256 * 256;  // so that a growing cache asks rarely
      s = scratch_.reserve(cache_->workspace_bytes(room, std::max<index_t>(1, std::max(tokens, pending))));
      Context<Cpu> ctx(scratch_.bytes());
      if (s == Status::ok) s = call(ctx);
    }
    require(s, name, detail == nullptr ? nullptr : *detail);
  }

  CacheShape shape_;  ///< never changes, so nobody need wait to read it
  std::shared_ptr<Facts> facts_;  ///< outlives the cache: arrays are borrowed
  std::optional<any::AnyCache> cache_;
  Workspace scratch_;
  std::mutex lock_;
};

}  // namespace

void bind_cache(py::module_& m) {
  using namespace py::literals;
  py::class_<CacheShape>(m, "Shape", "The run-time numbers of a cache: layers, heads, sizes of rows, and how exact rows are stored.")
      .def(py::init([](index_t layers, index_t q_heads, index_t kv_heads, index_t head_dim, index_t value_dim, const std::string& dtype, index_t page_slots,
                       float softmax_scale) {
             const CacheShape s{layers, q_heads, kv_heads, head_dim, value_dim, dtype_of(dtype), page_slots, softmax_scale};
             require(validate(s), "Shape");
             return s;
           }),
           py::kw_only(), "layers"_a = 1, "q_heads"_a = 1, "kv_heads"_a = 1, "head_dim"_a = 64, "value_dim"_a = 0, "dtype"_a = "f16", "page_slots"_a = 64,
           "softmax_scale"_a = 0.0f)
      .def_readonly("layers", &CacheShape::layers)
      .def_readonly("q_heads", &CacheShape::q_heads)
      .def_readonly("kv_heads", &CacheShape::kv_heads)
      .def_readonly("head_dim", &CacheShape::head_dim)
      .def_property_readonly("value_dim", &CacheShape::values)
      .def_property_readonly("dtype", [](const CacheShape& s) { return to_string(s.dtype); })
      .def_readonly("page_slots", &CacheShape::page_slots)
      .def_readonly("softmax_scale", &CacheShape::softmax_scale)
      .def("__repr__", [](const CacheShape& s) {
        return "Shape(layers=" + std::to_string(s.layers) + ", q_heads=" + std::to_string(s.q_heads) + ", kv_heads=" + std::to_string(s.kv_heads) +
               ", head_dim=" + std::to_string(s.head_dim) + ", value_dim=" + std::to_string(s.values()) + ", dtype='" + to_string(s.dtype) + "')";
      });

  py::class_<PyCache>(m, "Cache", "The keys and values of one sequence, all layers, kept as a recipe says.\n\n"
                                  "Arrays are float32 or float16, [heads, tokens, dim], read where they lie when the numbers of a row are side by side.\n"
                                  "Calls may come from any thread: one cache does one at a time, and lets other Python threads run meanwhile.")
      .def(py::init([](const CacheShape& shape, const std::string& recipe, const py::dict& model) { return std::make_unique<PyCache>(shape, recipe, model); }),
           "shape"_a, "recipe"_a = "keep_all", "model"_a = py::dict(), "An empty cache. `model`: arrays that the recipe needs, by name, and its 'rope'.")
      .def("forward", &PyCache::forward, "layer"_a, "q"_a, "k"_a, "v"_a, py::kw_only(), "positions"_a = py::none(), "phase"_a = "automatic",
           "Append, attend and step; gives attention, float32 [q_heads, tokens, value_dim]. Other inputs of the step by name.")
      .def("append", &PyCache::append, "layer"_a, "k"_a, "v"_a, py::kw_only(), "positions"_a = py::none(), "queries"_a = py::none(),
           "Adds tokens, which stay pending until a step.")
      .def("attend", &PyCache::attend, "layer"_a, "q"_a, py::kw_only(), "mass"_a = false, "lse"_a = false,
           "Attention of the newest tokens' queries; with `mass` or `lse` a tuple (out, mass, lse) of what was asked for.")
      .def("step", &PyCache::step, "layer"_a, py::kw_only(), "phase"_a = "automatic", "mass"_a = py::none(), "mass_rows"_a = py::none(),
           "Lets the recipe act on the pending tokens. `mass`: as attend gave it; other inputs by name.")
      .def("turn", &PyCache::turn, "incoming"_a = 0, "Between turns of a dialogue: makes room for `incoming` tokens, in all layers.")
      .def("truncate", &PyCache::truncate, "tokens"_a, "Keeps the first `tokens` tokens.")
      .def("remove", &PyCache::remove, "first"_a, "last"_a, "Takes tokens [first, last) out.")
      .def("fork", &PyCache::fork, "A second cache with the same contents; pages are shared until one of them writes.")
      .def("reset", &PyCache::reset, "Empties the cache.")
      .def("save", &PyCache::save, "A snapshot, as bytes.")
      .def("load", &PyCache::load, "file"_a, "Takes what `save` gave, of a cache of the same shape and recipe.")
      .def("read", &PyCache::read, "layer"_a, "head"_a, "first"_a = 0, "count"_a = py::none(), "Keys and values of slots of a KV head, decoded to float32.")
      .def("tokens", &PyCache::tokens, "layer"_a, "head"_a, "Which token each slot of a KV head holds.")
      .def("slots", &PyCache::slots, "layer"_a, "head"_a, "How many slots a KV head holds.")
      .def("length", [](PyCache& c, index_t layer) { return c.of_layer("length", layer, [&](const auto& k) { return k.length(layer); }); }, "layer"_a = 0,
           "Tokens ever appended.")
      .def("pending", [](PyCache& c, index_t layer) { return c.of_layer("pending", layer, [&](const auto& k) { return k.pending(layer); }); },
           "layer"_a = 0, "Of them, those that no step has seen.")
      .def("next_position", [](PyCache& c, index_t layer) { return c.of_layer("next_position", layer, [&](const auto& k) { return k.next_position(layer); }); },
           "layer"_a = 0, "Position of the next token.")
      .def("wants_mass", [](PyCache& c, index_t layer, const std::string& phase) {
             const Phase at = phase_of(phase);
             return c.of_layer("wants_mass", layer, [&](const auto& k) { return k.wants_mass(layer, at); });
           }, "layer"_a, "phase"_a = "automatic", "Whether the coming step reads attention; ask between append and attend.")
      .def("report", &PyCache::report, "What the cache holds and did.")
      .def("capabilities", &PyCache::capabilities, "What the recipe does and needs, known before anything runs.")
      .def_property_readonly("text", &PyCache::text, "The recipe in its canonical form.")
      .def_property_readonly("shape", &PyCache::shape)
      .def("__repr__", [](PyCache& c) { return "<kvcondense.Cache '" + c.text() + "'>"; });

  m.def("reorder", &PyCache::reorder, "caches"_a, "map"_a, "Beams change places: caches[i] becomes what caches[map[i]] was; pages are shared.");
}

}  // namespace kvcondense::python
