#pragma once

#include <cassert>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/cache/engine_facts.hpp>
#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense {

template <Backend B, class R>
class Cache;

namespace any {

/// The backend of a cache that is made from text: `any::on<Cpu>`.
template <Backend B>
struct On {};
template <Backend B>
inline constexpr On<B> on{};

/// A cache whose recipe was chosen at run time, with every call of `Cache`.
///
/// Idea     templates inside, one wall outside: Cache<Cpu, AnyRecipe> is compiled once, in the library
///          kvcondense::any, which a program that uses this header links.
/// Needs    a Context<Cpu>, from backend/cpu/context.hpp or cpu.hpp; what its recipe needs:
///          `capabilities().needs` says what `step` wants, `missing` what it does not find.
/// Cost     one call through the wall per layer and call, one indirect call per codec and list of pieces of pages; the
///          object itself is one pointer to memory of the caller's resource.
/// Numbers  equal bit for bit to the cache of the same recipe as a type; snapshots may be exchanged.
/// Errors   as `Cache`, indices that are not checked among them; a step without the attention that the recipe needs is missing_input. A cache that
///          was moved from may only be assigned to or destroyed.
class AnyCache {
 public:
  using Full = Cache<Cpu, AnyRecipe>;

  AnyCache(AnyCache&& o) noexcept : body_(std::exchange(o.body_, nullptr)) {}
  AnyCache& operator=(AnyCache&& o) noexcept {
    std::swap(body_, o.body_);
    return *this;
  }
  ~AnyCache();

  /// An empty cache; `text` is what `text()` will say.
  static Expected<AnyCache> make(const AnyRecipe& recipe, std::string_view text,
                                 const CacheShape& shape,
                                 MemoryResource<Cpu>& memory = heap_memory());

  std::string_view text() const;  ///< the canonical recipe
  const CacheShape& shape() const;
  Capabilities capabilities() const;
  index_t length(index_t layer = 0) const;
  index_t pending(index_t layer = 0) const;
  index_t next_position(index_t layer = 0) const;
  index_t slots(index_t layer, index_t head) const;
  index_t token(index_t layer, index_t head, index_t slot) const;
  index_t total_slots(index_t layer) const;
  RaggedView<float> ragged(index_t layer, float* data) const;
  index_t mass_rows(index_t tokens) const;
  bool wants_mass(index_t layer, Phase phase = Phase::automatic) const;
  std::size_t workspace_bytes(index_t slots, index_t tokens, index_t workers = 1) const;

  template <class K, class V>
    requires StoredNumbers<K, V>
  Status append(Context<Cpu>& ctx, index_t layer, TensorView<K, 3> keys, TensorView<V, 3> values,
                std::span<const index_t> positions = {}, TensorView<const float, 3> queries = {}) {
    return append_rows<std::remove_const_t<K>>(ctx, layer, keys, values, positions, queries);
  }
  Status attend(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries,
                TensorView<float, 3> out, const AttendOutputs& measure = {}) const;
  bool counts_attention(index_t layer, index_t tokens = 1, Phase phase = Phase::automatic) const;
  Status attend_counted(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                        const AttendOutputs& measure = {}, Phase phase = Phase::automatic);
  Status expect(index_t layer, const ReadRuns& runs, PageProvider<Cpu>& pages) const;
  Status step(Context<Cpu>& ctx, index_t layer, Phase phase = Phase::automatic);
  Status step(Context<Cpu>& ctx, index_t layer, const AttentionView& attention,
              Phase phase = Phase::automatic);
  template <std::same_as<StepInputs> I>
  Status step(Context<Cpu>& ctx, index_t layer, const I& inputs, Phase phase = Phase::automatic) {
    return step_with(ctx, layer, inputs, phase);
  }
  Status turn(Context<Cpu>& ctx, index_t incoming = 0);
  template <class K, class V>
    requires StoredNumbers<K, V>
  Status forward(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries,
                 TensorView<K, 3> keys, TensorView<V, 3> values, TensorView<float, 3> out,
                 std::span<const index_t> positions = {}, Phase phase = Phase::automatic,
                 const StepInputs& inputs = {}) {
    return forward_rows<std::remove_const_t<K>>(ctx, layer, queries, keys, values, out, positions, phase, inputs);
  }
  const char* missing(index_t layer, const StepInputs& inputs, Phase phase = Phase::automatic) const;

  Status truncate(index_t tokens);
  Status remove(Context<Cpu>& ctx, index_t first, index_t last);
  Expected<AnyCache> fork() const;
  void reset();
  void choose_anew();
  Status save(ByteSink& sink) const;
  Status load(std::span<const std::byte> file);
  Report report() const;
  Status read(index_t layer, index_t head, index_t first, TensorView<float, 2> keys,
              TensorView<float, 2> values) const;

  /// What is inside, for tools; its type is complete once cpu.hpp is included.
  const Full& full() const;

 private:
  struct Body;
  explicit AnyCache(Body* body) : body_(body) {}
  Status step_with(Context<Cpu>& ctx, index_t layer, const StepInputs& inputs, Phase phase);
  /// T: float, half, bfloat16; compiled once.
  template <class T>
  Status append_rows(Context<Cpu>& ctx, index_t layer, TensorView<const T, 3> keys,
                     TensorView<const T, 3> values, std::span<const index_t> positions, TensorView<const float, 3> queries);
  template <class T>
  Status forward_rows(Context<Cpu>& ctx, index_t layer, TensorView<const float, 3> queries,
                      TensorView<const T, 3> keys, TensorView<const T, 3> values,
                      TensorView<float, 3> out, std::span<const index_t> positions, Phase phase,
                      const StepInputs& inputs);
  Body* body_ = nullptr;
};

/// caches[i] becomes a copy of the old caches[map[i]]; pages are shared.
Status reorder(std::span<AnyCache> caches, std::span<const index_t> map);

/// A cache, or why there is none: a status, one sentence and, when the text is at fault, the byte.
class [[nodiscard]] MakeResult {
 public:
  static constexpr std::size_t no_position = static_cast<std::size_t>(-1);

  MakeResult(AnyCache cache) : cache_(std::move(cache)) {}  // NOLINT(google-explicit-constructor)
  MakeResult(Status why, const Message& message, std::size_t position = no_position)
      : status_(why), message_(message), position_(position) {}

  explicit operator bool() const { return cache_.has_value(); }
  Status status() const { return status_; }
  std::string_view message() const { return message_.view(); }
  std::size_t position() const { return position_; }  ///< in the text, or no_position

  AnyCache& operator*() & { return assert(cache_), *cache_; }
  AnyCache&& operator*() && { return assert(cache_), std::move(*cache_); }
  AnyCache* operator->() { return assert(cache_), &*cache_; }

 private:
  std::optional<AnyCache> cache_;
  Status status_ = Status::ok;
  Message message_{};
  std::size_t position_ = no_position;
};

/// An empty cache for one sequence from the text of a recipe:
///
///   auto cache = any::make("h2o(heavy=256, recent=256) + kivi2(group=32)", shape, any::on<Cpu>);
///   if (!cache) return complain(cache.message());
MakeResult make(std::string_view text, const CacheShape& shape, On<Cpu>,
                MemoryResource<Cpu>& memory = heap_memory(), const ModelFacts& model = {},
                const Registry& words = builtin());
/// The same for a recipe that is already read, as a server with many sequences wants it.
MakeResult make(const ParsedRecipe& recipe, const CacheShape& shape, On<Cpu>,
                MemoryResource<Cpu>& memory = heap_memory());

/// Whether caches of a recipe can serve an engine, before anything runs.
struct Admission {
  static constexpr std::size_t no_position = MakeResult::no_position;

  Status status = Status::ok;
  Message message{};  ///< why not, or what to heed; empty: nothing to say
  std::size_t position = no_position;  ///< in the text, where that is at fault

  explicit operator bool() const { return status == Status::ok; }
  bool warns() const { return status == Status::ok && !message.empty(); }
};

/// Reads the recipe, makes an empty cache of it and asks what it can (cache/admission.hpp):
///
///   const auto a = any::admit("h2o + kivi4", shape, {.fixed_tables = true}, any::on<Cpu>);
///   if (!a) return complain(a.message.view());
///
/// `model`: what the engine will make caches with. A recipe that wants what `engine` says it cannot have is refused for
/// that, one that lacks an array for its name.
Admission admit(std::string_view text, const CacheShape& shape, const EngineFacts& engine, On<Cpu>, const ModelFacts& model = {},
                const Registry& words = builtin());
/// The same for a recipe that is already read.
Admission admit(const ParsedRecipe& recipe, const CacheShape& shape, const EngineFacts& engine, On<Cpu>);

}  // namespace any
}  // namespace kvcondense
