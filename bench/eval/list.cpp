#include <eval/list.hpp>

#include <engine/json_text.hpp>
#include <eval/error.hpp>
#include <eval/table.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/any/tools.hpp>

namespace eval {

namespace any = kvcondense::any;

namespace {

std::string summary(const any::Entry& e) {
  std::string text(e.summary);
  for (std::size_t i = 0; i < e.aliases.size(); ++i)
    text.append(i == 0 ? " Also: " : ", ").append(e.aliases[i].word);
  return text;
}

/// As recipes may spell it.
std::string names(const any::Field& f) {
  std::string text(f.name);
  if (!f.short_name.empty()) text.append(" or ").append(f.short_name);
  return text;
}

}  // namespace

std::string list_methods() {
  std::vector<std::vector<std::string>> rows;
  for (const any::Entry* e : any::builtin().entries())
    rows.push_back({std::string(e->word), kvcondense::to_string(e->room),
                    std::string(any::needs(*e).view()), std::string(e->backends), std::string(e->source),
                    summary(*e)});
  for (const any::Tool& t : any::tools())
    rows.push_back({std::string(t.word), kvcondense::to_string(t.room), "no recipe", std::string(t.backends),
                    std::string(t.source), std::string(t.summary)});
  return aligned_left(rows);
}

std::string describe_method(std::string_view word) {
  if (const any::Tool* t = any::find_tool(word))
    return std::string(t->word) + ": " + std::string(t->summary) + "\n  include kvcondense/" +
           kvcondense::to_string(t->room) + "/" + std::string(t->word) + ".hpp; stands beside a cache, in no recipe\n";
  const any::Entry* e = any::builtin().find(word);
  if (e == nullptr) {
    const std::string near(any::nearest_word(word, any::builtin(), any::tools()));
    throw Error("unknown method '" + engine::printable(word) + "'; " +
                (near.empty() ? "" : "did you mean '" + near + "'? ") + "--list names them all");
  }
  std::vector<std::vector<std::string>> rows;
  for (const any::Field& f : e->fields)
    rows.push_back({"  " + names(f), std::string(any::value_text(f, any::default_of(*e, f)).view()),
                    std::string(any::accepts_text(f).view()), std::string(f.meaning)});
  return std::string(e->word) + ": " + summary(*e) + "\n" + aligned_left(rows);
}

}  // namespace eval
