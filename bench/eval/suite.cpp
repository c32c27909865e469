#include <eval/suite.hpp>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>

#include <engine/json_text.hpp>
#include <engine/tokenizer.hpp>
#include <eval/error.hpp>
#include <eval/recipes.hpp>
#include <eval/sizing.hpp>
#include <eval/speed.hpp>
#include <kvcondense/any/builtin.hpp>

namespace eval {
namespace {

constexpr double sizings = 6;  ///< replays that the search for one share takes, about

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t\r");
  return first == std::string::npos ? std::string() : text.substr(first, text.find_last_not_of(" \t\r") + 1 - first);
}

std::vector<RecipeLine> lines_of(const Options& o) {
  std::vector<RecipeLine> lines;
  for (const std::string& r : o.recipes) lines.push_back(recipe_line(r));
  if (!o.suite.recipes_file.empty()) {
    std::ifstream file(o.suite.recipes_file, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    if (!file) throw Error(o.suite.recipes_file + ": cannot be read");
    for (RecipeLine& l : parse_recipe_lines(text.str(), o.suite.recipes_file)) lines.push_back(std::move(l));
  }
  if (lines.empty())
    for (const char* r : {"sink_window(sinks=4, recent={tokens-4})", "h2o(heavy={tokens/2}, recent={tokens/2})", "snapkv(tokens={tokens}, window=16)",
                          "ada(snapkv(tokens={tokens}, window=16))", "kivi2", "kivi4", "snapkv(tokens={tokens}, window=16) + kivi4",
                          "h2o(heavy={tokens/2}, recent={tokens/2}) + kivi2", "pca(keep={part}, value_keep={part})"})
      lines.push_back(recipe_line(r));
  return lines;
}

/// A recipe that will run.
struct Planned {
  RecipeLine line;
  double share = 0;
  std::string setting;
  std::string note;
  RecipeSpec spec;
};

/// Documents and texts, the same for every recipe.
struct Material {
  std::vector<index_t> lengths;
  std::vector<std::vector<std::vector<Exam>>> needles;  ///< [length][depth][document]
  std::vector<Exam> dialogues;
  std::vector<Plan> plans;
  std::vector<std::vector<std::int32_t>> prompts, continued;
};

std::vector<double> depths(index_t n) {
  std::vector<double> all;
  for (index_t i = 0; i < n; ++i) all.push_back((static_cast<double>(i) + 0.5) / static_cast<double>(n));
  return all;
}

Material make_material(const Options& o, const ModelTask& task) {
  Material m;
  const SuiteRequest& r = o.suite;
  for (index_t w = 0; w < r.texts; ++w) {
    // More texts than windows: shorter and shorter ones, as long as there is something to shorten.
    const index_t length = task.feeding.prefill - 16 * (w / o.windows);
    if (length < 2) throw Error("--texts " + std::to_string(r.texts) + ": " + std::to_string(o.windows) + " windows of " + std::to_string(task.feeding.prefill) + " tokens read at once give " + std::to_string(w));
    const auto window = task.window(static_cast<std::size_t>(w % o.windows)).first(static_cast<std::size_t>(length));
    m.prompts.emplace_back(window.begin(), window.end());
  }
  if (!engine::speaks_bytes(task.model.config)) return m;
  TextMaker maker(engine::tokens_to_bytes(task.tokens), o.seed);
  for (index_t i = 0; i < r.lengths && (task.context >> i) >= 64 && r.needles > 0; ++i) m.lengths.insert(m.lengths.begin(), task.context >> i);
  for (const index_t length : m.lengths) {
    m.needles.emplace_back();
    for (const double depth : depths(r.depths)) {
      m.needles.back().emplace_back();
      for (index_t d = 0; d < r.needles; ++d) m.needles.back().back().push_back(exam_of(maker.haystack(length, {depth})));
    }
  }
  for (index_t d = 0; d < r.dialogues; ++d) m.dialogues.push_back(exam_of(maker.haystack(task.context, depths(r.keys))));
  for (index_t d = 0; d < r.plans; ++d) m.plans.push_back(plan_of(maker.haystack(task.context / 2, depths(std::min<index_t>(r.keys, 8))), r.lines, maker));
  return m;
}

double tokens_of(const Exam& e) {
  double n = static_cast<double>(e.prompt.size());
  for (const Exam::Question& q : e.questions) n += static_cast<double>(q.tokens.size() + q.answer.size());
  return n;
}
double tokens_of(const Plan& p) {
  double n = static_cast<double>(p.prompt.size());
  for (const Plan::Line& l : p.lines) n += static_cast<double>(l.before.size() + l.value.size() + l.after.size());
  return n;
}

/// Of all documents and texts, for one recipe.
double tokens_of(const Material& m) {
  double n = 0;
  for (const auto& row : m.needles)
    for (const auto& cell : row)
      for (const Exam& e : cell) n += tokens_of(e);
  for (const Exam& e : m.dialogues) n += 2 * tokens_of(e) - static_cast<double>(e.prompt.size());
  for (const Plan& p : m.plans) n += tokens_of(p);
  for (const auto& p : m.prompts) n += static_cast<double>(p.size());
  return n;
}

double seconds_since(std::chrono::steady_clock::time_point begun) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(); }

/// All that recipes are compared with, and the recipes that will run.
class Suite {
 public:
  explicit Suite(const Options& o) : o_(o), progress_(o.quiet) {}

  SuiteResults run() {
    const auto begun = std::chrono::steady_clock::now();
    results_.request = o_.suite;
    if (o_.suite.shares.empty()) results_.request.shares = {25};
    if (o_.qkv.empty()) prepare_model();
    else prepare_recording();
    size_recipes();
    for (const Planned& p : planned_) begin_row(p);
    measure();
    time_all();
    results_.seconds = seconds_since(begun);
    return std::move(results_);
  }

 private:
  bool with_model() const { return task_ != nullptr; }
  const CacheShape& shape() const { return stage_->recording().shape; }

  RecipeSpec read(const std::string& text) const {
    return read_for(text, shape(), facts_, with_model() ? given_by(task_->model.config) : recorded, with_model());
  }

  void prepare_recording() {
    Recording recording = read_dump(o_);
    const Feeding feeding = feeding_of(o_, recording, mostly_prefill(recording.tokens));
    set_common(results_.setting, o_, recording.shape, feeding, recording.tokens);
    results_.setting.source = o_.qkv;
    facts_ = facts_of(o_, recording);
    const bool raw = recording.rope.has_value();
    stage_ = std::make_unique<Stage>(std::move(recording), feeding, raw);
    lines_ = lines_of(o_);
    expect(static_cast<double>(stage_->recording().tokens), static_cast<double>(stage_->recording().tokens));
    run_jobs(stage_->exact_jobs(), threads_for(o_.jobs), progress_);
  }

  void prepare_model() {
    task_ = std::make_unique<ModelTask>(load_task(o_, results_.setting));
    if (o_.suite.induction) induction_ = std::make_unique<InductionModel>();
    material_ = make_material(o_, *task_);
    results_.lengths = material_.lengths;
    facts_ = facts_of(o_, *task_);
    lines_ = lines_of(o_);
    const auto window = static_cast<double>(task_->context);
    double each = window * static_cast<double>(o_.windows + 1) + tokens_of(material_);
    if (induction_) each += static_cast<double>(induction_->context.size() + induction_->answer.size());
    expect(window, each);

    const RecipeSpec full = read_for(full_recipe, task_->shape, facts_, given_by(task_->model.config), true);
    full_.resize(task_->starts.size());
    Recording recording(task_->shape);
    recording.rope = task_->rope;
    std::vector<Job> jobs;
    for (std::size_t w = 0; w < full_.size(); ++w)
      jobs.push_back({"the full cache", window, [&, w](const Tick& tick) {
                        full_[w] = run_full(*task_, full, w, w == 0 ? &recording : nullptr, tick).logits;
                      }});
    material_.continued.resize(material_.prompts.size());
    for (std::size_t i = 0; i < material_.prompts.size(); ++i)
      jobs.push_back({"the full cache", 0, [&, i](const Tick&) {
                        material_.continued[i] = continue_greedily(task_->model, make_session(full, task_->shape), material_.prompts[i],
                                                                   o_.suite.continued, o_.chunk, [](double) {});
                      }});
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    stage_ = std::make_unique<Stage>(std::move(recording), task_->feeding, true);
    run_jobs(stage_->exact_jobs(), threads_for(o_.jobs), progress_);
  }

  /// `window`: tokens of a replay; `each`: of all that one recipe does.
  void expect(double window, double each) {
    window_tokens_ = window, row_tokens_ = each;
    double holes = 0, rows = 1;
    const auto shares = static_cast<double>(results_.request.shares.size());
    for (const RecipeLine& l : lines_)
      if (Sizer::has_hole(l.recipe)) holes += shares, rows += shares;
      else rows += 1;
    progress_.expect(window * (1 + static_cast<double>(full_window_count())) + holes * sizings * window + rows * each);
    expected_rows_ = rows;
  }
  index_t full_window_count() const { return with_model() ? o_.windows : 0; }

  double bytes_of(const std::string& text) const { return bytes_at_end(read(text), *stage_, task_.get(), full_); }

  /// A text that no setting of can be read is a mistake of whoever wrote it.
  void check_text(const std::string& text) const {
    try {
      (void)read(text);
    } catch (const Refused&) {
    }
  }

  void size_recipes() {
    planned_.push_back({{"", full_recipe}, 0, {}, {}, read(full_recipe)});
    planned_[0].spec.given = "full cache";
    struct Found {
      std::vector<Planned> planned;
      std::vector<LeftOut> left_out;
    };
    std::vector<Found> found(lines_.size());
    std::vector<Job> jobs;
    const double dense = bytes_of_16_bit(shape());
    for (std::size_t i = 0; i < lines_.size(); ++i)
      jobs.push_back({"sizes of " + lines_[i].recipe, Sizer::has_hole(lines_[i].recipe) ? sizings * window_tokens_ * static_cast<double>(results_.request.shares.size()) : 0,
                      [this, i, dense, &found](const Tick&) {
                        const RecipeLine& line = lines_[i];
                        Found& mine = found[i];
                        if (!Sizer::has_hole(line.recipe)) {
                          try {
                            mine.planned.push_back({line, 0, {}, {}, read(line.recipe)});
                          } catch (const Refused& e) {
                            mine.left_out.push_back({line.recipe, 0, e.what()});
                          }
                          return;
                        }
                        Sizer sizer(line.recipe, results_.setting.context, [this](const std::string& text) { return bytes_of(text); });
                        for (const double share : results_.request.shares) {
                          try {
                            const SizedRecipe s = sizer.fit(share / 100 * dense);
                            if (s.bytes_per_token > share / 100 * dense) mine.left_out.push_back({line.recipe, share, s.note});
                            else mine.planned.push_back({line, share, s.setting, s.note, read(s.recipe)});
                          } catch (const Error& e) {
                            check_text(sizer.filled(sizer.settings() - 1));
                            mine.left_out.push_back({line.recipe, share, e.what()});
                          }
                        }
                      }});
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    std::map<std::string, std::string> seen;
    for (Found& f : found) {
      for (LeftOut& l : f.left_out) results_.left_out.push_back(std::move(l));
      for (Planned& p : f.planned) {  // one setting may serve two shares, one recipe be written in two ways
        const auto [at, fresh] = seen.emplace(p.spec.parsed.text.view(), p.spec.given);
        if (fresh) planned_.push_back(std::move(p));
        else results_.left_out.push_back({p.line.recipe, p.share, "the same as " + at->second + ", which has a row"});
      }
    }
    if (planned_.size() == 1 && !results_.left_out.empty())
      throw Error("no recipe can run here; the first: " + results_.left_out[0].line + ": " + results_.left_out[0].why);
    progress_.done((expected_rows_ - static_cast<double>(planned_.size())) * row_tokens_, "recipes");
  }

  void begin_row(const Planned& p) {
    SuiteRow row;
    row.line = p.line.recipe;
    row.family = p.line.family.empty() ? rooms_of(p.line.recipe) : p.line.family;
    row.share = p.share;
    row.setting = p.setting;
    row.note = p.note;
    row.result.recipe = p.spec.given;
    row.result.canonical = p.spec.parsed.text.view();
    row.result.drops_tokens = p.spec.capabilities.changes_length;
    row.result.codes_numbers = p.spec.capabilities.lossy_slots;
    row.needles.cells.assign(material_.needles.size(), std::vector<Counts>(static_cast<std::size_t>(o_.suite.depths)));
    results_.rows.push_back(std::move(row));
  }

  /// A task of one recipe. What it cannot do costs it this task, not everybody their results.
  void add_job(std::vector<Job>& jobs, std::size_t r, const char* what, double tokens, std::function<void(const Tick&)> run) {
    jobs.push_back({what + (" of " + results_.rows[r].result.recipe), tokens, [this, r, what, run = std::move(run)](const Tick& tick) {
                      try {
                        run(tick);
                      } catch (const Error& e) {
                        const std::lock_guard<std::mutex> lock(failing_);
                        results_.rows[r].failures.push_back(std::string(what) + ": " + e.what());
                      }
                    }});
  }

  void measure() {
    const std::size_t rows = planned_.size();
    sessions_.resize(rows);
    std::vector<std::vector<TextSums>> text(rows, std::vector<TextSums>(full_.size()));
    std::vector<std::vector<LifeCycle>> lives(rows, std::vector<LifeCycle>(material_.dialogues.size()));
    std::vector<std::vector<LongAnswer>> plans(rows, std::vector<LongAnswer>(material_.plans.size()));
    std::vector<std::vector<Continuation>> texts(rows, std::vector<Continuation>(material_.prompts.size()));
    std::vector<Job> jobs;
    for (std::size_t r = 0; r < rows; ++r) {
      const RecipeSpec& spec = planned_[r].spec;
      SuiteRow& row = results_.rows[r];
      const auto session = [this, &spec] { return make_session(spec, shape()); };
      for (std::size_t w = 0; w < full_.size(); ++w)
        add_job(jobs, r, "text", window_tokens_, [&, this, w, r](const Tick& tick) {
          auto mine = run_window(*task_, spec, w, full_[w], text[r][w], tick);
          if (w != 0) return;
          describe_cache(mine->cache(), row.result);
          if (o_.rounds > 0) sessions_[r] = std::move(mine);
        });
      for (std::size_t l = 0; l < material_.needles.size(); ++l)
        for (std::size_t d = 0; d < material_.needles[l].size(); ++d) {
          double tokens = 0;
          for (const Exam& e : material_.needles[l][d]) tokens += tokens_of(e);
          add_job(jobs, r, "needles", tokens, [&, this, l, d, session](const Tick& tick) {
            for (const Exam& e : material_.needles[l][d]) row.needles.cells[l][d].add(run_needle(task_->model, session(), e, o_.chunk, tick));
          });
        }
      for (std::size_t d = 0; d < lives[r].size(); ++d)
        add_job(jobs, r, "life cycle", tokens_of(material_.dialogues[d]), [&, this, d, r](const Tick& tick) {
          lives[r][d] = run_life_cycle(task_->model, spec, shape(), material_.dialogues[d], o_.chunk, tick);
        });
      for (std::size_t d = 0; d < plans[r].size(); ++d)
        add_job(jobs, r, "long answer", tokens_of(material_.plans[d]), [&, this, d, r, session](const Tick& tick) {
          plans[r][d] = run_plan(task_->model, session(), material_.plans[d], o_.chunk, tick);
        });
      for (std::size_t d = 0; d < texts[r].size(); ++d)
        add_job(jobs, r, "continuation", static_cast<double>(material_.prompts[d].size()), [&, this, d, r, session](const Tick& tick) {
          texts[r][d] = run_continuation(task_->model, session(), material_.prompts[d], material_.continued[d], o_.chunk, tick);
        });
      if (induction_)
        add_job(jobs, r, "written model", static_cast<double>(induction_->context.size()), [&, this](const Tick& tick) {
          row.induction = run_induction(*induction_, induction_session(spec), o_.chunk, tick);
        });
    }
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    jobs.clear();
    for (std::size_t r = 0; r < rows; ++r)
      if (replays(planned_[r].spec)) {
        // Behind the runs of the text: bytes are those of a run, where there is one.
        auto job = std::make_shared<Job>(replay_job(*stage_, planned_[r].spec, results_.rows[r].result, with_model() || o_.rounds == 0 ? nullptr : &sessions_[r], nullptr));
        add_job(jobs, r, "attention", window_tokens_, [job](const Tick& tick) { job->run(tick); });
      }
    run_jobs(std::move(jobs), threads_for(o_.jobs), progress_);
    for (std::size_t r = 0; r < rows; ++r) {
      SuiteRow& row = results_.rows[r];
      std::sort(row.failures.begin(), row.failures.end());
      row.failures.erase(std::unique(row.failures.begin(), row.failures.end()), row.failures.end());
      for (const TextSums& s : text[r]) row.result.text.add(s);
      for (const LifeCycle& l : lives[r]) row.life.add(l);
      for (const LongAnswer& a : plans[r]) row.plan.add(a);
      for (const Continuation& c : texts[r]) row.continuation.add(c);
    }
  }

  /// The recipe on the written model: what it was told of another model's heads and bases does not hold there.
  Session induction_session(const RecipeSpec& spec) const {
    const engine::Model& model = induction_->model;
    CacheShape its = engine::cache_shape(model.config);
    its.page_slots = o_.page_slots;
    static const engine::OutputProjections output(model);
    Facts facts;
    facts.rope = engine::library_rope(model.config.rope, static_cast<index_t>(induction_->context.size()) + 1);
    kvcondense::any::ModelFacts known = facts.for_recipes();
    known.output = output.view();
    return make_session(read_recipe(spec.given == "full cache" ? full_recipe : spec.given, its, known), its);
  }

  void time_all() {
    if (o_.rounds == 0) return;
    std::vector<Step> steps;
    std::vector<std::size_t> who;
    for (std::size_t r = 0; r < sessions_.size(); ++r) {
      if (sessions_[r] == nullptr) continue;
      if (with_model()) {
        steps.push_back(continue_window(*task_, *sessions_[r]));
      } else {
        const auto replay = std::make_shared<Replay>(stage_->rows_for(planned_[r].spec), *sessions_[r], stage_->raw());
        steps.push_back(continue_replay(replay, results_.setting.context));
      }
      who.push_back(r);
    }
    if (who.empty() || who[0] != 0) return;
    const auto speeds = measure_speed(steps, o_.rounds, tokens_a_turn, progress_);
    for (std::size_t i = 0; i < who.size(); ++i) results_.rows[who[i]].result.speed = speeds[i];
    for (std::size_t r = 0; r < planned_.size() && !material_.dialogues.empty(); ++r) time_life(planned_[r].spec, results_.rows[r]);
  }

  void time_life(const RecipeSpec& spec, SuiteRow& row) {
    if (row.life.requests.empty()) return;
    const Exam& exam = material_.dialogues[0];
    Dialogue reader(task_->model, make_session(spec, shape()), o_.chunk);
    auto begun = std::chrono::steady_clock::now();
    reader.prompt(exam.prompt, [](double) {});
    row.prompt_seconds = seconds_since(begun);
    begun = std::chrono::steady_clock::now();
    const auto file = reader.save();
    row.save_seconds = seconds_since(begun);
    Session empty = make_session(spec, shape());
    begun = std::chrono::steady_clock::now();
    (void)reader.load(file, std::move(empty));
    row.load_seconds = seconds_since(begun);
  }

  const Options& o_;
  Progress progress_;
  SuiteResults results_;
  std::unique_ptr<ModelTask> task_;
  std::unique_ptr<InductionModel> induction_;
  Facts facts_;
  Material material_;
  std::vector<RecipeLine> lines_;
  std::vector<std::vector<float>> full_;  ///< logits of the full cache, of each window
  std::unique_ptr<Stage> stage_;
  std::vector<Planned> planned_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::mutex failing_;
  double window_tokens_ = 0, row_tokens_ = 0, expected_rows_ = 0;
};

}  // namespace

Counts NeedleGrid::all() const {
  Counts sum;
  for (const auto& row : cells)
    for (const Counts& c : row) sum.add(c);
  return sum;
}

RecipeLine recipe_line(const std::string& text) {
  const std::size_t colon = text.find_first_of(":({");
  if (colon == std::string::npos || text[colon] != ':') return {"", trimmed(text)};
  return {trimmed(text.substr(0, colon)), trimmed(text.substr(colon + 1))};
}

std::vector<RecipeLine> parse_recipe_lines(const std::string& text, const std::string& name) {
  std::vector<RecipeLine> lines;
  std::istringstream in(text);
  index_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    lines.push_back(recipe_line(line));
    if (lines.back().recipe.empty()) throw Error(name + ": line " + std::to_string(number) + ": no recipe behind '" + engine::printable(line) + "'");
  }
  if (lines.empty()) throw Error(name + ": no recipe in it");
  return lines;
}

std::string rooms_of(const std::string& recipe) {
  std::string all;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= recipe.size(); ++i) {
    const char c = i < recipe.size() ? recipe[i] : '+';
    if (c == '(') ++depth;
    if (c == ')') --depth;
    if (c != '+' || depth > 0) continue;
    const std::string stage = trimmed(recipe.substr(begin, i - begin));
    begin = i + 1;
    const kvcondense::any::Entry* entry = kvcondense::any::builtin().find(stage.substr(0, stage.find('(')));
    all += (all.empty() ? "" : " + ") + (entry == nullptr ? std::string("unknown") : std::string(to_string(entry->room)));
  }
  return all;
}

SuiteResults run_suite(const Options& options) { return Suite(options).run(); }

}  // namespace eval
