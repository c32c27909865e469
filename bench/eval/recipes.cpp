#include <eval/recipes.hpp>

#include <algorithm>

#include <engine/tokenizer.hpp>
#include <eval/error.hpp>
#include <kvcondense/cache/engine_facts.hpp>

namespace eval {
namespace {

std::shared_ptr<const HeadsFile> heads_of(const Options& o, const CacheShape& shape) {
  if (o.heads.empty()) return nullptr;
  return std::make_shared<const HeadsFile>(read_heads(o.heads, shape));
}

std::shared_ptr<const BasesFile> bases_of(const Options& o, const CacheShape& shape) {
  if (o.bases.empty()) return nullptr;
  return std::make_shared<const BasesFile>(read_bases(o.bases, shape));
}

}  // namespace

kvcondense::Inputs given_by(const engine::ModelConfig& model) {
  const kvcondense::Inputs all = recorded | kvcondense::Input::surprise | kvcondense::Input::hidden_norms;
  return engine::speaks_bytes(model) ? all | kvcondense::Input::classes : all;
}

bool replays(const RecipeSpec& s) {
  return !s.capabilities.probes && s.capabilities.needs.within(recorded);
}

bool wants_raw(const std::vector<RecipeSpec>& specs) {
  return std::any_of(specs.begin(), specs.end(),
                     [](const RecipeSpec& s) {
                       return !s.capabilities.rotated_input || sees_raw(s.capabilities);
                     });
}

Facts facts_of(const Options& o, const ModelTask& task) {
  return {task.rope, heads_of(o, task.shape), std::make_shared<engine::OutputProjections>(task.model), bases_of(o, task.shape)};
}

Facts facts_of(const Options& o, const Recording& recording) {
  return {recording.rope, heads_of(o, recording.shape), nullptr, bases_of(o, recording.shape)};
}

RecipeSpec read_for(const std::string& text, const CacheShape& shape, const Facts& facts, kvcondense::Inputs given,
                    bool with_model) {
  RecipeSpec spec = read_recipe(text, shape, facts.for_recipes());
  // The arrays that it needs are there: reading it has looked. Whether a model was trained for it nobody can tell.
  const kvcondense::Admission a =
      admit(spec.capabilities, {.gives = given, .probes = with_model, .output_weights = true, .calibration = true, .trained = true});
  if (!a) throw Refused("recipe '" + spec.given + "': " + a.sentence + (with_model ? "" : "; --model without --dump gives more"));
  if ((spec.capabilities.raw_keys || sees_raw(spec.capabilities)) && !facts.rope)
    throw Refused("recipe '" + spec.given + "' looks at keys or queries before rotation, and the dump "
                "does not say how they were rotated: it needs rope_theta or rope.inv_freq");
  return spec;
}

}  // namespace eval
