#include <eval/suite_run.hpp>

#include <algorithm>

#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>
#include <eval/error.hpp>

namespace eval {
namespace {

/// A snapshot in memory.
class Bytes : public kvcondense::ByteSink {
 public:
  bool write(std::span<const std::byte> bytes) noexcept override {
    try {
      data.insert(data.end(), bytes.begin(), bytes.end());
    } catch (...) {
      return false;
    }
    return true;
  }
  std::vector<std::byte> data;
};

}  // namespace

Exam exam_of(const Haystack& document) {
  Exam exam{engine::bytes_to_tokens(document.text), {}, engine::bytes_to_tokens("\n")};
  for (const Needle& n : document.needles)
    exam.questions.push_back({engine::bytes_to_tokens(n.question()), engine::bytes_to_tokens(n.value)});
  return exam;
}

void Dialogue::prompt(std::span<const std::int32_t> tokens, const Tick& tick) {
  const Feeding feeding{.prefill = static_cast<index_t>(tokens.size()), .chunk = chunk_};
  for (const index_t end : feeding.ends()) {
    const auto count = static_cast<std::size_t>(end - at_);
    require(decoder_.forward(tokens.subspan(static_cast<std::size_t>(at_), count), at_, std::ref(session_), engine::Logits::last, feeding.phase(end)).status(),
            "the model refused the prompt");
    at_ = end;
    tick(static_cast<double>(count));
  }
  require(session_.condense(decoder_, tokens, chunk_), not_condensed);
}

void Dialogue::turn(index_t incoming) { require(session_.turn(incoming), "the cache refused a turn"); }

std::span<const float> Dialogue::feed(std::int32_t token, const Tick& tick) {
  const auto logits = decoder_.forward({&token, 1}, at_++, std::ref(session_), engine::Logits::last, kvcondense::Phase::decode);
  require(logits.status(), "the model refused a token");
  tick(1);
  return *logits;
}

Counts Dialogue::ask(const Exam::Question& question, const Tick& tick) {
  Counts counts{.asked = 1};
  std::span<const float> logits;
  for (const std::int32_t t : question.tokens) logits = feed(t, tick);
  for (std::size_t i = 0; i < question.answer.size(); ++i) {
    counts.tokens += 1;
    counts.tokens_right += engine::greedy(logits) == question.answer[i];
    logits = feed(question.answer[i], tick);
  }
  counts.right = counts.tokens_right == counts.tokens;
  return counts;
}

std::vector<std::byte> Dialogue::save() const {
  Bytes file;
  require(session_.cache().save(file), "a snapshot of the cache");
  return std::move(file.data);
}

std::unique_ptr<Dialogue> Dialogue::fork() const {
  auto copy = session_.cache().fork();
  require(copy.status(), "a fork of the cache");
  auto other = std::make_unique<Dialogue>(*model_, Session(*std::move(copy), session_), chunk_);
  other->at_ = at_;
  return other;
}

std::unique_ptr<Dialogue> Dialogue::load(std::span<const std::byte> file, Session empty) const {
  require(empty.cache().load(file), "loading a snapshot");
  auto other = std::make_unique<Dialogue>(*model_, Session(std::move(empty.cache()), session_), chunk_);
  other->at_ = at_;
  return other;
}

void LifeCycle::add(const LifeCycle& more) {
  turns.resize(std::max(turns.size(), more.turns.size()));
  requests.resize(std::max(requests.size(), more.requests.size()));
  for (std::size_t i = 0; i < more.turns.size(); ++i) turns[i].add(more.turns[i]);
  for (std::size_t i = 0; i < more.requests.size(); ++i) requests[i].add(more.requests[i]);
  tokens += more.tokens, snapshot_bytes += more.snapshot_bytes;
}

Counts LifeCycle::of_turns() const {
  Counts all;
  for (const Counts& c : turns) all.add(c);
  return all;
}

Counts LifeCycle::of_requests() const {
  Counts all;
  for (const Counts& c : requests) all.add(c);
  return all;
}

void LongAnswer::add(const LongAnswer& more) {
  for (std::size_t i = 0; i < quarters; ++i) by_quarter[i].add(more.by_quarter[i]);
}

Counts LongAnswer::all() const {
  Counts sum;
  for (const Counts& c : by_quarter) sum.add(c);
  return sum;
}

Counts InductionCounts::all() const {
  Counts sum;
  for (const Counts& c : by_depth) sum.add(c);
  return sum;
}

Counts run_needle(const engine::Model& model, Session session, const Exam& exam, index_t chunk, const Tick& tick) {
  Dialogue dialogue(model, std::move(session), chunk);
  dialogue.prompt(exam.prompt, tick);
  Counts counts;
  for (const Exam::Question& q : exam.questions) counts.add(dialogue.ask(q, tick));
  return counts;
}

LifeCycle run_life_cycle(const engine::Model& model, const RecipeSpec& recipe, const CacheShape& shape, const Exam& exam, index_t chunk,
                         const Tick& tick) {
  LifeCycle life;
  Dialogue reader(model, make_session(recipe, shape), chunk);
  reader.prompt(exam.prompt, tick);
  const std::vector<std::byte> file = reader.save();
  life.tokens = reader.length();
  life.snapshot_bytes = file.size();
  for (const Exam::Question& q : exam.questions) life.requests.push_back(reader.load(file, make_session(recipe, shape))->ask(q, tick));
  const auto talk = reader.fork();
  for (std::size_t i = 0; i < exam.questions.size(); ++i) {
    const Exam::Question& q = exam.questions[i];
    if (i > 0) {
      for (const std::int32_t t : exam.between) (void)talk->feed(t, tick);
      talk->turn(static_cast<index_t>(q.tokens.size()));
    }
    life.turns.push_back(talk->ask(q, tick));
  }
  return life;
}

Plan plan_of(const Haystack& document, index_t lines, TextMaker& text) {
  Plan plan{engine::bytes_to_tokens(document.text), {}};
  for (index_t i = 0; i < lines; ++i) {
    const Needle& n = document.needles[static_cast<std::size_t>(i) % document.needles.size()];
    plan.lines.push_back({engine::bytes_to_tokens(n.question()), engine::bytes_to_tokens(n.value), engine::bytes_to_tokens(i % 2 == 0 ? "\n" : "\n" + text.line())});
  }
  return plan;
}

LongAnswer run_plan(const engine::Model& model, Session session, const Plan& plan, index_t chunk, const Tick& tick) {
  Dialogue dialogue(model, std::move(session), chunk);
  dialogue.prompt(plan.prompt, tick);
  LongAnswer answer;
  for (std::size_t i = 0; i < plan.lines.size(); ++i) {
    const Plan::Line& line = plan.lines[i];
    Counts counts{.asked = 1};
    std::span<const float> logits;
    for (const std::int32_t t : line.before) logits = dialogue.feed(t, tick);
    for (const std::int32_t wanted : line.value) {
      const std::int32_t said = engine::greedy(logits);
      counts.tokens += 1;
      counts.tokens_right += said == wanted;
      logits = dialogue.feed(said, tick);
    }
    for (const std::int32_t t : line.after) (void)dialogue.feed(t, tick);
    counts.right = counts.tokens_right == counts.tokens;
    answer.by_quarter[i * LongAnswer::quarters / plan.lines.size()].add(counts);
  }
  return answer;
}

namespace {

/// Calls `said` with token after token, until it wants no more.
template <class Said>
void speak(const engine::Model& model, Session session, std::span<const std::int32_t> prompt, index_t chunk, const Tick& tick, const Said& said) {
  Dialogue dialogue(model, std::move(session), chunk);
  dialogue.prompt(prompt.first(prompt.size() - 1), tick);
  std::int32_t last = prompt.back();
  do last = engine::greedy(dialogue.feed(last, tick));
  while (said(last));
}

}  // namespace

std::vector<std::int32_t> continue_greedily(const engine::Model& model, Session session, std::span<const std::int32_t> prompt, index_t count,
                                            index_t chunk, const Tick& tick) {
  std::vector<std::int32_t> tokens;
  speak(model, std::move(session), prompt, chunk, tick, [&](std::int32_t t) {
    tokens.push_back(t);
    return static_cast<index_t>(tokens.size()) < count;
  });
  return tokens;
}

Continuation run_continuation(const engine::Model& model, Session session, std::span<const std::int32_t> prompt,
                              const std::vector<std::int32_t>& full, index_t chunk, const Tick& tick) {
  std::size_t same = 0;
  speak(model, std::move(session), prompt, chunk, tick, [&](std::int32_t t) { return t == full[same] && ++same < full.size(); });
  return {1, static_cast<index_t>(full.size()), static_cast<index_t>(same)};
}

InductionCounts run_induction(const InductionModel& induction, Session session, index_t chunk, const Tick& tick) {
  Dialogue reader(induction.model, std::move(session), chunk);
  reader.prompt(induction.context, tick);
  InductionCounts counts;
  for (std::size_t key = 0; key < induction.answer.size(); ++key) {
    const auto request = reader.fork();
    const bool right = named_value(request->feed(static_cast<std::int32_t>(key), tick)) == induction.answer[key];
    const auto depth = static_cast<std::size_t>(induction.place[key]) * InductionCounts::quarters / induction.context.size();
    counts.by_depth[depth].add({1, right, 1, right});
  }
  return counts;
}

}  // namespace eval
