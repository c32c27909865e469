// A recipe from a command line: parsed, compiled once for all recipes, or refused with the place
// and a sentence. Link kvcondense::any.
//
//   02_recipe_from_text "snapkv(tokens=512) + kivi2"

#include <cstdio>
#include <string_view>

#include <kvcondense/any/any_cache.hpp>

namespace kvc = kvcondense;

namespace {

const kvc::CacheShape shape{.layers = 4, .q_heads = 28, .kv_heads = 4, .head_dim = 128};

/// Prints the text, a mark under the byte that is wrong, and the sentence.
void complain(std::string_view text, const kvc::any::MakeResult& made) {
  std::printf("  %.*s\n", static_cast<int>(text.size()), text.data());
  if (made.position() != kvc::any::MakeResult::no_position)
    std::printf("  %*s^\n", static_cast<int>(made.position()), "");
  std::printf("%s: %.*s\n", to_string(made.status()), static_cast<int>(made.message().size()),
              made.message().data());
}

bool show(std::string_view text) {
  auto cache = kvc::any::make(text, shape, kvc::any::on<kvc::Cpu>);
  if (!cache) return complain(text, cache), false;
  const kvc::Capabilities c = cache->capabilities();
  std::printf("%.*s: attention %s, keys %s\n", static_cast<int>(cache->text().size()),
              cache->text().data(), c.needs.has(kvcondense::Input::attention) ? "needed" : "not needed",
              c.raw_keys ? "stored before rotation" : "stored as they come");
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return show(argv[1]) ? 0 : 1;

  // A wrapper takes its policy as an argument without a name; stages are joined by '+'.
  const bool good = show("h2o(heavy=256, recent=256) + kivi2(group=32)") &&
                    show("ada(snapkv(window=32, budget=512), floor=20%) + int4") &&
                    show("streaming_llm(window=1020) + reindex(theta=500000)");

  // What is wrong is said, not guessed: a typing error, a value, a second stage of one kind.
  const bool refused =
      !show("h2o(hevy=256) + kivi2") && !show("kivi2 + knorm(tokens=-5)") && !show("h2o + snapkv");
  const auto typo = kvc::any::make("h2o(hevy=256) + kivi2", shape, kvc::any::on<kvc::Cpu>);
  return good && refused && typo.position() == 4 ? 0 : 1;
}
