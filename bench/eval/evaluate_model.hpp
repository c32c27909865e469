#pragma once

#include <eval/evaluate_recording.hpp>
#include <eval/input.hpp>

namespace eval {

/// A model and the texts it is measured on.
struct ModelTask {
  engine::Model model;
  CacheShape shape{};
  kvcondense::prim::RopeConfig rope;
  std::vector<std::int32_t> tokens;
  std::vector<index_t> starts;  ///< of the windows
  std::vector<Document> documents;
  Feeding feeding;
  index_t context = 0;

  /// Tokens of a window, and the one that follows it.
  std::span<const std::int32_t> window(std::size_t i) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(starts[i]),
                                     static_cast<std::size_t>(context) + 1);
  }
};

/// Reads all that the options name, fills in what they leave out, and says so in `setting`.
ModelTask load_task(const Options& options, Setting& setting);

/// What is wrong where a cache refuses to be condensed between its context and what comes after it.
inline constexpr std::string_view not_condensed = "the context cannot be condensed";

/// One window through one recipe, its session kept for timing.
struct WindowRun {
  std::unique_ptr<Session> session;
  std::vector<float>
      logits;  ///< of the single tokens, [context - prefill, vocab]; only of the full cache
};

/// The full cache over window `i`, recording its q, k and v when `recording` is not null.
WindowRun run_full(const ModelTask& task, const RecipeSpec& full, std::size_t i,
                   Recording* recording, const Tick& tick);
/// The full cache compared with itself.
TextSums full_sums(const ModelTask& task, std::size_t i, const std::vector<float>& full_logits);
/// A recipe over window `i`; `sums` compares it with the full cache's logits.
std::unique_ptr<Session> run_window(const ModelTask& task, const RecipeSpec& recipe, std::size_t i,
                                    const std::vector<float>& full_logits, TextSums& sums,
                                    const Tick& tick);
/// Recall of the values asked for in the second half of a document, by single tokens.
RecallSums run_document(const ModelTask& task, const RecipeSpec& recipe, const Document& document,
                        const Tick& tick);

/// Feeds the text that follows the first window, token by token, to a recipe.
std::function<void(index_t)> continue_window(const ModelTask& task, Session& session);

}  // namespace eval
