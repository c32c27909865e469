#include <engine/safetensors.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include <engine/json_text.hpp>
#include <kvcondense/core/dtype.hpp>

namespace engine {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

/// parse_json refuses longer headers.
constexpr std::size_t max_header = std::size_t{16} << 20;
constexpr std::size_t length_bytes = 8;

/// Every dtype the format names has a size, so that files with tensors we cannot use still load.
std::uint64_t element_bytes(std::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2")
    return 1;
  return 0;
}

bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& out) {
  if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b) return false;
  out = a * b;
  return true;
}

/// One entry of the header, or a sentence about what is wrong with it.
const char* read_entry(const nlohmann::json& entry, std::uint64_t data_bytes, TensorInfo& out) {
  if (!entry.is_object() || entry.size() != 3) return "needs exactly dtype, shape and data_offsets";
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"),
             offsets = entry.find("data_offsets");
  if (dtype == entry.end() || shape == entry.end() || offsets == entry.end())
    return "needs exactly dtype, shape and data_offsets";
  if (!dtype->is_string()) return "has a dtype that is no text";
  out.dtype = dtype->get<std::string>();
  std::uint64_t bytes = element_bytes(out.dtype);
  if (bytes == 0) return "has an unknown dtype";
  if (!shape->is_array()) return "has a shape that is no list";
  for (const auto& extent : *shape) {
    if (!extent.is_number_unsigned()) return "has a shape with an entry that is no count";
    const auto count = extent.get<std::uint64_t>();
    if (count > static_cast<std::uint64_t>(std::numeric_limits<index_t>::max()) ||
        !multiply(bytes, count, bytes))
      return "has a shape that overflows";
    out.shape.push_back(static_cast<index_t>(count));
  }
  if (!offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned())
    return "has data_offsets that are not two counts";
  out.begin = (*offsets)[0].get<std::uint64_t>();
  out.end = (*offsets)[1].get<std::uint64_t>();
  if (out.begin > out.end || out.end > data_bytes) return "lies outside the file";
  if (out.end - out.begin != bytes) return "has data_offsets that do not hold its shape";
  return nullptr;
}

Status refuse(std::string& why, std::string text) {
  why = "safetensors: " + std::move(text);
  return Status::corrupt_data;
}

template <class Stored>
std::vector<float> to_floats(std::string_view bytes) {
  std::vector<float> out(bytes.size() / sizeof(Stored));
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;  // copied, because the format does not align tensors
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<float>(stored);
  }
  return out;
}

template <class Stored>
std::vector<std::int64_t> to_integers(std::string_view bytes) {
  std::vector<std::int64_t> out(bytes.size() / sizeof(Stored));
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = stored;
  }
  return out;
}

}  // namespace

index_t TensorInfo::size() const {
  index_t n = 1;
  for (index_t extent : shape) n *= extent;
  return n;
}

std::string shape_text(std::span<const index_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Expected<SafetensorsFile> SafetensorsFile::parse(std::string bytes, std::string& why) {
  std::uint64_t header = 0;
  const auto size = std::to_string(bytes.size()) + " bytes";
  if (bytes.size() < length_bytes) return refuse(why, size + " end inside the header's length");
  std::memcpy(&header, bytes.data(), length_bytes);
  if (header > bytes.size() - length_bytes)
    return refuse(why, size + " end inside a header of " + std::to_string(header) + " bytes");
  SafetensorsFile file;
  file.bytes_ = std::move(bytes);
  file.data_at_ = length_bytes + static_cast<std::size_t>(header);
  const std::string_view text =
      std::string_view(file.bytes_).substr(length_bytes, static_cast<std::size_t>(header));
  if (const Status s = file.read_header(text, file.bytes_.size() - file.data_at_, why);
      s != Status::ok)
    return s;
  return file;
}

Expected<SafetensorsFile> SafetensorsFile::read(const std::string& path, std::string& why) {
  auto bytes = read_file(path, std::numeric_limits<std::size_t>::max() / 2, why);
  if (!bytes) return bytes.status();
  auto file = parse(*std::move(bytes), why);
  if (!file) why = path + ": " + why;
  return file;
}

Status SafetensorsFile::read_header(std::string_view header, std::uint64_t data_bytes,
                                    std::string& why) {
  if (header.empty() || header.front() != '{') return refuse(why, "byte 8 does not start a header");
  const auto root = parse_json(header, {.bytes = max_header, .depth = 3}, why);
  if (!root) return refuse(why, "header: " + why);
  for (const auto& [name, entry] : root->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return refuse(why, "__metadata__ is no object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return refuse(why, "__metadata__: \"" + printable(key) + "\" is no text");
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    TensorInfo info;
    info.name = name;
    if (const char* wrong = read_entry(entry, data_bytes, info))
      return refuse(why, "tensor \"" + printable(name) + "\" " + wrong);
    tensors_.push_back(std::move(info));
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::uint64_t at = 0;
  for (std::size_t i = 0; i < tensors_.size(); at = tensors_[i++].end) {
    if (tensors_[i].begin != at)
      return refuse(why, "tensor \"" + printable(tensors_[i].name) + "\" starts at byte " +
                             std::to_string(tensors_[i].begin) + " of the data, expected " +
                             std::to_string(at));
    index_.emplace(tensors_[i].name, i);
  }
  if (at != data_bytes)
    return refuse(why, "data of " + std::to_string(data_bytes) + " bytes, the tensors hold " +
                           std::to_string(at));
  return Status::ok;
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto at = index_.find(name);
  return at == index_.end() ? nullptr : &tensors_[at->second];
}

const TensorInfo* SafetensorsFile::find_or_say(std::string_view name, std::string& why) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) why = "tensor \"" + printable(name) + "\" is missing";
  return info;
}

Expected<std::vector<float>> SafetensorsFile::floats(std::string_view name,
                                                     std::string& why) const {
  const TensorInfo* info = find_or_say(name, why);
  if (info == nullptr) return Status::missing_input;
  const auto bytes =
      std::string_view(bytes_).substr(data_at_ + info->begin, info->end - info->begin);
  if (info->dtype == "F32") return to_floats<float>(bytes);
  if (info->dtype == "F16") return to_floats<kvcondense::half>(bytes);
  if (info->dtype == "BF16") return to_floats<kvcondense::bfloat16>(bytes);
  why = "tensor \"" + printable(info->name) + "\" is " + info->dtype + ", not F32, F16 or BF16";
  return Status::not_supported;
}

Expected<std::vector<std::int64_t>> SafetensorsFile::integers(std::string_view name,
                                                              std::string& why) const {
  const TensorInfo* info = find_or_say(name, why);
  if (info == nullptr) return Status::missing_input;
  const auto bytes =
      std::string_view(bytes_).substr(data_at_ + info->begin, info->end - info->begin);
  if (info->dtype == "I32") return to_integers<std::int32_t>(bytes);
  if (info->dtype == "I64") return to_integers<std::int64_t>(bytes);
  why = "tensor \"" + printable(info->name) + "\" is " + info->dtype + ", not I32 or I64";
  return Status::not_supported;
}

}  // namespace engine
