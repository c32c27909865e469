#include <eval/evaluate_recording.hpp>

#include <eval/error.hpp>

namespace eval {

Stage::Stage(Recording recording, Feeding feeding, bool with_raw)
    : recording_(std::move(recording)), feeding_(feeding), exact_(recording_.layers.size()) {
  if (with_raw) raw_ = before_rotation(recording_);
}

std::vector<Job> Stage::exact_jobs() {
  const double share =
      static_cast<double>(recording_.tokens) / static_cast<double>(recording_.shape.layers);
  std::vector<Job> jobs;
  for (index_t layer = 0; layer < recording_.shape.layers; ++layer)
    jobs.push_back({"exact attention", share, [this, layer](const Tick&) {
                      exact_[static_cast<std::size_t>(layer)] =
                          exact_outputs(recording_, feeding_, layer);
                    }});
  return jobs;
}

const Recording& Stage::rows_for(const RecipeSpec& recipe) const {
  return recipe.capabilities.rotated_input ? recording_ : *raw_;
}

Recording read_dump(const Options& o) {
  Recording recording = read_qkv(o.qkv);
  recording.shape.page_slots = o.page_slots;
  return recording;
}

Feeding feeding_of(const Options& o, const Recording& recording, index_t prefill) {
  const Feeding feeding{.prefill = o.prefill == 0 ? prefill : o.prefill, .chunk = o.chunk, .last = o.last_pass};
  if (feeding.prefill >= recording.tokens)
    throw Error("--prefill " + std::to_string(feeding.prefill) + " leaves nothing of the dump's " + std::to_string(recording.tokens) + " tokens");
  return feeding;
}

std::function<void(index_t)> continue_replay(std::shared_ptr<Replay> replay, index_t context) {
  return [replay = std::move(replay), context](index_t t) { replay->step(context + t); };
}

Job replay_job(const Stage& stage, const RecipeSpec& recipe, RecipeResult& result,
               std::unique_ptr<Session>* session, Outputs* outputs) {
  return {"attention error of " + recipe.given, static_cast<double>(stage.recording().tokens),
          [&stage, &recipe, &result, session, outputs](const Tick& tick) {
            auto mine = std::make_unique<Session>(make_session(recipe, stage.recording().shape));
            const bool part = recipe.capabilities.reads_part;
            Outputs out = Replay(stage.rows_for(recipe), *mine, stage.raw())
                              .run(stage.feeding(), tick, part ? &result.reads : nullptr, &stage.recording());
            for (const ErrorSums& e : errors(stage.exact(), out))
              result.layer_error.push_back(e.relative());
            if (result.report.tokens == 0) describe_cache(mine->cache(), result);
            if (outputs != nullptr) *outputs = std::move(out);
            if (session != nullptr) *session = std::move(mine);
          }};
}

void set_common(Setting& s, const Options& o, const CacheShape& shape, const Feeding& feeding,
                index_t context) {
  s.command = o.command;
  s.layers = shape.layers;
  s.q_heads = shape.q_heads;
  s.kv_heads = shape.kv_heads;
  s.head_dim = shape.head_dim;
  s.page_slots = shape.page_slots;
  s.context = context;
  s.prefill = feeding.prefill;
  s.chunk = feeding.chunk;
  s.last_pass = feeding.last;
  s.rounds = o.rounds;
  s.seed = o.seed;
  s.heads = o.heads;
}

void describe_cache(const any::AnyCache& cache, RecipeResult& result) {
  result.report = cache.report();
  result.slots.assign(static_cast<std::size_t>(cache.shape().layers), {});
  for (index_t l = 0; l < cache.shape().layers; ++l)
    for (index_t h = 0; h < cache.shape().kv_heads; ++h)
      result.slots[static_cast<std::size_t>(l)].push_back(cache.slots(l, h));
}

}  // namespace eval
