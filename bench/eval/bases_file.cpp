#include <eval/bases_file.hpp>

#include <cmath>
#include <utility>

#include <engine/json_text.hpp>
#include <engine/safetensors.hpp>
#include <eval/error.hpp>

namespace eval {
namespace {

using kvcondense::KeyForm;

constexpr const char* format_name = "kvcondense-bases";

struct Part {
  const char* name;
  std::vector<float> SideBases::*numbers;
};
constexpr Part parts[] = {{"encode", &SideBases::encode},
                          {"decode", &SideBases::decode},
                          {"mean", &SideBases::mean},
                          {"energy", &SideBases::energy},
                          {"ranks", &SideBases::ranks}};

std::vector<index_t> shape_of(const SideBases& s, const std::string& part) {
  if (part == "mean") return {s.layers, s.groups, s.dim};
  if (part == "energy") return {s.layers, s.groups, s.columns};
  if (part == "ranks") return {s.layers, s.groups};
  return {s.layers, s.groups, s.dim, s.columns};
}

struct MapPart {
  const char* name;
  std::vector<float> LayerArrays::*numbers;
  bool first, keys;
};
constexpr MapPart map_parts[] = {{"key.first", &LayerArrays::first_keys, true, true},
                                 {"value.first", &LayerArrays::first_values, true, false},
                                 {"key.maps", &LayerArrays::keys, false, true},
                                 {"value.maps", &LayerArrays::values, false, false}};

std::vector<index_t> shape_of(const LayerArrays& m, const MapPart& part) {
  const index_t channels = part.keys ? m.key_channels : m.value_channels;
  if (part.first) return {channels};
  return {m.layers - 1, m.key_channels + (part.keys ? 0 : m.value_channels) + 1, channels};
}

class Reader {
 public:
  Reader(std::string path, const CacheShape& shape) : path_(std::move(path)), shape_(shape) {}

  MethodBases read() const {
    std::string why;
    const auto file = engine::SafetensorsFile::read(path_, why);
    if (!file) throw Error(why);
    const auto said = [&](const char* key) {
      const auto at = file->metadata().find(key);
      return at == file->metadata().end() ? std::string() : at->second;
    };
    if (said("format") != format_name) refuse(std::string("not a file of bases: its \"format\" is not \"") + format_name + "\"");
    if (said("version") != "1") refuse("its \"version\" is not 1, the only one this tool knows");
    MethodBases m;
    m.method = said("method");
    if (m.method.empty()) refuse("it does not say the method that it was made for");
    const std::string form = said("keys");
    if (form != "rotated" && form != "raw") refuse("its \"keys\" are neither rotated nor raw");
    m.keys = side(*file, "key", shape_.head_dim);
    m.values = side(*file, "value", shape_.values());
    m.keys.keys = form == "raw" ? KeyForm::raw : KeyForm::rotated;
    m.maps = maps(*file);
    for (const engine::TensorInfo& t : file->tensors())
      if (const FactTensor* fact = find_tensor(t.name)) m.arrays.push_back(array(*file, *fact));
      else if (!known(t.name)) refuse("no tensor is called '" + engine::printable(t.name) + "'");
    if (m.keys.encode.empty() && m.values.encode.empty() && m.arrays.empty() && m.maps.first_keys.empty()) refuse("it holds no basis");
    return m;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { throw Error(path_ + ": " + what); }

  static bool known(const std::string& name) {
    for (const char* side : {"key.", "value."})
      for (const Part& p : parts)
        if (name == std::string(side) + p.name) return true;
    for (const MapPart& p : map_parts)
      if (name == p.name) return true;
    return false;
  }

  SideBases side(const engine::SafetensorsFile& file, const std::string& name, index_t head_dim) const {
    SideBases s;
    const engine::TensorInfo* first = file.find(name + ".encode");
    if (first == nullptr) return s;
    if (first->shape.size() != 4) refuse("tensor \"" + name + ".encode\" is not [layers, groups, dim, columns]");
    s.layers = first->shape[0], s.groups = first->shape[1], s.dim = first->shape[2], s.columns = first->shape[3];
    const bool joint = s.layers == 1 && s.groups == 1 && s.dim == shape_.layers * shape_.kv_heads * head_dim;
    if (!joint && (s.layers != shape_.layers || s.groups < 1 || s.groups * s.dim != shape_.kv_heads * head_dim || s.dim % head_dim != 0))
      refuse("made for " + std::to_string(s.layers) + " layers of " + std::to_string(s.groups) + " rows of " + std::to_string(s.dim) +
             " numbers, and this model has " + std::to_string(shape_.layers) + " of " + std::to_string(shape_.kv_heads) + " heads of " +
             std::to_string(head_dim));
    if (s.columns < 1 || s.columns > s.dim) refuse("tensor \"" + name + ".encode\" has more columns than rows, or none");
    for (const Part& p : parts) {
      const std::string tensor = name + "." + p.name;
      const engine::TensorInfo* info = file.find(tensor);
      if (info == nullptr) continue;
      const auto want = shape_of(s, p.name);
      if (info->shape != want)
        refuse("tensor \"" + tensor + "\" is " + engine::shape_text(info->shape) + ", expected " + engine::shape_text(want));
      s.*(p.numbers) = numbers(file, tensor);
    }
    return s;
  }

  std::vector<float> numbers(const engine::SafetensorsFile& file, const std::string& tensor) const {
    std::string why;
    auto data = file.floats(tensor, why);
    if (!data) refuse(why);
    for (std::size_t i = 0; i < data->size(); ++i)
      if (!std::isfinite((*data)[i])) refuse("tensor \"" + tensor + "\": element " + std::to_string(i) + " is no number");
    return *std::move(data);
  }

  FactArray array(const engine::SafetensorsFile& file, const FactTensor& fact) const {
    const std::vector<index_t> extent = file.find(fact.name)->shape;
    if (!fact.fits(extent, shape_))
      refuse(std::string("tensor \"") + fact.name + "\" is " + engine::shape_text(extent) + ", expected " + fact.expected(shape_));
    return {fact.name, extent, numbers(file, fact.name)};
  }

  LayerArrays maps(const engine::SafetensorsFile& file) const {
    LayerArrays m;
    if (file.find(map_parts[0].name) == nullptr) return m;
    m.layers = shape_.layers, m.key_channels = shape_.kv_heads * shape_.head_dim, m.value_channels = shape_.kv_heads * shape_.values();
    for (const MapPart& p : map_parts) {
      if (!p.first && m.layers == 1) continue;
      const engine::TensorInfo* info = file.find(p.name);
      if (info == nullptr) refuse(std::string("tensor \"") + p.name + "\" is missing");
      const auto want = shape_of(m, p);
      if (info->shape != want)
        refuse(std::string("tensor \"") + p.name + "\" is " + engine::shape_text(info->shape) + ", expected " + engine::shape_text(want));
      m.*(p.numbers) = numbers(file, p.name);
    }
    return m;
  }

  std::string path_;
  CacheShape shape_;
};

}  // namespace

kvcondense::HeadBases SideBases::view() const {
  const auto data = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
  return {data(encode), data(decode), data(mean), data(energy), data(ranks), layers, groups, dim, columns, keys};
}

BasesFile::BasesFile(std::vector<MethodBases> all) : all_(std::move(all)) {
  for (const MethodBases& m : all_)
    if (!m.keys.encode.empty() || !m.values.encode.empty()) named_.push_back({m.method, m.keys.view(), m.values.view()});
  for (const MethodBases& m : all_)
    for (const FactArray& a : m.arrays) blocks_.push_back(a.block_addresses());
}

kvcondense::any::ModelFacts BasesFile::add_to(kvcondense::any::ModelFacts facts) const {
  facts.bases = view();
  auto blocks = blocks_.begin();
  for (const MethodBases& m : all_)
    for (const FactArray& a : m.arrays) find_tensor(a.name)->give(a, *blocks++, facts);
  return facts;
}

kvcondense::LayerMaps BasesFile::maps() const {
  for (const MethodBases& m : all_)
    if (const LayerArrays& a = m.maps; !a.first_keys.empty()) {
      const auto data = [](const std::vector<float>& x) { return x.empty() ? nullptr : x.data(); };
      return {data(a.first_keys), data(a.first_values), data(a.keys), data(a.values), a.layers, a.key_channels, a.value_channels, m.keys.keys};
    }
  return {};
}

BasesFile read_bases(const std::vector<std::string>& paths, const CacheShape& shape) {
  std::vector<MethodBases> all;
  for (const std::string& path : paths) {
    all.push_back(Reader(path, shape).read());
    for (std::size_t i = 0; i + 1 < all.size(); ++i)
      if (all[i].method == all.back().method) throw Error(path + ": a second file of bases for " + all.back().method);
  }
  return BasesFile(std::move(all));
}

std::string bases_bytes(const MethodBases& bases) {
  engine::SafetensorsWriter writer;
  writer.metadata("format", format_name);
  writer.metadata("version", "1");
  writer.metadata("method", bases.method);
  writer.metadata("keys", bases.keys.keys == KeyForm::raw ? "raw" : "rotated");
  writer.metadata("made", bases.made.dump());
  for (const auto& [name, side] : {std::pair<const char*, const SideBases&>{"key", bases.keys}, {"value", bases.values}})
    for (const Part& p : parts)
      if (const auto& numbers = side.*(p.numbers); !numbers.empty())
        writer.f32(std::string(name) + "." + p.name, shape_of(side, p.name), numbers);
  for (const FactArray& a : bases.arrays) writer.f32(a.name, a.extent, a.numbers);
  for (const MapPart& p : map_parts)
    if (const auto& numbers = bases.maps.*(p.numbers); !numbers.empty()) writer.f32(p.name, shape_of(bases.maps, p), numbers);
  std::string why;
  auto bytes = writer.bytes(why);
  if (!bytes) throw Error("the bases cannot be written: " + why);
  return *std::move(bytes);
}

}  // namespace eval
