#include <cstdlib>
#include <filesystem>

#include <catch2/catch.hpp>

#include <any/methods_page.hpp>

using namespace kvcondense;

namespace {

const std::string include = KVCONDENSE_SOURCE_DIR "/include/kvcondense/";

}  // namespace

TEST_CASE("methods page: docs/methods.md is fresh", "[any][methods_page]") {
  const std::string path = KVCONDENSE_SOURCE_DIR "/docs/methods.md";
  const std::string page = test::methods_page(any::builtin(), include);
  if (std::getenv("KVCONDENSE_WRITE_DOCS") != nullptr)
    std::ofstream(path, std::ios::binary) << page;
  INFO("write it anew: KVCONDENSE_WRITE_DOCS=1 any_test '[methods_page]'");
  REQUIRE((test::read_file(path) == page));
}

TEST_CASE(
    "methods page: the summary of a method is the first sentence of the card in the header of its "
    "name",
    "[any][methods_page]") {
  const auto check = [](const auto& e) {
    const std::string header = include + test::header_of(e);
    CAPTURE(header);
    const std::string card = test::card(test::read_file(header), e.word);
    REQUIRE(card.find("\nIdea ") != std::string::npos);
    REQUIRE(card.find("\nSource ") != std::string::npos);
    std::string first = card.substr(0, card.find("\n\n"));
    for (char& c : first) c = c == '\n' ? ' ' : c;
    CHECK(first.substr(
              0, first.find(". ") == std::string::npos ? first.size() : first.find(". ") + 1) ==
          e.summary);
  };
  for (const any::Entry* e : any::builtin().entries())
    if (e->word != "exact") check(*e);
  for (const any::Tool& t : any::tools()) check(t);
}

TEST_CASE("tools: no word is taken twice, and every header of their rooms with a descriptor is there",
          "[any][methods_page]") {
  for (const any::Tool& t : any::tools()) {
    CAPTURE(t.word);
    CHECK(any::builtin().find(t.word) == nullptr);
    CHECK(any::find_tool(t.word) == &t);
    CHECK((t.room == Stage::reuse || t.room == Stage::storage || t.room == Stage::cost || t.room == Stage::retrieve || t.room == Stage::lowrank));
  }
  REQUIRE(any::find_tool("snapkv") == nullptr);
  for (const char* room : {"reuse", "storage", "cost", "retrieve", "lowrank"})
    for (const auto& file : std::filesystem::directory_iterator(include + room)) {
      if (test::read_file(file.path().string()).find("Descriptor about{") == std::string::npos) continue;
      CAPTURE(file.path());
      const std::string word = file.path().stem().string();
      CHECK((any::find_tool(word) != nullptr || any::builtin().find(word) != nullptr));
    }
}
