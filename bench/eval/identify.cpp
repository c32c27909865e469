#include <eval/identify.hpp>

#include <algorithm>
#include <numeric>

#include <engine/dense_attention.hpp>
#include <eval/error.hpp>
#include <eval/evaluate_model.hpp>
#include <eval/gate_search.hpp>
#include <eval/head_scores.hpp>
#include <eval/host.hpp>
#include <eval/quant_tables.hpp>
#include <eval/table.hpp>
#include <kvcondense/budget/attention_variance.hpp>
#include <kvcondense/budget/prefix_mass_search.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/version.hpp>

namespace eval {
namespace {

using Tokens = std::vector<std::int32_t>;

/// q, k and v of `tokens` through the model and a plain float32 cache.
Recording record(const ModelTask& task, std::span<const std::int32_t> tokens, const Tick& tick) {
  Recording recording(task.shape);
  engine::DenseAttention dense(task.model.config);
  engine::Decoder decoder(task.model, {.rotate = true, .chunk = task.feeding.chunk});
  const index_t last = task.shape.layers - 1;
  const engine::Attention attention = [&](const engine::LayerChunk& chunk, TensorView<float, 3> out) {
    recording.append(chunk);
    if (chunk.layer == last) tick(static_cast<double>(chunk.k.extent[1]));
    return dense(chunk, out);
  };
  require(decoder.prefill(tokens, 0, attention).status(), "the model refused a text");
  return recording;
}

/// Random tokens out of those that occur in the text, the same piece again and again.
Tokens probe_tokens(const ModelTask& task, const HeadProbe& probe, std::uint64_t seed) {
  Tokens known = task.tokens;
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  Tokens tokens;
  for (index_t i = 0; i < probe.segment; ++i)
    tokens.push_back(known[kvcondense::random_bits(seed, static_cast<std::uint64_t>(i)) % known.size()]);
  for (index_t i = 0; i < probe.segment * (probe.repeats - 1); ++i) tokens.push_back(tokens[static_cast<std::size_t>(i)]);
  return tokens;
}

/// One text that gates are searched on: its tokens, and the queries whose outputs must not change.
struct GateText {
  Tokens tokens;
  std::vector<index_t> positions;
};

std::vector<GateText> gate_texts(const ModelTask& task) {
  std::vector<GateText> texts;
  for (const Document& d : task.documents) {
    GateText t{d.tokens, {}};
    for (const Document::Query& q : d.queries)  // the tokens that a value is predicted from
      for (index_t i = 0; i < q.length; ++i) t.positions.push_back(q.at - 1 + i);
    if (!t.positions.empty()) texts.push_back(std::move(t));
  }
  if (!texts.empty()) return texts;
  for (std::size_t w = 0; w < task.starts.size(); ++w) {
    const auto window = task.window(w).first(static_cast<std::size_t>(task.context));
    GateText t{Tokens(window.begin(), window.end()), std::vector<index_t>(window.size())};
    std::iota(t.positions.begin(), t.positions.end(), index_t{0});
    texts.push_back(std::move(t));
  }
  return texts;
}

/// What budgets for layers are made of, from one window of the text.
struct LayerNumbers {
  std::vector<std::vector<float>> importance;  ///< [layers][tokens]
  std::vector<float> variance;
};

LayerNumbers layer_numbers(const Recording& r) {
  LayerNumbers numbers;
  for (index_t l = 0; l < r.shape.layers; ++l) {
    const auto sums = column_sums(r, l);
    numbers.variance.push_back(static_cast<float>(kvcondense::budget::attention_variance(
        sums.data(), r.shape.q_heads, r.tokens, kvcondense::budget::VarianceForm::normalised)));
    numbers.importance.emplace_back(static_cast<std::size_t>(r.tokens), 0.0f);
    for (std::size_t i = 0; i < sums.size(); ++i)
      numbers.importance.back()[i % static_cast<std::size_t>(r.tokens)] += sums[i];
  }
  return numbers;
}

std::vector<float> evicted_parts(const LayerNumbers& numbers, index_t tokens, double evict) {
  const auto layers = static_cast<index_t>(numbers.importance.size());
  const std::vector<std::span<const float>> rows(numbers.importance.begin(), numbers.importance.end());
  kvcondense::Workspace work;
  require(work.reserve(kvcondense::budget::prefix_mass_bytes(layers, layers * tokens)), "the layers' level");
  std::vector<index_t> forget(rows.size());
  require(kvcondense::budget::find_prefix_mass(rows, {.evict = evict}, forget.data(), kvcondense::Scratch(work.bytes())),
          "the layers' level");
  std::vector<float> parts;
  for (const index_t f : forget) parts.push_back(static_cast<float>(static_cast<double>(f) / static_cast<double>(tokens)));
  return parts;
}

/// Induction as parts of a whole; even where no head has any.
std::vector<float> parts_of_one(const std::vector<float>& x) {
  const double sum = std::accumulate(x.begin(), x.end(), 0.0);
  std::vector<float> parts;
  for (const float v : x)
    parts.push_back(static_cast<float>(sum > 0 ? static_cast<double>(v) / sum : 1 / static_cast<double>(x.size())));
  return parts;
}

void check(const ModelTask& task, const HeadProbe& p) {
  const index_t length = p.segment * p.repeats;
  if (length > task.model.config.max_positions)
    throw Error("--probe " + std::to_string(p.segment) + " and --repeats " + std::to_string(p.repeats) + " make " +
                std::to_string(length) + " tokens, and the model was made for " +
                std::to_string(task.model.config.max_positions));
  if (p.sinks + p.recent >= task.context)
    throw Error("--sinks and --recent leave nothing of --context " + std::to_string(task.context) + " unseen");
}

std::string table_of(const HeadsFile& h) {
  std::vector<std::vector<std::string>> rows{{"layer", "head", "gate", "induction", "echo", "share"}};
  for (index_t l = 0; l < h.layers; ++l)
    for (index_t k = 0; k < h.kv_heads; ++k) {
      rows.push_back({std::to_string(l), std::to_string(k)});
      for (const auto* table : {&h.gates, &h.induction, &h.echo, &h.shares})
        rows.back().push_back(short_number(static_cast<double>((*table)[static_cast<std::size_t>(l * h.kv_heads + k)]), 3));
    }
  std::vector<std::vector<std::string>> layers{{"layer", "evicted", "variance"}};
  for (std::size_t l = 0; l < h.evicted.size(); ++l)
    layers.push_back({std::to_string(l), short_number(static_cast<double>(h.evicted[l]), 3),
                      short_number(static_cast<double>(h.variance[l]), 3)});
  return aligned(rows) + "\n" + aligned(layers);
}

}  // namespace

Identified identify_heads(const Options& o) {
  Setting setting;
  const ModelTask task = load_task(o, setting);
  HeadProbe p = o.probe;
  if (p.segment == 0) p.segment = std::max<index_t>(2, std::min<index_t>(2500, task.model.config.max_positions / p.repeats));
  check(task, p);
  const index_t layers = task.shape.layers, heads = task.shape.kv_heads;
  const auto layer_count = static_cast<std::size_t>(layers);
  const Tokens probe = probe_tokens(task, p, o.seed);
  const auto texts = gate_texts(task);
  const auto window = task.window(0).first(static_cast<std::size_t>(task.context));

  std::vector<ProbeScores> scores(layer_count);
  std::vector<std::vector<std::vector<double>>> products(texts.size());
  LayerNumbers numbers;
  HeadsFile quant;
  Progress progress(o.quiet);
  std::vector<Job> jobs;
  jobs.push_back({"random tokens that repeat", static_cast<double>(probe.size()), [&](const Tick& tick) {
                    const Recording r = record(task, probe, tick);
                    for (std::size_t l = 0; l < layer_count; ++l)
                      scores[l] = probe_scores(r, static_cast<index_t>(l), p.segment);
                  }});
  jobs.push_back({"attention of a window", static_cast<double>(window.size()),
                  [&](const Tick& tick) {
                    const Recording r = record(task, window, tick);
                    numbers = layer_numbers(r);
                    add_quant_tables(r, p.quant, quant);
                  }});
  for (std::size_t i = 0; i < texts.size(); ++i)
    jobs.push_back({"texts for gates", static_cast<double>(texts[i].tokens.size()), [&, i](const Tick& tick) {
                      const Recording r = record(task, texts[i].tokens, tick);
                      for (std::size_t l = 0; l < layer_count; ++l)
                        products[i].push_back(gap_products(r, static_cast<index_t>(l), texts[i].positions, p.sinks,
                                                           p.recent, task.model.layers[l].o));
                    }});
  for (const Job& j : jobs) progress.expect(j.tokens);
  run_jobs(std::move(jobs), threads_for(o.jobs), progress);

  std::vector<std::vector<double>> sums(layer_count, std::vector<double>(static_cast<std::size_t>(heads * heads), 0.0));
  for (const auto& text : products)  // in the order of the texts: the same sums on any number of threads
    for (std::size_t l = 0; l < layer_count; ++l)
      for (std::size_t i = 0; i < sums[l].size(); ++i) sums[l][i] += text[l][i];
  double gap = 0;
  for (const auto& m : sums)
    for (index_t a = 0; a < heads; ++a) gap += m[static_cast<std::size_t>(a * heads + a)];
  if (!(gap > 0))
    throw Error("no query looks beyond --sinks " + std::to_string(p.sinks) + " and --recent " +
                std::to_string(p.recent) + ": lower them, or raise --context");
  const Gates gates = search_gates(sums, heads, {.l1 = p.l1, .steps = p.steps});

  Identified r;
  r.heads = std::move(quant);
  r.heads.gates.assign(gates.gate.begin(), gates.gate.end());
  for (const ProbeScores& s : scores) {
    r.heads.induction.insert(r.heads.induction.end(), s.induction.begin(), s.induction.end());
    r.heads.echo.insert(r.heads.echo.end(), s.echo.begin(), s.echo.end());
  }
  r.heads.shares = parts_of_one(r.heads.induction);
  r.heads.evicted = evicted_parts(numbers, task.context, p.evict);
  r.heads.variance = numbers.variance;
  std::size_t queries = 0;
  for (const GateText& t : texts) queries += t.positions.size();
  r.made = {{"tool", "kvcondense-eval"},
            {"version", kvcondense::version_string},
            {"command", o.command},
            {"source", setting.source},
            {"text", setting.text}};
  if (!setting.recall.empty()) r.made["recall"] = setting.recall;
  r.made.update({{"context", task.context}, {"seed", o.seed}, {"probe", p.segment}, {"repeats", p.repeats},
                 {"gate_texts", texts.size()}, {"gate_queries", queries}, {"sinks", p.sinks}, {"recent", p.recent},
                 {"l1", p.l1}, {"steps", gates.steps}, {"loss", gates.loss}, {"evict", p.evict},
                 {"level_bits", p.quant.level_bits}, {"outliers", p.quant.outliers}, {"clusters", p.quant.clusters},
                 {"width", p.quant.mean_width}, {"width_group", p.quant.width_group}});
  r.text = table_of(r.heads);
  return r;
}

}  // namespace eval
