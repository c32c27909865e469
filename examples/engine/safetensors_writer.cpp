#include <fstream>
#include <set>

#include <engine/json_text.hpp>
#include <engine/safetensors.hpp>
#include <kvcondense/core/dtype.hpp>

namespace engine {
namespace {

template <class T>
std::string_view raw(std::span<const T> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size_bytes()};
}

}  // namespace

void SafetensorsWriter::add(std::string name, const char* dtype, std::vector<index_t> shape,
                            std::size_t count, std::string_view bytes) {
  TensorInfo info{std::move(name), dtype, std::move(shape), data_.size(),
                  data_.size() + bytes.size()};
  if (bad_.empty() && info.size() != static_cast<index_t>(count))
    bad_ = "tensor \"" + info.name + "\" of " + shape_text(info.shape) + " was given " +
           std::to_string(count) + " elements";
  data_ += bytes;
  tensors_.push_back(std::move(info));
}

void SafetensorsWriter::f32(std::string name, std::vector<index_t> shape,
                            std::span<const float> data) {
  add(std::move(name), "F32", std::move(shape), data.size(), raw(data));
}

void SafetensorsWriter::f16(std::string name, std::vector<index_t> shape,
                            std::span<const float> data) {
  std::vector<kvcondense::half> rounded(data.size());
  for (std::size_t i = 0; i < data.size(); ++i) rounded[i] = kvcondense::half(data[i]);
  add(std::move(name), "F16", std::move(shape), data.size(),
      raw(std::span<const kvcondense::half>(rounded)));
}

void SafetensorsWriter::i32(std::string name, std::vector<index_t> shape,
                            std::span<const std::int32_t> data) {
  add(std::move(name), "I32", std::move(shape), data.size(), raw(data));
}

void SafetensorsWriter::i64(std::string name, std::vector<index_t> shape,
                            std::span<const std::int64_t> data) {
  add(std::move(name), "I64", std::move(shape), data.size(), raw(data));
}

Expected<std::string> SafetensorsWriter::bytes(std::string& why) const {
  using nlohmann::json;
  std::set<std::string> names{"__metadata__"};
  std::string wrong = bad_;
  json root = json::object();
  if (!metadata_.empty()) root["__metadata__"] = metadata_;
  for (const TensorInfo& t : tensors_) {
    if (!names.insert(t.name).second) wrong = "the name \"" + t.name + "\" is taken";
    root[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {t.begin, t.end}}};
  }
  // Replacing bad UTF-8 keeps dump() from throwing; the parse below then finds the other name.
  std::string header = root.dump(-1, ' ', false, json::error_handler_t::replace);
  if (wrong.empty() && json::parse(header, nullptr, false) != root)
    wrong = "a name or metadata text is not UTF-8";
  if (!wrong.empty()) {
    why = "safetensors: " + wrong;
    return Status::invalid_argument;
  }
  header.append((8 - header.size() % 8) % 8, ' ');  // so that the data starts on 8 bytes
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + data_;
}

Status SafetensorsWriter::write(const std::string& path, std::string& why) const {
  const auto all = bytes(why);
  if (!all) return all.status();
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(all->data(), static_cast<std::streamsize>(all->size()));
  if (out.flush()) return Status::ok;
  why = path + ": cannot be written";
  return Status::io_error;
}

}  // namespace engine
