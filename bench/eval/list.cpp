#include <eval/list.hpp>

#include <engine/json_text.hpp>
#include <eval/error.hpp>
#include <eval/table.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>

namespace eval {

namespace any = kvcondense::any;

namespace {

std::string summary(const any::Entry& e) {
  std::string text(e.summary);
  for (std::size_t i = 0; i < e.aliases.size(); ++i)
    text.append(i == 0 ? " Also: " : ", ").append(e.aliases[i].word);
  return text;
}

}  // namespace

std::string list_methods() {
  std::vector<std::vector<std::string>> rows;
  for (const any::Entry* e : any::builtin().entries())
    rows.push_back({std::string(e->word), kvcondense::to_string(e->room),
                    std::string(any::needs(*e).view()), std::string(e->backends), std::string(e->source),
                    summary(*e)});
  return aligned_left(rows);
}

std::string describe_method(std::string_view word) {
  const any::Entry* e = any::builtin().find(word);
  if (e == nullptr)
    throw Error("unknown method '" + engine::printable(word) + "'; --list names them all");
  std::vector<std::vector<std::string>> rows;
  for (const any::Field& f : e->fields)
    rows.push_back({"  " + std::string(f.name),
                    std::string(any::value_text(f, any::default_of(*e, f)).view()),
                    std::string(any::accepts_text(f).view()), std::string(f.meaning)});
  return std::string(e->word) + ": " + summary(*e) + "\n" + aligned_left(rows);
}

}  // namespace eval
