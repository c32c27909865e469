#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include <engine/json_text.hpp>
#include <engine/safetensors.hpp>
#include <eval/error.hpp>
#include <eval/recording.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/core/dtype.hpp>

namespace eval {
namespace {

using kvcondense::prim::RopePairing;
using kvcondense::prim::RopeScaling;

constexpr index_t most_layers = 4096;

/// A dump while it is read: what is missing or odd becomes one line with the file's name.
class Dump {
 public:
  explicit Dump(const std::string& path) : path_(path) {
    std::string why;
    auto file = engine::SafetensorsFile::read(path, why);
    if (!file) throw Error(why);
    file_ = *std::move(file);
  }

  [[noreturn]] void refuse(const std::string& what) const { throw Error(path_ + ": " + what); }

  const engine::TensorInfo* find(const std::string& name) const { return file_.find(name); }

  const engine::TensorInfo& shape(const std::string& name) const {
    const engine::TensorInfo* info = file_.find(name);
    if (info == nullptr) refuse("tensor \"" + name + "\" is missing");
    if (info->shape.size() != 3)
      refuse("tensor \"" + name + "\" is " + engine::shape_text(info->shape) +
             ", expected [tokens, heads, head_dim]");
    return *info;
  }

  std::vector<float> rows(const std::string& name, const std::vector<index_t>& want) const {
    const engine::TensorInfo& info = shape(name);
    if (info.shape != want)
      refuse("tensor \"" + name + "\" is " + engine::shape_text(info.shape) + ", expected " +
             engine::shape_text(want));
    return floats(name);
  }

  std::vector<float> floats(const std::string& name) const {
    std::string why;
    auto data = file_.floats(name, why);
    if (!data) refuse(why);
    const auto bad = std::find_if_not(data->begin(), data->end(),
                                      [](float x) { return std::fabs(x) <= kvcondense::largest_half; });
    if (bad != data->end())
      refuse("tensor \"" + name + "\": element " + std::to_string(bad - data->begin()) +
             " is not a number below 65504");
    return *std::move(data);
  }

  std::string text(const char* key, const std::string& otherwise) const {
    const auto at = file_.metadata().find(key);
    return at == file_.metadata().end() ? otherwise : at->second;
  }

  /// Words that begin like one of ours and are none would be misspelled settings that do nothing;
  /// so would rows of a layer that stands behind a missing one.
  void check_names(index_t layers) const {
    static const std::set<std::string> known{
        "keys",           "rope_theta", "rope_convention", "rotary_dim", "rope_attention_factor",
        "attention_scale"};
    for (const auto& [key, value] : file_.metadata())
      for (const char* start : {"key", "rope", "rotary", "attention"})
        if (key.starts_with(start) && !known.contains(key))
          refuse("metadata " + engine::printable(key) + " is not known");
    for (const engine::TensorInfo& t : file_.tensors()) {
      const std::string_view name = t.name;
      if (name.size() < 3 || name[1] != '.' || std::string_view("qkv").find(name[0]) == name.npos)
        continue;
      index_t layer = -1;
      const auto [end, error] = std::from_chars(name.data() + 2, name.data() + name.size(), layer);
      if (error != std::errc{} || end != name.data() + name.size() || layer >= layers)
        refuse("tensor \"" + engine::printable(name) + "\" belongs to no layer: q." +
               std::to_string(layers) + " is missing");
    }
  }

  double number(const char* key, double otherwise, double least, double most) const {
    const std::string value = text(key, "");
    if (value.empty()) return otherwise;
    double out = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (error != std::errc{} || end != value.data() + value.size() ||
        !(out >= least && out <= most))
      refuse(std::string("metadata ") + key + " is '" + engine::printable(value) +
             "', expected a number");
    return out;
  }

  index_t count(const char* key, index_t most) const {
    const double value = number(key, 0, 0, static_cast<double>(most));
    if (value != std::floor(value))
      refuse(std::string("metadata ") + key + " is '" + engine::printable(text(key, "")) +
             "', expected a whole number");
    return static_cast<index_t>(value);
  }

 private:
  std::string path_;
  engine::SafetensorsFile file_;
};

void read_rope(const Dump& dump, Recording& r) {
  const bool listed = dump.find("rope.inv_freq") != nullptr;
  if (!listed && dump.text("rope_theta", "").empty()) return;
  kvcondense::prim::RopeConfig c;
  const std::string pairing = dump.text("rope_convention", "half_split");
  if (pairing != "half_split" && pairing != "interleaved")
    dump.refuse("metadata rope_convention is '" + engine::printable(pairing) +
                "', expected half_split or interleaved");
  c.pairing = pairing == "interleaved" ? RopePairing::interleaved : RopePairing::half_split;
  c.base = dump.number("rope_theta", c.base, 1.0, 1e12);
  c.rotary_dim = dump.count("rotary_dim", kvcondense::max_head_dim);
  c.attention_factor = dump.number("rope_attention_factor", 1, 1e-3, 1e3);
  if (listed) {
    r.frequencies = dump.floats("rope.inv_freq");
    c.scaling = RopeScaling::table;
    c.table = r.frequencies;
    if (c.rotary_dim == 0) c.rotary_dim = 2 * static_cast<index_t>(r.frequencies.size());
  }
  if (kvcondense::prim::validate_rope(c, r.shape.head_dim) != kvcondense::Status::ok)
    dump.refuse("the rotary embedding it describes does not fit heads of " +
                std::to_string(r.shape.head_dim));
  r.rope = c;
}

/// Attention here divides by sqrt(head_dim); queries of a model that does otherwise are scaled so
/// that their products come out as the model has them.
void scale_queries(const Dump& dump, Recording& r) {
  const double usual = 1 / std::sqrt(static_cast<double>(r.shape.head_dim));
  const double scale = dump.number("attention_scale", usual, 1e-6, 1e6);
  if (scale == usual) return;
  const auto factor = static_cast<float>(scale / usual);
  for (Recording::Layer& l : r.layers)
    for (float& x : l.q) x *= factor;
}

}  // namespace

Recording read_qkv(const std::string& path) {
  const Dump dump(path);
  CacheShape shape;
  shape.layers = 0;
  while (shape.layers < most_layers && dump.find("q." + std::to_string(shape.layers)) != nullptr)
    ++shape.layers;
  if (shape.layers == 0)
    dump.refuse("tensor \"q.0\" is missing: expected q.<layer>, k.<layer>, v.<layer>");
  const auto q = dump.shape("q.0").shape, k = dump.shape("k.0").shape;
  shape.q_heads = q[1];
  shape.kv_heads = k[1];
  shape.head_dim = q[2];
  if (kvcondense::validate(shape) != kvcondense::Status::ok)
    dump.refuse("q.0 of " + engine::shape_text(q) + " and k.0 of " + engine::shape_text(k) +
                " do not make a cache");
  if (q[0] < 2) dump.refuse("q.0 has fewer than two tokens");
  Recording r(shape);
  r.tokens = q[0];
  const std::vector<index_t> kv{q[0], k[1], q[2]};
  for (index_t l = 0; l < shape.layers; ++l) {
    Recording::Layer& layer = r.layers[static_cast<std::size_t>(l)];
    layer.q = dump.rows("q." + std::to_string(l), q);
    layer.k = dump.rows("k." + std::to_string(l), kv);
    layer.v = dump.rows("v." + std::to_string(l), kv);
  }
  dump.check_names(shape.layers);
  read_rope(dump, r);
  scale_queries(dump, r);
  const std::string keys = dump.text("keys", "");
  if (keys.empty()) dump.refuse("metadata keys is missing, expected rotated or raw");
  if (keys != "rotated" && keys != "raw")
    dump.refuse("metadata keys is '" + engine::printable(keys) + "', expected rotated or raw");
  if (keys == "raw") {
    if (!r.rope)
      dump.refuse(
          "its keys are raw, and nothing says how they rotate: it needs rope_theta or "
          "rope.inv_freq");
    rotate(r);
  }
  return r;
}

std::string qkv_bytes(const Recording& r) {
  engine::SafetensorsWriter writer;
  writer.metadata("keys", "rotated");
  if (r.rope) {
    const auto angles = kvcondense::prim::rope_angles(*r.rope, r.shape.head_dim);
    require(angles.status(), "rotary embedding");
    const bool interleaved = r.rope->pairing == RopePairing::interleaved;
    writer.metadata("rope_convention", interleaved ? "interleaved" : "half_split");
    writer.metadata("rotary_dim", std::to_string(2 * angles->pairs));
    if (r.rope->scaling == RopeScaling::none) {
      writer.metadata("rope_theta", nlohmann::json(r.rope->base).dump());
    } else {
      writer.metadata("rope_attention_factor", nlohmann::json(angles->attention_factor).dump());
      writer.f32("rope.inv_freq", {angles->pairs},
                 {angles->frequency, static_cast<std::size_t>(angles->pairs)});
    }
  }
  for (index_t l = 0; l < r.shape.layers; ++l) {
    const Recording::Layer& layer = r.layers[static_cast<std::size_t>(l)];
    const std::string number = std::to_string(l);
    writer.f32("q." + number, {r.tokens, r.shape.q_heads, r.shape.head_dim}, layer.q);
    writer.f32("k." + number, {r.tokens, r.shape.kv_heads, r.shape.head_dim}, layer.k);
    writer.f32("v." + number, {r.tokens, r.shape.kv_heads, r.shape.values()}, layer.v);
  }
  std::string why;
  auto bytes = writer.bytes(why);
  if (!bytes) throw Error(why);
  return *std::move(bytes);
}

}  // namespace eval
