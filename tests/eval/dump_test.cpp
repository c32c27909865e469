#include <catch2/catch.hpp>
#include <cstring>

#include <eval/dump.hpp>
#include <eval/evaluate.hpp>
#include <kvcondense/core/dtype.hpp>

#include "dump_files.hpp"

using namespace eval;
using namespace eval::test;

namespace {

const CacheShape small{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32};
constexpr index_t tokens = 70, prefill = 40;

/// What --dump writes for these recipes over a random recording.
engine::SafetensorsFile dump_of(const Recording& r, std::vector<std::string> recipes) {
  const TempFile in("in.safetensors");
  write_qkv(r, in.path());
  Options o;
  o.qkv = in.path();
  o.recipes = std::move(recipes);
  o.prefill = prefill;
  o.rounds = 0;
  o.quiet = true;
  Kept kept;
  const Results results = evaluate(o, &kept);
  std::string why;
  auto dump = engine::SafetensorsFile::parse(dump_bytes(results, kept), why);
  INFO(why);
  REQUIRE(dump);
  return *std::move(dump);
}

std::vector<float> floats(const engine::SafetensorsFile& dump, const std::string& name) {
  std::string why;
  auto out = dump.floats(name, why);
  INFO(why);
  REQUIRE(out);
  return *std::move(out);
}

std::vector<std::int64_t> integers(const engine::SafetensorsFile& dump, const std::string& name) {
  std::string why;
  auto out = dump.integers(name, why);
  INFO(why);
  REQUIRE(out);
  return *std::move(out);
}

/// A page of codes of keys, read by what docs/file_format.md says and nothing else.
struct StoredPages {
  std::vector<std::uint8_t> bytes;
  std::size_t page_bytes, slots, dim, bits;

  StoredPages(const engine::SafetensorsFile& dump, const std::string& name, std::size_t page_slots,
              std::size_t row, std::size_t code_bits)
      : slots(page_slots), dim(row), bits(code_bits) {
    page_bytes = 4 * static_cast<std::size_t>(dump.find(name)->shape.at(1));
    for (const std::int64_t word : integers(dump, name))
      for (int byte = 0; byte < 4; ++byte)
        bytes.push_back(static_cast<std::uint8_t>(static_cast<std::uint64_t>(word) >> (8 * byte)));
  }
  bool lanes() const { return slots % 64 == 0; }
  float code(std::size_t page, std::size_t slot, std::size_t channel) const {
    if (lanes()) {
      const std::size_t outputs = 128 / bits, block = slot / outputs * (dim / 4) + channel / 4;
      const std::uint8_t byte = bytes[page * page_bytes + block * 64 + 4 * (slot % 16) + channel % 4];
      return static_cast<float>((byte >> (slot % outputs / 16 * bits)) & ((1u << bits) - 1));
    }
    const std::size_t row_bytes = (dim * bits + 7) / 8, bit = channel * bits;
    const std::uint8_t byte = bytes[page * page_bytes + slot * row_bytes + bit / 8];
    return static_cast<float>((byte >> (bit % 8)) & ((1u << bits) - 1));
  }
  float parameter(std::size_t page, std::size_t number) const {
    const std::size_t codes = slots * ((dim * bits + 7) / 8), at = (codes + 3) / 4 * 4;
    kvcondense::half stored;
    std::memcpy(&stored, bytes.data() + page * page_bytes + at + 2 * number, sizeof stored);
    return static_cast<float>(stored);
  }
};

}  // namespace

TEST_CASE("dump: kept tokens, numbers and outputs of every recipe", "[eval][dump]") {
  const Recording r = random_recording(tokens, small);
  const auto dump = dump_of(r, {"sink_window(sinks=2, recent=10)"});
  REQUIRE(dump.metadata().at("recipe.1") == "sink_window(sinks=2, recent=10)");
  REQUIRE(dump.metadata().at("keys.1") == "rotated");
  REQUIRE(dump.find("1.out.1")->shape == std::vector<index_t>{tokens - prefill, 6, 32});
  REQUIRE(dump.find("exact.out.1")->shape == std::vector<index_t>{tokens - prefill, 6, 32});
  REQUIRE(dump.find("1.key_pages.0.0") == nullptr);  // nothing is coded
  const auto ids = integers(dump, "1.tokens.1.0");
  REQUIRE(ids == std::vector<std::int64_t>{0, 1, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69});
  const auto keys = floats(dump, "1.keys.1.0"), values = floats(dump, "1.values.1.0");
  for (std::size_t i = 0; i < ids.size(); ++i)
    for (std::size_t d = 0; d < 32; ++d) {
      const std::size_t at = static_cast<std::size_t>(ids[i]) * 64 + d;
      REQUIRE(keys[i * 32 + d] == static_cast<float>(kvcondense::half(r.layers[1].k[at])));
      REQUIRE(values[i * 32 + d] == static_cast<float>(kvcondense::half(r.layers[1].v[at])));
    }
}

TEST_CASE("dump: the stored codes are those that the decoded numbers come from", "[eval][dump]") {
  const bool per_channel = GENERATE(false, true);
  const std::size_t bits = per_channel ? 2 : 4, dim = 32;
  const auto dump = dump_of(random_recording(tokens, small),
                            {per_channel ? "kivi2(group=32, residual=32)" : "int4"});
  const auto page_slots = std::stoul(dump.metadata().at("key_page_slots.1"));
  const StoredPages pages(dump, "1.key_pages.1.1", page_slots, dim, bits);
  const auto places = integers(dump, "1.key_places.1.1");
  const auto keys = floats(dump, "1.keys.1.1");
  REQUIRE(places.size() == 2 * keys.size() / dim);
  std::size_t coded = 0;
  for (std::size_t s = 0; s < places.size() / 2; ++s) {
    if (places[2 * s] < 0) continue;
    ++coded;
    const auto page = static_cast<std::size_t>(places[2 * s]),
               slot = static_cast<std::size_t>(places[2 * s + 1]);
    for (std::size_t d = 0; d < dim; ++d) {
      // One group of 32: along the row, or along 32 slots of a channel.
      const std::size_t scale = per_channel ? slot / 32 * 2 * dim + d : pages.lanes() ? slot : slot * 2;
      const std::size_t offset = scale + (per_channel ? dim : pages.lanes() ? page_slots : 1);
      REQUIRE(keys[s * dim + d] == Approx(pages.code(page, slot, d) * pages.parameter(page, scale) +
                                          pages.parameter(page, offset))
                                       .margin(1e-6));
    }
  }
  REQUIRE(coded >= (per_channel ? 32 : 69));
  REQUIRE(dump.find("1.value_places.1.1")->shape.at(0) == dump.find("1.values.1.1")->shape.at(0));
}
