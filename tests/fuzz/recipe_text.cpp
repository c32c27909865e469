#include <fuzz/fuzz.hpp>

#include <algorithm>
#include <string>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/cpu.hpp>
#include <support/catalogue.hpp>
#include <support/memory.hpp>
#include <support/model_facts.hpp>

namespace kvcondense::fuzz {
namespace {

void run(Bytes bytes) {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  static const test::RandomModel model(shape);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const any::ParseResult parsed = any::parse(text, model.facts());
  if (!parsed) {
    REQUIRE(!parsed.message().empty());
    REQUIRE(parsed.position() <= text.size());
    return;
  }
  // What it says it has read, it reads again, as the same.
  const std::string canonical(parsed->text.view());
  const any::ParseResult again = any::parse(canonical, model.facts());
  REQUIRE(static_cast<bool>(again));
  REQUIRE(again->text.view() == canonical);
  test::CountingMemory memory;
  {
    const auto cache = make_cache<Cpu>(shape, parsed->stages, memory);
    if (!cache) REQUIRE(cache.status() != Status::out_of_memory);
  }
  REQUIRE(memory.live_bytes == 0);
}

std::vector<Input> seeds() {
  std::vector<Input> list;
  for (const auto& [word, setting] : test::settings) {
    std::string text = setting.text;
    if (const std::size_t at = text.find("POLICY"); at != text.npos) text.replace(at, 6, "h2o(heavy=3, recent=2)");
    list.push_back(bytes_of(text.c_str()));
  }
  list.push_back(bytes_of("ada(snapkv(tokens=40, window=8), floor=0.2) + kivi2(group=8, residual=16) + rerotate"));
  return list;
}

}  // namespace

const Target recipe_text{"recipe_text", run, seeds};

}  // namespace kvcondense::fuzz
