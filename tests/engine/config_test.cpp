#include <cmath>

#include <catch2/catch.hpp>
#include <engine/config.hpp>
#include <engine/model.hpp>
#include <engine/rope.hpp>
#include <engine/safetensors.hpp>
#include <kvcondense/prim/rope.hpp>
#include <nlohmann/json.hpp>

#include "tinylm.hpp"

using namespace engine;
using nlohmann::json;

namespace {

json good() { return json::parse(engine::test::tinylm_text("config.json")); }

Expected<ModelConfig> with(const char* field, const json& value, std::string& why) {
  json c = good();
  c[field] = value;
  return parse_config(c.dump(), why);
}

void refused(const char* field, const json& value, Status status = Status::corrupt_data) {
  std::string why;
  CAPTURE(field, value.dump());
  const auto parsed = with(field, value, why);
  CAPTURE(why);
  REQUIRE(parsed.status() == status);
  REQUIRE(why.find(field) != std::string::npos);
}

RopeConfig rope(const json& scaling) {
  std::string why;
  const auto parsed = with("rope_scaling", scaling, why);
  INFO(why);
  REQUIRE(parsed);
  return parsed->rope;
}

}  // namespace

TEST_CASE("config: the shipped model's fields arrive", "[engine][config]") {
  std::string why;
  const auto c = parse_config(good().dump(), why);
  REQUIRE(c);
  REQUIRE(c->hidden == 192);
  REQUIRE(c->layers == 4);
  REQUIRE(c->q_heads == 6);
  REQUIRE(c->kv_heads == 2);
  REQUIRE(c->head_dim == 64);
  REQUIRE(c->intermediate == 512);
  REQUIRE(c->vocab == 256);
  REQUIRE(c->tied_embeddings);
  REQUIRE(c->rms_norm_eps == 1e-5);
  REQUIRE(c->rope.theta == 10000);
  REQUIRE(c->rope.rotary_dim == 64);
  REQUIRE(c->rope.scaling == RopeScaling::none);
}

TEST_CASE("config: what is left out is derived", "[engine][config]") {
  json c = good();
  for (const char* field : {"head_dim", "num_key_value_heads", "rope_theta", "tie_word_embeddings"})
    c.erase(field);
  c["num_attention_heads"] = 4;
  std::string why;
  const auto parsed = parse_config(c.dump(), why);
  REQUIRE(parsed);
  REQUIRE(parsed->head_dim == 48);
  REQUIRE(parsed->kv_heads == 4);
  REQUIRE_FALSE(parsed->tied_embeddings);
  REQUIRE(with("partial_rotary_factor", 0.5, why)->rope.rotary_dim == 32);
}

TEST_CASE("config: nonsense is refused and the field is named", "[engine][config]") {
  for (const char* field :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "head_dim", "max_position_embeddings"})
    for (const json& value : {json(0), json(-1), json(1.5), json("4"), json(1ull << 40),
                              json(~0ull), json(true), json::array()})
      refused(field, value);
  for (const char* field : {"hidden_size", "num_hidden_layers", "vocab_size"}) {
    json c = good();
    c.erase(field);
    std::string why;
    REQUIRE(parse_config(c.dump(), why).status() == Status::corrupt_data);
    REQUIRE(why == std::string("config: ") + field + " is missing");
  }
  refused("num_key_value_heads", 4);  // does not divide 6
  refused("head_dim", 257);
  refused("rms_norm_eps", -1e-5);
  refused("rope_theta", 0);
  refused("rope_theta", 1);
  refused("partial_rotary_factor", 0);
  refused("partial_rotary_factor", 1.5);
  refused("partial_rotary_factor", 0.02);  // one channel
  refused("tie_word_embeddings", 1);
}

TEST_CASE("config: text that is no configuration is refused", "[engine][config]") {
  std::string why;
  for (const char* text : {"", "{", "[]", "3", "null", "{\"a\":1,\"a\":2}", "{\"a\":NaN}"}) {
    CAPTURE(text);
    REQUIRE(parse_config(text, why).status() == Status::corrupt_data);
  }
  REQUIRE(parse_config(std::string(1000000, '['), why).status() == Status::corrupt_data);
  REQUIRE(parse_config(std::string(2000000, ' '), why).status() == Status::corrupt_data);
  REQUIRE(read_config("/", why).status() == Status::io_error);
}

TEST_CASE("config: models this engine would compute wrongly are refused", "[engine][config]") {
  const auto no = Status::not_supported;
  refused("architectures", json::array({"Qwen2ForCausalLM"}), no);
  refused("architectures", json::array());
  refused("architectures", nullptr);
  refused("hidden_act", "gelu", no);
  refused("attention_bias", true, no);
  refused("mlp_bias", true, no);
  refused("sliding_window", 4096, no);
  refused("quantization_config", json::object(), no);
  refused("rope_scaling", {{"rope_type", "longrope"}, {"factor", 2}}, no);
}

TEST_CASE("config: every scaling of rotary frequencies arrives at its formula",
          "[engine][config]") {
  const RopeConfig plain = rope(nullptr);
  const auto frequency = [](const RopeConfig& r, index_t length, int pair) {
    const auto angles = kvcondense::prim::rope_angles(library_rope(r, length), r.rotary_dim);
    REQUIRE(angles);
    return static_cast<double>(angles->frequency[pair]);
  };
  const double last = std::pow(10000.0, -62.0 / 64);
  REQUIRE(frequency(plain, 4096, 31) == Approx(last));
  REQUIRE(frequency(rope({{"type", "linear"}, {"factor", 4}}), 1, 31) == Approx(last / 4));

  const RopeConfig dynamic = rope({{"type", "dynamic"}, {"factor", 2}});
  REQUIRE(frequency(dynamic, 2048, 31) == Approx(last));
  const double base = 10000 * std::pow(2 * 2 - 1, 64.0 / 62);  // at twice the trained length
  REQUIRE(frequency(dynamic, 4096, 31) == Approx(std::pow(base, -62.0 / 64)));

  const RopeConfig llama3 = rope({{"rope_type", "llama3"},
                                  {"factor", 8},
                                  {"low_freq_factor", 1},
                                  {"high_freq_factor", 4},
                                  {"original_max_position_embeddings", 512}});
  REQUIRE(llama3.original_length == 512);
  REQUIRE(frequency(llama3, 1, 0) == 1);
  REQUIRE(frequency(llama3, 1, 31) == Approx(last / 8));

  const RopeConfig yarn = rope({{"rope_type", "yarn"}, {"factor", 4}});
  REQUIRE(yarn.original_length == 2048);
  REQUIRE(yarn.attention_factor == Approx(0.1 * std::log(4.0) + 1));
  REQUIRE(frequency(yarn, 1, 0) == 1);
  REQUIRE(frequency(yarn, 1, 31) == Approx(last / 4));
  RopeTable table;
  table.fill(yarn, std::vector<index_t>{0});
  REQUIRE(table.cos[0] == Approx(yarn.attention_factor));

  std::string why;
  const auto renamed =
      with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 500000}}, why);
  REQUIRE(renamed);
  REQUIRE(renamed->rope.theta == 500000);
}

TEST_CASE("config: scalings with missing or impossible numbers are refused", "[engine][config]") {
  refused("rope_scaling", 3);
  refused("rope_scaling", {{"type", 3}});
  refused("rope_scaling", {{"type", "linear"}});
  refused("rope_scaling", {{"type", "linear"}, {"factor", 0}});
  refused("rope_scaling", {{"type", "linear"}, {"factor", "2"}});
  refused("rope_scaling",
          {{"type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 1}});
  refused("rope_scaling",
          {{"type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 0}});
}

TEST_CASE("model: weights that are missing, misshapen or left over are refused by name",
          "[engine][config]") {
  std::string why;
  auto config = parse_config(good().dump(), why);
  REQUIRE(config);
  const auto file = SafetensorsFile::read(engine::test::tinylm_path("model.safetensors"), why);
  REQUIRE(file);
  REQUIRE(make_model(*config, *file, why));

  ModelConfig other = *config;
  other.layers = 5;
  REQUIRE(make_model(other, *file, why).status() == Status::missing_input);
  REQUIRE(why.find("model.layers.4.") != std::string::npos);
  other = *config;
  other.layers = 3;
  REQUIRE(make_model(other, *file, why).status() == Status::not_supported);
  REQUIRE(why.find("model.layers.3.") != std::string::npos);
  other = *config;
  other.intermediate = 513;
  REQUIRE(make_model(other, *file, why).status() == Status::shape_mismatch);
  REQUIRE(why ==
          "tensor \"model.layers.0.mlp.gate_proj.weight\" is [512, 192], config.json "
          "implies [513, 192]");
  other = *config;
  other.tied_embeddings = false;
  REQUIRE(make_model(other, *file, why).status() == Status::missing_input);
  REQUIRE(why.find("lm_head.weight") != std::string::npos);
  REQUIRE(load_model("/no such directory", why).status() == Status::io_error);
}
