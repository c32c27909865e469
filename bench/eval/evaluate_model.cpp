#include <eval/evaluate_model.hpp>

#include <algorithm>
#include <filesystem>

#include <engine/condensed_attention.hpp>
#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>
#include <eval/error.hpp>

namespace eval {
namespace {

/// `given`, or the file of this name beside the model when there is one.
std::string beside_model(const std::string& given, const std::string& model, const char* name) {
  std::error_code error;
  const auto path = std::filesystem::path(model) / name;
  return given.empty() && std::filesystem::is_regular_file(path, error) ? path.string() : given;
}

/// A path as reports print it.
std::string shown(const Options& o, const std::string& path) {
  return !o.model_name.empty() && path.starts_with(o.model)
             ? o.model_name + path.substr(o.model.size())
             : path;
}

std::span<const float> row(const std::vector<float>& logits, index_t at, index_t vocab) {
  return std::span(logits).subspan(static_cast<std::size_t>(at * vocab),
                                   static_cast<std::size_t>(vocab));
}

}  // namespace

ModelTask load_task(const Options& o, Setting& setting) {
  std::string why;
  auto model = engine::load_model(o.model, why);
  if (!model) throw Error(why);
  ModelTask task;
  task.model = *std::move(model);
  const engine::ModelConfig& c = task.model.config;
  task.shape = engine::cache_shape(c);
  task.shape.page_slots = o.page_slots;
  task.context = o.context;
  task.rope = engine::library_rope(c.rope, o.context);
  task.feeding = {.prefill = o.prefill == 0 ? o.context / 2 : o.prefill, .chunk = o.chunk, .last = o.last_pass};

  const std::string text = o.ids.empty() ? beside_model(o.text, o.model, "heldout.txt") : "";
  if (text.empty() && o.ids.empty())
    throw Error("no text: give --text FILE, or --ids FILE with token ids");
  task.tokens = read_tokens(c, text, o.ids);
  task.starts =
      window_starts(static_cast<index_t>(task.tokens.size()), o.context + 1, o.windows, o.seed);
  const double logits = static_cast<double>(o.windows) *
                        static_cast<double>(o.context - task.feeding.prefill) *
                        static_cast<double>(c.vocab);
  if (logits > 2e9)
    throw Error("the full cache's logits would take more than 8 GB: lower --windows or --context");
  const std::string recall =
      o.documents > 0 ? beside_model(o.recall, o.model, "recall.jsonl") : std::string();
  if (!recall.empty())
    task.documents = choose_documents(read_recall(recall, c), o.documents, o.context);
  if (o.ask != Ask::stream) task.documents = ask_each(task.documents, o.ask, o.question);
  if (!o.recall.empty() && task.documents.empty())
    throw Error(recall + ": no document fits a --context of " + std::to_string(o.context) +
                (o.ask == Ask::stream ? "" : " and asks a question of " + std::to_string(o.question) + " tokens"));

  set_common(setting, o, task.shape, task.feeding, o.context);
  setting.source = shown(o, o.model);
  setting.text = shown(o, o.ids.empty() ? text : o.ids);
  setting.recall = task.documents.empty() ? "" : shown(o, recall);
  setting.byte_tokens = engine::speaks_bytes(c);
  setting.windows = o.windows;
  setting.documents = static_cast<index_t>(task.documents.size());
  setting.ask = o.ask, setting.question = o.question;
  setting.max_positions = c.max_positions;
  return task;
}

WindowRun run_full(const ModelTask& task, const RecipeSpec& full, std::size_t i,
                   Recording* recording, const Tick& tick) {
  WindowRun run{std::make_unique<Session>(make_session(full, task.shape)), {}};
  const auto tokens = task.window(i).first(static_cast<std::size_t>(task.context));
  const engine::Attention attention = [&](const engine::LayerChunk& chunk,
                                          TensorView<float, 3> out) {
    if (recording != nullptr) recording->append(chunk);
    return (*run.session)(chunk, out);
  };
  run_text(
      task.model, {}, attention, tokens, task.feeding, nullptr,
      [&](index_t, std::span<const float> logits) {
        run.logits.insert(run.logits.end(), logits.begin(), logits.end());
      },
      tick);
  return run;
}

TextSums full_sums(const ModelTask& task, std::size_t i, const std::vector<float>& full_logits) {
  TextSums sums;
  for (index_t at = task.feeding.prefill; at < task.context; ++at) {
    const auto logits = row(full_logits, at - task.feeding.prefill, task.model.config.vocab);
    sums.add(logits, logits, task.window(i)[static_cast<std::size_t>(at) + 1]);
  }
  return sums;
}

std::unique_ptr<Session> run_window(const ModelTask& task, const RecipeSpec& recipe, std::size_t i,
                                    const std::vector<float>& full_logits, TextSums& sums,
                                    const Tick& tick) {
  auto session = std::make_unique<Session>(make_session(recipe, task.shape));
  const auto tokens = task.window(i);
  run_text(
      task.model, session->decoder_options(), std::ref(*session),
      tokens.first(static_cast<std::size_t>(task.context)), task.feeding,
      [&](engine::Decoder& d) { require(session->condense(d, tokens.first(static_cast<std::size_t>(task.feeding.prompt())), task.feeding.chunk), not_condensed); },
      [&](index_t at, std::span<const float> logits) {
        sums.add(row(full_logits, at - task.feeding.prefill, task.model.config.vocab), logits,
                 tokens[static_cast<std::size_t>(at) + 1]);
      },
      tick);
  return session;
}

RecallSums run_document(const ModelTask& task, const RecipeSpec& recipe, const Document& document,
                        const Tick& tick) {
  RecallSums sums;
  const index_t half = document.prefill > 0 ? document.prefill : static_cast<index_t>(document.tokens.size()) / 2;
  // For every token: how far back the value is that the next one belongs to (0: none), and which of
  // the value's tokens that next one is.
  std::vector<index_t> distance(document.tokens.size(), 0), offset(document.tokens.size(), 0);
  index_t last = 0;
  for (const Document::Query& q : document.queries)
    for (index_t i = 0; i < q.length; ++i) {
      if (q.at - 1 + i < half) continue;
      distance[static_cast<std::size_t>(q.at - 1 + i)] = q.distance;
      offset[static_cast<std::size_t>(q.at - 1 + i)] = i;
      last = std::max(last, q.at + i);
    }
  if (last == 0) return sums;
  Session session = make_session(recipe, task.shape);
  const Feeding feeding{.prefill = half, .chunk = task.feeding.chunk, .last = task.feeding.last};
  run_text(
      task.model, session.decoder_options(), std::ref(session),
      std::span(document.tokens).first(static_cast<std::size_t>(last)),
      feeding,
      [&](engine::Decoder& d) { require(session.condense(d, std::span(document.tokens).first(static_cast<std::size_t>(feeding.prompt())), task.feeding.chunk), not_condensed); },
      [&](index_t at, std::span<const float> logits) {
        const auto here = static_cast<std::size_t>(at);
        if (distance[here] > 0)
          sums.add(distance[here], at + 1 - offset[here],
                   engine::greedy(logits) == document.tokens[here + 1]);
      },
      tick);
  return sums;
}

std::function<void(index_t)> continue_window(const ModelTask& task, Session& session) {
  auto decoder = std::make_shared<engine::Decoder>(task.model, session.decoder_options());
  return [&task, &session, decoder](index_t step) {
    const index_t size = static_cast<index_t>(task.tokens.size());
    const std::int32_t token =
        task.tokens[static_cast<std::size_t>((task.starts[0] + task.context + step) % size)];
    require(decoder
                ->forward({&token, 1}, task.context + step, std::ref(session), engine::Logits::last,
                          kvcondense::Phase::decode)
                .status(),
            "timing");
  };
}

}  // namespace eval
