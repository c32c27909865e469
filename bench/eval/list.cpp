#include <eval/list.hpp>

#include <eval/table.hpp>
#include <kvcondense/any/builtin.hpp>

namespace eval {

std::string list_methods() {
  namespace any = kvcondense::any;
  std::vector<std::vector<std::string>> rows;
  for (const any::Entry* e : any::builtin().entries()) {
    std::string summary(e->summary);
    for (std::size_t i = 0; i < e->aliases.size(); ++i)
      summary += (i == 0 ? " Also: " : ", ") + std::string(e->aliases[i].word);
    rows.push_back({std::string(e->word), kvcondense::to_string(e->room),
                    std::string(any::needs(*e)), std::string(e->backends), std::string(e->source),
                    summary});
  }
  return aligned_left(rows);
}

}  // namespace eval
