#include <cmath>

#include <catch2/catch.hpp>

#include <eval/error.hpp>
#include <eval/evaluate.hpp>
#include <eval/quant_tables.hpp>

#include "dump_files.hpp"

using namespace eval;
using eval::test::TempFile;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 3, .head_dim = 16};

/// Random rows, with two strong key channels in head 1 of layer 0 and large values in head 2 of layer 1.
Recording recording() {
  Recording r = test::random_recording(192, shape);
  for (index_t t = 0; t < r.tokens; ++t) {
    for (const index_t c : {3, 12}) r.layers[0].k[static_cast<std::size_t>((t * 3 + 1) * 16 + c)] *= 9.0f;
  }
  return r;
}

HeadsFile tables(const QuantProbe& how) {
  HeadsFile h;
  add_quant_tables(recording(), how, h);
  return h;
}

double sum(const std::vector<float>& x) {
  double s = 0;
  for (const float v : x) s += static_cast<double>(v);
  return s;
}

}  // namespace

TEST_CASE("quant tables: thresholds, levels, groups and bits are those of every head", "[eval][quant_tables]") {
  const HeadsFile h = tables({.level_bits = 3, .outliers = 0.1, .clusters = 2, .width_group = 16});
  REQUIRE((h.layers == 2 && h.kv_heads == 3));
  for (const HeadLists* t : {&h.key_lower, &h.key_upper, &h.key_clusters, &h.value_clusters}) REQUIRE(t->numbers.size() == 6 * 16);
  for (const HeadLists* t : {&h.key_levels, &h.value_levels}) {
    REQUIRE(t->numbers.size() == 6 * 8);
    for (std::size_t i = 0; i < t->numbers.size(); ++i) {
      REQUIRE(std::fabs(t->numbers[i]) <= 1.0f);
      if (i % 8 > 0) REQUIRE(t->numbers[i] > t->numbers[i - 1]);
    }
  }
  const Recording r = recording();
  for (index_t l = 0; l < 2; ++l)
    for (index_t head = 0; head < 3; ++head)
      for (index_t c = 0; c < 16; ++c) {
        index_t below = 0, above = 0;
        const auto at = static_cast<std::size_t>((l * 3 + head) * 16 + c);
        for (index_t t = 0; t < r.tokens; ++t) {
          const float k = r.layers[static_cast<std::size_t>(l)].k[static_cast<std::size_t>((t * 3 + head) * 16 + c)];
          below += k < h.key_lower.numbers[at], above += k > h.key_upper.numbers[at];
        }
        REQUIRE(std::abs(below - 10) <= 1);  // a twentieth of 192 at each end
        REQUIRE(std::abs(above - 10) <= 1);
      }
  // The strong channels of one head are a group.
  for (std::size_t c = 0; c < 16; ++c) REQUIRE((h.key_clusters.numbers[16 + c] == h.key_clusters.numbers[16 + 3]) == (c == 3 || c == 12));
}

TEST_CASE("quant tables: bits keep to their mean", "[eval][quant_tables]") {
  const HeadsFile three = tables({.mean_width = 3, .width_group = 16}), five = tables({.mean_width = 5, .width_group = 16});
  REQUIRE((three.key_widths.size() == 6 && three.value_widths.size() == 6));
  REQUIRE(sum(three.key_widths) + sum(three.value_widths) <= 36.0);
  REQUIRE(sum(three.key_widths) + sum(three.value_widths) >= 34.0);
  REQUIRE(sum(five.key_widths) + sum(five.value_widths) <= 60.0);
  for (const float w : five.key_widths) REQUIRE((w >= 1 && w <= 8 && w == std::floor(w)));
  REQUIRE(sum(five.key_widths) + sum(five.value_widths) > sum(three.key_widths) + sum(three.value_widths));
  REQUIRE_THROWS_WITH(tables({.width_group = 7}), Catch::Contains("--width-group 7"));
  REQUIRE_THROWS_AS(tables({.mean_width = 0.5, .width_group = 16}), Error);  // not even one bit for all
}

TEST_CASE("quant tables: recipes read them from a file, and run", "[eval][quant_tables]") {
  const TempFile qkv("quant.safetensors"), file("quant-tables.json");
  test::write_qkv(recording(), qkv.path());
  Options o;
  o.qkv = qkv.path();
  o.recipes = {"kvquant(bits=3, sinks=0)", "skvq(window=8, sinks=0)", "bit_allocation(group_size=16)"};
  o.rounds = 0, o.jobs = 1, o.quiet = true;
  REQUIRE_THROWS_WITH(evaluate(o), Catch::Contains("key_lower") && Catch::Contains("--heads"));
  const HeadsFile h = tables({.level_bits = 3, .width_group = 16});
  OutputFile(file.path()).write(heads_text(h, {}));
  const HeadsFile back = parse_heads(heads_text(h, {}), "f");
  REQUIRE(back.key_levels.numbers == h.key_levels.numbers);
  REQUIRE(back.value_clusters.numbers == h.value_clusters.numbers);
  REQUIRE(back.key_widths == h.key_widths);
  o.heads = file.path();
  const Results r = evaluate(o);
  const auto bits = [&](std::size_t i) { return static_cast<double>(r.recipes[i].report.coded_bytes); };
  REQUIRE((bits(1) > 0 && bits(2) > 0 && bits(3) > 0));
}

TEST_CASE("quant tables: lists that are none are refused with their place", "[eval][quant_tables]") {
  const auto says = [](const std::string& field, const std::string& part) {
    const std::string text = R"({"format": "kvcondense-heads", "version": 1, "layers": 1, "kv_heads": 2, )" + field + "}";
    CAPTURE(text);
    REQUIRE_THROWS_WITH(parse_heads(text, "f.json"), Catch::StartsWith("f.json: ") && Catch::Contains(part));
  };
  REQUIRE_NOTHROW(parse_heads(R"({"format": "kvcondense-heads", "version": 1, "layers": 1, "kv_heads": 2, "key_lower": [[[1, 2], [3, 4]]]})", "f"));
  says(R"("key_lower": [[1, 2], [3, 4]])", "key_lower is not a list of 1 layers");
  says(R"("key_lower": [[1, 2]])", "key_lower[0][0] is not a list");
  says(R"("key_lower": [[[1, 2]]])", "key_lower[0] is not a list of 2 heads");
  says(R"("key_lower": [[[1, 2], [3]]])", "key_lower[0][1] is not a list of 2 numbers");
  says(R"("key_lower": [[[], []]])", "key_lower[0][0] is not a list");
  says(R"("key_lower": [[[1, "x"], [3, 4]]])", "key_lower[0][0][1] is no number");
  says(R"("key_low": [[[1, 2], [3, 4]]])", "no table is called 'key_low'");
}
