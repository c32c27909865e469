#include <kvcondense/any/any_cache.hpp>

#include <new>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>

#include "misfit.hpp"

namespace kvcondense::any {

/// Lives in the caller's memory, the text behind it.
struct AnyCache::Body {
  Full cache;
  MemoryResource<Cpu>* memory = nullptr;
  std::size_t text_size = 0;

  std::string_view text() const { return {reinterpret_cast<const char*>(this + 1), text_size}; }
  std::size_t bytes() const { return sizeof(Body) + text_size; }

  static Body* make(Full cache, std::string_view text, MemoryResource<Cpu>& memory) {
    void* room = memory.allocate(sizeof(Body) + text.size(), alignof(Body));
    if (room == nullptr) return nullptr;
    auto* body = new (room) Body{std::move(cache), &memory, text.size()};
    std::copy_n(text.data(), text.size(), reinterpret_cast<char*>(body + 1));
    return body;
  }
};

AnyCache::~AnyCache() {
  if (body_ == nullptr) return;
  MemoryResource<Cpu>& memory = *body_->memory;
  const std::size_t bytes = body_->bytes();
  body_->~Body();
  memory.release(body_, bytes, alignof(Body));
}

Expected<AnyCache> AnyCache::make(const AnyRecipe& recipe, std::string_view text,
                                  const CacheShape& shape, MemoryResource<Cpu>& memory) {
  auto cache = Full::make(shape, recipe, memory);
  if (!cache) return cache.status();
  Body* body = Body::make(std::move(*cache), text, memory);
  if (body == nullptr) return Status::out_of_memory;
  return AnyCache(body);
}

std::string_view AnyCache::text() const { return body_->text(); }
const AnyCache::Full& AnyCache::full() const { return body_->cache; }
const CacheShape& AnyCache::shape() const { return body_->cache.shape(); }
Capabilities AnyCache::capabilities() const { return body_->cache.capabilities(); }
index_t AnyCache::length(index_t layer) const { return body_->cache.length(layer); }
index_t AnyCache::pending(index_t layer) const { return body_->cache.pending(layer); }
index_t AnyCache::next_position(index_t layer) const { return body_->cache.next_position(layer); }
index_t AnyCache::slots(index_t layer, index_t head) const {
  return body_->cache.slots(layer, head);
}
index_t AnyCache::token(index_t layer, index_t head, index_t slot) const {
  return body_->cache.token(layer, head, slot);
}
index_t AnyCache::total_slots(index_t layer) const { return body_->cache.total_slots(layer); }
RaggedView<float> AnyCache::ragged(index_t layer, float* data) const {
  return body_->cache.ragged(layer, data);
}
index_t AnyCache::mass_rows(index_t tokens) const { return body_->cache.mass_rows(tokens); }
bool AnyCache::wants_mass(index_t layer, Phase phase) const { return body_->cache.wants_mass(layer, phase); }
std::size_t AnyCache::workspace_bytes(index_t slots, index_t tokens, index_t workers) const {
  return body_->cache.workspace_bytes(slots, tokens, workers);
}

template <class T>
Status AnyCache::append_rows(Context<Cpu>& ctx, index_t layer, TensorView<const T, 3> keys,
                        TensorView<const T, 3> values, std::span<const index_t> positions,
                        TensorView<const float, 3> queries) {
  return body_->cache.append(ctx, layer, keys, values, positions, queries);
}
Status AnyCache::attend(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries,
                        TensorView<float, 3> out, const AttendOutputs& measure) const {
  return body_->cache.attend(ctx, layer, queries, out, measure);
}
bool AnyCache::counts_attention(index_t layer, index_t tokens, Phase phase) const {
  return body_->cache.counts_attention(layer, tokens, phase);
}
Status AnyCache::attend_counted(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                                const AttendOutputs& measure, Phase phase) {
  return body_->cache.attend_counted(ctx, layer, queries, out, measure, phase);
}
Status AnyCache::expect(index_t layer, const ReadRuns& runs, PageProvider<Cpu>& pages) const {
  return body_->cache.expect(layer, runs, pages);
}
Status AnyCache::step(Context<Cpu>& ctx, index_t layer, Phase phase) {
  return body_->cache.step(ctx, layer, StepInputs{}, phase);
}
Status AnyCache::step(Context<Cpu>& ctx, index_t layer, const AttentionView& attention,
                      Phase phase) {
  return body_->cache.step(ctx, layer, StepInputs{.attention = attention}, phase);
}
Status AnyCache::step_with(Context<Cpu>& ctx, index_t layer, const StepInputs& inputs,
                           Phase phase) {
  return body_->cache.step(ctx, layer, inputs, phase);
}
template <class T>
Status AnyCache::forward_rows(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries,
                         TensorView<const T, 3> keys, TensorView<const T, 3> values,
                         TensorView<float, 3> out, std::span<const index_t> positions,
                         Phase phase, const StepInputs& inputs) {
  return body_->cache.forward(ctx, layer, queries, keys, values, out, positions, phase, inputs);
}
Status AnyCache::turn(Context<Cpu>& ctx, index_t incoming) {
  return body_->cache.turn(ctx, incoming);
}
const char* AnyCache::missing(index_t layer, const StepInputs& inputs, Phase phase) const {
  return body_->cache.missing(layer, inputs, phase);
}

template Status AnyCache::append_rows(Context<Cpu>&, index_t, TensorView<const float, 3>,
                                 TensorView<const float, 3>, std::span<const index_t>, TensorView<const float, 3>);
template Status AnyCache::append_rows(Context<Cpu>&, index_t, TensorView<const half, 3>,
                                 TensorView<const half, 3>, std::span<const index_t>, TensorView<const float, 3>);
template Status AnyCache::append_rows(Context<Cpu>&, index_t, TensorView<const bfloat16, 3>,
                                 TensorView<const bfloat16, 3>, std::span<const index_t>, TensorView<const float, 3>);
template Status AnyCache::forward_rows(Context<Cpu>&, index_t, TensorView<const float, 3>,
                                  TensorView<const float, 3>, TensorView<const float, 3>,
                                  TensorView<float, 3>, std::span<const index_t>, Phase,
                                  const StepInputs&);
template Status AnyCache::forward_rows(Context<Cpu>&, index_t, TensorView<const float, 3>,
                                  TensorView<const half, 3>, TensorView<const half, 3>,
                                  TensorView<float, 3>, std::span<const index_t>, Phase,
                                  const StepInputs&);
template Status AnyCache::forward_rows(Context<Cpu>&, index_t, TensorView<const float, 3>,
                                  TensorView<const bfloat16, 3>, TensorView<const bfloat16, 3>,
                                  TensorView<float, 3>, std::span<const index_t>, Phase,
                                  const StepInputs&);

Status AnyCache::truncate(index_t tokens) { return body_->cache.truncate(tokens); }
Status AnyCache::remove(Context<Cpu>& ctx, index_t first, index_t last) {
  return body_->cache.remove(ctx, first, last);
}
Expected<AnyCache> AnyCache::fork() const {
  auto copy = body_->cache.fork();
  if (!copy) return copy.status();
  Body* body = Body::make(std::move(*copy), text(), *body_->memory);
  if (body == nullptr) return Status::out_of_memory;
  return AnyCache(body);
}
void AnyCache::reset() { body_->cache.reset(); }
void AnyCache::choose_anew() { body_->cache.choose_anew(); }
Status AnyCache::save(ByteSink& sink) const { return kvcondense::save(body_->cache, sink); }
Status AnyCache::load(std::span<const std::byte> file) {
  return kvcondense::load(body_->cache, file);
}
Report AnyCache::report() const {
  Report r = body_->cache.report();
  r.fixed_bytes += body_->bytes();
  return r;
}
Status AnyCache::read(index_t layer, index_t head, index_t first, TensorView<float, 2> keys,
                      TensorView<float, 2> values) const {
  return body_->cache.read(layer, head, first, keys, values);
}

Status reorder(std::span<AnyCache> caches, std::span<const index_t> map) {
  const auto n = static_cast<index_t>(caches.size());
  if (map.size() != caches.size()) return Status::shape_mismatch;
  for (const index_t m : map)
    if (m < 0 || m >= n) return Status::out_of_range;
  if (n == 0) return Status::ok;
  ObjectArray<std::optional<AnyCache>> next;
  Status failed = Status::ok;
  const Status made =
      next.fill(caches[0].full().memory(), n, [&](index_t i) -> std::optional<AnyCache> {
        if (failed != Status::ok) return std::nullopt;
        auto copy = caches[static_cast<std::size_t>(map[static_cast<std::size_t>(i)])].fork();
        failed = copy.status();
        return copy ? std::optional<AnyCache>(std::move(*copy)) : std::nullopt;
      });
  if (made != Status::ok) return made;
  if (failed != Status::ok) return failed;
  for (index_t i = 0; i < n; ++i) caches[static_cast<std::size_t>(i)] = std::move(*next[i]);
  return Status::ok;
}

namespace {

/// Which part of shape or recipe a refusal is about.
Message refusal(Status why, const AnyRecipe& recipe, const CacheShape& shape,
                const detail::Written& written) {
  Message m;
  if (why == Status::out_of_memory)
    return m.add("the memory resource has no room for an empty cache");
  if (validate(shape) != Status::ok) return m.add("the shape of the cache is impossible");
  if (shape.page_slots > cache::max_page_slots)
    return m.put("the shape of the cache is impossible: page_slots is at most ",
                 cache::max_page_slots);
  const auto add_cache = [&] {
    m.put(" or this cache (head_dim ", shape.head_dim, ", value_dim ", shape.values(), ", ",
          shape.q_heads, " query heads, ", shape.kv_heads, " kv heads, ", shape.layers, " layers)");
  };
  if (why == Status::invalid_argument &&
      detail::name_misfit(written, shape, &cache::check_recipe<AnyRecipe>, m))
    return add_cache(), m;
  const auto blame = [&]<class S>(const S& stage) {
    constexpr bool about_quant = S::about.stage == Stage::quant;
    const Status s = stage.validate(shape);
    if (!m.empty() || s == Status::ok) return;
    m.put(stage.word(), ": ", std::string_view(to_string(s)), "; ");
    if (s == Status::incompatible)
      m.put("it cannot be combined with the ", about_quant ? "quantizer" : "policy", " that it wraps");
    else if (s == Status::not_supported)
      m.add("it cannot serve this combination of fields");
    else {
      m.add("its fields");
      detail::add_fields(written, stage.word(), m);
      m.add(" do not fit together"), add_cache();
    }
  };
  if (!recipe.lowrank.takes_keys(recipe.position.raw_keys))
    return m.put(recipe.lowrank.word(), ": incompatible; what it knows is of ",
                 recipe.position.raw_keys ? "rotated keys, and " : "keys before rotation, and ", recipe.position.word(),
                 recipe.position.raw_keys ? " stores raw ones" : " stores rotated ones");
  blame(recipe.evict), blame(recipe.merge), blame(recipe.lowrank), blame(recipe.quant), blame(recipe.position);
  blame(recipe.retrieve);
  const merge::Traits fold = recipe.merge.pipeline().traits();
  if (m.empty() && fold.active && !fold.shrinks && !recipe.evict.changes_length())
    m.put(recipe.merge.word(), " folds what an eviction stage lets go, and this recipe has none");
  if (m.empty() && !keys_fit(recipe.retrieve, recipe.position))
    m.put(recipe.retrieve.word(), " scores keys without rotation: add reindex or rerotate");
  if (m.empty()) m.put("the cache refused this recipe: ", std::string_view(to_string(why)));
  return m;
}

MakeResult make_of(const ParsedRecipe& recipe, const CacheShape& shape, MemoryResource<Cpu>& memory,
                   const detail::Written& written) {
  if (const MissingFact lacks = missing_fact(recipe.stages); lacks.fact != nullptr) {
    Message m;
    return {Status::missing_input,
            m.put(lacks.word, " needs what it was not given: ModelFacts::", lacks.fact)};
  }
  auto cache = AnyCache::make(recipe.stages, recipe.text.view(), shape, memory);
  if (!cache) return {cache.status(), refusal(cache.status(), recipe.stages, shape, written)};
  return std::move(*cache);
}

}  // namespace

MakeResult make(const ParsedRecipe& recipe, const CacheShape& shape, On<Cpu>,
                MemoryResource<Cpu>& memory) {
  const ModelFacts unsaid;  // what they filled in is written out in a canonical text
  return make_of(recipe, shape, memory, {recipe.text.view(), unsaid, builtin()});
}

MakeResult make(std::string_view text, const CacheShape& shape, On<Cpu>,
                MemoryResource<Cpu>& memory, const ModelFacts& model, const Registry& words) {
  const ParseResult recipe = parse(text, model, words);
  if (!recipe) {
    Message m;
    return {Status::invalid_argument, m.put("at byte ", recipe.position(), ": ", recipe.message()),
            recipe.position()};
  }
  return make_of(*recipe, shape, memory, {text, model, words});
}

Admission admit(const ParsedRecipe& recipe, const CacheShape& shape, const EngineFacts& engine, On<Cpu>) {
  Admission out;
  const auto say = [&](const kvcondense::Admission& a) {
    out.status = a.status;
    out.message.add(a.sentence);
    return out;
  };
  if (const auto a = kvcondense::admit(recipe_traits(recipe.stages), engine); !a) {
    say(a);
    if (const auto [fact, word] = missing_fact(recipe.stages); fact != nullptr) out.message.put(" (", word, ": ModelFacts::", fact, ")");
    return out;
  }
  MakeResult made = make(recipe, shape, on<Cpu>, heap_memory());
  if (!made) {
    out.status = made.status();
    out.message.add(made.message());
    return out;
  }
  return say(kvcondense::admit(made->capabilities(), engine));
}

Admission admit(std::string_view text, const CacheShape& shape, const EngineFacts& engine, On<Cpu>, const ModelFacts& model,
                const Registry& words) {
  const ParseResult recipe = parse(text, model, words);
  if (recipe) return admit(*recipe, shape, engine, on<Cpu>);
  Admission out{Status::invalid_argument, {}, recipe.position()};
  out.message.put("at byte ", recipe.position(), ": ", recipe.message());
  return out;
}

}  // namespace kvcondense::any
