#include <retrieve/rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

struct Case {
  nlohmann::json oracle = test::load_oracle("retrieval_reuse_storage.json", "rekv");
  index_t init = oracle["n_init"].get<index_t>();
  std::vector<std::vector<float>> keys;  ///< of the initial prompt, then of all frames
  CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 2, .dtype = DType::f32, .softmax_scale = 1.0f};
  test::CacheRig<RecipeOf<retrieve::ReKv, position::Reindex>> rig;
  std::vector<float> question;  ///< [2 heads, 4 tokens, 2]

  explicit Case(retrieve::ReKv stage = {.frame = 3, .frames = 2, .init = 2})
      : rig(shape, recipe(stage, position::Reindex{}), 64, 32) {
    keys = {{0.25f, -0.5f}, {1.0f, 0.5f}};
    for (const auto& frame : oracle["K_unrotated"])
      for (const auto& token : frame) keys.push_back(test::floats(token[0]));
    std::vector<float> k;
    for (const auto& row : keys) k.insert(k.end(), row.begin(), row.end());
    const auto n = static_cast<index_t>(keys.size());
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(k.data(), 1, n, 2), dense_view(k.data(), 1, n, 2)) == Status::ok);
    const std::vector<float> q(static_cast<std::size_t>(4 * n), 0.5f);
    REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{.queries = dense_view(q.data(), 2, n, 2)}) == Status::ok);
    const auto& tokens = oracle["Q_question"];
    for (std::size_t h = 0; h < 2; ++h)
      for (const auto& token : tokens) {
        const std::vector<float> row = test::floats(token[h]);
        question.insert(question.end(), row.begin(), row.end());
      }
  }
  struct Seen {
    std::vector<int> slots;
    std::vector<float> lse;
  };
  /// The newest `n` tokens' attention.
  Seen attend(const std::vector<float>& q, index_t n) {
    Seen s;
    std::vector<float> out(static_cast<std::size_t>(4 * n));
    std::vector<SlotRun> runs(2 * 64);
    index_t count[2];
    s.lse.resize(static_cast<std::size_t>(2 * n));
    REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), 2, n, 2), dense_view(out.data(), 2, n, 2),
                             {.lse = dense_view(s.lse.data(), 2, n), .runs = {runs.data(), 64, count}}) == Status::ok);
    for (index_t i = 0; i < count[0]; ++i)
      for (int slot = runs[static_cast<std::size_t>(i)].first; slot < runs[static_cast<std::size_t>(i)].last; ++slot) s.slots.push_back(slot);
    return s;
  }
  void append_question() {
    const std::vector<float> k(8, 0.125f);
    REQUIRE(rig.cache.append(rig.ctx, 0, dense_view(k.data(), 1, 4, 2), dense_view(k.data(), 1, 4, 2)) == Status::ok);
  }
};

}  // namespace

TEST_CASE("rekv: frames and positions of the worked case", "[retrieve][rekv]") {
  Case c;
  // Scores by the block itself: nothing is divided by lengths.
  const auto p = c.rig.cache.retrieval();
  retrieve::ReadView<Cpu> view;
  view.shape = c.shape, view.state = &c.rig.cache.layers()[0].index[0];
  std::vector<float> scores(5, 0.0f), one(5);
  for (index_t h = 0; h < 2; ++h) {
    float mean[2] = {};
    for (std::size_t t = 0; t < 4; ++t)
      for (std::size_t d = 0; d < 2; ++d) mean[d] += c.question[static_cast<std::size_t>(h) * 8 + 2 * t + d] / 4;
    for (std::size_t d = 0; d < 2; ++d) REQUIRE(mean[d] == c.oracle["query_vec"][static_cast<std::size_t>(h) * 2 + d].get<float>());
    p.summary.score<Cpu>(view, 0, 0, 5, {mean, 1, 2}, {one.data(), 1, 5});
    for (std::size_t f = 0; f < 5; ++f) scores[f] += one[f];
  }
  for (std::size_t f = 0; f < 5; ++f) REQUIRE(scores[f] == Approx(c.oracle["inner_product"][f].get<float>()).margin(1e-6));

  c.append_question();
  const auto seen = c.attend(c.question, 4);
  std::vector<int> want{0, 1};
  for (const auto& f : c.oracle["selected_frames_temporal"])
    for (int i = 0; i < 3; ++i) want.push_back(2 + 3 * f.get<int>() + i);
  for (int i = 0; i < 4; ++i) want.push_back(17 + i);
  REQUIRE(seen.slots == want);

  // Positions without gaps: 0 and 1, frames at 2 to 7, the question from 8 on.
  const auto& positions = c.oracle["positions"];
  REQUIRE(positions["question_first"].get<int>() == 8);
  const auto turn = [](const std::vector<float>& x, int at) {
    const double a = at;  // one pair, frequency 1
    return std::vector<double>{static_cast<double>(x[0]) * std::cos(a) - static_cast<double>(x[1]) * std::sin(a),
                               static_cast<double>(x[1]) * std::cos(a) + static_cast<double>(x[0]) * std::sin(a)};
  };
  for (std::size_t h = 0; h < 2; ++h)
    for (int t = 0; t < 4; ++t) {
      const auto at = h * 8 + 2 * static_cast<std::size_t>(t);
      const auto q = turn({c.question[at], c.question[at + 1]}, 8 + t);
      double sum = 0;
      for (int place = 0; place <= 8 + t; ++place) {
        const auto slot = static_cast<std::size_t>(want[static_cast<std::size_t>(place)]);
        const auto k = turn(slot < c.keys.size() ? c.keys[slot] : std::vector<float>{0.125f, 0.125f}, place);
        sum += std::exp(q[0] * k[0] + q[1] * k[1]);
      }
      REQUIRE(seen.lse[h * 4 + static_cast<std::size_t>(t)] == Approx(std::log(sum)).margin(1e-5));
    }
}

TEST_CASE("rekv: an answer reads the question's frames, the next question chooses anew", "[retrieve][rekv]") {
  Case c;
  c.append_question();
  const auto asked = c.attend(c.question, 4).slots;
  REQUIRE(c.rig.cache.step(c.rig.ctx, 0, StepInputs{.queries = dense_view(c.question.data(), 2, 4, 2)}, Phase::decode) == Status::ok);
  const std::vector<float> k(2, 0.25f), far(4, -3.0f);
  REQUIRE(c.rig.cache.append(c.rig.ctx, 0, dense_view(k.data(), 1, 1, 2), dense_view(k.data(), 1, 1, 2)) == Status::ok);
  auto answer = c.attend(far, 1).slots;
  REQUIRE(answer.back() == 21);
  answer.pop_back();
  REQUIRE(answer == asked);
  REQUIRE(c.rig.cache.truncate(17) == Status::ok);
  c.append_question();
  std::vector<float> other = c.question;
  for (float& x : other) x = -x;
  REQUIRE(c.attend(other, 4).slots != asked);
}

TEST_CASE("rekv: every field changes what is read, and rotated keys are refused", "[retrieve][rekv]") {
  const auto read = [](retrieve::ReKv stage) {
    Case c(stage);
    c.append_question();
    return c.attend(c.question, 4).slots;
  };
  const auto usual = read({.frame = 3, .frames = 2, .init = 2});
  REQUIRE(read({.frame = 5, .frames = 2, .init = 2}) != usual);
  REQUIRE(read({.frame = 3, .frames = 1, .init = 2}) != usual);
  REQUIRE(read({.frame = 3, .frames = 2, .init = 5}) != usual);
  REQUIRE(read({.frame = 3, .frames = 2, .init = 2, .question = 3}) != usual);
  REQUIRE(make_cache<Cpu>(CacheShape{}, recipe(retrieve::ReKv{.question = 0}, position::Reindex{})).status() == Status::invalid_argument);
}

TEST_CASE("rekv: KV heads of different lengths are refused in the call, and nothing is lost", "[retrieve][rekv]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 4, .dtype = DType::f32};
  const budget::Ada<evict::SnapKV> ada{.policy = {.tokens = 12, .window = 4}, .floor = 0.1};
  const retrieve::ReKv stage{.frame = 1, .frames = 2};
  test::CacheRig<RecipeOf<budget::Ada<evict::SnapKV>, retrieve::ReKv, position::Reindex>> rig(shape, recipe(ada, stage, position::Reindex{}), 64, 40);
  std::mt19937 random(2);
  const test::Tokens prompt(shape, 40, random, 3.0f), one(shape, 1, random, 3.0f);
  std::vector<float> out(2 * 40 * 4);
  REQUIRE(rig.cache.forward(rig.ctx, 0, prompt.queries(shape), prompt.keys(shape), prompt.values(shape), dense_view(out.data(), 2, 40, 4)) == Status::ok);
  const index_t first = rig.cache.slots(0, 0), second = rig.cache.slots(0, 1);
  REQUIRE(first != second);
  REQUIRE(rig.cache.append(rig.ctx, 0, one.keys(shape), one.values(shape)) == Status::ok);
  REQUIRE(rig.cache.attend(rig.ctx, 0, one.queries(shape), dense_view(out.data(), 2, 1, 4)) == Status::not_supported);
  REQUIRE(rig.cache.pending() == 1);
  REQUIRE(rig.cache.truncate(40) == Status::ok);
  REQUIRE(rig.cache.slots(0, 0) == first);
  REQUIRE(rig.cache.slots(0, 1) == second);
}
