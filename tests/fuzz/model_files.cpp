#include <fuzz/fuzz.hpp>

#include <algorithm>
#include <string>

#include <engine/config.hpp>
#include <engine/safetensors.hpp>

namespace kvcondense::fuzz {
namespace {

void read_config(const std::string& text) {
  std::string why;
  const auto config = engine::parse_config(text, why);
  if (!config) {
    REQUIRE(!why.empty());
    return;
  }
  REQUIRE((config->layers > 0 && config->q_heads > 0 && config->kv_heads > 0 && config->head_dim > 0));
  REQUIRE(config->q_heads % config->kv_heads == 0);
  REQUIRE(config->rope.rotary_dim <= config->head_dim);
}

void read_tensors(const std::string& bytes) {
  std::string why;
  const auto file = engine::SafetensorsFile::parse(bytes, why);
  if (!file) {
    REQUIRE(!why.empty());
    return;
  }
  std::uint64_t at = 0;  // tensors cover the data without holes
  for (const engine::TensorInfo& t : file->tensors()) {
    REQUIRE((t.begin == at && t.end >= t.begin && t.end <= bytes.size()));
    at = t.end;
    REQUIRE(file->find(t.name) == &t);
    if (const auto numbers = file->floats(t.name, why)) REQUIRE(static_cast<index_t>(numbers->size()) == t.size());
    if (const auto numbers = file->integers(t.name, why)) REQUIRE(static_cast<index_t>(numbers->size()) == t.size());
  }
}

// First byte: a config.json or a safetensors file, the latter with a header length that fits or as it comes.
void run(Bytes bytes) {
  if (bytes.empty()) return;
  std::string text(reinterpret_cast<const char*>(bytes.data()) + 1, bytes.size() - 1);
  switch (static_cast<int>(bytes[0]) % 3) {
    case 0: read_config(text); break;
    case 1: read_tensors(text); break;
    default: {  // the header ends at the first zero
      const std::uint64_t length = std::min(text.find('\0'), text.size());
      std::string file(8, '\0');
      std::memcpy(file.data(), &length, 8);
      if (length < text.size()) text.erase(length, 1);
      read_tensors(file + text);
    }
  }
}

std::vector<Input> seeds() {
  Input config = bytes_of(
      "0{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,"
      "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,\"intermediate_size\":128,\"vocab_size\":256,"
      "\"max_position_embeddings\":2048,\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
      "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":512}}");
  config[0] = std::byte{0};
  std::string why;
  engine::SafetensorsWriter w;
  const float floats[] = {1, 2, 3, 4, 5, 6};
  const std::int64_t longs[] = {7, 8};
  w.metadata("format", "pt"), w.f32("a", {2, 3}, floats), w.f16("b", {6}, floats), w.i64("c", {2}, longs);
  const auto file = w.bytes(why);
  REQUIRE(static_cast<bool>(file));
  Input whole{std::byte{1}}, open{std::byte{2}};
  for (const char c : *file) whole.push_back(static_cast<std::byte>(c));
  std::uint64_t length = 0;
  std::memcpy(&length, file->data(), 8);
  for (const char c : file->substr(8, length)) open.push_back(static_cast<std::byte>(c));
  open.push_back(std::byte{0});
  for (const char c : file->substr(8 + length)) open.push_back(static_cast<std::byte>(c));
  return {config, whole, open};
}

}  // namespace

const Target model_files{"model_files", run, seeds};

}  // namespace kvcondense::fuzz
