#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <any/eviction_run.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/evict/pipeline.hpp>

using namespace kvcondense;

// What every composition of eviction policy, budget and wrapper has to keep, tried over the registry: a new word
// needs no line here.

namespace {

using Run = test::EvictionRun;
using Room = test::EvictionRoom;
constexpr const CacheShape& shape = test::eviction_shape;

/// A number as a cache of this type stores it.
double stored(float x, DType type) {
  return static_cast<double>(type == DType::f16 ? static_cast<float>(half(x)) : type == DType::bf16 ? static_cast<float>(bfloat16(x)) : x);
}

/// Attention of one query over the full history, with what the cache let go masked out. In double.
std::vector<double> masked_attention(const Run& run, index_t layer, index_t q_head, const float* q) {
  const index_t head = q_head / shape.group();
  std::vector<double> logits, out(static_cast<std::size_t>(shape.head_dim));
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (index_t s = 0; s < run.cache.slots(layer, head); ++s) {
    const float* k = run.row(true, layer, head, run.cache.token(layer, head, s));
    double dot = 0;
    for (index_t d = 0; d < shape.head_dim; ++d) dot += static_cast<double>(q[d]) * stored(k[d], run.shape.dtype);
    logits.push_back(dot / std::sqrt(static_cast<double>(shape.head_dim)));
    most = std::max(most, logits.back());
  }
  for (index_t s = 0; s < run.cache.slots(layer, head); ++s) {
    const double p = std::exp(logits[static_cast<std::size_t>(s)] - most);
    const float* v = run.row(false, layer, head, run.cache.token(layer, head, s));
    for (index_t d = 0; d < shape.head_dim; ++d) out[static_cast<std::size_t>(d)] += p * stored(v[d], run.shape.dtype);
    sum += p;
  }
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace

TEST_CASE("eviction: slots rise, counters go on, and attention is that of the kept tokens in every recipe and type", "[any][invariants]") {
  const DType type = GENERATE(DType::f32, DType::f16, DType::bf16);
  CAPTURE(to_string(type));
  std::size_t evicted = 0;
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    Run run(text, 3, type);
    Room room(run.cache);
    index_t seen = 0;
    for (int pass = 0; pass < Run::passes; ++pass) {
      run.advance(room.ctx, pass);
      seen += Run::tokens(pass);
      for (index_t l = 0; l < shape.layers; ++l) {
        REQUIRE(run.cache.length(l) == seen);
        REQUIRE(run.cache.next_position(l) == seen);
        REQUIRE(run.cache.pending(l) == 0);
        for (index_t h = 0; h < shape.kv_heads; ++h) {
          index_t last = -1;
          for (index_t s = 0; s < run.cache.slots(l, h); ++s) {
            const index_t t = run.cache.token(l, h, s);
            if (t <= last || t >= seen) FAIL("slot " << s << " holds token " << t << " after " << last);
            last = t;
          }
        }
      }
    }
    REQUIRE(run.cache.report().slots == run.cache.total_slots(0) + run.cache.total_slots(1) + run.cache.total_slots(2));
    evicted += run.cache.report().evicted_slots > 0;
    // A summary of what left is attended to as well; its own tests say how.
    if (text.starts_with("razor_attention") || text.starts_with("compensate")) continue;
    const test::Tokens q(shape, 1, run.random);
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
    for (index_t l = 0; l < shape.layers; ++l) {
      REQUIRE(run.cache.attend(room.ctx, l, q.queries(shape), dense_view(out.data(), shape.q_heads, index_t{1}, shape.head_dim)) ==
              Status::ok);
      for (index_t h = 0; h < shape.q_heads; ++h) {
        if (run.cache.slots(l, h / shape.group()) == 0) continue;
        const auto want = masked_attention(run, l, h, q.q.data() + h * shape.head_dim);
        for (index_t d = 0; d < shape.head_dim; ++d)
          if (std::fabs(static_cast<double>(out[static_cast<std::size_t>(h * shape.head_dim + d)]) - want[static_cast<std::size_t>(d)]) > 1e-5)
            FAIL("layer " << l << ", query head " << h << ", number " << d << ": "
                          << out[static_cast<std::size_t>(h * shape.head_dim + d)] << " for " << want[static_cast<std::size_t>(d)]);
      }
    }
  }
  REQUIRE(evicted + 6 >= test::eviction_recipes().size());  // most settings are such that something leaves
}

TEST_CASE("eviction: another sequence in between changes nothing in any recipe", "[any][invariants]") {
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    Run alone(text, 5), first(text, 5), second(text, 6);
    Room quiet(alone.cache), busy(alone.cache);
    for (int pass = 0; pass < Run::passes; ++pass) alone.advance(quiet.ctx, pass);
    for (int pass = 0; pass < Run::passes; ++pass) first.advance(busy.ctx, pass), second.advance(busy.ctx, pass);
    REQUIRE(first.kept() == alone.kept());
    REQUIRE(first.outputs == alone.outputs);
    REQUIRE(second.outputs != alone.outputs);
  }
}

TEST_CASE("eviction: a fork goes on as its origin would, and rejected drafts leave no trace in any recipe", "[any][invariants]") {
  for (const std::string& text : test::eviction_recipes()) {
    CAPTURE(text);
    Run run(text, 7);
    Room room(run.cache);
    for (int pass = 0; pass < 6; ++pass) run.advance(room.ctx, pass);
    auto copy = run.cache.fork();
    REQUIRE(copy);
    const std::vector<index_t> before = run.kept();
    {  // tokens that no step has seen, taken back
      std::mt19937 random(1);
      for (index_t l = 0; l < shape.layers; ++l) {
        const test::Tokens t(shape, 4, random);
        REQUIRE(copy->append(room.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      }
      REQUIRE(copy->truncate(run.cache.length()) == Status::ok);
    }
    Run twin(text, 7);
    twin.random = run.random, twin.given = run.given;
    twin.cache = std::move(*copy);
    REQUIRE(twin.kept() == before);
    run.outputs.clear();
    for (int pass = 6; pass < Run::passes; ++pass) run.advance(room.ctx, pass), twin.advance(room.ctx, pass);
    REQUIRE(twin.kept() == run.kept());
    REQUIRE(twin.outputs == run.outputs);
  }
}

namespace {

/// Words that keep their newest token only by chance, as their cards say.
const std::set<std::string> lose_newest{"tova", "expected_attention"};

/// The most that a choice may leave of its budget: chunks stay or go whole, and the last one may be short.
index_t unfilled(const std::string& word, const std::string& text) {
  if (word != "chunked" && word != "chunkkv") return 0;
  return 2 * std::stoll(text.substr(text.find("chunk=") + 6)) - 2;
}

/// What a policy chose of one head.
struct Choice {
  index_t slots, budget;
  evict::Protected shield;
  std::vector<std::int32_t> kept;
};

/// Select: what `base` keeps, noted down.
template <class Base>
struct Noting {
  Base base{};
  std::vector<Choice>* notes = nullptr;

  template <class Other>
  constexpr Noting<Other> over(Other other) const {
    return {other, notes};
  }
  constexpr bool takes_best() const { return evict::takes_best(base); }
  constexpr bool reads_scores() const { return evict::reads_scores(base); }
  std::size_t workspace_bytes(const CacheShape& s, index_t slots) const { return base.workspace_bytes(s, slots); }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const evict::Protected* shield, const evict::KeepSet& keep,
             Scratch& scratch) const {
    const Status s = base.run(ctx, view, scores, shield, keep.with_lists(), scratch);
    for (index_t h = 0; s == Status::ok && h < scores.heads; ++h)
      notes->push_back({view.slots(h), keep.budget[h], shield[h], {keep.slots.row(h), keep.slots.row(h) + keep.count[h]}});
    return s;
  }
};
template <class Base, class... Fields>
Noting(Base, Fields...) -> Noting<Base>;

/// A policy that is watched as it chooses.
struct Watched {
  static constexpr Descriptor about{"watched", Stage::evict, "these tests"};
  [[maybe_unused]] static constexpr Inputs needs = Inputs::all();
  any::Inner policy{};
  std::vector<Choice>* notes = nullptr;

  auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_select(Noting{p.select, notes});
  }
  Status validate(const CacheShape& s) const { return policy.validate(s); }
};

}  // namespace

TEST_CASE("eviction: a choice fills its budget, with all that is protected and the newest token, in every recipe", "[any][invariants]") {
  std::size_t cut = 0;
  for (const std::string& text : test::eviction_recipes()) {
    const std::string word = text.substr(0, text.find('('));
    CAPTURE(text);
    const auto parsed = any::parse(text, test::eviction_facts());
    REQUIRE(parsed);
    std::vector<Choice> choices;
    any::AnyRecipe recipe = parsed->stages;
    REQUIRE(recipe.evict.wrap<&Watched::policy>(Watched{{}, &choices}) == Status::ok);
    auto cache = any::AnyCache::make(recipe, "", shape);
    REQUIRE(cache);
    Run run(text, 3);
    run.cache = std::move(*cache);
    Room room(run.cache);
    for (int pass = 0; pass < Run::passes; ++pass) run.advance(room.ctx, pass);
    bool cuts = false;
    for (const auto& [slots, budget, shield, kept] : choices) {
      const auto count = static_cast<index_t>(kept.size()), full = std::max(budget, shield.size());
      CAPTURE(slots, budget, shield.prefix, shield.suffix, kept);
      REQUIRE((budget >= 0 && budget <= slots && shield.size() <= slots));
      REQUIRE((count <= full && count >= full - unfilled(word, text)));
      REQUIRE(std::adjacent_find(kept.begin(), kept.end(), std::greater_equal<>()) == kept.end());
      REQUIRE((kept.empty() || (kept.front() >= 0 && kept.back() < slots)));
      // Ascending and in range: the protected ends are there if as many slots lie in them as they have.
      REQUIRE(std::lower_bound(kept.begin(), kept.end(), shield.prefix) - kept.begin() == shield.prefix);
      REQUIRE(kept.end() - std::lower_bound(kept.begin(), kept.end(), slots - shield.suffix) == shield.suffix);
      if (slots > 0 && !lose_newest.contains(word)) REQUIRE((!kept.empty() && kept.back() == slots - 1));
      cuts = cuts || count < slots;
    }
    cut += cuts;
  }
  REQUIRE(cut + 6 >= test::eviction_recipes().size());  // most settings are such that something leaves
}
