#include <cmath>

#include <kvcondense/evict/sink_window.hpp>
#include <retrieve/rig.hpp>

using namespace kvcondense;

namespace {

/// A model of two layers without weights: tokens are sparse codes, the first layer copies the token before each, the second
/// finds the place behind an earlier key. 128 keys, each with its value, and a question about every one of them.
struct InductionModel {
  static constexpr int dim = 64, vocabulary = 384, context = 512;
  std::vector<std::vector<float>> code{vocabulary, std::vector<float>(dim, 0.0f)};
  std::vector<int> tokens, keys, answer{std::vector<int>(128)}, place{std::vector<int>(128)};
  std::vector<std::vector<int>> signed_channels;
  std::vector<float> before;  ///< [513, dim]: the first layer's output
  double least_weight = 1.0;

  InductionModel() {
    std::uint64_t x = 12345;
    const auto draw = [&](std::uint64_t m) {
      x = (1103515245u * x + 12345u) % (std::uint64_t{1} << 31);
      return static_cast<int>((x >> 16) % m);
    };
    for (auto& row : code) {
      std::vector<int> channels;
      while (channels.size() < 4)
        if (const int c = draw(64); std::find(channels.begin(), channels.end(), c) == channels.end()) channels.push_back(c);
      for (int& c : channels) {
        const bool up = draw(2) == 1;
        row[static_cast<std::size_t>(c)] = up ? 0.5f : -0.5f;
        c = up ? c : -c - 1;
      }
      signed_channels.push_back(channels);
    }
    for (int i = 0; i < 128; ++i) keys.push_back(i);
    for (int i = 127; i >= 1; --i) std::swap(keys[static_cast<std::size_t>(i)], keys[static_cast<std::size_t>(draw(static_cast<std::uint64_t>(i + 1)))]);
    for (const int key : keys) {
      tokens.push_back(key);
      answer[static_cast<std::size_t>(key)] = 128 + draw(128);
      place[static_cast<std::size_t>(key)] = static_cast<int>(tokens.size());
      tokens.push_back(answer[static_cast<std::size_t>(key)]);
      for (int filler = 0; filler < 2; ++filler) tokens.push_back(256 + draw(128));
    }
    tokens.push_back(0);  // the question's place; the copy of the token before it is the same for every question
    for (int p = 0; p <= context; ++p) copy_before(p);
  }

 private:
  void copy_before(int p) {
    std::vector<double> w(static_cast<std::size_t>(p + 1));
    double top = -1e300, sum = 0;
    for (int j = 0; j <= p; ++j) {
      double logit = 0;
      for (int t = 0; t < 32; ++t) logit += 20 * std::cos((p - 1 - j) * std::pow(10000.0, -2.0 * t / 64));
      w[static_cast<std::size_t>(j)] = logit;
      top = std::max(top, logit);
    }
    for (double& l : w) sum += l = std::exp(l - top);
    std::vector<double> out(dim, 0.0);
    for (int j = 0; j <= p; ++j)
      for (std::size_t d = 0; d < dim; ++d)
        out[d] += w[static_cast<std::size_t>(j)] / sum * static_cast<double>(code[static_cast<std::size_t>(tokens[static_cast<std::size_t>(j)])][d]);
    if (p > 0) least_weight = std::min(least_weight, w[static_cast<std::size_t>(p - 1)] / sum);
    // Scores count to six digits: without what the softmax leaves of other tokens.
    for (const double o : out) before.push_back(static_cast<float>(std::round(o * 1e6) / 1e6));
  }
};

const InductionModel& model() {
  static const InductionModel m;
  return m;
}

struct Counts {
  int correct = 0, found = 0;
};

/// The value whose code an output is most like.
int nearest_value(const std::vector<float>& out) {
  int best = 0;
  double most = -1e300;
  for (int token = 128; token < 256; ++token) {
    double dot = 0;
    for (std::size_t d = 0; d < 64; ++d) dot += static_cast<double>(model().code[static_cast<std::size_t>(token)][d]) * static_cast<double>(out[d]);
    dot = std::round(dot * 1e6) / 1e6;
    if (dot > most) most = dot, best = token;
  }
  return best;
}

/// Evicts once, by what the last token of a prompt looks at; the newest 16 and that token stay.
struct OnceByLastQuery {
  static constexpr Descriptor about{"once_by_last_query", Stage::evict, "a test"};
  static constexpr Inputs needs = Input::attention;
  index_t budget = 16;
  constexpr auto pipeline() const {
    using namespace evict;
    return Pipeline{AttentionMass<PerHead, Latest>{last_rows(1)}, NoPool{}, Recent{17}, Absolute{budget + 17}, TopK{}, PrefillOnce{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};
static_assert(evict::check_eviction_policy<OnceByLastQuery, Cpu>());

/// The context and a question condensed together: how many of the 128 questions are answered, then how many next ones.
std::pair<int, int> condense_for_each(index_t budget) {
  const InductionModel& m = model();
  const CacheShape shape{.head_dim = 64, .dtype = DType::f32, .softmax_scale = 20.0f};
  test::CacheRig<RecipeOf<OnceByLastQuery>> rig(shape, recipe(OnceByLastQuery{budget}), 600, 513);
  int first = 0, second = 0;
  for (std::size_t key = 0; key < 128; ++key) {
    std::vector<float> values, out(64), mass(513);
    for (int p = 0; p < InductionModel::context; ++p) {
      const auto& e = m.code[static_cast<std::size_t>(m.tokens[static_cast<std::size_t>(p)])];
      values.insert(values.end(), e.begin(), e.end());
    }
    const auto ask = [&](std::size_t k, RaggedView<float> measured) {
      REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(m.code[k].data(), 1, 1, 64), dense_view(out.data(), 1, 1, 64), {.mass = measured}) == Status::ok);
      return nearest_value(out) == m.answer[k];
    };
    rig.cache.reset();
    values.insert(values.end(), m.code[key].begin(), m.code[key].end());
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(m.before.data(), 1, 513, 64), dense_view(static_cast<const float*>(values.data()), 1, 513, 64)) == Status::ok);
    const RaggedView<float> measured = rig.cache.ragged(0, mass.data());
    (void)ask(key, measured);
    REQUIRE(rig.cache.step(rig.ctx, 0, AttentionView{measured, 1}) == Status::ok);
    REQUIRE(rig.cache.slots(0, 0) == budget + 17);
    first += ask(key, {});
    REQUIRE(rig.cache.truncate(512) == Status::ok);
    const std::size_t next = (key + 1) % 128;
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(m.before.data() + 512 * 64, 1, 1, 64), dense_view(m.code[next].data(), 1, 1, 64)) == Status::ok);
    second += ask(next, {});
  }
  return {first, second};
}

/// The second layer under a recipe, asked about every key.
template <class... S>
Counts ask(S... stages) {
  const InductionModel& m = model();
  const CacheShape shape{.head_dim = 64, .dtype = DType::f32, .softmax_scale = 20.0f};
  test::CacheRig<RecipeOf<S...>> rig(shape, recipe(stages...), 600, 512);
  std::vector<float> values;
  for (int p = 0; p < InductionModel::context; ++p) {
    const auto& e = m.code[static_cast<std::size_t>(m.tokens[static_cast<std::size_t>(p)])];
    values.insert(values.end(), e.begin(), e.end());
  }
  REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(m.before.data(), 1, 512, 64), dense_view(static_cast<const float*>(values.data()), 1, 512, 64)) == Status::ok);
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{}) == Status::ok);
  Counts counts;
  for (int key = 0; key < 128; ++key) {
    const std::vector<float>& q = m.code[static_cast<std::size_t>(key)];
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(m.before.data() + 512 * 64, 1, 1, 64), dense_view(q.data(), 1, 1, 64)) == Status::ok);
    std::vector<float> out(64);
    std::vector<SlotRun> runs(300);
    index_t run_count = 0;
    REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 1, 1, 64), dense_view(out.data(), 1, 1, 64), {.runs = {runs.data(), 300, &run_count}}) ==
            Status::ok);
    counts.correct += nearest_value(out) == m.answer[static_cast<std::size_t>(key)];
    for (index_t i = 0; i < run_count; ++i)
      for (index_t slot = runs[static_cast<std::size_t>(i)].first; slot < runs[static_cast<std::size_t>(i)].last; ++slot)
        counts.found += rig.cache.token(0, 0, slot) == m.place[static_cast<std::size_t>(key)];
    REQUIRE(rig.cache.truncate(512) == Status::ok);
  }
  return counts;
}

}  // namespace

TEST_CASE("induction model: it is the one that is specified", "[retrieve][induction]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "induction_model");
  const InductionModel& m = model();
  for (std::size_t i = 0; i < 3; ++i) REQUIRE(m.signed_channels[i] == oracle["first_codes_signed_channels"][i].get<std::vector<int>>());
  for (std::size_t i = 0; i < 8; ++i) {
    REQUIRE(m.tokens[i] == oracle["first_tokens"][i].get<int>());
    REQUIRE(m.keys[i] == oracle["key_order_first8"][i].get<int>());
    REQUIRE(m.answer[i] == oracle["answers_key0_to_7"][i].get<int>());
    REQUIRE(m.place[i] == oracle["value_pos_key0_to_7"][i].get<int>());
  }
  REQUIRE(m.least_weight == Approx(oracle["min_prev_token_weight"].get<double>()).margin(1e-11));
}

TEST_CASE("induction model: how many keys each stage answers, and finds", "[retrieve][induction]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "induction_model");
  const auto check = [&](const char* name, Counts counts) {
    CAPTURE(name);
    CHECK(counts.correct == oracle["correct_of_128"][name].get<int>());
    CHECK(counts.found == oracle["needle_recall_of_128"][name].get<int>());
  };
  check("dense", ask());
  const auto quest = [](index_t pages) { return retrieve::Quest{.page = 16, .tokens = 16 * pages, .dense_layers = 0}; };
  check("quest_page16_budget2pages", ask(quest(2)));
  check("quest_page16_budget4pages", ask(quest(4)));
  check("quest_page16_budget8pages", ask(quest(8)));
  check("quest_page16_budget16pages", ask(quest(16)));
  const auto chunks = [](index_t blocks) { return retrieve::Kinetics{.block = 8, .blocks = blocks, .sinks = 0, .local = 17, .dense_layers = 0}; };
  check("meankey_chunk8_budget8chunks_plus_recent16", ask(chunks(8)));
  check("meankey_chunk8_budget16chunks_plus_recent16", ask(chunks(16)));
  check("meankey_chunk8_budget32chunks_plus_recent16", ask(chunks(32)));
  // The question is one of the 60.
  check("sink4_recent60", ask(evict::SinkWindow{.recent = 59, .sinks = 4}));
}

TEST_CASE("induction model: what is condensed for one question answers few others", "[retrieve][induction]") {
  const auto oracle = test::load_oracle("retrieval_reuse_storage.json", "induction_model")["lifecycle_evict_once"];
  for (const index_t budget : {16, 64, 128}) {
    CAPTURE(budget);
    const auto& want = oracle["budget" + std::to_string(budget) + "_tail16"];
    const auto [first, second] = condense_for_each(budget);
    CHECK(first == want["turn1_correct"].get<int>());
    CHECK(second == want["turn2_correct"].get<int>());
  }
}
