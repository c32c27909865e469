#pragma once

#include <fstream>
#include <sstream>
#include <string>

#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/any/tools.hpp>

namespace kvcondense::test {

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// The card of a method: the /// lines above the struct or class whose `about` names the word.
inline std::string card(const std::string& header, std::string_view word) {
  std::ostringstream mark;
  mark << "about{\"" << word << '"';
  const std::size_t about = header.find(mark.str());
  if (about == std::string::npos) return {};
  const std::size_t as_struct = header.rfind("\nstruct ", about), as_class = header.rfind("\nclass ", about);
  const std::size_t owner = as_class == std::string::npos || (as_struct != std::string::npos && as_struct > as_class)
                                ? as_struct
                                : as_class;
  std::istringstream lines(header.substr(0, owner + 1));
  std::string card, line;
  while (std::getline(lines, line)) {
    if (line.starts_with("///"))
      (card += line.size() > 4 ? line.substr(4) : "") += '\n';
    else if (!line.starts_with("template") && !line.starts_with("  requires"))
      card.clear();
  }
  return card;
}

inline void put_aliases(std::ostream& page, const any::Entry& e) {
  const char* between = "";
  for (const any::Alias& a : e.aliases) {
    page << between << '`' << a.word << '`';
    if (!a.field.empty())
      page << " (" << a.field << '=' << any::value_text(*e.field(a.field), a.value).view() << ')';
    between = ", ";
  }
}

inline void put_fields(std::ostream& page, const any::Entry& e) {
  if (e.fields.empty()) {
    page << "No fields.\n";
    return;
  }
  page << "| field | also | default | accepts | what it is |\n|---|---|---|---|---|\n";
  for (const any::Field& f : e.fields) {
    page << "| `" << f.name << "` | ";
    if (!f.short_name.empty()) page << '`' << f.short_name << '`';
    page << " | " << any::value_text(f, any::default_of(e, f)).view() << " | "
         << any::accepts_text(f).view() << " | " << f.meaning << " |\n";
  }
}

/// Of an entry of the registry, or a tool.
inline std::string header_of(const auto& e) {
  std::ostringstream name;
  name << to_string(e.room) << '/' << e.word << ".hpp";
  return name.str();
}

inline void put_card(std::ostream& page, const auto& e, const std::string& include) {
  const std::string text = card(read_file(include + header_of(e)), e.word);
  if (!text.empty()) page << "\n`" << header_of(e) << "`\n\n```text\n" << text << "```\n";
}

/// docs/methods.md as it should be: one table for all methods, one for those beside a cache, then each with
/// its fields and its card.
inline std::string methods_page(const any::Registry& words, const std::string& include) {
  std::ostringstream page;
  page << R"(# Methods

This page is generated from the registry and from the cards in the headers; do not edit it. To write it anew:

```
KVCONDENSE_WRITE_DOCS=1 build/release/tests/any_test '[methods_page]'
```

A recipe is words joined by `+`, at most one of each kind (eviction or budget, low-rank, quant, position, retrieval), each with its
fields: `ada(snapkv(window=32, tokens=512), floor=0.2) + kivi2(group_size=32)`. A wrapper takes the policy that it
wraps as an argument without a name. *Needs* says what a method wants besides keys and values: nothing, attention
of every query, of a window of the newest ones, other inputs of a step by their names, or what the wrapped policy wants. *Backends* says where
`Cache` has a recipe of it as a type; recipes as text make caches of the CPU. Beside a cache it says where the rows may lie that a method works on. What goes with what on CUDA: [cuda.md](cuda.md#a-cache).

| word | also | kind | what it does | needs | backends | source |
|---|---|---|---|---|---|---|
)";
  for (const any::Entry* e : words.entries()) {
    page << "| [`" << e->word << "`](#" << e->word << ") | ";
    put_aliases(page, *e);
    page << " | " << to_string(e->room) << " | " << e->summary << " | " << any::needs(*e).view() << " | "
         << e->backends << " | " << e->source << " |\n";
  }
  page << R"(
These stand beside a cache: a program includes their headers, no recipe names them. What the rooms are for:
[beside_the_cache.md](beside_the_cache.md).

| word | room | what it does | backends | source |
|---|---|---|---|---|
)";
  for (const any::Tool& t : any::tools())
    page << "| [`" << t.word << "`](#" << t.word << ") | " << to_string(t.room) << " | " << t.summary << " | "
         << t.backends << " | " << t.source << " |\n";
  for (const any::Entry* e : words.entries()) {
    page << "\n## " << e->word << "\n\n";
    put_fields(page, *e);
    put_card(page, *e, include);
  }
  for (const any::Tool& t : any::tools()) {
    page << "\n## " << t.word << "\n";
    put_card(page, t, include);
  }
  return page.str();
}

}  // namespace kvcondense::test
