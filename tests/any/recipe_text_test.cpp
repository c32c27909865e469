#include <random>
#include <string>

#include <catch2/catch.hpp>

#include <kvcondense/any/recipe_text.hpp>

using namespace kvcondense;

namespace {

std::string canonical(std::string_view text) {
  const auto parsed = any::parse(text);
  CAPTURE(std::string(text), std::string(parsed.message()));
  REQUIRE(parsed);
  return std::string(parsed->text.view());
}

}  // namespace

TEST_CASE("recipe text: what is read is printed with the fields that differ from the defaults",
          "[any][recipe_text]") {
  const char* cases[][2] = {
      {"h2o", "h2o"},
      {"h2o()", "h2o"},
      {" h2o ( heavy = 256 , recent=17 ) ", "h2o(recent=17)"},
      {"h2o(heavy=8, recent=9)+kivi2(group=64)", "h2o(heavy=8, recent=9) + kivi(group_size=64)"},
      {"kivi4(residual=64)\n+\th2o", "h2o + kivi(bits=4, residual_window=64)"},
      {"int8", "group_int(bits=8)"},
      {"int4(form=symmetric)", "group_int(form=symmetric)"},
      {"ada(snapkv(window=16, budget=512), floor=0.5)",
       "ada(snapkv(tokens=512, window=16), floor=0.5)"},
      {"ada(floor=50%, snapkv)", "ada(snapkv, floor=0.5)"},
      {"ratio(h2o, keep=12.5%)", "ratio(h2o, keep=0.125)"},
      {"ada(pyramid(uniform(snapkv, tokens=9)))", "ada(pyramid(uniform(snapkv, tokens=9)))"},
      {"none + exact + absolute", "keep_all"},
      {"keep_all + kivi", "kivi"},
      {"reindex(theta=500000, scaling=llama3, factor=8)",
       "reindex(base=500000, scaling=llama3, factor=8)"},
      {"streaming_llm(recent=9) + reindex", "sink_window(recent=9) + reindex"},
  };
  for (const auto& c : cases) REQUIRE(canonical(c[0]) == c[1]);
}

TEST_CASE("recipe text: a refusal names the byte and says what would be right",
          "[any][recipe_text]") {
  const struct {
    const char* text;
    std::size_t position;
    const char* message;
  } cases[] = {
      {"", 0, "expected the word of a method; keep_all is the recipe that drops nothing"},
      {"  ", 2, "expected the word of a method; keep_all is the recipe that drops nothing"},
      {"h2p", 0, "unknown method 'h2p'; did you mean 'h2o'?"},
      {"H2O", 0, "unknown method 'H2O'; did you mean 'h2o'?"},
      {"kivi3", 0, "unknown method 'kivi3'; did you mean 'kivi'?"},
      {"something_else", 0, "unknown method 'something_else'"},
      {"h2o + sliding", 6, "unknown method 'sliding'; did you mean 'sliding_window'?"},
      {"h2o(hevy=3)", 4, "h2o has no field 'hevy'; did you mean 'heavy'?"},
      {"h2o(zzzzzz=3)", 4, "h2o has no field 'zzzzzz'; its fields are heavy, recent"},
      {"tova(zzzzzz=3)", 5, "tova has no field 'zzzzzz'; its fields are tokens (budget)"},
      {"keep_all(x=1)", 9, "keep_all has no field 'x'; it has none"},
      {"h2o(heavy=-1)", 10, "h2o: heavy must be an integer from 0 to 268435456, not '-1'"},
      {"h2o(heavy=1.5)", 10, "h2o: heavy must be an integer from 0 to 268435456, not '1.5'"},
      {"h2o(heavy=99999999999999999999)", 10,
       "h2o: heavy must be an integer from 0 to 268435456, not '99999999999999999999'"},
      {"h2o(heavy=)", 10, "h2o: heavy must be an integer from 0 to 268435456, not ''"},
      {"h2o(heavy=512MB)", 10, "h2o: heavy must be an integer from 0 to 268435456, not '512MB'"},
      {"ada(snapkv, floor=nan)", 18, "ada: floor must be a fraction from 0 to 1, not 'nan'"},
      {"ada(snapkv, floor=120%)", 18, "ada: floor must be a fraction from 0 to 1, not '120%'"},
      {"snapkv(pool=max)", 12,
       "snapkv: pool must be one of average, average_valid, maximum, not 'max'; did you mean "
       "'maximum'?"},
      {"h2o(heavy=1, heavy=2)", 13, "h2o: heavy is given twice"},
      {"snapkv(tokens=64, budget=65)", 18, "snapkv: tokens is given twice"},
      {"kivi4(bits=2)", 6, "kivi4 fixes bits; write kivi(bits=...) to choose it"},
      {"h2o(heavy)", 4, "h2o: heavy needs a value: heavy=..."},
      {"h2o(tova)", 4, "h2o wraps no policy, so 'tova' cannot stand inside"},
      {"h2o(3)", 4, "expected a field of h2o and its value, as in name=value"},
      {"h2o(heavy=1", 11, "expected ',' or ')' in the fields of h2o"},
      {"h2o(heavy=1;recent=2)", 11, "expected ',' or ')' in the fields of h2o, not ';'"},
      {"h2o)", 3, "this ')' closes nothing"},
      {"h2o tova", 4, "expected '+' and another stage, or the end, not 't'"},
      {"h2o +", 5, "expected the word of a method"},
      {"+h2o", 0, "expected the word of a method, not '+'"},
      {"ada", 0, "ada needs the policy that it wraps: ada(snapkv)"},
      {"h2o(recent=1)+ada(floor=1)", 14, "ada needs the policy that it wraps: ada(snapkv)"},
      {"ada(snapkv, h2o)", 12, "ada wraps one policy, and this is a second one"},
      {"hadamard", 0, "hadamard needs the quantizer that it wraps: hadamard(kivi)"},
      {"hadamard(h2o)", 9, "hadamard wraps a quantizer, but h2o is an evict stage"},
      {"hadamard(exact)", 9, "exact codes nothing, so hadamard has nothing to do"},
      {"hadamard(int4, int8)", 15, "hadamard wraps one quantizer, and this is a second one"},
      {"ada(kivi)", 4, "ada wraps an eviction policy, but kivi is a quant stage"},
      {"uniform(keep_all)", 8, "keep_all drops nothing, so uniform has nothing to decide"},
      {"uniform(ada(h2o))", 8,
       "uniform sets the budget anew, so nothing of ada would be left; write ada(uniform(...))"},
      {"uniform(ratio(h2o))", 8, "uniform sets the budget anew, so nothing of ratio would be left"},
      {"uniform(every(ada(h2o)))", 14,
       "uniform sets the budget anew, so nothing of ada would be left; write ada(uniform(...))"},
      {"every(keep_all)", 6, "keep_all drops nothing, so every has nothing to decide"},
      {"h2o + tova", 6, "a recipe takes one eviction stage, and h2o already is one"},
      {"kivi + h2o + int8", 13, "a recipe takes one quant stage, and kivi already is one"},
      {"absolute+reindex", 9, "a recipe takes one position stage, and absolute already is one"},
      {"ada(pyramid(skip_layers(h2o)))+kivi+absolute+ada(pyramid(skip_layers(tova)))", 45,
       "a recipe takes one eviction stage, and ada already is one"},
      {"h2o + ada(snapkv)", 6,
       "a recipe takes one eviction stage, and h2o already is one; a budget takes its policy "
       "inside: ada(h2o)"},
      {"ada(pyramid(skip_layers(skip_layers(h2o))))", 36, "wrappers nest at most 3 deep"},
      {"hadamard(boundary_layers(boundary_layers(int4)))", 41, "wrappers nest at most 2 deep"},
      {"h2o(\x01=1)", 4, "expected a field of h2o and its value, as in name=value"},
  };
  for (const auto& c : cases) {
    const auto parsed = any::parse(c.text);
    CAPTURE(c.text);
    REQUIRE_FALSE(parsed);
    CHECK(std::string(parsed.message()) == c.message);
    CHECK(parsed.position() == c.position);
  }
}

TEST_CASE("recipe text: a text that is too long or too deep is refused", "[any][recipe_text]") {
  const std::string blanks(any::most_text, ' ');
  REQUIRE_FALSE(any::parse(blanks + "h2o"));
  REQUIRE(any::parse(blanks.substr(3) + "h2o"));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "ada(";
  REQUIRE_FALSE(any::parse(deep));
  REQUIRE_FALSE(any::parse(std::string(900, '(')));
  REQUIRE_FALSE(any::parse(std::string(900, 'x')));
}

TEST_CASE(
    "recipe text: the model's rope fills what the text leaves out, and the canonical text says so",
    "[any][recipe_text]") {
  any::ModelFacts model;
  model.rope.base = 500000.0;
  model.rope.scaling = prim::RopeScaling::llama3;
  model.rope.factor = 8.0;
  const auto with = any::parse("reindex(factor=4)", model);
  REQUIRE(with);
  REQUIRE(with->stages.position.rope.base == 500000.0);
  REQUIRE(with->stages.position.rope.factor == 4.0);
  REQUIRE(with->text.view() == "reindex(base=500000, scaling=llama3, factor=4)");
  // Fields back at the library's default must be said too: another reader may have another model.
  const auto back = any::parse("reindex(base=10000)", model);
  REQUIRE(back);
  REQUIRE(back->text.view() == "reindex(base=10000, scaling=llama3, factor=8)");
  for (const auto* text : {&with->text, &back->text}) {
    const auto alone = any::parse(text->view());
    REQUIRE(alone);
    REQUIRE(prim::fingerprint(alone->stages.position.rope) ==
            prim::fingerprint((text == &with->text ? with : back)->stages.position.rope));
  }
}

TEST_CASE("recipe text: random bytes and broken recipes are read or refused, never worse",
          "[any][recipe_text]") {
  const char* seeds[] = {
      "ada(snapkv(window=32, budget=512), floor=0.2) + kivi2(group=32, residual=128)",
      "h2o(heavy=256,recent=256)+kivi4+reindex(theta=1e4)", "ratio(pyramid(tova), keep=25%)",
      "group_int(bits=3, form=symmetric, key_axis=channel)"};
  const std::string alphabet = "abdehiknoprstuvw0123456789_(),=+%. -\n\xff";
  std::mt19937 random(7);
  const auto below = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  int read = 0;
  for (int round = 0; round < 60000; ++round) {
    std::string text;
    if (round % 3 == 0) {
      for (std::size_t i = below(40); i > 0; --i) text += static_cast<char>(below(256));
    } else {
      text = seeds[below(4)];
      for (std::size_t i = below(4) + 1; i > 0; --i) {
        const std::size_t at = below(text.size() + 1);
        switch (below(4)) {
          case 0:
            text.insert(at, 1, alphabet[below(alphabet.size())]);
            break;
          case 1:
            text.erase(at, below(6));
            break;
          case 2:
            text.insert(at, text.substr(below(text.size() + 1), below(30)));
            break;
          default:
            if (at < text.size()) text[at] = alphabet[below(alphabet.size())];
        }
        if (text.empty()) break;
      }
    }
    const auto parsed = any::parse(text);
    if (parsed) {
      ++read;
      const auto again = any::parse(parsed->text.view());
      CAPTURE(text, std::string(parsed->text.view()), std::string(again.message()));
      REQUIRE(again);
      REQUIRE(again->text == parsed->text);
    } else {
      CAPTURE(text);
      REQUIRE(parsed.position() <= std::max(text.size(), any::most_text));
      REQUIRE_FALSE(parsed.message().empty());
      for (const char c : parsed.message()) REQUIRE((c >= ' ' && c <= '~'));
    }
  }
  REQUIRE(read > 500);
}
