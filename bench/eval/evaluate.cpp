#include <eval/evaluate.hpp>

#include <algorithm>
#include <chrono>

#include <eval/error.hpp>
#include <eval/evaluate_model.hpp>
#include <eval/recipes.hpp>
#include <eval/speed.hpp>

namespace eval {
namespace {

/// The full cache, then what was asked for. Of the recipes that nobody asked for those that cannot
/// be are left out, and `setting` says so.
std::vector<RecipeSpec> read_recipes(const Options& o, const CacheShape& shape, const Facts& facts,
                                     kvcondense::Inputs given, bool with_model, Setting& setting) {
  std::vector<RecipeSpec> specs{read_for(full_recipe, shape, facts, given, with_model)};
  specs[0].given = "full cache";
  for (const std::string& text : o.recipes) specs.push_back(read_for(text, shape, facts, given, with_model));
  if (!o.recipes.empty()) return specs;
  for (const std::string& text : default_recipes(setting.context)) {
    try {
      specs.push_back(read_for(text, shape, facts, given, with_model));
    } catch (const Error&) {
      setting.left_out.push_back(text);
    }
  }
  return specs;
}

Results begin(const Setting& setting, const std::vector<RecipeSpec>& specs) {
  Results results;
  results.setting = setting;
  for (const RecipeSpec& s : specs) {
    results.recipes.emplace_back();
    results.recipes.back().recipe = s.given;
    results.recipes.back().canonical = s.parsed.text.view();
    results.recipes.back().drops_tokens = s.capabilities.changes_length;
    results.recipes.back().codes_numbers = s.capabilities.lossy_slots;
  }
  return results;
}

double size_of(const Document& d) { return static_cast<double>(d.tokens.size()); }

/// Tokens that the timing feeds to one recipe, its warming round included.
double timed_tokens(const Options& o) {
  return o.rounds > 0 ? static_cast<double>((o.rounds + 1) * tokens_a_turn) : 0;
}

void prepare(Kept& kept, std::size_t recipes) {
  kept.sessions.resize(recipes);
  kept.outputs.resize(recipes);
}

Results evaluate_recording(const Options& o, Kept* kept) {
  Recording recording = read_dump(o);
  const Feeding feeding = feeding_of(o, recording, recording.tokens / 2);
  Setting setting;
  set_common(setting, o, recording.shape, feeding, recording.tokens);
  setting.source = o.qkv;
  const Facts facts = facts_of(o, recording);
  const auto specs = read_recipes(o, recording.shape, facts, recorded, false, setting);
  Results results = begin(setting, specs);
  Stage stage(std::move(recording), feeding, wants_raw(specs));
  Progress progress(o.quiet);
  // With --dump the timing replays everything once more.
  const double replays = kept != nullptr && o.rounds > 0 ? 2 : 1;
  const auto window = static_cast<double>(setting.context);
  progress.expect(window +
                  static_cast<double>(specs.size()) * (replays * window + timed_tokens(o)));
  run_jobs(stage.exact_jobs(), threads_for(o.jobs), progress);

  // What nobody asked for is not kept: outputs of a large model take gigabytes per recipe. Timing
  // moves caches on, so it uses caches of its own where the others are kept.
  std::vector<std::unique_ptr<Session>> timed(o.rounds > 0 ? specs.size() : 0);
  if (kept != nullptr) prepare(*kept, specs.size()), kept->facts = facts;
  std::vector<Job> jobs;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    auto* session = timed.empty() ? nullptr : &timed[i];
    if (kept != nullptr) session = &kept->sessions[i];
    jobs.push_back(replay_job(stage, specs[i], results.recipes[i], session,
                              kept != nullptr ? &kept->outputs[i] : nullptr));
  }
  run_jobs(std::move(jobs), threads_for(o.jobs), progress);

  std::vector<Step> steps;
  for (std::size_t i = 0; i < timed.size(); ++i) {
    if (kept != nullptr)
      timed[i] = std::make_unique<Session>(make_session(specs[i], stage.recording().shape));
    const auto replay = std::make_shared<Replay>(stage.rows_for(specs[i]), *timed[i], stage.raw());
    if (kept != nullptr)
      (void)replay->run(feeding,
                        [&](double tokens) { progress.done(tokens, "the cache to time"); });
    steps.push_back(continue_replay(replay, setting.context));
  }
  const auto speeds = measure_speed(steps, o.rounds, tokens_a_turn, progress);
  for (std::size_t i = 0; i < speeds.size(); ++i) results.recipes[i].speed = speeds[i];
  if (kept != nullptr) kept->exact = stage.exact();
  return results;
}

Results evaluate_model(const Options& o, Kept* kept) {
  Setting setting;
  const ModelTask task = load_task(o, setting);
  const Facts facts = facts_of(o, task);
  const auto specs = read_recipes(o, task.shape, facts, kept == nullptr ? given_by(task.model.config) : recorded,
                                  kept == nullptr, setting);
  Results results = begin(setting, specs);
  const auto window = static_cast<double>(o.context);
  double each = window * static_cast<double>(o.windows + 1);  // the text, then the attention alone
  for (const Document& d : task.documents) each += size_of(d);
  Progress progress(o.quiet);
  progress.expect(window + static_cast<double>(specs.size()) * (each + timed_tokens(o)));

  // The full cache first: everything else is compared with it.
  std::vector<WindowRun> full(task.starts.size());
  Recording recording(task.shape);
  recording.rope = task.rope;
  std::vector<Job> jobs;
  for (std::size_t w = 0; w < full.size(); ++w)
    jobs.push_back({"the full cache", window, [&, w](const Tick& tick) {
                      full[w] = run_full(task, specs[0], w, w == 0 ? &recording : nullptr, tick);
                    }});
  run_jobs(std::move(jobs), threads_for(o.jobs), progress);
  Stage stage(std::move(recording), task.feeding, wants_raw(specs));
  run_jobs(stage.exact_jobs(), threads_for(o.jobs), progress);

  std::vector<std::vector<TextSums>> text(specs.size(), std::vector<TextSums>(full.size()));
  std::vector<std::vector<RecallSums>> recall(specs.size(),
                                              std::vector<RecallSums>(task.documents.size()));
  std::vector<std::unique_ptr<Session>> sessions(specs.size());
  if (kept != nullptr) prepare(*kept, specs.size()), kept->facts = facts;
  for (std::size_t w = 0; w < full.size(); ++w) text[0][w] = full_sums(task, w, full[w].logits);
  describe_cache(full[0].session->cache(), results.recipes[0]);
  sessions[0] = std::move(full[0].session);
  jobs.clear();
  for (std::size_t i = 0; i < specs.size(); ++i) {
    RecipeResult& result = results.recipes[i];
    for (std::size_t w = 0; w < full.size() && i > 0; ++w)
      jobs.push_back({"text through " + specs[i].given, window, [&, i, w](const Tick& tick) {
                        auto session =
                            run_window(task, specs[i], w, full[w].logits, text[i][w], tick);
                        if (w != 0) return;
                        describe_cache(session->cache(), result);
                        sessions[i] = std::move(session);
                      }});
    for (std::size_t d = 0; d < task.documents.size(); ++d)
      jobs.push_back({"recall through " + specs[i].given, size_of(task.documents[d]),
                      [&, i, d](const Tick& tick) {
                        recall[i][d] = run_document(task, specs[i], task.documents[d], tick);
                      }});
  }
  run_jobs(std::move(jobs), threads_for(o.jobs), progress);
  jobs.clear();
  for (std::size_t i = 0; i < specs.size(); ++i)
    if (replays(specs[i])) jobs.push_back(replay_job(stage, specs[i], results.recipes[i],
                              kept != nullptr ? &kept->sessions[i] : nullptr,
                              kept != nullptr ? &kept->outputs[i] : nullptr));
  run_jobs(std::move(jobs), threads_for(o.jobs), progress);

  std::vector<Step> steps;
  for (std::size_t i = 0; i < sessions.size() && o.rounds > 0; ++i)
    steps.push_back(continue_window(task, *sessions[i]));
  const auto speeds = measure_speed(steps, o.rounds, tokens_a_turn, progress);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    for (const TextSums& s : text[i]) results.recipes[i].text.add(s);
    for (const RecallSums& s : recall[i]) results.recipes[i].recall.add(s);
    if (i < speeds.size()) results.recipes[i].speed = speeds[i];
  }
  if (kept != nullptr) kept->exact = stage.exact();
  return results;
}

}  // namespace

Results evaluate(const Options& options, Kept* kept) {
  const auto begun = std::chrono::steady_clock::now();
  Results results =
      options.qkv.empty() ? evaluate_model(options, kept) : evaluate_recording(options, kept);
  results.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  return results;
}

std::string dump_qkv(const Options& options) {
  Setting setting;
  const ModelTask task = load_task(options, setting);
  Recording recording(task.shape);
  recording.rope = task.rope;
  Progress progress(options.quiet);
  progress.expect(static_cast<double>(task.context));
  (void)run_full(task, read_recipe(full_recipe, task.shape, {.rope = task.rope}), 0, &recording,
                 [&](double tokens) { progress.done(tokens, "the full cache"); });
  return qkv_bytes(recording);
}

}  // namespace eval
