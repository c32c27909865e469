#pragma once

#include <vector>

#include <eval/metrics.hpp>
#include <eval/recording.hpp>
#include <eval/session.hpp>
#include <eval/text_run.hpp>

namespace eval {

/// Attention outputs of the singly fed tokens of a recording: per layer [tokens - prefill, q_heads,
/// head_dim].
using Outputs = std::vector<std::vector<float>>;

/// float32 attention of one layer over everything, by the engine's plain cache: what errors are
/// measured against.
std::vector<float> exact_outputs(const Recording& recording, const Feeding& feeding, index_t layer);

/// Feeds a recording to a recipe's cache, without a model.
class Replay {
 public:
  /// `recording` holds unrotated rows when the session's recipe wants them so; `raw` (may be null)
  /// holds them for steps that look at them besides. Borrows all.
  Replay(const Recording& recording, Session& session, const Recording* raw = nullptr)
      : recording_(&recording), session_(&session), raw_(raw) {}

  /// Prefill and all further tokens one by one; every layer gets the same q, k and v as any other
  /// recipe. Where `reads` is given, with the rotated rows that exact attention is of: what a recipe that reads a part read.
  Outputs run(const Feeding& feeding, const Tick& tick, ReadSums* reads = nullptr, const Recording* rotated = nullptr);
  /// One token more: recorded token `at` modulo the recording's length, at position `at`.
  void step(index_t at);

 private:
  void feed(index_t layer, index_t first, index_t count, index_t position, kvcondense::Phase phase,
            float* out);
  void count_reads(index_t layer, index_t at, const Recording& rotated, ReadSums& reads);

  const Recording* recording_;
  Session* session_;
  const Recording* raw_;
  std::vector<index_t> positions_;
  std::vector<float> scratch_;
};

/// Error of every layer, rows of all heads and tokens together.
std::vector<ErrorSums> errors(const Outputs& exact, const Outputs& other);

}  // namespace eval
