#include <eval/tune.hpp>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>

#include <eval/error.hpp>
#include <eval/evaluate_model.hpp>
#include <eval/json_report.hpp>
#include <eval/printed.hpp>
#include <eval/recipes.hpp>
#include <eval/sizing.hpp>
#include <eval/speed.hpp>
#include <eval/table.hpp>
#include <kvcondense/any/builtin.hpp>

namespace eval {
namespace {

/// What is known of a candidate so far: later rungs measure only what they add.
struct Known {
  SizedRecipe sized;
  std::string refused;
  std::optional<RecipeSpec> spec;
  RecipeResult result;           ///< of what was measured so far
  std::vector<TextSums> text;    ///< per window
  std::vector<RecallSums> recall;
};

/// A model or a dump, and everything that was measured on it.
class Bench {
 public:
  explicit Bench(const Options& o) : o_(o), progress_(o.quiet) {
    if (o.qkv.empty()) begin_model();
    else begin_recording();
    const TuneRequest& t = o.tune;
    bytes_ = t.bytes_per_token > 0 ? t.bytes_per_token : t.share / 100 * bytes_of_16_bit(shape_);
  }

  /// A candidate that somebody wrote is a recipe, whatever stands in its holes. Throws Error where it is misspelt.
  void check_text(const std::string& text) const {
    try {
      (void)read(Sizer::has_hole(text) ? largest(text) : text);
    } catch (const Refused&) {
    }
  }

  double bytes() const { return bytes_; }
  double share() const { return 100 * bytes_ / bytes_of_16_bit(shape_); }

  std::vector<Outcome> judge(const std::vector<Candidate>& candidates, index_t rung, index_t rungs) {
    const index_t parts = rungs - rung;  // 1 of 3, 1 of 2, all
    const std::size_t windows = of(starts(), parts), documents = rung == 0 ? 0 : of(task_ ? task_->documents.size() : 0, parts);
    if (task_) run_full_cache(windows, documents);
    std::vector<Job> jobs;
    for (const Candidate& c : candidates) {
      Known& k = known_[c.text()];
      jobs.push_back({"rung " + std::to_string(rung + 1), static_cast<double>(stage_->recording().tokens),
                      [this, &k, text = c.text(), windows, documents](const Tick&) { measure(k, text, windows, documents); }});
      progress_.expect(jobs.back().tokens);
    }
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    std::vector<Outcome> out;
    for (const Candidate& c : candidates) out.push_back(outcome(known_.at(c.text())));
    return out;
  }

  /// The full cache and the best, with attention errors and times.
  Results report(const std::vector<Finalist>& best) {
    Results results;
    results.setting = setting_;
    std::vector<const RecipeSpec*> specs{&full_};
    results.recipes.push_back(full_result_);
    for (const Finalist& f : best) {
      const Known& k = known_.at(f.candidate.text());
      results.recipes.push_back(k.result);
      specs.push_back(&*k.spec);
    }
    std::vector<std::unique_ptr<Session>> sessions(specs.size());
    std::vector<Job> jobs;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      RecipeResult& r = results.recipes[i];
      // A dump's candidates have been replayed already; their caches are needed for the timing.
      if (!task_) r.layer_error.clear(), r.report = {}, r.reads = {};
      if (replays(*specs[i])) jobs.push_back(replay_job(*stage_, *specs[i], r, task_ ? nullptr : &sessions[i], nullptr));
      if (task_ && i > 0 && o_.rounds > 0)
        jobs.push_back({"the caches to time", static_cast<double>(task_->context), [&, i](const Tick& tick) {
                          TextSums ignored;
                          sessions[i] = run_window(*task_, *specs[i], 0, logits_[0], ignored, tick);
                        }});
    }
    for (const Job& j : jobs) progress_.expect(j.tokens);
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    if (task_) sessions[0] = std::move(full_session_);
    std::vector<Step> steps;
    for (std::size_t i = 0; i < sessions.size() && o_.rounds > 0; ++i) {
      if (task_) {
        steps.push_back(continue_window(*task_, *sessions[i]));
      } else {
        const auto replay = std::make_shared<Replay>(stage_->rows_for(*specs[i]), *sessions[i], stage_->raw());
        steps.push_back(continue_replay(replay, setting_.context));
      }
    }
    progress_.expect(static_cast<double>(steps.size()) * static_cast<double>((o_.rounds + 1) * tokens_a_turn));
    const auto speeds = measure_speed(steps, o_.rounds, tokens_a_turn, progress_);
    for (std::size_t i = 0; i < speeds.size(); ++i) results.recipes[i].speed = speeds[i];
    return results;
  }

 private:
  std::string largest(const std::string& text) const {
    const Sizer sizer(text, setting_.context, nullptr);
    return sizer.filled(sizer.settings() - 1);
  }
  static std::size_t of(std::size_t all, index_t parts) {
    const auto n = static_cast<std::size_t>(parts);
    return all == 0 ? 0 : std::max<std::size_t>(1, all / n);
  }
  std::size_t starts() const { return task_ ? task_->starts.size() : 0; }

  void begin_model() {
    o_.ask = Ask::later;  // with half of a document as prompt, what was sized for a whole context would keep all of it
    task_.emplace(load_task(o_, setting_));
    std::vector<Document>& asked = task_->documents;
    std::stable_sort(asked.begin(), asked.end(), [](const Document& a, const Document& b) { return a.prefill > b.prefill; });
    if (static_cast<index_t>(asked.size()) > o_.tune.questions) asked.resize(static_cast<std::size_t>(o_.tune.questions));
    setting_.documents = static_cast<index_t>(asked.size());
    shape_ = task_->shape;
    facts_ = facts_of(o_, *task_);
    full_ = read(full_recipe);
    full_result_.recipe = "full cache";
    full_result_.canonical = full_.parsed.text.view();
    logits_.resize(task_->starts.size());
    Recording recording(shape_);
    recording.rope = task_->rope;
    progress_.expect(static_cast<double>(task_->context));
    run_jobs({{"the full cache", static_cast<double>(task_->context), [&](const Tick& tick) {
                 WindowRun run = run_full(*task_, full_, 0, &recording, tick);
                 logits_[0] = std::move(run.logits);
                 full_session_ = std::move(run.session);
               }}}, 1, progress_);
    describe_cache(full_session_->cache(), full_result_);
    full_result_.text.add(full_sums(*task_, 0, logits_[0]));
    set_stage(std::move(recording), task_->feeding);
  }

  void begin_recording() {
    Recording recording = read_dump(o_);
    const index_t tokens = recording.tokens;
    const Feeding feeding = feeding_of(o_, recording, mostly_prefill(tokens));
    shape_ = recording.shape;
    set_common(setting_, o_, shape_, feeding, tokens);
    setting_.source = o_.qkv;
    facts_ = facts_of(o_, recording);
    full_ = read(full_recipe);
    full_result_.recipe = "full cache";
    full_result_.canonical = full_.parsed.text.view();
    set_stage(std::move(recording), feeding);
  }

  void set_stage(Recording recording, const Feeding& feeding) {
    const bool turns = recording.rope.has_value();
    stage_.emplace(std::move(recording), feeding, turns);
    std::vector<Job> jobs = stage_->exact_jobs();
    for (const Job& j : jobs) progress_.expect(j.tokens);
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
  }

  /// The first `windows` and `documents` through the full cache, as far as they have not been yet.
  void run_full_cache(std::size_t windows, std::size_t documents) {
    std::vector<Job> jobs;
    std::vector<TextSums> sums(logits_.size());
    std::vector<RecallSums> recall(documents);
    for (std::size_t w = 0; w < windows; ++w)
      if (logits_[w].empty())
        jobs.push_back({"the full cache", static_cast<double>(task_->context), [&, w](const Tick& tick) {
                          logits_[w] = run_full(*task_, full_, w, nullptr, tick).logits;
                          sums[w] = full_sums(*task_, w, logits_[w]);
                        }});
    for (std::size_t d = full_documents_; d < documents; ++d)
      jobs.push_back({"the full cache", static_cast<double>(task_->documents[d].tokens.size()),
                      [&, d](const Tick& tick) { recall[d] = run_document(*task_, full_, task_->documents[d], tick); }});
    for (const Job& j : jobs) progress_.expect(j.tokens);
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    for (const TextSums& s : sums) full_result_.text.add(s);
    for (std::size_t d = full_documents_; d < documents; ++d) full_result_.recall.add(recall[d]), full_recall_.push_back(recall[d]);
    full_documents_ = std::max(full_documents_, documents);
  }

  RecipeSpec read(const std::string& text) const {
    return read_for(text, shape_, facts_, task_ ? given_by(task_->model.config) : recorded, task_.has_value());
  }

  double bytes_of(const std::string& text) const { return bytes_at_end(read(text), *stage_, task_ ? &*task_ : nullptr, logits_); }

  void size(Known& k, const std::string& text, double target) {
    if (Sizer::has_hole(text)) {
      k.sized = Sizer(text, setting_.context, [this](const std::string& filled) { return bytes_of(filled); }).fit(target);
    } else {
      k.sized = {text, {}, bytes_of(text), true, {}};
    }
    k.spec = read(k.sized.recipe);
  }

  void measure(Known& k, const std::string& text, std::size_t windows, std::size_t documents) {
    if (!k.refused.empty()) return;
    try {
      double target = bytes_;
      // A cache may store a little more in the model's own run than in the replay it was sized by.
      for (int tries = 0; tries < 3 && (k.spec == std::nullopt || (k.sized.bytes_per_token > bytes_ && Sizer::has_hole(text))); ++tries) {
        size(k, text, target);
        if (k.sized.bytes_per_token > bytes_) return;
        k.text.clear(), k.result = {};
        k.result.recipe = k.sized.recipe;
        k.result.canonical = k.spec->parsed.text.view();
        k.result.drops_tokens = k.spec->capabilities.changes_length;
        k.result.codes_numbers = k.spec->capabilities.lossy_slots;
        if (!task_) {
          replay_job(*stage_, *k.spec, k.result, nullptr, nullptr).run([](double) {});
        } else {
          k.text.emplace_back();
          const auto session = run_window(*task_, *k.spec, 0, logits_[0], k.text.back(), [](double) {});
          describe_cache(session->cache(), k.result);
        }
        k.sized.bytes_per_token = k.result.bytes_per_token();
        target = bytes_ - (k.sized.bytes_per_token - bytes_);
      }
      if (k.sized.bytes_per_token > bytes_ || !task_) return;
      while (k.text.size() < windows) {
        k.text.emplace_back();
        (void)run_window(*task_, *k.spec, k.text.size() - 1, logits_[k.text.size() - 1], k.text.back(), [](double) {});
      }
      while (k.recall.size() < documents)
        k.recall.push_back(run_document(*task_, *k.spec, task_->documents[k.recall.size()], [](double) {}));
      k.result.text = {}, k.result.recall = {};
      for (const TextSums& s : k.text) k.result.text.add(s);
      for (const RecallSums& s : k.recall) k.result.recall.add(s);
    } catch (const Error& e) {
      k.refused = e.what();
    }
  }

  Outcome outcome(const Known& k) const {
    Outcome o{k.sized.recipe, k.refused, k.sized.bytes_per_token, false, 0, k.result.canonical};
    if (!k.refused.empty()) return o;
    o.fits = k.sized.bytes_per_token <= bytes_;
    if (!o.fits) return o;
    if (!task_) {
      o.loss = k.result.mean_error();
      return o;
    }
    RecallSums full;
    for (std::size_t d = 0; d < k.recall.size(); ++d) full.add(full_recall_[d]);
    o.loss = k.result.text.mean_kl() + o_.tune.recall_weight * std::max(0.0, full.all() - k.result.recall.all());
    return o;
  }

  Options o_;
  Progress progress_;
  Setting setting_;
  CacheShape shape_{};
  Facts facts_;
  double bytes_ = 0;
  RecipeSpec full_;
  RecipeResult full_result_;
  std::optional<ModelTask> task_;
  std::vector<std::vector<float>> logits_;  ///< of the full cache, per window; empty: not yet
  std::unique_ptr<Session> full_session_;
  std::size_t full_documents_ = 0;
  std::vector<RecallSums> full_recall_;
  std::optional<Stage> stage_;
  std::map<std::string, Known> known_;
};

}  // namespace

Tuned tune(const Options& options) {
  const auto begun = std::chrono::steady_clock::now();
  Bench bench(options);
  const kvcondense::any::Registry& registry = kvcondense::any::builtin();
  std::vector<Candidate> candidates;
  for (const std::string& text : std::set<std::string>(options.recipes.begin(), options.recipes.end())) {
    bench.check_text(text);
    candidates.push_back(as_it_is(text));
  }
  if (candidates.empty()) candidates = all_candidates(registry);
  const Halving how{.keep = options.tune.keep, .turn = options.tune.turn, .best = options.tune.best};
  Tuned tuned;
  tuned.search = halve(std::move(candidates), bench.bytes(), how, registry,
                       [&](const std::vector<Candidate>& some, index_t rung) { return bench.judge(some, rung, how.rungs); });
  tuned.bytes_per_token = bench.bytes(), tuned.share = bench.share();
  tuned.by_attention = options.model.empty(), tuned.recall_weight = options.tune.recall_weight;
  tuned.results = bench.report(tuned.search.best);
  tuned.results.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  return tuned;
}

std::string tuned_text(const Tuned& t) {
  std::string text = heading(t.results) + "\n";
  text += "at most " + printed("%.1f", t.bytes_per_token) + " bytes per token, " + printed("%.1f", t.share) + " % of 16 bits; candidates in each rung: ";
  for (std::size_t i = 0; i < t.search.tried.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(t.search.tried[i]);
  text += "\nof the first " + std::to_string(t.search.refused) + " cannot be here, " + std::to_string(t.search.large) + " are too large in any setting\n\n";
  std::vector<std::vector<std::string>> rows{{"", "loss", "recipe"}};
  for (std::size_t i = 0; i < t.search.best.size(); ++i)
    rows.push_back({std::to_string(i + 1) + ".", short_number(t.search.best[i].outcome.loss, 3), t.search.best[i].outcome.recipe});
  text += aligned_left(rows) + "\n" + table(t.results) + "\n";
  text += t.by_attention ? "  loss       attn error\n"
                         : "  loss       KL" + (t.results.setting.recall.empty() ? std::string() : ", and " + printed("%g", t.recall_weight) + " for each part of the full cache's recall that is lost") + "\n";
  return text + legend(t.results);
}

nlohmann::ordered_json tuned_json(const Tuned& t) {
  nlohmann::ordered_json j = to_json(t.results), best = nlohmann::ordered_json::array();
  for (const Finalist& f : t.search.best)
    best.push_back({{"recipe", f.outcome.recipe}, {"candidate", f.candidate.text()}, {"loss", f.outcome.loss}, {"bytes_per_token", f.outcome.bytes_per_token}});
  j["tune"] = {{"bytes_per_token", t.bytes_per_token}, {"share_percent", t.share},   {"recall_weight", t.recall_weight}, {"tried", t.search.tried},
               {"refused", t.search.refused},          {"too_large", t.search.large}, {"best", best}};
  return j;
}

}  // namespace eval
