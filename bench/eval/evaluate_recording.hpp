#pragma once

#include <algorithm>
#include <functional>
#include <memory>
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

/// The dump that the options name, for caches with pages as they say. Throws Error.
Recording read_dump(const Options& options);
/// How a dump is fed: `prefill` tokens at once unless the options say how many. Throws Error where that leaves none.
Feeding feeding_of(const Options& options, const Recording& recording, index_t prefill);
/// Of so many tokens 15 of 16, for those who measure what comes behind a prompt.
inline index_t mostly_prefill(index_t tokens) { return std::max<index_t>(1, tokens - std::max<index_t>(tokens / 16, 1)); }

/// Feeds what follows `context` tokens of a recording, token by token.
std::function<void(index_t)> continue_replay(std::shared_ptr<Replay> replay, index_t context);

/// The part of a setting that models and recordings share.
void set_common(Setting& setting, const Options& options, const CacheShape& shape,
                const Feeding& feeding, index_t context);

/// What a cache holds now.
void describe_cache(const any::AnyCache& cache, RecipeResult& result);

}  // namespace eval
