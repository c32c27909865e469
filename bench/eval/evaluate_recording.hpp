#pragma once

#include <optional>

#include <eval/evaluate.hpp>
#include <eval/jobs.hpp>

namespace eval {

/// A recording and what its replays are compared with. Both forms of the rows, as far as recipes
/// need them.
class Stage {
 public:
  Stage(Recording recording, Feeding feeding, bool with_raw);
  Stage(const Stage&) = delete;  // its jobs borrow it
  Stage& operator=(const Stage&) = delete;

  const Recording& recording() const { return recording_; }
  const Feeding& feeding() const { return feeding_; }
  /// Jobs that fill in exact(); to be run before any other.
  std::vector<Job> exact_jobs();
  const Outputs& exact() const { return exact_; }
  /// The rows as this recipe wants them.
  const Recording& rows_for(const RecipeSpec& recipe) const;
  /// The rows before rotation; null when no recipe asked for them.
  const Recording* raw() const { return raw_ ? &*raw_ : nullptr; }

 private:
  Recording recording_;
  std::optional<Recording> raw_;
  Feeding feeding_;
  Outputs exact_;
};

/// A job that fills in the attention errors of one recipe, and leaves the cache in `session` and
/// its outputs in `outputs` where those are asked for.
Job replay_job(const Stage& stage, const RecipeSpec& recipe, RecipeResult& result,
               std::unique_ptr<Session>* session, Outputs* outputs);

/// The part of a setting that models and recordings share.
void set_common(Setting& setting, const Options& options, const CacheShape& shape,
                const Feeding& feeding, index_t context);

/// What a cache holds now.
void describe_cache(const any::AnyCache& cache, RecipeResult& result);

}  // namespace eval
