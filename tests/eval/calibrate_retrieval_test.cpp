#include <cmath>
#include <filesystem>

#include <catch2/catch.hpp>
#include <eval/calibrate_retrieval.hpp>
#include <eval/evaluate.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/retrieve/blocks/hashes.hpp>

#include "calibrated.hpp"

using namespace eval;
using namespace eval::test;
using kvcondense::retrieve::fill_planes;

namespace {

Options calibration(const std::string& method) {
  Options o = tiny(method);
  o.context = 512, o.windows = 2, o.seed = 5;
  o.calibration.codes = 128, o.calibration.steps = 5;
  return o;
}

/// What a recipe read of a text with these arrays.
ReadSums reads(const MethodBases& arrays, const std::string& recipe) {
  const Saved file(bases_bytes(arrays), "arrays");
  Options o = tiny("pca");
  o.calibrate = false;
  o.context = 512, o.prefill = 480, o.windows = 1;
  o.bases = {file.path()}, o.recipes = {recipe};
  return evaluate(o, nullptr).recipes[1].reads;
}

/// The same tensors with normal numbers of the same size in the mean.
MethodBases random_instead(MethodBases m) {
  for (FactArray& a : m.arrays) {
    double squares = 0;
    for (const float x : a.numbers) squares += static_cast<double>(x) * static_cast<double>(x);
    const auto size = static_cast<float>(std::sqrt(squares / static_cast<double>(a.numbers.size())));
    fill_planes(11, a.numbers.data(), static_cast<index_t>(a.numbers.size()));
    for (float& x : a.numbers) x *= size;
  }
  return m;
}

const std::vector<float>& numbers(const Calibrated& made, const std::string& name) {
  for (const FactArray& a : made.bases.arrays)
    if (a.name == name) return a.numbers;
  FAIL("no array " << name);
  return made.bases.arrays[0].numbers;
}

/// Two texts, 4 query heads on 2 KV heads of 8; the second KV head and its queries are for tests to fill.
struct TwoTexts {
  static constexpr index_t dim = 8;
  Recording first{{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = dim}}, second = Recording(first.shape);

  TwoTexts() {
    for (Recording* r : {&first, &second}) {
      r->tokens = 30;
      r->rope = kvcondense::prim::RopeConfig{.rotary_dim = dim, .base = 100.0};
      Recording::Layer& l = r->layers[0];
      l.q.resize(30 * 4 * dim), l.k.resize(30 * 2 * dim), l.v.resize(30 * 2 * dim);
      for (auto* rows : {&l.q, &l.k, &l.v}) fill_planes(r == &first ? 1 : 2, rows->data(), static_cast<index_t>(rows->size()));
      for (auto* rows : {&l.q, &l.k})
        for (float& x : *rows) x *= 50.0f;  // of other heads: nobody may look at these
    }
  }
  HeadOfTexts of() { return {texts = {&first, &second}, 0, 1}; }
  float* key(index_t t) { return (t < 30 ? first : second).layers[0].k.data() + ((t % 30) * 2 + 1) * dim; }
  float* query(index_t t, index_t g) { return (t < 30 ? first : second).layers[0].q.data() + ((t % 30) * 4 + 2 + g) * dim; }
  Texts texts;
};

}  // namespace

TEST_CASE("calibrate: what retrieval asks for is read back, and finds more than random numbers do", "[eval][calibrate]") {
  struct Case {
    const char *method, *recipe;
    double least, most;  // part of the slots
  };
  for (const Case& c : {Case{"loki", "loki(columns=16, share=10%)", 0.09, 0.11},
                        Case{"infinigen", "infinigen(part=10%, alpha=1000, share=10%, dense_layers=0)", 0.09, 0.11},
                        Case{"a2ats", "a2ats(share=5%, sinks=0, local=0, distance=500) + rerotate", 0.05, 0.16},
                        Case{"a2ats", "a2ats(share=5%, sinks=0, local=0, distance=500) + reindex", 0.05, 0.16}}) {
    CAPTURE(c.recipe);
    Options o = calibration(c.method);
    o.calibration.distance = 500;
    const Calibrated made = calibrate(o);
    REQUIRE(made.bases.method == c.method);
    REQUIRE(made.text.find("head") != std::string::npos);
    const ReadSums found = reads(made.bases, c.recipe), random = reads(random_instead(made.bases), c.recipe);
    CAPTURE(found.slot_share(), found.mass_share(), random.slot_share(), random.mass_share());
    REQUIRE(found.rows == 32 * 6 * 4);
    REQUIRE((found.slot_share() > c.least && found.slot_share() < c.most));
    REQUIRE(found.mass_share() > random.mass_share() + 0.05);
    REQUIRE(found.mass_share() > 2 * found.slot_share());
  }
}

TEST_CASE("calibrate: planes for hashes need a model's size of a head, and read as often as they say", "[eval][calibrate]") {
  namespace fs = std::filesystem;
  const TempFile folder("only-config");
  const fs::path dir = folder.path();
  fs::create_directories(dir);
  Options o = tiny("magicpig");
  fs::copy_file(fs::path(o.model) / "config.json", dir / "config.json", fs::copy_options::overwrite_existing);
  o.model = dir.string();
  o.calibration.tables = 40, o.calibration.bits = 6;
  const Calibrated made = calibrate(o);
  fs::remove_all(dir);
  REQUIRE_THROWS_WITH(calibrate(o), Catch::Contains("config.json"));
  o.model = tiny("pca").model;
  REQUIRE(made.bases.arrays[0].extent == std::vector<index_t>{40, 6, 64});
  REQUIRE(made.text.find("chance to be read") != std::string::npos);
  REQUIRE(numbers(calibrate(o), "hash.planes") == numbers(made, "hash.planes"));
  o.seed = 2;
  const Calibrated other = calibrate(o);
  REQUIRE(numbers(other, "hash.planes") != numbers(made, "hash.planes"));

  const std::string recipe = "magicpig(sinks=2, local=8, dense_every=0)";
  const ReadSums some = reads(made.bases, recipe), others = reads(other.bases, recipe);
  REQUIRE(some.mass_share() > 2 * some.slot_share());
  REQUIRE(some.mass_share() != others.mass_share());
  o.calibration.bits = 9;  // agrees less often
  REQUIRE(reads(calibrate(o).bases, recipe).slot_share() < 0.8 * others.slot_share());
  o.calibration.tables = 150;
  REQUIRE(reads(calibrate(o).bases, recipe).slot_share() > 0.1);
}

TEST_CASE("calibrate: what retrieval asks for changes with what is asked", "[eval][calibrate]") {
  Options o = calibration("loki");
  const std::vector<float> axes = numbers(calibrate(o), "key.axes");
  o.calibration.keys = "raw";
  const Calibrated raw = calibrate(o);
  REQUIRE(raw.bases.keys.keys == kvcondense::KeyForm::raw);
  REQUIRE(numbers(raw, "key.axes") != axes);
  o.calibration.keys = "", o.seed = 6;
  REQUIRE(numbers(calibrate(o), "key.axes") != axes);

  o = calibration("infinigen");
  const std::vector<float> queries = numbers(calibrate(o), "query.axes");
  REQUIRE(queries != axes);
  o.context = 500;
  REQUIRE(numbers(calibrate(o), "query.axes") != queries);

  o = calibration("a2ats");
  const Calibrated usual = calibrate(o);
  REQUIRE(usual.bases.arrays[0].extent == std::vector<index_t>{4, 2, 128, 64});
  REQUIRE(usual.bases.arrays[1].extent == std::vector<index_t>{4, 2, 64, 64});
  const auto change = [&](auto&& f, const char* name) {
    Options other = o;
    f(other);
    return numbers(calibrate(other), name) != numbers(usual, name);
  };
  REQUIRE(change([](Options& x) { x.calibration.codes = 100; }, "key.codes"));
  REQUIRE(change([](Options& x) { x.calibration.steps = 1; }, "key.codes"));
  REQUIRE(change([](Options& x) { x.calibration.distance = 100; }, "key.metric"));
  REQUIRE(change([](Options& x) { x.calibration.distance = 100; }, "key.codes"));
  REQUIRE(!change([](Options& x) { x.calibration.steps = 1; }, "key.metric"));
  REQUIRE(!change([](Options& x) { x.jobs = 3; }, "key.codes"));
}

TEST_CASE("calibrate: axes are principal directions, of keys without their mean and of queries with it", "[eval][calibrate]") {
  TwoTexts t;
  for (index_t i = 0; i < 60; ++i) {
    const float a = i % 2 == 0 ? 2.0f : -2.0f, b = i % 4 < 2 ? 0.5f : -0.5f;
    for (index_t d = 0; d < 8; ++d) t.key(i)[d] = d == 3 ? 7.0f : 0.0f;
    t.key(i)[5] = a, t.key(i)[1] = b;
    for (const index_t g : {0, 1}) {
      for (index_t d = 0; d < 8; ++d) t.query(i, g)[d] = 0.0f;
      t.query(i, g)[3] = 7.0f, t.query(i, g)[g == 0 ? 5 : 6] = g == 0 ? a : 2 * b;
    }
  }
  const HeadArrays keys = head_key_axes(t.of(), {}, 1), queries = head_query_axes(t.of(), {}, 1);
  const auto at = [](const HeadArrays& h, index_t d, index_t c) { return std::fabs(h.arrays[0].numbers[static_cast<std::size_t>(d * 8 + c)]); };
  REQUIRE(at(keys, 5, 0) == Approx(1.0));
  REQUIRE(at(keys, 1, 1) == Approx(1.0));
  REQUIRE(keys.said == std::vector<std::string>{"1", "2"});
  REQUIRE(at(queries, 3, 0) == Approx(1.0));
  REQUIRE(at(queries, 5, 1) == Approx(1.0));
  REQUIRE(at(queries, 6, 2) == Approx(1.0));
}

TEST_CASE("calibrate: a filter is the direction that holds most of the queries, and they point away from it", "[eval][calibrate]") {
  TwoTexts t;
  for (index_t i = 0; i < 60; ++i)
    for (const index_t g : {0, 1})
      for (index_t d = 0; d < 8; ++d) t.query(i, g)[d] = d == 3 ? (i % 4 == 0 ? -3.0f : 5.0f) : d == 6 ? (i % 2 == 0 ? 2.0f : -2.0f) : 0.0f;
  // Means of products: 21 along the axis 3, 4 along 6, -4 of the two. The larger eigenvalue belongs to (-4, large - 21).
  const double large = 12.5 + std::sqrt(8.5 * 8.5 + 4.0 * 4.0), length = std::hypot(4.0, large - 21);
  const HeadArrays found = head_query_filters(t.of(), {}, 1);
  REQUIRE(found.arrays[0].name == "query.filters");
  REQUIRE(found.arrays[0].extent == std::vector<index_t>{8});
  const std::vector<float>& filter = found.arrays[0].numbers;
  REQUIRE(filter[3] == Approx(-4.0 / length).epsilon(1e-5));
  REQUIRE(filter[6] == Approx((large - 21) / length).epsilon(1e-5));
  REQUIRE(found.said == std::vector<std::string>{"0.876", "0.750"});

  for (index_t i = 0; i < 60; ++i)
    for (const index_t g : {0, 1}) t.query(i, g)[3] *= -1.0f;
  REQUIRE(head_query_filters(t.of(), {}, 1).arrays[0].numbers[3] == Approx(-filter[3]).epsilon(1e-5));

  Options o = calibration("qfilters");
  const Calibrated made = calibrate(o);
  REQUIRE(made.bases.arrays[0].extent == std::vector<index_t>{4, 2, 64});
  const Saved file(bases_bytes(made.bases), "qfilters");
  REQUIRE(complaint(file.path()).empty());
  Options e = tiny("pca");
  e.calibrate = false, e.context = 96, e.windows = 1, e.recipes = {"qfilters(keep=50%)"};
  REQUIRE_THROWS_WITH(evaluate(e, nullptr), Catch::Contains("query_filters") && Catch::Contains("calibrate --method qfilters"));
  o.calibration.keys = "raw";
  REQUIRE_THROWS_WITH(calibrate(o), "--keys raw: qfilters' directions meet keys as attention compares them");
}

TEST_CASE("calibrate: centroids come back to where keys lie, whatever metric they were found by", "[eval][calibrate]") {
  TwoTexts t;
  std::vector<float> points(3 * 8), noise(60 * 8);
  fill_planes(21, points.data(), 24);
  fill_planes(22, noise.data(), 480);
  for (index_t i = 0; i < 60; ++i) {
    for (index_t d = 0; d < 8; ++d) t.key(i)[d] = points[static_cast<std::size_t>((i % 3) * 8 + d)];
    for (const index_t g : {0, 1})
      for (index_t d = 0; d < 8; ++d)
        t.query(i, g)[d] = noise[static_cast<std::size_t>(i * 8 + d)] * static_cast<float>(d + 1) + static_cast<float>(g);
  }
  Calibration how;
  how.codes = 3, how.distance = 13;
  const HeadArrays found = head_key_codes(t.of(), how, 4);
  REQUIRE(std::stod(found.said[0]) < 1e-6);
  for (index_t p = 0; p < 3; ++p) {
    double nearest = 1e9;
    for (index_t c = 0; c < 3; ++c) {
      double off = 0;
      for (index_t d = 0; d < 8; ++d)
        off += std::fabs(static_cast<double>(found.arrays[0].numbers[static_cast<std::size_t>(c * 8 + d)]) - static_cast<double>(points[static_cast<std::size_t>(p * 8 + d)]));
      nearest = std::min(nearest, off);
    }
    REQUIRE(nearest < 1e-3);
  }
  // Fewer codes than points lose something.
  how.codes = 2;
  REQUIRE(std::stod(head_key_codes(t.of(), how, 4).said[0]) > 1e-3);
  t.first.rope.reset();
  REQUIRE_THROWS_WITH(head_key_codes(t.of(), how, 4), Catch::Contains("nothing says how"));
}

TEST_CASE("bases: weights of retaining heads are read from a file, and say what stays", "[eval][calibrate]") {
  const index_t hidden = 8, projections = 6 * 64 + 2 * (64 + 64);
  const auto divergence = [&](std::uint64_t seed) {
    MethodBases trained;
    trained.method = "locret";
    for (const auto& [name, extent] : {std::pair{"retain.in", std::vector<index_t>{4, projections, hidden}}, {"retain.out", {4, hidden, 2}}}) {
      FactArray a{name, extent, {}};
      for (index_t i = 0; i < extent[0] * extent[1] * extent[2]; ++i) a.numbers.push_back(kvcondense::random_uniform(seed, static_cast<std::uint64_t>(i)) - 0.5f);
      trained.arrays.push_back(a);
    }
    const Saved file(bases_bytes(trained), "locret");
    Options o = tiny("pca");
    o.calibrate = false;
    o.context = 256, o.prefill = 192, o.windows = 1;
    o.bases = {file.path()}, o.recipes = {"locret(tokens=64, stabilizers=16, local=16) + reindex"};
    const Results r = evaluate(o);
    REQUIRE(r.recipes[1].slots[0][0] == 64 + 16 + 64);
    return r.recipes[1].text.kl;
  };
  const double first = divergence(1);
  REQUIRE(first > 0.0);
  REQUIRE(divergence(1) == first);
  REQUIRE(divergence(2) != first);
}

TEST_CASE("calibrate: what retrieval cannot have is refused in a sentence", "[eval][calibrate]") {
  Options few = calibration("loki");
  few.context = 20, few.windows = 1;
  REQUIRE_THROWS_WITH(calibrate(few), "20 tokens cannot show 64 directions: raise --context or --windows");
  few.calibration.method = "infinigen";
  REQUIRE_THROWS_WITH(calibrate(few), "20 tokens cannot show 64 directions: raise --context or --windows");
  few.calibration.method = "a2ats", few.context = 128, few.calibration.codes = 128;
  REQUIRE_THROWS_WITH(calibrate(few), "128 tokens cannot show 128 codes: raise --context or --windows");
  few.context = 60, few.calibration.codes = 10;
  REQUIRE_THROWS_WITH(calibrate(few), "60 tokens cannot show 64 directions: raise --context or --windows");
  Options form = calibration("infinigen");
  form.calibration.keys = "raw";
  REQUIRE_THROWS_WITH(calibrate(form), "--keys raw: infinigen's directions meet queries as attention compares them");
  form.calibration.method = "a2ats", form.calibration.keys = "rotated";
  REQUIRE_THROWS_WITH(calibrate(form), "--keys rotated: a2ats codes keys before rotation");

  Options e = tiny("pca");
  e.calibrate = false, e.context = 96, e.windows = 1;
  for (const auto& [recipe, fact, method] : {std::tuple{"loki", "key_axes", "loki"}, {"infinigen", "query_axes", "infinigen"},
                                             {"a2ats + rerotate", "key_codes", "a2ats"}, {"magicpig", "hash_planes", "magicpig"}}) {
    e.recipes = {recipe};
    REQUIRE_THROWS_WITH(evaluate(e, nullptr), Catch::Contains(fact) && Catch::Contains(std::string("calibrate --method ") + method));
  }
  REQUIRE_THROWS_WITH(read_bases({"/nowhere/loki.safetensors"}, tinylm), Catch::Contains("/nowhere/loki.safetensors"));

  MethodBases m;
  m.method = "loki";
  m.arrays = {{"key.axes", {4, 2, 64, 3}, std::vector<float>(1536, 0.5f)}};
  CacheShape other = tinylm;
  other.kv_heads = 1, other.q_heads = 3;
  {
    const Saved file(bases_bytes(m), "loki");
    REQUIRE(complaint(file.path()).empty());
    REQUIRE(complaint(file.path(), other) == ": tensor \"key.axes\" is [4, 2, 64, 3], expected [4, 1, 64, directions]");
  }
  m.arrays[0].numbers[7] = std::nanf("");
  {
    const Saved file(bases_bytes(m), "loki");
    REQUIRE(complaint(file.path()) == ": tensor \"key.axes\": element 7 is no number");
  }
  m.arrays = {{"hash.planes", {2, 3, 32}, std::vector<float>(192, 0.5f)}};
  {
    const Saved file(bases_bytes(m), "magicpig");
    REQUIRE(complaint(file.path()) == ": tensor \"hash.planes\" is [2, 3, 32], expected [tables, bits, 64]");
  }
  m.arrays = {{"key.codes", {4, 2, 0, 64}, {}}};
  {
    const Saved file(bases_bytes(m), "a2ats");
    REQUIRE(complaint(file.path()) == ": tensor \"key.codes\" is [4, 2, 0, 64], expected [4, 2, codes, 64]");
  }
}
