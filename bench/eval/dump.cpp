#include <eval/dump.hpp>

#include <engine/safetensors.hpp>
#include <eval/error.hpp>

namespace eval {
namespace {

void add_head(engine::SafetensorsWriter& writer, const std::string& prefix,
              const any::AnyCache& cache, index_t layer, index_t head) {
  const index_t slots = cache.slots(layer, head), dim = cache.shape().head_dim,
                value_dim = cache.shape().values();
  std::vector<std::int64_t> tokens;
  for (index_t s = 0; s < slots; ++s) tokens.push_back(cache.token(layer, head, s));
  std::vector<float> keys(static_cast<std::size_t>(slots * dim)),
      values(static_cast<std::size_t>(slots * value_dim));
  require(cache.read(layer, head, 0, kvcondense::dense_view(keys.data(), slots, dim),
                     kvcondense::dense_view(values.data(), slots, value_dim)),
          "reading a cache");
  std::string place(1, '.');
  place.append(std::to_string(layer)).append(1, '.').append(std::to_string(head));
  writer.i64(prefix + ".tokens" + place, {slots}, tokens);
  writer.f32(prefix + ".keys" + place, {slots, dim}, keys);
  writer.f32(prefix + ".values" + place, {slots, value_dim}, values);
}

void add_outputs(engine::SafetensorsWriter& writer, const std::string& prefix, const Setting& s,
                 const Outputs& outputs) {
  for (std::size_t l = 0; l < outputs.size(); ++l)
    writer.f32(prefix + ".out." + std::to_string(l), {s.context - s.prefill, s.q_heads, s.head_dim},
               outputs[l]);
}

}  // namespace

void write_dump(const Results& results, const Kept& kept, const std::string& path) {
  engine::SafetensorsWriter writer;
  add_outputs(writer, "exact", results.setting, kept.exact);
  for (std::size_t r = 0; r < results.recipes.size(); ++r) {
    const std::string prefix = std::to_string(r);
    const any::AnyCache& cache = kept.sessions[r]->cache();
    writer.metadata("recipe." + prefix, results.recipes[r].recipe);
    writer.metadata("keys." + prefix, cache.capabilities().raw_keys ? "raw" : "rotated");
    for (index_t l = 0; l < cache.shape().layers; ++l)
      for (index_t h = 0; h < cache.shape().kv_heads; ++h) add_head(writer, prefix, cache, l, h);
    add_outputs(writer, prefix, results.setting, kept.outputs[r]);
  }
  std::string why;
  if (writer.write(path, why) != kvcondense::Status::ok) throw Error(why);
}

}  // namespace eval
