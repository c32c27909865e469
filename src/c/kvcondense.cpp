// The C interface: every function checks its pointers, turns plain structs into views, and calls AnyCache.

#include <kvcondense/c/kvcondense.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <new>
#include <optional>
#include <string_view>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/registry.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/version.hpp>

using namespace kvcondense;

static_assert(static_cast<int>(Status::device_error) == KVC_DEVICE_ERROR && static_cast<int>(Status::missing_input) == KVC_MISSING_INPUT);
static_assert(static_cast<int>(DType::bf16) == KVC_BF16 && static_cast<int>(Phase::probe) == KVC_PROBE);
static_assert(static_cast<int>(prim::RopeScaling::table) == KVC_ROPE_TABLE);
static_assert(sizeof(TokenClass) == 1 && static_cast<int>(TokenClass::special) == 2);
static_assert(sizeof(index_t) == sizeof(std::int64_t));

namespace {

/// The caller's functions as a resource.
class CallerMemory final : public MemoryResource<Cpu> {
 public:
  explicit CallerMemory(const kvc_memory& calls) : calls_(calls) {}
  void* allocate(std::size_t bytes, std::size_t align) noexcept override { return calls_.allocate(calls_.self, bytes, align); }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override { calls_.release(calls_.self, p, bytes, align); }

 private:
  kvc_memory calls_;
};

/// What a cache and its forks have in common; it lives until the last of them goes.
struct Common {
  std::optional<CallerMemory> memory;  ///< none: the heap
  Buffer<NamedBases> bases{heap_memory()};
  std::atomic<std::int64_t> caches{1};  ///< at first the call that makes it

  MemoryResource<Cpu>& resource() { return memory ? *memory : heap_memory(); }
};

class CallerThreads final : public Executor {
 public:
  explicit CallerThreads(const kvc_executor* calls) : calls_(calls) {}
  index_t workers() const noexcept override { return calls_->workers; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    static_assert(std::is_same_v<index_t, std::int64_t>);
    calls_->run(calls_->self, tasks, body, state);
  }

 private:
  const kvc_executor* calls_;
};

class CallerSink final : public ByteSink {
 public:
  CallerSink(int (*call)(void*, const void*, std::size_t), void* self) : write_(call), self_(self) {}
  bool write(std::span<const std::byte> bytes) noexcept override { return write_(self_, bytes.data(), bytes.size()) != 0; }

 private:
  int (*write_)(void*, const void*, std::size_t);
  void* self_;
};

kvc_status code(Status s) { return static_cast<kvc_status>(s); }

/// Calls use(Context<Cpu>&).
template <class Use>
kvc_status in_context(const kvc_context* c, Use&& use) {
  if (c == nullptr || (c->workspace == nullptr && c->workspace_bytes > 0)) return KVC_INVALID_ARGUMENT;
  const std::span<std::byte> workspace(static_cast<std::byte*>(c->workspace), c->workspace_bytes);
  if (c->executor == nullptr) {
    Context<Cpu> ctx(workspace);
    return code(use(ctx));
  }
  if (c->executor->run == nullptr || c->executor->workers < 1) return KVC_INVALID_ARGUMENT;
  CallerThreads threads(c->executor);
  Context<Cpu> ctx(workspace, &threads);
  return code(use(ctx));
}

template <class T>
TensorView<const T, 3> rows_of(const kvc_rows& r) {
  TensorView<const T, 3> v;
  v.data = static_cast<const T*>(r.data);
  for (int i = 0; i < 3; ++i) v.extent[i] = r.extent[i], v.stride[i] = r.stride[i];
  return v;
}
TensorView<float, 3> rows_of(const kvc_out& r) {
  TensorView<float, 3> v;
  v.data = r.data;
  for (int i = 0; i < 3; ++i) v.extent[i] = r.extent[i], v.stride[i] = r.stride[i];
  return v;
}
bool usable(const kvc_out* r) { return r != nullptr && r->stride[2] == 1 && (r->data != nullptr || r->extent[1] == 0); }
bool usable(const kvc_rows* r) { return r != nullptr && r->stride[2] == 1 && (r->data != nullptr || r->extent[1] == 0); }
bool usable_floats(const kvc_rows* r) { return usable(r) && r->dtype == KVC_F32; }
bool known(kvc_phase p) { return p >= KVC_AUTOMATIC && p <= KVC_PROBE; }

/// Calls use(keys, values) with views of their type.
template <class Use>
kvc_status with_type(const kvc_rows& keys, const kvc_rows& values, Use&& use) {
  if (keys.dtype != values.dtype) return KVC_INVALID_ARGUMENT;
  switch (keys.dtype) {
    case KVC_F32: return use(rows_of<float>(keys), rows_of<float>(values));
    case KVC_F16: return use(rows_of<half>(keys), rows_of<half>(values));
    case KVC_BF16: return use(rows_of<bfloat16>(keys), rows_of<bfloat16>(values));
  }
  return KVC_INVALID_ARGUMENT;
}

std::span<const index_t> positions_of(const std::int64_t* positions, index_t tokens) {
  return positions == nullptr ? std::span<const index_t>{} : std::span<const index_t>(positions, static_cast<std::size_t>(tokens));
}

/// The fields that the caller's header knew; others as `fallback` has them.
template <class T>
T as_known(const T* given, T fallback) {
  if (given != nullptr) std::memcpy(&fallback, given, std::min(given->size, sizeof(T)));
  return fallback;
}
/// Fills what the caller's header knows.
template <class T>
void give_known(T from, T* out) {
  from.size = out->size;
  std::memcpy(out, &from, std::min(out->size, sizeof(T)));
}

Status inputs_of(const any::AnyCache& cache, index_t layer, const kvc_inputs* given, StepInputs& out) {
  if (given == nullptr) return Status::ok;
  if (given->size < sizeof(given->size)) return Status::invalid_argument;  // forgotten: nothing would be looked at
  const kvc_inputs in = as_known(given, kvc_no_inputs());
  const CacheShape& s = cache.shape();
  const auto rows = [](const kvc_rows& r, TensorView<const float, 3>& view) {
    if (r.data == nullptr) return true;
    if (!usable_floats(&r)) return false;
    view = rows_of<float>(r);
    return true;
  };
  if (!rows(in.queries, out.queries) || !rows(in.raw_queries, out.raw_queries) || !rows(in.raw_keys, out.raw_keys) ||
      !rows(in.values, out.values) || in.tokens < 0)
    return Status::invalid_argument;
  if (in.mass != nullptr) {
    const RaggedView<float> own = cache.ragged(layer, nullptr);
    out.attention = {{in.mass, own.offset, own.heads}, in.mass_rows};
  }
  if (in.query_mean != nullptr) out.query_mean = dense_view(in.query_mean, s.q_heads, s.head_dim);
  if (in.query_covariance != nullptr) out.query_covariance = dense_view(in.query_covariance, s.q_heads, s.head_dim, s.head_dim);
  if (in.gates != nullptr) out.gates = dense_view(in.gates, s.kv_heads, in.tokens);
  const auto tokens = static_cast<std::size_t>(in.tokens);
  if (in.surprise != nullptr) out.surprise = {in.surprise, tokens};
  if (in.classes != nullptr) {
    if (std::any_of(in.classes, in.classes + tokens, [](std::uint8_t c) { return c > 2; })) return Status::invalid_argument;
    out.classes = {reinterpret_cast<const TokenClass*>(in.classes), tokens};
  }
  if (in.hidden_norms != nullptr) out.hidden_norms = {in.hidden_norms, tokens};
  out.incoming = in.incoming, out.probe_first = in.probe_first, out.probe_last = in.probe_last;
  return Status::ok;
}

prim::RopeConfig rope_of(const kvc_rope& r) {
  prim::RopeConfig c;
  c.pairing = r.interleaved != 0 ? prim::RopePairing::interleaved : prim::RopePairing::half_split;
  c.rotary_dim = r.rotary_dim, c.base = r.base, c.scaling = static_cast<prim::RopeScaling>(r.scaling), c.factor = r.factor;
  c.original_length = r.original_length, c.length = r.length;
  c.low_frequency = r.low_frequency, c.high_frequency = r.high_frequency, c.beta_fast = r.beta_fast, c.beta_slow = r.beta_slow;
  c.attention_factor = r.attention_factor;
  if (r.table != nullptr && r.table_count > 0) c.table = {r.table, static_cast<std::size_t>(r.table_count)};
  if (r.long_table != nullptr && r.long_table_count > 0) c.long_table = {r.long_table, static_cast<std::size_t>(r.long_table_count)};
  return c;
}

/// Gives one array to the fact of its name; false where there is none, or the array is not of its kind.
bool take_array(const kvc_array& a, any::ModelFacts& facts) {
  if (a.name == nullptr || (a.data == nullptr) == (a.per_layer == nullptr)) return false;
  for (const std::int64_t e : a.extent)
    if (e < 0) return false;
  const std::string_view name(a.name);
  bool found = false;
  const auto is = [&](std::string_view fact, bool flat) { return !found && name == fact && flat == (a.data != nullptr); };
  const auto heads = [&](std::string_view fact, HeadTable& to) {
    if (is(fact, true)) to = {a.data, a.extent[0], a.extent[1]}, found = true;
  };
  const auto layers = [&](std::string_view fact, LayerTable& to) {
    if (is(fact, true)) to = {a.data, a.extent[0]}, found = true;
  };
  const auto rows = [&](std::string_view fact, HeadRows& to) {
    if (is(fact, true)) to = {a.data, a.extent[0], a.extent[1], a.extent[2]}, found = true;
  };
  const auto matrices = [&](std::string_view fact, LayerMatrices& to) {
    if (is(fact, false)) to = {a.per_layer, a.extent[0], a.extent[1], a.extent[2]}, found = true;
  };
  heads("gates", facts.gates), heads("induction", facts.induction), heads("echo", facts.echo), heads("shares", facts.shares);
  heads("key_widths", facts.key_widths), heads("value_widths", facts.value_widths);
  layers("evicted", facts.evicted), layers("variance", facts.variance);
  rows("key_clusters", facts.key_clusters), rows("value_clusters", facts.value_clusters);
  rows("key_lower", facts.key_lower), rows("key_upper", facts.key_upper);
  rows("key_levels", facts.key_levels), rows("value_levels", facts.value_levels);
  rows("key_books", facts.key_books), rows("value_books", facts.value_books), rows("query_filters", facts.query_filters);
  matrices("output", facts.output), matrices("key_codes", facts.key_codes), matrices("key_metric", facts.key_metric);
  matrices("key_axes", facts.key_axes), matrices("query_axes", facts.query_axes);
  matrices("retain_in", facts.retain_in), matrices("retain_out", facts.retain_out);
  if (is("hash_planes", true)) facts.hash_planes = {a.data, a.extent[0], a.extent[1], a.extent[2]}, found = true;
  return found;
}

/// Appends what one method made of the model; a basis with nothing in it is none. `why`: the sentence of a refusal.
Status take_bases(const kvc_bases& b, Buffer<NamedBases>& to, const char*& why) {
  const auto refuse = [&](Status s, const char* sentence) { return why = sentence, s; };
  if (b.method == nullptr) return refuse(Status::invalid_argument, "bases have no method");
  if (BasisList{to.data(), to.size()}.find(b.method) != nullptr) return refuse(Status::invalid_argument, "two bases are of one method");
  for (const kvc_basis* x : {&b.keys, &b.values}) {
    const auto [least, most] = std::minmax({x->layers, x->groups, x->dim, x->columns});
    if (x->encode != nullptr && least < 1) return refuse(Status::invalid_argument, "a basis has no size");
    const bool none = x->decode == nullptr && x->mean == nullptr && x->energy == nullptr && x->ranks == nullptr && least == 0 && most == 0;
    if (x->encode == nullptr && !none) return refuse(Status::missing_input, "a basis lacks its encode");
  }
  const auto side = [](const kvc_basis& x, KeyForm form) {
    if (x.encode == nullptr) return HeadBases{};
    return HeadBases{x.encode, x.decode, x.mean, x.energy, x.ranks, x.layers, x.groups, x.dim, x.columns, form};
  };
  why = "out of memory";
  return to.push_back({b.method, side(b.keys, b.raw_keys != 0 ? KeyForm::raw : KeyForm::rotated), side(b.values, KeyForm::rotated)});
}

void complain(kvc_error* error, std::string_view message, std::size_t position = any::MakeResult::no_position) {
  if (error == nullptr) return;
  const std::size_t n = std::min(message.size(), sizeof(error->message) - 1);
  std::memcpy(error->message, message.data(), n);
  error->message[n] = '\0';
  error->position = position == any::MakeResult::no_position ? -1 : static_cast<std::int64_t>(position);
}

}  // namespace

/// A handle.
struct kvc_cache {
  any::AnyCache cache;
  Buffer<char> text;  ///< ends with a zero
  Common* common = nullptr;

  bool layer(index_t i) const { return i >= 0 && i < cache.shape().layers; }
  bool head(index_t l, index_t h) const { return layer(l) && h >= 0 && h < cache.shape().kv_heads; }
};

namespace {

void let_go(Common* common) {
  if (common->caches.fetch_sub(1) == 1) delete common;
}

/// A handle that shares `common`; null when there is no room.
kvc_cache* new_handle(any::AnyCache&& cache, Common* common) {
  Buffer<char> text(common->resource());
  const std::string_view words = cache.text();
  if (text.resize(static_cast<index_t>(words.size()) + 1) != Status::ok) return nullptr;
  std::copy(words.begin(), words.end(), text.begin());
  text[static_cast<index_t>(words.size())] = '\0';
  auto* handle = new (std::nothrow) kvc_cache{std::move(cache), std::move(text), common};
  if (handle != nullptr) common->caches.fetch_add(1);
  return handle;
}

}  // namespace

extern "C" {

kvc_shape kvc_default_shape(void) {
  const CacheShape s{};
  return {s.layers, s.q_heads, s.kv_heads, s.head_dim, s.value_dim, static_cast<kvc_dtype>(s.dtype), s.page_slots, s.softmax_scale};
}
kvc_rope kvc_default_rope(void) {
  const prim::RopeConfig c;
  kvc_rope r{};
  r.base = c.base, r.factor = c.factor, r.original_length = c.original_length;
  r.low_frequency = c.low_frequency, r.high_frequency = c.high_frequency, r.beta_fast = c.beta_fast, r.beta_slow = c.beta_slow;
  return r;
}
kvc_inputs kvc_no_inputs(void) {
  kvc_inputs in{};
  in.size = sizeof(kvc_inputs);
  return in;
}

const char* kvc_version(void) { return version_string; }
const char* kvc_status_name(kvc_status status) { return to_string(static_cast<Status>(status)); }

kvc_status kvc_make(const char* recipe, const kvc_shape* shape, const kvc_model* model, const kvc_memory* memory, kvc_cache** out,
                    kvc_error* error) {
  complain(error, "");
  if (out == nullptr || recipe == nullptr || shape == nullptr) return complain(error, "a pointer is null"), KVC_INVALID_ARGUMENT;
  *out = nullptr;
  if (memory != nullptr && (memory->allocate == nullptr || memory->release == nullptr))
    return complain(error, "the memory lacks a function"), KVC_INVALID_ARGUMENT;
  if (shape->dtype < KVC_F32 || shape->dtype > KVC_BF16) return complain(error, "no such dtype"), KVC_INVALID_ARGUMENT;
  any::ModelFacts facts;
  std::span<const kvc_bases> bases;
  if (model != nullptr) {
    if (model->size < offsetof(kvc_model, bases)) return complain(error, "the model lacks its size: begin with KVC_MODEL_INIT"), KVC_INVALID_ARGUMENT;
    const kvc_model m = as_known(model, kvc_model KVC_MODEL_INIT);
    if (m.array_count < 0 || (m.array_count > 0 && m.arrays == nullptr)) return complain(error, "arrays are missing"), KVC_INVALID_ARGUMENT;
    if (m.bases_count < 0 || (m.bases_count > 0 && m.bases == nullptr)) return complain(error, "bases are missing"), KVC_INVALID_ARGUMENT;
    bases = {m.bases, static_cast<std::size_t>(m.bases_count)};
    if (m.rope != nullptr) {
      if (m.rope->scaling < KVC_ROPE_NONE || m.rope->scaling > KVC_ROPE_TABLE)
        return complain(error, "no such rope scaling"), KVC_INVALID_ARGUMENT;
      facts.rope = rope_of(*m.rope);
    }
    for (std::int64_t i = 0; i < m.array_count; ++i)
      if (!take_array(m.arrays[i], facts)) return complain(error, "an array has an unknown name or another form than its name asks for"), KVC_INVALID_ARGUMENT;
  }
  Common* common = new (std::nothrow) Common;
  if (common == nullptr) return complain(error, "out of memory"), KVC_OUT_OF_MEMORY;
  if (memory != nullptr) common->memory.emplace(*memory), common->bases = Buffer<NamedBases>(*common->memory);
  const char* why = nullptr;
  for (const kvc_bases& b : bases)
    if (const Status taken = take_bases(b, common->bases, why); taken != Status::ok) return complain(error, why), let_go(common), code(taken);
  facts.bases = {common->bases.data(), common->bases.size()};
  const CacheShape s{.layers = shape->layers, .q_heads = shape->q_heads, .kv_heads = shape->kv_heads, .head_dim = shape->head_dim,
                     .value_dim = shape->value_dim, .dtype = static_cast<DType>(shape->dtype), .page_slots = shape->page_slots,
                     .softmax_scale = shape->softmax_scale};
  kvc_status status = KVC_OK;
  {
    auto made = any::make(recipe, s, any::on<Cpu>, common->resource(), facts);
    if (!made) {
      complain(error, made.message(), made.position());
      status = code(made.status());
    } else if ((*out = new_handle(*std::move(made), common)) == nullptr) {
      complain(error, "out of memory");
      status = KVC_OUT_OF_MEMORY;
    }
  }
  let_go(common);
  return status;
}

void kvc_free(kvc_cache* cache) {
  if (cache == nullptr) return;
  Common* common = cache->common;
  delete cache;
  let_go(common);
}

const char* kvc_text(const kvc_cache* cache, std::size_t* length) {
  if (length != nullptr) *length = cache == nullptr ? 0 : static_cast<std::size_t>(cache->text.size()) - 1;
  return cache == nullptr ? nullptr : cache->text.data();
}

std::int64_t kvc_length(const kvc_cache* c, std::int64_t layer) { return c != nullptr && c->layer(layer) ? c->cache.length(layer) : -1; }
std::int64_t kvc_pending(const kvc_cache* c, std::int64_t layer) { return c != nullptr && c->layer(layer) ? c->cache.pending(layer) : -1; }
std::int64_t kvc_next_position(const kvc_cache* c, std::int64_t layer) {
  return c != nullptr && c->layer(layer) ? c->cache.next_position(layer) : -1;
}
std::int64_t kvc_slots(const kvc_cache* c, std::int64_t layer, std::int64_t head) {
  return c != nullptr && c->head(layer, head) ? c->cache.slots(layer, head) : -1;
}
std::int64_t kvc_token(const kvc_cache* c, std::int64_t layer, std::int64_t head, std::int64_t slot) {
  return slot >= 0 && slot < kvc_slots(c, layer, head) ? c->cache.token(layer, head, slot) : -1;
}
std::int64_t kvc_total_slots(const kvc_cache* c, std::int64_t layer) {
  return c != nullptr && c->layer(layer) ? c->cache.total_slots(layer) : -1;
}
std::int64_t kvc_mass_rows(const kvc_cache* c, std::int64_t tokens) { return c != nullptr && tokens >= 0 ? c->cache.mass_rows(tokens) : -1; }
int kvc_wants_mass(const kvc_cache* c, std::int64_t layer, kvc_phase phase) {
  return c != nullptr && c->layer(layer) && known(phase) && c->cache.wants_mass(layer, static_cast<Phase>(phase)) ? 1 : 0;
}
std::size_t kvc_workspace_bytes(const kvc_cache* c, std::int64_t slots, std::int64_t tokens, std::int64_t workers) {
  return c == nullptr || slots < 0 || tokens < 0 || workers < 1 ? 0 : c->cache.workspace_bytes(slots, tokens, workers);
}

kvc_status kvc_append(kvc_cache* c, const kvc_context* context, std::int64_t layer, const kvc_rows* keys, const kvc_rows* values,
                      const std::int64_t* positions, const kvc_rows* queries) {
  if (c == nullptr || !usable(keys) || !usable(values) || (queries != nullptr && !usable_floats(queries))) return KVC_INVALID_ARGUMENT;
  const TensorView<const float, 3> asking = queries == nullptr ? TensorView<const float, 3>{} : rows_of<float>(*queries);
  return in_context(context, [&](Context<Cpu>& ctx) {
    return static_cast<Status>(with_type(*keys, *values, [&](auto k, auto v) {
      return code(c->cache.append(ctx, layer, k, v, positions_of(positions, k.extent[1]), asking));
    }));
  });
}

kvc_status kvc_attend(const kvc_cache* c, const kvc_context* context, std::int64_t layer, const kvc_rows* queries, const kvc_out* out,
                      float* mass, float* lse) {
  if (c == nullptr || !usable_floats(queries) || !usable(out)) return KVC_INVALID_ARGUMENT;
  if (!c->layer(layer)) return KVC_OUT_OF_RANGE;
  AttendOutputs measure;
  if (mass != nullptr) measure.mass = c->cache.ragged(layer, mass);
  if (lse != nullptr) measure.lse = dense_view(lse, queries->extent[0], queries->extent[1]);
  return in_context(context, [&](Context<Cpu>& ctx) { return c->cache.attend(ctx, layer, rows_of<float>(*queries), rows_of(*out), measure); });
}

kvc_status kvc_step(kvc_cache* c, const kvc_context* context, std::int64_t layer, const kvc_inputs* inputs, kvc_phase phase) {
  if (c == nullptr || !known(phase)) return KVC_INVALID_ARGUMENT;
  if (!c->layer(layer)) return KVC_OUT_OF_RANGE;
  StepInputs in;
  if (const Status s = inputs_of(c->cache, layer, inputs, in); s != Status::ok) return code(s);
  return in_context(context, [&](Context<Cpu>& ctx) { return c->cache.step(ctx, layer, in, static_cast<Phase>(phase)); });
}

kvc_status kvc_forward(kvc_cache* c, const kvc_context* context, std::int64_t layer, const kvc_rows* queries, const kvc_rows* keys,
                       const kvc_rows* values, const kvc_out* out, const std::int64_t* positions, kvc_phase phase,
                       const kvc_inputs* inputs) {
  if (c == nullptr || !usable_floats(queries) || !usable(keys) || !usable(values) || !usable(out) || !known(phase)) return KVC_INVALID_ARGUMENT;
  if (!c->layer(layer)) return KVC_OUT_OF_RANGE;
  StepInputs in;
  if (const Status s = inputs_of(c->cache, layer, inputs, in); s != Status::ok) return code(s);
  return in_context(context, [&](Context<Cpu>& ctx) {
    return static_cast<Status>(with_type(*keys, *values, [&](auto k, auto v) {
      return code(c->cache.forward(ctx, layer, rows_of<float>(*queries), k, v, rows_of(*out), positions_of(positions, k.extent[1]),
                                   static_cast<Phase>(phase), in));
    }));
  });
}

kvc_status kvc_turn(kvc_cache* c, const kvc_context* context, std::int64_t incoming) {
  if (c == nullptr) return KVC_INVALID_ARGUMENT;
  return in_context(context, [&](Context<Cpu>& ctx) { return c->cache.turn(ctx, incoming); });
}

const char* kvc_missing(const kvc_cache* c, std::int64_t layer, const kvc_inputs* inputs, kvc_phase phase) {
  StepInputs in;
  if (c == nullptr || !c->layer(layer) || !known(phase) || inputs_of(c->cache, layer, inputs, in) != Status::ok) return nullptr;
  return c->cache.missing(layer, in, static_cast<Phase>(phase));
}

kvc_status kvc_truncate(kvc_cache* c, std::int64_t tokens) { return c == nullptr ? KVC_INVALID_ARGUMENT : code(c->cache.truncate(tokens)); }
kvc_status kvc_remove(kvc_cache* c, const kvc_context* context, std::int64_t first, std::int64_t last) {
  if (c == nullptr) return KVC_INVALID_ARGUMENT;
  return in_context(context, [&](Context<Cpu>& ctx) { return c->cache.remove(ctx, first, last); });
}

kvc_status kvc_fork(const kvc_cache* c, kvc_cache** out) {
  if (c == nullptr || out == nullptr) return KVC_INVALID_ARGUMENT;
  *out = nullptr;
  auto copy = c->cache.fork();
  if (!copy) return code(copy.status());
  *out = new_handle(std::move(*copy), c->common);
  return *out == nullptr ? KVC_OUT_OF_MEMORY : KVC_OK;
}

kvc_status kvc_reorder(kvc_cache* const* caches, std::int64_t count, const std::int64_t* map) {
  if (count < 0 || (count > 0 && (caches == nullptr || map == nullptr))) return KVC_INVALID_ARGUMENT;
  for (std::int64_t i = 0; i < count; ++i) {
    if (caches[i] == nullptr) return KVC_INVALID_ARGUMENT;
    if (map[i] < 0 || map[i] >= count) return KVC_OUT_OF_RANGE;
  }
  Buffer<kvc_cache*> next(heap_memory());
  if (next.resize(count) != Status::ok) return KVC_OUT_OF_MEMORY;
  kvc_status status = KVC_OK;
  std::int64_t made = 0;
  while (made < count && (status = kvc_fork(caches[map[made]], &next[made])) == KVC_OK) ++made;
  for (std::int64_t i = 0; i < made; ++i) {
    if (status == KVC_OK) {
      std::swap(caches[i]->cache, next[i]->cache);
      std::swap(caches[i]->text, next[i]->text);
      std::swap(caches[i]->common, next[i]->common);
    }
    kvc_free(next[i]);
  }
  return status;
}

void kvc_reset(kvc_cache* c) {
  if (c != nullptr) c->cache.reset();
}

kvc_status kvc_save(const kvc_cache* c, int (*write)(void*, const void*, std::size_t), void* self) {
  if (c == nullptr || write == nullptr) return KVC_INVALID_ARGUMENT;
  CallerSink sink(write, self);
  return code(c->cache.save(sink));
}
kvc_status kvc_load(kvc_cache* c, const void* bytes, std::size_t count) {
  if (c == nullptr || (bytes == nullptr && count > 0)) return KVC_INVALID_ARGUMENT;
  return code(c->cache.load({static_cast<const std::byte*>(bytes), count}));
}

kvc_status kvc_read(const kvc_cache* c, std::int64_t layer, std::int64_t head, std::int64_t first, std::int64_t count, float* keys,
                    float* values) {
  if (c == nullptr || count < 0 || (count > 0 && (keys == nullptr || values == nullptr))) return KVC_INVALID_ARGUMENT;
  return code(c->cache.read(layer, head, first, dense_view(keys, count, c->cache.shape().head_dim),
                            dense_view(values, count, c->cache.shape().values())));
}

kvc_status kvc_get_report(const kvc_cache* c, kvc_report* out) {
  if (c == nullptr || out == nullptr || out->size < sizeof(out->size)) return KVC_INVALID_ARGUMENT;
  const Report r = c->cache.report();
  kvc_report all = KVC_REPORT_INIT;
  all.exact_bytes = r.exact_bytes, all.coded_bytes = r.coded_bytes, all.side_bytes = r.side_bytes, all.index_bytes = r.index_bytes;
  all.fixed_bytes = r.fixed_bytes, all.dead_bytes = r.dead_bytes, all.shared_bytes = r.shared_bytes, all.dense_bytes = r.dense_bytes;
  all.tokens = r.tokens, all.slots = r.slots, all.budget_asked = r.budget_asked, all.budget_met = r.budget_met;
  all.evictions = r.evictions, all.evicted_slots = r.evicted_slots, all.merged_slots = r.merged_slots, all.nan_scores = r.nan_scores;
  all.repaired_numbers = r.repaired_numbers, all.coded_again = r.coded_again, all.kernel = r.kernel;
  all.key_kernel = r.key_kernel, all.value_kernel = r.value_kernel;
  give_known(all, out);
  return KVC_OK;
}

kvc_status kvc_get_capabilities(const kvc_cache* c, kvc_capabilities* out) {
  if (c == nullptr || out == nullptr || out->size < sizeof(out->size)) return KVC_INVALID_ARGUMENT;
  const Capabilities k = c->cache.capabilities();
  kvc_capabilities all = KVC_CAPABILITIES_INIT;
  all.changes_length = k.changes_length, all.probes = k.probes, all.raw_keys = k.raw_keys, all.rotated_input = k.rotated_input;
  all.lossy_slots = k.lossy_slots, all.reads_part = k.reads_part, all.rollback_exact = k.rollback_exact, all.prefix_exact = k.prefix_exact;
  all.needs_attention = k.needs.has(Input::attention), all.needs_queries = k.needs.has(Input::queries);
  all.needs_projections = k.needs.has(Input::projections), all.needs_moments = k.needs.has(Input::moments);
  all.needs_gates = k.needs.has(Input::gates), all.needs_surprise = k.needs.has(Input::surprise);
  all.needs_hidden_norms = k.needs.has(Input::hidden_norms);
  all.needs_classes = k.needs.has(Input::classes), all.joins_tokens = k.joins_tokens;
  all.output_weights = k.wants.output_weights, all.calibrated = k.wants.calibrated, all.trained = k.wants.trained;
  all.turns_keys = k.turns_keys, all.found_maps = k.found_maps;
  give_known(all, out);
  return KVC_OK;
}

std::int64_t kvc_word_count(void) { return static_cast<std::int64_t>(any::builtin().entries().size()); }
const char* kvc_word(std::int64_t i) {
  return i < 0 || i >= kvc_word_count() ? nullptr : any::builtin().entries()[static_cast<std::size_t>(i)]->word.data();
}
const char* kvc_word_idea(std::int64_t i) {
  return i < 0 || i >= kvc_word_count() ? nullptr : any::builtin().entries()[static_cast<std::size_t>(i)]->summary.data();
}

}  // extern "C"
