#pragma once

#include <cstddef>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/core/step_inputs.hpp>

namespace kvcondense {

/// What a cache holds and what it did. Bytes are those asked of the memory resource.
struct Report {
  std::size_t exact_bytes = 0;      ///< pages of sinks and windows, headers and free slots included
  std::size_t coded_bytes = 0;      ///< pages of codes with their parameters, and of rows that layers share
  std::size_t side_bytes = 0;       ///< slot ids, accumulators, scalars, page tables
  std::size_t index_bytes = 0;      ///< what a retrieval stage scores instead of keys
  std::size_t fixed_bytes = 0;      ///< does not grow with slots: layers, heads, rope tables
  std::size_t dead_bytes = 0;       ///< of the pages: slots that left but are not yet returned
  std::size_t shared_bytes = 0;     ///< of the pages: also held by a fork
  std::size_t dense_bytes = 0;      ///< what all tokens ever seen would take in 16 bits, no metadata

  index_t tokens = 0;               ///< logical length
  index_t slots = 0;                ///< stored, summed over layers and heads
  index_t budget_asked = 0;         ///< of the last eviction, summed over layers and heads; 0 before one
  index_t budget_met = 0;           ///< slots kept by it
  index_t evictions = 0;            ///< steps that removed a slot, per layer
  index_t evicted_slots = 0;        ///< slots that left, those that folded into others among them
  index_t merged_slots = 0;         ///< of these, those that folded into a slot that stayed
  index_t across_rows = 0;          ///< keys and values, each counted, that layers or heads store together
  index_t nan_scores = 0;           ///< NaN scores that evictions met; their slots left first
  index_t repaired_numbers = 0;     ///< NaN and Inf that codecs replaced
  index_t coded_again = 0;          ///< slots whose shared group was written anew after evictions
  const char* kernel = "portable";  ///< instruction set of attention's inner loops
  const char* key_kernel = "portable";    ///< what multiplies queries with coded keys: that, or one that reads codes as they are
  const char* value_kernel = "portable";  ///< what adds up coded values; of both, in the first head that codes

  std::size_t bytes() const { return exact_bytes + coded_bytes + side_bytes + index_bytes + fixed_bytes; }
  /// Part of all rows that layers or heads store together.
  double across_part() const { return slots == 0 ? 0.0 : static_cast<double>(across_rows) / (2.0 * static_cast<double>(slots)); }
  double ratio() const { return dense_bytes == 0 ? 1.0 : static_cast<double>(bytes()) / static_cast<double>(dense_bytes); }
};

/// What a recipe does and needs, known before anything runs.
struct Capabilities {
  bool changes_length = false;    ///< slots leave: positions and prefix reuse need care
  Inputs needs{};                 ///< what `step` wants besides the tokens
  bool probes = false;            ///< asks the model about the context before the first turn
  bool raw_keys = false;          ///< keys are stored without rotation and rotated when read
  bool rotated_input = true;      ///< the engine passes rotated queries and keys
  bool lossy_slots = false;       ///< slots are coded
  bool reads_part = false;        ///< attention of a few tokens reads a choice of slots
  bool joins_tokens = false;      ///< `append` wants the queries too: tokens join slots before they are attended
  index_t choosing_call = 0;      ///< `reads_part`: query tokens of the longest call that chooses; longer ones read everything
  StageTraits wants{};            ///< what it wants of the model
  bool turns_keys = false;        ///< something turns keys or queries by one position per token, as RoPE does
  bool found_maps = false;        ///< codes are read through bases or factors that were found from their own sequence
  bool rollback_exact = true;     ///< tokens that a step has seen leave no trace in what is stored when taken back; pending ones never do
  bool prefix_exact = true;       ///< a stored prefix never changes when later tokens come
};

}  // namespace kvcondense
