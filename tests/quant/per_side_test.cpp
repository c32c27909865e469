#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/any_recipe.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/mikv.hpp>
#include <kvcondense/quant/per_side.hpp>
#include <kvcondense/quant/zipcache.hpp>
#include <support/catalogue.hpp>
#include <support/memory.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
constexpr index_t dim = shape.head_dim;

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

struct Rows {
  std::vector<float> keys, values;  ///< [layer][head][slot][dim]
};

template <class C>
Rows rows(const C& cache) {
  Rows all;
  for (index_t l = 0; l < shape.layers; ++l)
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const index_t n = cache.slots(l, h);
      std::vector<float> k(at(n * dim)), v(k.size());
      REQUIRE(cache.read(l, h, 0, dense_view(k.data(), n, dim), dense_view(v.data(), n, dim)) == Status::ok);
      all.keys.insert(all.keys.end(), k.begin(), k.end());
      all.values.insert(all.values.end(), v.begin(), v.end());
    }
  return all;
}

/// One call of each layer.
struct Piece {
  std::vector<test::Tokens> tokens{};
  std::vector<test::StepData> data{};
};

/// A prompt and six single tokens, the same for every cache.
const std::vector<Piece>& pieces() {
  static const std::vector<Piece> all = [] {
    std::mt19937 random(3);
    std::vector<Piece> made;
    for (const index_t n : {48, 1, 1, 1, 1, 1, 1}) {
      made.emplace_back();
      for (index_t l = 0; l < shape.layers; ++l) made.back().tokens.emplace_back(shape, n, random), made.back().data.emplace_back(shape, n, random);
    }
    return made;
  }();
  return all;
}

/// The prompt, four tokens, of which two are taken back, and some of the middle removed, two more tokens; then what attention of the last query
/// makes of what is stored.
template <class C>
struct Run {
  C cache;
  Workspace work{};
  std::vector<float> out = std::vector<float>(at(shape.q_heads * dim));
  const std::vector<float>& query = pieces().back().tokens.back().q;

  explicit Run(C made) : cache(std::move(made)) {
    REQUIRE(work.reserve(cache.workspace_bytes(96, 64)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    std::vector<float> all(at(shape.q_heads * 48 * dim));
    for (std::size_t i = 0; i < pieces().size(); ++i) {
      for (index_t l = 0; l < shape.layers; ++l) {
        const test::Tokens& t = pieces()[i].tokens[at(l)];
        REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(all.data(), shape.q_heads, t.n, dim), {},
                              i == 0 ? Phase::prefill_end : Phase::decode, pieces()[i].data[at(l)].inputs()) == Status::ok);
      }
      if (i != 4) continue;
      REQUIRE(cache.truncate(cache.length() - 2) == Status::ok);
      REQUIRE(cache.remove(ctx, 11, 27) == Status::ok);
    }
    REQUIRE(cache.attend(ctx, shape.layers - 1, dense_view(query.data(), shape.q_heads, 1, dim), dense_view(out.data(), shape.q_heads, 1, dim)) ==
            Status::ok);
  }
};

// A sanitizer sees one pair of twelve; the release build runs them all.
#if defined(KVCONDENSE_TEST_SANITIZED)
constexpr std::size_t run_one_of = 12;
#else
constexpr std::size_t run_one_of = 1;
#endif

/// Every quantizer of the catalogue, in its small setting.
struct Word {
  std::string word;
  any::AnyQuant quant;
};

std::vector<Word> words() {
  static const test::RandomModel model(shape);
  std::vector<Word> all;
  for (const any::Entry* e : any::builtin().entries())
    if (e->room == Stage::quant) {
      const any::ParseResult parsed = any::parse(test::settings.at(std::string(e->word)).text, model.facts());
      REQUIRE(parsed);
      all.push_back({std::string(e->word), parsed->stages.quant});
    }
  return all;
}

/// Attention of a query over the last layer's rows, in double.
double attention_error(const Rows& r, const std::vector<float>& query, const std::vector<float>& out, index_t slots) {
  double worst = 0;
  for (index_t q = 0; q < shape.q_heads; ++q) {
    const index_t first = ((shape.layers - 1) * shape.kv_heads + q / shape.group()) * slots;
    std::vector<double> weight(at(slots)), want(at(dim));
    double most = -1e300, sum = 0;
    for (index_t t = 0; t < slots; ++t) {
      double dot = 0;
      for (index_t c = 0; c < dim; ++c) dot += static_cast<double>(query[at(q * dim + c)]) * static_cast<double>(r.keys[at((first + t) * dim + c)]);
      weight[at(t)] = dot / std::sqrt(static_cast<double>(dim)), most = std::max(most, weight[at(t)]);
    }
    for (double& w : weight) sum += w = std::exp(w - most);
    for (index_t t = 0; t < slots; ++t)
      for (index_t c = 0; c < dim; ++c) want[at(c)] += weight[at(t)] / sum * static_cast<double>(r.values[at((first + t) * dim + c)]);
    for (index_t c = 0; c < dim; ++c) worst = std::max(worst, std::abs(want[at(c)] - static_cast<double>(out[at(q * dim + c)])));
  }
  return worst;
}

}  // namespace

TEST_CASE("per_side: every pair of a quantizer for keys and one for values stores what each stores alone, or is refused", "[quant][per_side]") {
  const std::vector<Word> list = words();
  std::vector<Rows> alone;
  for (const Word& w : list) {
    any::AnyRecipe recipe;
    recipe.quant = w.quant;
    auto made = any::AnyCache::make(recipe, "", shape);
    CAPTURE(w.word);
    REQUIRE(made);
    alone.push_back(rows(Run(std::move(*made)).cache));
  }
  std::string refused;
  int pairs = 0;
  for (std::size_t k = 0; k < list.size(); ++k)
    for (std::size_t v = 0; v < list.size(); ++v) {
      if ((k * list.size() + v) % run_one_of != 0) continue;
      CAPTURE(list[k].word, list[v].word);
      auto made = make_cache<Cpu>(shape, recipe(quant::PerSide{list[k].quant, list[v].quant}));
      if (made.status() == Status::incompatible) {
        refused += list[k].word + "+" + list[v].word + " ";
        continue;
      }
      REQUIRE(made.status() == Status::ok);
      Run run(std::move(*made));
      const Rows got = rows(run.cache);
      // Where quantizers want different numbers of exact first tokens, both sides have the larger one.
      const bool same_sinks = list[k].quant.sinks == list[v].quant.sinks;
      if (same_sinks) REQUIRE((got.keys == alone[k].keys));
      // Which values are stored better depends on attention, and that on the keys.
      if (same_sinks && !list[v].quant.has_saliency()) REQUIRE((got.values == alone[v].values));
      const double approximate = std::max(test::settings.at(list[k].word).attend_error, test::settings.at(list[v].word).attend_error);
      REQUIRE(attention_error(got, run.query, run.out, run.cache.slots(0, 0)) < std::max(2e-3, approximate));
      ++pairs;
    }
  if (run_one_of != 1) return;
  REQUIRE(refused == "zipcache+zipcache zipcache+mikv mikv+zipcache mikv+mikv ");
  REQUIRE(pairs + 4 == static_cast<int>(list.size() * list.size()));
}

TEST_CASE("per_side: as a type it needs what both need, and refuses what either refuses", "[quant][per_side]") {
  const quant::PerSide both{quant::Kivi<2>{.group_size = 32, .residual_window = 64, .sinks = 4}, quant::Fp8{.sinks = 1}};
  REQUIRE(both.sinks == 4);
  REQUIRE(both.key_flush(shape).block == 64);
  REQUIRE(both.value_flush(shape).keep == quant::Fp8{}.value_flush().keep);
  static_assert(decltype(quant::PerSide{quant::MiKV<>{}, quant::Fp8{}})::needs.has(Input::queries));
  static_assert(decltype(quant::PerSide{quant::Fp8{}, quant::MiKV<>{}})::needs.has(Input::attention));
  REQUIRE(both.validate({.head_dim = 64}) == Status::ok);
  REQUIRE(quant::PerSide{quant::Kivi<2>{.group_size = 0}, quant::Fp8{}}.validate({.head_dim = 64}) == Status::invalid_argument);
  REQUIRE(quant::PerSide{quant::Fp8{}, quant::Kivi<2>{.group_size = 0}}.validate({.head_dim = 64}) == Status::invalid_argument);
  REQUIRE(quant::PerSide{quant::MiKV<>{}, quant::ZipCache<>{}}.validate({.head_dim = 64}) == Status::incompatible);
  REQUIRE(quant::PerSide{quant::MiKV<>{}, quant::Fp8{}}.has_saliency());
  // Keys that are chosen at run time have no say in what values that always ask find important.
  const any::AnyQuant two_bits(quant::Kivi<2>{});
  const quant::PerSide mixed{two_bits, quant::MiKV<>{}};
  static_assert(std::is_same_v<decltype(mixed.saliency()), decltype(quant::MiKV<>{}.saliency())>);
  REQUIRE(mixed.has_saliency());
  REQUIRE(mixed.validate({.head_dim = 64}) == Status::ok);
  REQUIRE(quant::PerSide{any::AnyQuant(quant::MiKV<>{}), quant::ZipCache<>{}}.validate({.head_dim = 64}) == Status::incompatible);
  static_assert(stage_traits<decltype(quant::PerSide{quant::Fp8{}, quant::KvQuant{}})>().calibrated);
  REQUIRE(quant::PerSide{quant::Fp8{}, quant::MiKV<>{}}.has_saliency());
  REQUIRE_FALSE(has_saliency(both));
}
