#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <any/observe.hpp>
#include <any/settings.hpp>
#include <kvcondense/any/recipe_text.hpp>

using namespace kvcondense;
using any::Field;
using any::FieldType;
using test::stages_to_vary;
using test::with_fields;

namespace {

std::vector<std::string> other_values(const any::Entry& e, const Field& f) {
  std::vector<std::string> values;
  const any::FieldValue usual = any::default_of(e, f);
  if (f.type == FieldType::choice) {
    for (const any::Choice& c : f.choices)
      if (c.value != usual.integer && c.name != "table" && c.name != "longrope")
        values.emplace_back(c.name);
  } else if (f.type == FieldType::boolean) {
    values.push_back(usual.integer != 0 ? "false" : "true");
  } else if (f.is_real()) {
    for (const double v : {0.9, 0.7, 0.25, 3.0, 20.0, 500000.0})
      if (v >= f.lowest && v <= f.highest && std::abs(v - usual.real) > 1e-6)
        values.push_back(std::to_string(v));
  } else {
    for (const int v : {1, 2, 5, 8, 16, 24, 64, 128, 10000})
      if (v >= f.lowest && v <= f.highest && v != usual.integer)
        values.push_back(std::to_string(v));
  }
  return values;
}

std::string without(std::string fields, std::string_view name) {
  const auto at = fields.find(std::string(name) + "=");
  if (at == std::string::npos || (at > 0 && fields[at - 1] != ' ')) return fields;
  const auto end = fields.find(", ", at);
  if (end != std::string::npos) return fields.erase(at, end + 2 - at);
  return fields.erase(at > 1 ? at - 2 : 0);
}

}  // namespace

TEST_CASE("registry: every list of the library made it in, words and aliases unique",
          "[any][registry]") {
  std::size_t listed = 0;
  for (const auto list : {any::detail::builtin_evict(), any::detail::builtin_budget(), any::detail::builtin_merge(),
                          any::detail::builtin_lowrank(), any::detail::builtin_quant(), any::detail::builtin_position(),
                          any::detail::builtin_retrieve()})
    listed += list.size();
  REQUIRE(any::builtin().entries().size() == listed);
  for (const any::Entry* e : any::builtin().entries()) {
    CAPTURE(std::string(e->word));
    REQUIRE(any::builtin().find(e->word) == e);
    REQUIRE_FALSE(e->summary.empty());
    REQUIRE(e->summary.back() == '.');
    REQUIRE_FALSE(e->source.empty());
    REQUIRE_FALSE(any::needs(*e).empty());
  }
}

TEST_CASE("registry: every field's default lies in its range", "[any][registry]") {
  for (const any::Entry* e : any::builtin().entries())
    for (const Field& f : e->fields) {
      CAPTURE(std::string(e->word), std::string(f.name));
      const any::FieldValue v = any::default_of(*e, f);
      REQUIRE_FALSE(f.meaning.empty());
      if (f.is_real()) REQUIRE((v.real >= f.lowest && v.real <= f.highest));
      if (f.type == FieldType::integer)
        REQUIRE((static_cast<double>(v.integer) >= f.lowest &&
                 static_cast<double>(v.integer) <= f.highest));
      if (f.type == FieldType::choice) REQUIRE(any::value_text(f, v).view() != "?");
      const auto said =
          any::parse(with_fields(*e, std::string(f.name) + "=" + any::value_text(f, v).c_str()));
      CAPTURE(std::string(said.message()));
      REQUIRE(said);
      REQUIRE(said->text == any::parse(with_fields(*e, ""))->text);
    }
}

TEST_CASE(
    "registry: every word goes from text to a recipe and back, with each field at another value",
    "[any][registry]") {
  for (const any::Entry* e : any::builtin().entries())
    for (const Field& f : e->fields)
      for (const std::string& value : other_values(*e, f)) {
        const std::string text = with_fields(*e, std::string(f.name) + "=" + value);
        const auto first = any::parse(text);
        CAPTURE(text, std::string(first.message()));
        REQUIRE(first);
        REQUIRE(first->text.complete());
        const auto second = any::parse(first->text.view());
        REQUIRE(second);
        REQUIRE(second->text == first->text);
        REQUIRE(first->text.view().find(std::string(f.name) + "=") != std::string_view::npos);
        if (!f.short_name.empty()) {
          const auto shorter = any::parse(with_fields(*e, std::string(f.short_name) + "=" + value));
          REQUIRE(shorter);
          REQUIRE(shorter->text == first->text);
        }
      }
}

namespace {

/// A stage as a recipe; one that wants keys before rotation with a position stage that stores those.
any::ParseResult as_recipe(const std::string& text) {
  const any::ParseResult alone = any::parse(text, test::observed_facts());
  if (!alone || (alone->stages.lowrank.takes_keys(false) && alone->stages.retrieve.keys != retrieve::KeyState::raw)) return alone;
  return any::parse(text + " + rerotate", test::observed_facts());
}

}  // namespace

TEST_CASE("registry: what a method is said to need is what a cache of it asks for", "[any][registry]") {
  for (const any::Entry* e : any::builtin().entries()) {
    const std::string said(any::needs(*e).view());
    CAPTURE(std::string(e->word), said);
    if (said == "policy") continue;  // whatever the wrapped one needs
    // A merge stage beside a policy that needs nothing; wrappers do not fit around every quantizer as they are.
    const auto recipe = as_recipe(e->room == Stage::merge ? "knorm + " + std::string(e->word)
                                                          : with_fields(*e, e->wraps ? stages_to_vary(*e).front() : ""));
    REQUIRE(recipe);
    const auto cache = any::AnyCache::make(recipe->stages, "", test::observed_shape);
    REQUIRE(cache);
    std::string asked;
    for (const Input i : all_inputs)
      if (cache->capabilities().needs.has(i)) asked += (asked.empty() ? "" : ", ") + std::string(to_string(i));
    if (cache->capabilities().probes) asked = "queries of probes";
    if (asked.empty()) asked = "nothing";
    std::string plain = said;
    if (const auto at = plain.find("window"); at != std::string::npos) plain.replace(at, 6, "attention");
    CHECK(plain == asked);
  }
}

// A sanitizer sees one field of eighteen; the release build tries them all.
#if defined(KVCONDENSE_TEST_SANITIZED)
constexpr int fields_one_of = 18;
#else
constexpr int fields_one_of = 1;
#endif

TEST_CASE("registry: every field changes what a cache does", "[any][registry]") {
  int number = 0;
  std::map<std::string, std::vector<double>> known;  // by text: all fields of a word are compared with the same recipes
  const auto observed = [&](const any::AnyRecipe& recipe, std::string_view text) -> const std::vector<double>& {
    const auto [at, fresh] = known.try_emplace(std::string(text));
    if (fresh) at->second = test::observe(recipe);
    return at->second;
  };
  for (const any::Entry* e : any::builtin().entries())
    for (const Field& f : e->fields) {
      if (number++ % fields_one_of != 0) continue;
      CAPTURE(std::string(e->word), std::string(f.name));
      bool changes = false;
      for (const std::string& stage : stages_to_vary(*e)) {
        const auto base = as_recipe(with_fields(*e, stage));
        REQUIRE(base);
        const auto& before = observed(base->stages, base->text.view());
        const std::string others = without(stage, f.name);
        for (const std::string& value : other_values(*e, f)) {
          if (changes) break;
          const auto changed = as_recipe(with_fields(*e, others + (others.empty() ? "" : ", ") + std::string(f.name) + "=" + value));
          CAPTURE(std::string(changed.message()));
          REQUIRE(changed);
          const auto after = test::observe(changed->stages);
          changes = !after.empty() && after != before;
        }
      }
      CHECK(changes);
    }
}

TEST_CASE("registry: a canonical text always fits", "[any][registry]") {
  std::map<Stage, std::size_t> longest;
  for (const any::Entry* e : any::builtin().entries()) {
    std::size_t n = e->word.size() + 8;
    for (const Field& f : e->fields) n += f.name.size() + 3 + 24;
    std::size_t& kind = longest[e->room == Stage::budget ? Stage::evict : e->room];
    kind = std::max(kind, n);
  }
  std::size_t sum = (any::most_nesting - 1) * longest[Stage::evict];
  for (const auto& [stage, n] : longest) sum += n;
  REQUIRE(sum < any::RecipeText{}.capacity());
}

namespace {

struct Halves {
  static constexpr Descriptor about{"halves", Stage::evict, "a user"};
  [[maybe_unused]] static constexpr Inputs needs{};
  index_t tokens = 8;
  auto pipeline() const { return evict::KeepAll{}.pipeline(); }
  Status validate(const CacheShape&) const { return Status::ok; }
};
constexpr Field halves_fields[] = {
    any::number<Halves, &Halves::tokens>("tokens", "", "slots", 1, 99)};
constexpr any::Alias halves_aliases[] = {{"half8", "tokens", {8}}};
const any::Entry halves = any::stage_entry<Halves>("Keeps half.", halves_fields, halves_aliases);

}  // namespace

TEST_CASE("registry: a user adds a method, and a taken word is refused", "[any][registry]") {
  any::Registry mine = any::builtin();
  REQUIRE(mine.add(halves) == Status::ok);
  REQUIRE(mine.add(halves) == Status::invalid_argument);
  const auto parsed = any::parse("halves(tokens=9) + kivi2", {}, mine);
  REQUIRE(parsed);
  REQUIRE(parsed->text.view() == "halves(tokens=9) + kivi");
  REQUIRE(std::string(parsed->stages.evict.word()) == "halves");
  REQUIRE(any::parse("half8", {}, mine)->text.view() == "halves");
  REQUIRE_FALSE(any::parse("halves"));
  REQUIRE(any::Registry{}.add(any::Entry{}) == Status::invalid_argument);

  any::Entry taken = halves;
  taken.word = "kivi4";
  REQUIRE(mine.add(taken) == Status::invalid_argument);
  constexpr any::Alias unknown_field[] = {{"half9", "token", {9}}};
  taken.word = "thirds";
  taken.aliases = unknown_field;
  REQUIRE(mine.add(taken) == Status::invalid_argument);
}

TEST_CASE("registry: a wrapper asks for facts of the model like any method", "[any][registry]") {
  const CacheShape& shape = test::observed_shape;
  const auto made = [&](const char* text, const any::ModelFacts& facts) {
    return any::make(text, shape, any::on<Cpu>, heap_memory(), facts);
  };
  const auto refused = made("critical(ada(snapkv))", {});
  REQUIRE(refused.status() == Status::missing_input);
  REQUIRE(refused.message() == "critical needs what it was not given: ModelFacts::output");
  REQUIRE(made("uniform(critical(snapkv), tokens=100)", {}).status() == Status::missing_input);
  auto cache = made("criticalkv(ada(snapkv))", test::observed_facts());
  REQUIRE(cache);
  REQUIRE(cache->text() == "critical(ada(snapkv))");
  any::ModelFacts other = test::observed_facts();
  other.output.columns = 3;
  REQUIRE(made("critical(snapkv)", other).status() == Status::shape_mismatch);
}
