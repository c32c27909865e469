#pragma once

#include <array>
#include <span>
#include <string_view>

#include <kvcondense/any/any_recipe.hpp>
#include <kvcondense/any/field.hpp>
#include <kvcondense/any/fixed_text.hpp>
#include <kvcondense/any/inline_value.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::any {

/// The fields of one method while a recipe is read.
using Knobs = InlineValue<256>;

/// Another word for a method, with one field fixed: kivi4 is kivi(bits=4).
struct Alias {
  std::string_view word;
  std::string_view field{};  ///< empty: a plain synonym
  FieldValue value{};
};

/// One method as text, docs, tools and tests see it. Made by `stage_entry` or `wrapper_entry`.
struct Entry {
  std::string_view word;
  Stage room = Stage::evict;
  std::string_view summary;  ///< one sentence
  std::string_view source;
  std::string_view backends = "cpu, cuda";  ///< of caches whose recipe is a type; recipes as text make caches of the CPU
  std::span<const Field> fields{};
  std::span<const Alias> aliases{};
  bool wraps = false;     ///< takes another stage of its kind: ada(snapkv(...)), hadamard(kivi4)
  bool replaces = false;  ///< does not read the budget of what it wraps
  void (*defaults)(Knobs&, const ModelFacts& model) = nullptr;
  void (*build)(const Knobs&,
                AnyRecipe&) = nullptr;  ///< a wrapper goes around `evict` or `quant` as it stands

  const Field* field(std::string_view name) const {
    for (const Field& f : fields)
      if (f.answers_to(name)) return &f;
    return nullptr;
  }
};

/// What a method wants besides keys and values, asked of the method itself: "nothing", or inputs of a step
/// by their names, attention of the newest queries only as "window", of tokens that only ask as "queries of probes"; "policy" is what the
/// wrapped one wants.
using NeedsText = FixedText<96>;
NeedsText needs(const Entry& entry);

/// The entry of a stage struct: word and source from its `about`, defaults from its default
/// constructor, members that are named like a fact of the model from there. A struct whose type depends on a field
/// (bits) is wrapped in one with a member `stage()` that returns the AnyEvict, AnyMerge, AnyLowRank, AnyQuant,
/// AnyPosition or AnyRetrieve.
template <class K>
constexpr Entry stage_entry(std::string_view summary, std::span<const Field> fields = {},
                            std::span<const Alias> aliases = {}) {
  Entry e{K::about.word, K::about.stage, summary, K::about.source};
  e.fields = fields;
  e.aliases = aliases;
  e.defaults = [](Knobs& knobs, const ModelFacts& model) {
    K k{};
    take_facts(k, model);
    knobs.store(k);
  };
  e.build = [](const Knobs& knobs, AnyRecipe& out) {
    const K& k = knobs.as<K>();
    if constexpr (requires { k.stage(out); })
      k.stage(out);
    else if constexpr (K::about.stage == Stage::evict)
      out.evict = AnyEvict(k);
    else if constexpr (K::about.stage == Stage::lowrank)
      out.lowrank = AnyLowRank(k);
    else if constexpr (K::about.stage == Stage::quant)
      out.quant = AnyQuant(k);
    else if constexpr (K::about.stage == Stage::retrieve)
      out.retrieve = AnyRetrieve(k);
    else if constexpr (K::about.stage == Stage::merge)
      out.merge = AnyMerge(k);
    else
      out.position = AnyPosition(k);
  };
  return e;
}

/// The entry of a wrapper over a policy, or over a quantizer: `wrapper_entry<Ada<Inner>,
/// &Ada<Inner>::policy>(Stage::budget, ...)`.
template <class W, auto Member>
constexpr Entry wrapper_entry(Stage room, std::string_view summary,
                              std::span<const Field> fields = {},
                              std::span<const Alias> aliases = {}) {
  Entry e{W::about.word, room, summary, W::about.source};
  e.fields = fields;
  e.aliases = aliases;
  e.wraps = true;
  e.defaults = [](Knobs& knobs, const ModelFacts& model) {
    W w{};
    take_facts(w, model);
    knobs.store(w);
  };
  e.build = [](const Knobs& knobs, AnyRecipe& out) {
    // The parser has counted the wrappers, so there is room.
    if constexpr (W::about.stage == Stage::quant) (void)out.quant.template wrap<Member>(knobs.as<W>());
    else (void)out.evict.template wrap<Member>(knobs.as<W>());
  };
  return e;
}

/// Marks a budget that leaves nothing of a budget inside it; the parser refuses such a pair.
constexpr Entry replaces_budget(Entry e) {
  e.replaces = true;
  return e;
}

/// Every word a recipe may use. Entries are borrowed and outlive the registry.
///
///   any::Registry mine = any::builtin();
///   mine.add(my_entry);
class Registry {
 public:
  static constexpr std::size_t capacity = 256;
  static constexpr std::size_t most_fields = 32;

  /// invalid_argument: no word, no functions, too many fields, or a word (an alias too) that is
  /// taken; out_of_memory: full.
  Status add(const Entry& entry);

  std::span<const Entry* const> entries() const { return {entries_.data(), size_}; }
  /// By word or alias; `alias` (may be null) tells which. Null: unknown.
  const Entry* find(std::string_view word, const Alias** alias = nullptr) const;

 private:
  std::array<const Entry*, capacity> entries_{};
  std::size_t size_ = 0;
};

}  // namespace kvcondense::any
