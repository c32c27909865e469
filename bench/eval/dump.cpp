#include <eval/dump.hpp>

#include <cstring>

#include <engine/safetensors.hpp>
#include <eval/error.hpp>
#include <kvcondense/cpu.hpp>

namespace eval {
namespace {

using Writer = engine::SafetensorsWriter;

std::string place(index_t layer, index_t head) {
  std::string name(1, '.');
  return name.append(std::to_string(layer)).append(1, '.').append(std::to_string(head));
}

void add_slots(Writer& writer, const std::string& recipe, const any::AnyCache& cache, index_t layer,
               index_t head) {
  const index_t slots = cache.slots(layer, head), dim = cache.shape().head_dim,
                value_dim = cache.shape().values();
  std::vector<std::int64_t> tokens;
  for (index_t s = 0; s < slots; ++s) tokens.push_back(cache.token(layer, head, s));
  std::vector<float> keys(static_cast<std::size_t>(slots * dim)),
      values(static_cast<std::size_t>(slots * value_dim));
  require(cache.read(layer, head, 0, kvcondense::dense_view(keys.data(), slots, dim),
                     kvcondense::dense_view(values.data(), slots, value_dim)),
          "reading a cache");
  writer.i64(recipe + ".tokens" + place(layer, head), {slots}, tokens);
  writer.f32(recipe + ".keys" + place(layer, head), {slots, dim}, keys);
  writer.f32(recipe + ".values" + place(layer, head), {slots, value_dim}, values);
}

/// The pages of codes as they lie in memory, and for every slot its page and its place there; -1
/// where a slot is stored exactly, or its row together with another layer's.
template <class Column>
void add_codes(Writer& writer, const std::string& name, const std::string& at,
               const Column& column) {
  const auto& coded = column.coded();
  const auto words = static_cast<index_t>((coded.page_payload() + 3) / 4);
  const index_t pages = coded.pages().size();
  // The writer knows no bytes; words of four keep their order in a little-endian file.
  std::vector<std::int32_t> payload(static_cast<std::size_t>(pages * words), 0);
  std::vector<std::int32_t> places(static_cast<std::size_t>(2 * column.sinks().live()), -1);
  for (index_t p = 0; p < pages; ++p) {
    const auto& ref = coded.pages()[p];
    if (!coded.shares(ref)) std::memcpy(payload.data() + p * words, ref.page->payload(), coded.page_payload());
    for (std::int32_t slot = 0; slot < ref.used; ++slot)
      if (ref.alive(slot) && coded.shares(ref)) places.insert(places.end(), {-1, -1});
      else if (ref.alive(slot)) places.insert(places.end(), {static_cast<std::int32_t>(p), slot});
  }
  places.resize(static_cast<std::size_t>(2 * column.slots()), -1);
  writer.i32(name + "_pages" + at, {pages, words}, payload);
  writer.i32(name + "_places" + at, {column.slots(), 2}, places);
}

void add_outputs(Writer& writer, const std::string& recipe, const Setting& s,
                 const Outputs& outputs) {
  for (std::size_t l = 0; l < outputs.size(); ++l)
    writer.f32(recipe + ".out." + std::to_string(l), {s.context - s.prefill, s.q_heads, s.head_dim},
               outputs[l]);
}

void add_cache(Writer& writer, const std::string& recipe, const any::AnyCache& cache) {
  writer.metadata("keys." + recipe, cache.capabilities().raw_keys ? "raw" : "rotated");
  const auto& layers = cache.full().layers();
  if (cache.capabilities().lossy_slots) {
    const auto& head = layers[0].heads[0];
    writer.metadata("key_page_slots." + recipe, std::to_string(head.keys.coded().page_slots()));
    writer.metadata("value_page_slots." + recipe, std::to_string(head.values.coded().page_slots()));
  }
  for (index_t l = 0; l < cache.shape().layers; ++l)
    for (index_t h = 0; h < cache.shape().kv_heads; ++h) {
      add_slots(writer, recipe, cache, l, h);
      if (!cache.capabilities().lossy_slots) continue;
      add_codes(writer, recipe + ".key", place(l, h), layers[l].heads[h].keys);
      add_codes(writer, recipe + ".value", place(l, h), layers[l].heads[h].values);
    }
}

}  // namespace

std::string dump_bytes(const Results& results, const Kept& kept) {
  Writer writer;
  add_outputs(writer, "exact", results.setting, kept.exact);
  for (std::size_t r = 0; r < results.recipes.size(); ++r) {
    const std::string recipe = std::to_string(r);
    writer.metadata("recipe." + recipe, results.recipes[r].recipe);
    writer.metadata("canonical." + recipe, results.recipes[r].canonical);
    add_cache(writer, recipe, kept.sessions[r]->cache());
    add_outputs(writer, recipe, results.setting, kept.outputs[r]);
  }
  std::string why;
  auto bytes = writer.bytes(why);
  if (!bytes) throw Error("the dump: " + why);
  return *std::move(bytes);
}

}  // namespace eval
