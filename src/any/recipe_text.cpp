#include <kvcondense/any/recipe_text.hpp>

#include <iterator>

#include <kvcondense/any/tools.hpp>
#include <kvcondense/cache/recipe.hpp>

#include "field_text.hpp"
#include "misfit.hpp"

namespace kvcondense::any {

namespace {

/// One stage as the text names it.
struct Node {
  const Entry* entry = nullptr;
  Knobs knobs;
  std::size_t at = 0;  ///< where its word begins
  int inner = -1;      ///< the node of its policy
  bool root = true;
};

std::string_view inside(const Entry& wrapper) { return wrapper.room == Stage::quant ? "quantizer" : "policy"; }

/// Stages of a recipe come in kinds, of which it takes one each; budgets count as eviction.
constexpr std::string_view kinds[] = {"eviction", "merge", "low-rank", "quant", "position", "retrieval"};
constexpr int kind_count = std::size(kinds);
// A chain of one kind, a stage of each other kind, and the chain that is refused as a second one.
constexpr int most_stages = 2 * most_nesting + kind_count - 1;
int kind_of(Stage room) {
  switch (room) {
    case Stage::merge: return 1;
    case Stage::lowrank: return 2;
    case Stage::quant: return 3;
    case Stage::position: return 4;
    case Stage::retrieve: return 5;
    default: return 0;
  }
}

bool word_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

class Parser {
 public:
  Parser(std::string_view text, const ModelFacts& model, const Registry& words)
      : text_(text), model_(model), words_(words) {}

  ParseResult run() {
    if (text_.size() > most_text) {
      fail(most_text, [](Message& m) { m.put("a recipe has at most ", most_text, " bytes"); });
      return {position_, why_};
    }
    if (!read_recipe()) return {position_, why_};
    ParsedRecipe out;
    build(out.stages);
    print(out.text);
    return out;
  }

  bool name_misfit(const CacheShape& shape, detail::Fits fits, Message& why) {
    if (!read_recipe()) return false;
    // Each stage alone, then all: what one of them does not leave to another.
    for (int kind = 0; kind <= kind_count; ++kind) {
      const auto refused = [&] {
        AnyRecipe one;
        build(one, kind);
        return fits(shape, one) == Status::invalid_argument;
      };
      if (!refused()) continue;
      for (const bool whole : {false, true})
        for (int i = 0; i < nodes_; ++i)
          if ((kind == kind_count || kind == kind_of(node_[i].entry->room)) &&
              name_misfit(node_[i], whole, refused, why)) {
            if (kind == kind_count) why.add(", other stages");
            return true;
          }
      return false;
    }
    return false;
  }

  void add_fields(std::string_view word, Message& why) {
    if (!read_recipe()) return;
    for (int i = 0; i < nodes_; ++i)
      if (node_[i].entry->word == word) return add_fields(node_[i], nullptr, why);
  }

 private:
  // ---- reading -------------------------------------------------------------------------------

  bool read_recipe() {
    do {
      int node = -1;
      if (!read_stage(0, most_nesting, node) || !admit(node)) return false;
      skip_blanks();
    } while (take('+'));
    if (at_ == text_.size()) return true;
    return fail(at_, [&](Message& m) {
      if (text_[at_] == ')')
        m.add("this ')' closes nothing");
      else
        m.put("expected '+' and another stage, or the end, not ").quote(text_.substr(at_, 1));
    });
  }

  bool read_stage(int depth, int deepest, int& node) {
    skip_blanks();
    const std::size_t begin = at_;
    const std::string_view word = read_word();
    if (word.empty())
      return fail(begin, [&](Message& m) {
        m.add("expected the word of a method");
        if (begin < text_.size()) m.add(", not ").quote(text_.substr(begin, 1));
        if (text_.find_first_not_of(" \t\r\n") == text_.npos)
          m.add("; keep_all is the recipe that drops nothing");
      });
    const Alias* alias = nullptr;
    const Entry* entry = words_.find(word, &alias);
    if (entry == nullptr) return unknown_word(begin, word);
    if (depth == deepest || nodes_ == most_stages)
      return fail(begin, [&](Message& m) { m.put("wrappers nest at most ", deepest - 1, " deep"); });
    node = nodes_++;
    Node& n = node_[node];
    n.entry = entry;
    n.at = begin;
    entry->defaults(n.knobs, model_);
    if (alias != nullptr && !alias->field.empty())
      entry->field(alias->field)->set(n.knobs.data(), alias->value);
    skip_blanks();
    if (take('(') && !read_arguments(depth, node, alias)) return false;
    if (entry->wraps && n.inner < 0)
      return fail(begin, [&](Message& m) {
        m.put(entry->word, " needs the ", inside(*entry), " that it wraps: ", entry->word,
              entry->room == Stage::quant ? "(kivi)" : "(snapkv)");
      });
    return true;
  }

  bool read_arguments(int depth, int node, const Alias* alias) {
    std::uint64_t given = 0;
    skip_blanks();
    if (take(')')) return true;
    do {
      skip_blanks();
      const std::size_t begin = at_;
      const std::string_view name = read_word();
      skip_blanks();
      const bool named = !name.empty() && take('=');
      if (named ? !read_field(node, begin, name, alias, given)
                : (at_ = begin, !read_inner(depth, node, begin, name)))
        return false;
      skip_blanks();
    } while (take(','));
    if (take(')')) return true;
    return fail(at_, [&](Message& m) {
      m.put("expected ',' or ')' in the fields of ", node_[node].entry->word);
      if (at_ < text_.size()) m.add(", not ").quote(text_.substr(at_, 1));
    });
  }

  bool read_field(int node, std::size_t begin, std::string_view name, const Alias* alias,
                  std::uint64_t& given) {
    const Entry& entry = *node_[node].entry;
    const Field* field = entry.field(name);
    if (field == nullptr) return unknown_field(begin, entry, name);
    if (alias != nullptr && alias->field == field->name)
      return fail(begin, [&](Message& m) {
        m.put(alias->word, " fixes ", field->name, "; write ", entry.word, "(", field->name,
              "=...) to choose it");
      });
    const std::uint64_t bit = std::uint64_t{1} << (field - entry.fields.data());
    if ((given & bit) != 0)
      return fail(begin,
                  [&](Message& m) { m.put(entry.word, ": ", field->name, " is given twice"); });
    given |= bit;
    skip_blanks();
    const std::size_t value_at = at_;
    while (at_ < text_.size() &&
           (word_char(text_[at_]) ||
            std::string_view(".%+-").find(text_[at_]) != std::string_view::npos))
      ++at_;
    FieldValue value;
    Message rest;
    if (!detail::read_value(*field, text_.substr(value_at, at_ - value_at), value, rest))
      return fail(value_at, [&](Message& m) { m.put(entry.word, ": ", rest.view()); });
    field->set(node_[node].knobs.data(), value);
    return true;
  }

  bool read_inner(int depth, int node, std::size_t begin, std::string_view word) {
    const Entry& entry = *node_[node].entry;
    if (!entry.wraps)
      return fail(begin, [&](Message& m) {
        if (entry.field(word) != nullptr)
          m.put(entry.word, ": ", word, " needs a value: ", word, "=...");
        else if (words_.find(word) != nullptr)
          m.put(entry.word, " wraps no ", inside(entry), ", so ").quote(word).add(" cannot stand inside");
        else
          m.put("expected a field of ", entry.word, " and its value, as in name=value");
      });
    if (node_[node].inner >= 0)
      return fail(begin, [&](Message& m) {
        m.put(entry.word, " wraps one ", inside(entry), ", and this is a second one");
      });
    int inner = -1;
    if (entry.field(word) != nullptr && words_.find(word) == nullptr)
      return fail(begin, [&](Message& m) {
        m.put(entry.word, ": ", word, " needs a value: ", word, "=...");
      });
    const int deepest = entry.room == Stage::quant ? AnyQuant::most_links : most_nesting;
    if (!read_stage(depth + 1, deepest, inner)) return false;
    Node& n = node_[inner];
    n.root = false;
    if (kind_of(n.entry->room) != kind_of(entry.room))
      return fail(n.at, [&](Message& m) {
        m.put(entry.word, entry.room == Stage::quant ? " wraps a quantizer, but " : " wraps an eviction policy, but ",
              n.entry->word, n.entry->room == Stage::evict ? " is an " : " is a ", to_string(n.entry->room), " stage");
      });
    if (n.entry->word == KeepExact::about.word)
      return fail(n.at, [&](Message& m) {
        m.put(n.entry->word, " codes nothing, so ", entry.word, " has nothing to do");
      });
    // What nobody reads is a mistake, not a setting.
    if (n.entry->word == evict::KeepAll::about.word)
      return fail(n.at, [&](Message& m) {
        m.put(n.entry->word, " drops nothing, so ", entry.word, " has nothing to decide");
      });
    for (int i = inner; entry.replaces && i >= 0; i = node_[i].inner) {
      const Entry& lost = *node_[i].entry;
      if (lost.room != Stage::budget) continue;
      return fail(node_[i].at, [&](Message& m) {
        m.put(entry.word, " sets the budget anew, so nothing of ", lost.word, " would be left");
        if (!lost.replaces) m.put("; write ", lost.word, "(", entry.word, "(...))");
      });
    }
    node_[node].inner = inner;
    return true;
  }

  /// One stage of each kind.
  bool admit(int node) {
    const Entry& entry = *node_[node].entry;
    int& place = stage_[kind_of(entry.room)];
    if (place < 0) return place = node, true;
    const Entry& first = *node_[place].entry;
    return fail(node_[node].at, [&](Message& m) {
      m.put("a recipe takes one ", kinds[kind_of(entry.room)], " stage, and ", first.word,
            " already is one");
      if (entry.room == Stage::budget && !first.wraps)
        m.put("; a budget takes its policy inside: ", entry.word, "(", first.word, ")");
      if (first.room == Stage::budget && !entry.wraps)
        m.put("; a budget takes its policy inside: ", first.word, "(", entry.word, ")");
    });
  }

  std::string_view read_word() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && word_char(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }
  bool take(char c) {
    if (at_ == text_.size() || text_[at_] != c) return false;
    return ++at_, true;
  }
  void skip_blanks() {
    while (at_ < text_.size() &&
           std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }

  // ---- refusing ------------------------------------------------------------------------------

  template <class Say>
  bool fail(std::size_t position, Say&& say) {
    position_ = position;
    say(why_);
    return false;
  }

  bool unknown_word(std::size_t begin, std::string_view word) {
    return fail(begin, [&](Message& m) {
      m.add("unknown method ").quote(word);
      if (const auto near = nearest_word(word, words_); !near.empty())
        m.put("; did you mean '", near, "'?");
    });
  }

  bool unknown_field(std::size_t begin, const Entry& entry, std::string_view name) {
    const auto next = [&](std::size_t i) -> std::string_view {
      const std::size_t n = entry.fields.size();
      for (; i < 2 * n; ++i) {
        const Field& f = entry.fields[i % n];
        if (i < n) return f.name;
        if (!f.short_name.empty()) return f.short_name;
      }
      return {};
    };
    return fail(begin, [&](Message& m) {
      m.put(entry.word, " has no field ").quote(name);
      if (const auto near = detail::nearest(name, next); !near.empty()) {
        m.put("; did you mean '", near, "'?");
      } else if (entry.fields.empty()) {
        m.add("; it has none");
      } else {
        m.add("; its fields are ");
        for (const Field& f : entry.fields) {
          m.put(&f == entry.fields.data() ? "" : ", ", f.name);
          if (!f.short_name.empty()) m.put(" (", f.short_name, ")");
        }
      }
    });
  }

  // ---- using ---------------------------------------------------------------------------------

  void build_node(int node, AnyRecipe& out) const {
    if (node_[node].inner >= 0) build_node(node_[node].inner, out);
    node_[node].entry->build(node_[node].knobs, out);
  }
  void build(AnyRecipe& out, int only = kind_count) const {
    for (int kind = 0; kind < kind_count; ++kind)
      if (stage_[kind] >= 0 && (only == kind || only == kind_count)) build_node(stage_[kind], out);
  }

  /// Whether the recipe is `refused` for one field of a stage, or for all that it was given.
  template <class Refused>
  bool name_misfit(Node& n, bool whole, Refused&& refused, Message& why) const {
    const Knobs given = n.knobs;
    Knobs usual;
    n.entry->defaults(usual, model_);
    const Field* to_blame = nullptr;
    for (const Field& f : n.entry->fields) {
      const FieldValue other = f.get(usual.data());
      if (f.get(given.data()) == other) continue;
      f.set(n.knobs.data(), other);
      if (!refused()) {
        to_blame = &f;
        break;
      }
      if (!whole) n.knobs = given;
    }
    n.knobs = given;
    if (to_blame == nullptr) return false;
    why.put(n.entry->word, ": ", std::string_view(to_string(Status::invalid_argument)), "; ");
    if (whole) {
      add_fields(n, nullptr, why.add("its fields"));
      why.add(" do not fit together");
    } else {
      why.put(to_blame->name, "=", value_text(*to_blame, to_blame->get(given.data())).view(),
              " does not fit ");
      add_fields(n, to_blame,
                 why.add(n.entry->fields.size() > 1 ? "its other fields" : "its method"));
    }
    return true;
  }

  /// In brackets, but for one of them; no longer than leaves room for the rest of a sentence.
  static void add_fields(const Node& n, const Field* but, Message& why) {
    FixedText<80> list;
    for (const Field& f : n.entry->fields) {
      if (&f == but) continue;
      FixedText<128> one;
      one.put(list.empty() ? "" : ", ", f.name, "=", value_text(f, f.get(n.knobs.data())).view());
      constexpr std::string_view more = ", ...";
      if (list.size() + one.size() + more.size() > list.capacity()) {
        list.add(more);
        break;
      }
      list.add(one.view());
    }
    if (!list.empty()) why.put(" (", list.view(), ")");
  }

  /// Fields that differ from the struct's default, or whose default the model changes.
  void print_node(int node, RecipeText& out) const {
    const Node& n = node_[node];
    out.add(n.entry->word);
    bool open = n.inner >= 0;
    if (open) print_node(n.inner, out.add('('));
    Knobs plain, modelled;
    n.entry->defaults(plain, {});
    n.entry->defaults(modelled, model_);
    for (const Field& f : n.entry->fields) {
      const FieldValue value = f.get(n.knobs.data()), usual = f.get(plain.data());
      if (value == usual && usual == f.get(modelled.data())) continue;
      out.put(open ? ", " : "(", f.name, "=", value_text(f, value).view());
      open = true;
    }
    if (open) out.add(')');
  }

  void print(RecipeText& out) const {
    static constexpr std::string_view unsaid[] = {evict::KeepAll::about.word,      NoMerge::about.word,
                                                  NoLowRank::about.word,           KeepExact::about.word,
                                                  position::Absolute::about.word,  retrieve::ReadAll::about.word};
    for (int kind = 0; kind < kind_count; ++kind) {
      if (stage_[kind] < 0) continue;
      RecipeText one;
      print_node(stage_[kind], one);
      if (one.view() == unsaid[kind]) continue;
      out.put(out.empty() ? "" : " + ", one.view());
    }
    if (out.empty()) out.add(unsaid[0]);
  }

  std::string_view text_;
  const ModelFacts& model_;
  const Registry& words_;
  std::size_t at_ = 0;
  Node node_[most_stages];
  int nodes_ = 0;
  int stage_[kind_count] = {-1, -1, -1, -1, -1, -1};
  std::size_t position_ = 0;
  Message why_;
};

}  // namespace

ParseResult parse(std::string_view text, const ModelFacts& model, const Registry& words) {
  return Parser(text, model, words).run();
}

namespace detail {

bool name_misfit(const Written& r, const CacheShape& shape, Fits fits, Message& why) {
  return Parser(r.text, r.model, r.words).name_misfit(shape, fits, why);
}

void add_fields(const Written& r, std::string_view word, Message& why) {
  Parser(r.text, r.model, r.words).add_fields(word, why);
}

}  // namespace detail

}  // namespace kvcondense::any
