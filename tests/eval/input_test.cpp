#include <catch2/catch.hpp>
#include <string>

#include <eval/input.hpp>

using namespace eval;
using Catch::Matchers::Equals;

namespace {

/// A model of so many tokens; 256 of them are the bytes.
engine::ModelConfig with_vocab(index_t vocab) {
  engine::ModelConfig c;
  c.vocab = vocab;
  return c;
}

const engine::ModelConfig bytes = with_vocab(256);

}  // namespace

TEST_CASE("recall documents: distance counts back to the nearest mention", "[eval][input]") {
  const std::string line = R"({"text": "a = 12\nb = 34\na: 12 a: 12", "queries": [)"
                           R"({"value_at": 17, "defined_at": 4, "value": "12"},)"
                           R"({"value_at": 23, "defined_at": 4, "value": "12"}]})";
  const auto documents = parse_recall("\n" + line + "\n" + line, bytes, "file");
  REQUIRE(documents.size() == 2);
  REQUIRE(documents[1].tokens.size() == 25);
  REQUIRE(documents[1].queries.size() == 2);
  REQUIRE(documents[1].queries[0].distance == 13);
  REQUIRE(documents[1].queries[1].distance == 6);
  REQUIRE(documents[1].queries[1].length == 2);
}

TEST_CASE("recall documents: a bad line is refused by its number", "[eval][input]") {
  const auto [line, what] = GENERATE(table<std::string, std::string>({
      {"[]", "expected an object with either \"text\" or \"ids\""},
      {R"({"text": "x", "ids": [1]})", "expected an object with either \"text\" or \"ids\""},
      {R"({"text": 1})", "text is neither text nor a list of ids"},
      {R"({"ids": [1, 256]})", "ids holds something other than token ids from 0 to 255"},
      {R"({"ids": [1, -1]})", "ids holds something other than token ids from 0 to 255"},
      {R"({"text": "x"})", "no list \"queries\""},
      {R"({"text": "x", "queries": [1]})", "a query is no object"},
      {R"({"text": "x", "queries": [{"value_at": -1, "defined_at": 0, "value": "x"}]})",
       "a query lacks the count value_at or defined_at"},
      {R"({"text": "x", "queries": [{"value_at": 1, "defined_at": 0}]})",
       "a query lacks its value"},
      {R"({"text": "xyx", "queries": [{"value_at": 99999999999, "defined_at": 0, "value": "x"}]})",
       "a query names a place that does not hold its value"},
      {R"({"text": "xyx", "queries": [{"value_at": 1, "defined_at": 0, "value": "x"}]})",
       "a query names a place that does not hold its value"},
  }));
  REQUIRE_THROWS_WITH(parse_recall(R"({"text": "", "queries": []})"
                                   "\n" +
                                       line,
                                   bytes, "f.jsonl"),
                      Equals("f.jsonl: line 2: " + what));
}

TEST_CASE("recall documents: a model of any vocabulary takes them as ids", "[eval][input]") {
  const std::string line = R"({"ids": [700, 7, 8, 9, 7, 8, 7, 8], "queries": [)"
                           R"({"value_at": 4, "defined_at": 1, "value": [7, 8]},)"
                           R"({"value_at": 6, "defined_at": 1, "value": [7, 8]}]})";
  const auto documents = parse_recall(line, with_vocab(1000), "file");
  REQUIRE(documents.at(0).tokens.size() == 8);
  REQUIRE(documents[0].queries.at(0).distance == 3);
  REQUIRE(documents[0].queries.at(1).distance == 2);
  REQUIRE(documents[0].queries[1].length == 2);
  REQUIRE_THROWS_WITH(
      parse_recall(R"({"text": "x", "queries": []})", with_vocab(1000), "f"),
      Equals("f: line 1: this model's tokens are not bytes: give the document as \"ids\""));
}

TEST_CASE("recall documents: the longest that fit, in the order of the file", "[eval][input]") {
  std::vector<Document> all;
  for (const std::size_t n : {10u, 40u, 20u, 30u, 20u})
    all.push_back({std::vector<std::int32_t>(n), {}, 0});
  const auto chosen = choose_documents(all, 3, 30);
  REQUIRE(chosen.size() == 3);
  REQUIRE(chosen[0].tokens.size() == 20);
  REQUIRE(chosen[1].tokens.size() == 30);
  REQUIRE(chosen[2].tokens.size() == 20);
}

TEST_CASE("recall: each question alone, inside the prefill or behind it", "[eval][input]") {
  Document d;
  for (std::int32_t i = 0; i < 100; ++i) d.tokens.push_back(i);
  // In the first half, too near, good, begins in the first half, good.
  d.queries = {{30, 2, 20}, {70, 2, 9}, {80, 2, 70}, {55, 2, 40}, {90, 3, 13}};
  const auto inside = ask_each({d, d}, Ask::inside, 10), later = ask_each({d, d}, Ask::later, 10);
  REQUIRE(inside.size() == 4);
  REQUIRE(later.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    const index_t at = i % 2 == 0 ? 80 : 90;
    REQUIRE(inside[i].queries.size() == 1);
    REQUIRE(inside[i].queries[0].at == at);
    REQUIRE(static_cast<index_t>(inside[i].tokens.size()) == at + (i % 2 == 0 ? 2 : 3));
    REQUIRE(inside[i].tokens == later[i].tokens);
    REQUIRE(inside[i].prefill == at - 1);
    REQUIRE(later[i].prefill == at - 10);
  }
  REQUIRE(ask_each({d}, Ask::later, 60).empty());
}

TEST_CASE("ids: any blanks and commas between, everything else refused with its place",
          "[eval][input]") {
  REQUIRE(parse_ids(" 1,2\n 31 ", 32, "f") == std::vector<std::int32_t>{1, 2, 31});
  REQUIRE(parse_ids("", 32, "f").empty());
  const auto [text, at] = GENERATE(table<std::string, std::string>(
      {{"1 x", "2"}, {"32", "0"}, {"1, -1", "3"}, {"7 1.5", "2"}, {"99999999999", "0"}}));
  REQUIRE_THROWS_WITH(parse_ids(text, 32, "f"),
                      Equals("f: at byte " + at + ": expected token ids from 0 to 31"));
}

TEST_CASE("windows: one in each part, the same for the same seed", "[eval][input]") {
  const index_t count = GENERATE(1, 3, 10);
  const auto starts = window_starts(1000, 100, count, 7);
  REQUIRE(starts == window_starts(1000, 100, count, 7));
  for (index_t i = 0; i < count; ++i) {
    const index_t part = 1000 / count, start = starts[static_cast<std::size_t>(i)];
    REQUIRE(start >= i * part);
    REQUIRE(start + 100 <= (i + 1) * part);
  }
  REQUIRE_THROWS_WITH(
      window_starts(1000, 100, 11, 7),
      Equals("the text has 1000 tokens, 11 windows need 1100: lower --windows or --context"));
}
