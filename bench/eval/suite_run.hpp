#pragma once

#include <array>
#include <string>
#include <vector>

#include <eval/evaluate_model.hpp>
#include <eval/induction_model.hpp>
#include <eval/suite_texts.hpp>

namespace eval {

/// How often values were asked for, and found whole; and the same of their tokens.
struct Counts {
  index_t asked = 0, right = 0;
  index_t tokens = 0, tokens_right = 0;

  void add(const Counts& more) {
    asked += more.asked, right += more.right, tokens += more.tokens, tokens_right += more.tokens_right;
  }
  double share() const { return asked == 0 ? 0 : static_cast<double>(right) / static_cast<double>(asked); }
  bool operator==(const Counts&) const = default;
};

/// What is told to a model and asked of it, ready to be fed.
struct Exam {
  struct Question {
    std::vector<std::int32_t> tokens, answer;
  };
  std::vector<std::int32_t> prompt;
  std::vector<Question> questions;
  std::vector<std::int32_t> between;  ///< an answer and the next question
};

/// A document, and a question for each of its needles; bytes are tokens.
Exam exam_of(const Haystack& document);

/// One sequence through a condensed cache, from its prompt on.
class Dialogue {
 public:
  Dialogue(const engine::Model& model, Session session, index_t chunk)
      : model_(&model), session_(std::move(session)), decoder_(model, session_.decoder_options(chunk)), chunk_(chunk) {}
  Dialogue(const Dialogue&) = delete;  // the decoder borrows the session
  Dialogue& operator=(const Dialogue&) = delete;

  /// The prompt, condensed at its end as the recipe wants it: everything later is another turn.
  void prompt(std::span<const std::int32_t> tokens, const Tick& tick);
  /// Makes room before a turn of so many tokens.
  void turn(index_t incoming);
  /// One token; its logits stay valid until the next.
  std::span<const float> feed(std::int32_t token, const Tick& tick);
  /// A question, then each token of its answer, whatever was said: the tokens before it are the right ones.
  Counts ask(const Exam::Question& question, const Tick& tick);

  /// The file that a prompt would be stored in.
  std::vector<std::byte> save() const;
  /// Another sequence that begins where this one stands: pages are shared, or read from `file`.
  std::unique_ptr<Dialogue> fork() const;
  std::unique_ptr<Dialogue> load(std::span<const std::byte> file, Session empty) const;

  Session& session() { return session_; }
  index_t length() const { return at_; }

 private:
  const engine::Model* model_;
  Session session_;
  engine::Decoder decoder_;
  index_t chunk_, at_ = 0;
};

/// One document through its life: it is read and condensed once, stored, and asked.
struct LifeCycle {
  std::vector<Counts> turns;     ///< questions in turn, one cache that grows; the first question first
  std::vector<Counts> requests;  ///< the same questions, each to a snapshot of the condensed prompt
  index_t tokens = 0;            ///< of the prompts
  std::size_t snapshot_bytes = 0;

  void add(const LifeCycle& more);
  Counts of_turns() const;
  Counts of_requests() const;
};

/// A long answer by a plan: lines that each begin with a name, in turn, and go on with what the model says its value
/// is. What it says stays, so mistakes travel.
struct LongAnswer {
  static constexpr std::size_t quarters = 4;
  std::array<Counts, quarters> by_quarter{};

  void add(const LongAnswer& more);
  Counts all() const;
};

/// Greedy continuation of a text, beside that of the full cache.
struct Continuation {
  index_t texts = 0, tokens = 0;
  index_t same = 0;  ///< tokens before the first that differs, summed over texts

  void add(const Continuation& more) { texts += more.texts, tokens += more.tokens, same += more.same; }
  double share() const { return tokens == 0 ? 0 : static_cast<double>(same) / static_cast<double>(tokens); }
};

/// Answers of the model whose weights were written down, by where in its context they stand: the oldest first.
struct InductionCounts {
  static constexpr std::size_t quarters = 4;
  std::array<Counts, quarters> by_depth{};

  Counts all() const;
};

/// One needle, asked when the document was condensed.
Counts run_needle(const engine::Model& model, Session session, const Exam& exam, index_t chunk, const Tick& tick);

LifeCycle run_life_cycle(const engine::Model& model, const RecipeSpec& recipe, const CacheShape& shape, const Exam& exam, index_t chunk,
                         const Tick& tick);

/// A plan: of each line what stands before the value, the value, and what follows it.
struct Plan {
  struct Line {
    std::vector<std::int32_t> before, value, after;
  };
  std::vector<std::int32_t> prompt;
  std::vector<Line> lines;
};

/// Lines that ask for the needles in turn, every second one followed by one of the text.
Plan plan_of(const Haystack& document, index_t lines, TextMaker& text);

LongAnswer run_plan(const engine::Model& model, Session session, const Plan& plan, index_t chunk, const Tick& tick);

/// `count` most likely tokens, each after those before it.
std::vector<std::int32_t> continue_greedily(const engine::Model& model, Session session, std::span<const std::int32_t> prompt, index_t count,
                                            index_t chunk, const Tick& tick);
/// The same, compared with those of the full cache; ends at the first that differs.
Continuation run_continuation(const engine::Model& model, Session session, std::span<const std::int32_t> prompt,
                              const std::vector<std::int32_t>& full, index_t chunk, const Tick& tick);

InductionCounts run_induction(const InductionModel& induction, Session session, index_t chunk, const Tick& tick);

}  // namespace eval
