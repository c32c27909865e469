#include <kvcondense/any/registry.hpp>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/any/tools.hpp>

#include "field_text.hpp"

namespace kvcondense::any {

NeedsText needs(const Entry& entry) {
  NeedsText text;
  if (entry.wraps && entry.room != Stage::quant) return text.add("policy");
  Knobs knobs;
  AnyRecipe recipe;
  entry.defaults(knobs, {});
  if (!entry.wraps) entry.build(knobs, recipe);
  if (const auto r = recipe.retrieve.pipeline(); r.holds() || r.fit_queries() || r.watch().active()) return text.add(to_string(Input::queries));
  const evict::AnyPipeline pipeline = recipe.evict.pipeline();
  const merge::Traits fold = recipe.merge.pipeline().traits();
  Inputs all = pipeline.inputs() | recipe.lowrank.inputs() | fold.inputs;
  AttentionNeed attention = fold.active ? fold.attention : pipeline.attention();
  if (recipe.quant.has_saliency()) {
    const evict::AnyPipeline saliency = recipe.quant.saliency();
    all = all | saliency.inputs(), attention = saliency.attention();
  }
  constexpr CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 64};  // any: what a codec is found from does not depend on it
  if (recipe.quant.missing().fact == nullptr)
    for (const AnyCodec& codec : {recipe.quant.key_codec(shape), recipe.quant.value_codec(shape)})
      if (codec.transform().needs_queries()) all = all | Input::queries;
  if (pipeline.probes()) return text.add("queries of probes");
  for (const Input i : all_inputs) {
    if (!all.has(i)) continue;
    const bool newest = i == Input::attention && attention.rows == AttentionNeed::Rows::last;
    text.put(text.empty() ? "" : ", ", newest ? "window" : to_string(i));
  }
  return text.empty() ? text.add("nothing") : text;
}

FieldValue default_of(const Entry& entry, const Field& field) {
  Knobs knobs;
  entry.defaults(knobs, {});
  return field.get(knobs.data());
}

Status Registry::add(const Entry& entry) {
  if (entry.word.empty() || entry.defaults == nullptr || entry.build == nullptr)
    return Status::invalid_argument;
  if (entry.fields.size() > most_fields || find(entry.word) != nullptr)
    return Status::invalid_argument;
  for (const Alias& a : entry.aliases) {
    if (a.word.empty() || find(a.word) != nullptr) return Status::invalid_argument;
    if (!a.field.empty() && entry.field(a.field) == nullptr) return Status::invalid_argument;
  }
  if (size_ == capacity) return Status::out_of_memory;
  entries_[size_++] = &entry;
  return Status::ok;
}

const Entry* Registry::find(std::string_view word, const Alias** alias) const {
  if (alias != nullptr) *alias = nullptr;
  for (const Entry* e : entries()) {
    if (e->word == word) return e;
    for (const Alias& a : e->aliases)
      if (a.word == word) {
        if (alias != nullptr) *alias = &a;
        return e;
      }
  }
  return nullptr;
}

const Registry& builtin() {
  static const Registry all = [] {
    Registry r;
    for (const auto list : {detail::builtin_evict(), detail::builtin_budget(), detail::builtin_merge(),
                            detail::builtin_lowrank(), detail::builtin_quant(), detail::builtin_position(),
                            detail::builtin_retrieve()})
      for (const Entry& e : list) (void)r.add(e);  // a test counts them
    return r;
  }();
  return all;
}

std::string_view nearest_word(std::string_view word, const Registry& words,
                              std::span<const Tool> beside) {
  // Words, aliases and tools in a row.
  return detail::nearest(word, [&](std::size_t i) -> std::string_view {
    for (const Entry* e : words.entries()) {
      if (i == 0) return e->word;
      if (--i < e->aliases.size()) return e->aliases[i].word;
      i -= e->aliases.size();
    }
    return i < beside.size() ? beside[i].word : std::string_view{};
  });
}

}  // namespace kvcondense::any
