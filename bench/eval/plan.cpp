#include <eval/plan.hpp>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <numeric>
#include <sstream>

#include <engine/config.hpp>
#include <engine/json_text.hpp>
#include <eval/error.hpp>
#include <eval/session.hpp>
#include <eval/table.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/cost/flexgen.hpp>
#include <kvcondense/cost/io_bound.hpp>
#include <kvcondense/cost/kinetics_law.hpp>
#include <kvcondense/cost/known.hpp>
#include <kvcondense/cost/roofline.hpp>
#include <kvcondense/cpu.hpp>

namespace eval {

namespace cost = kvcondense::cost;
using kvcondense::Input;
using kvcondense::Status;

namespace {

/// "name=number, name=number": calls take(name, number), which says whether there is such a name.
template <class Take>
void read_numbers(const std::string& text, const char* option, Take take) {
  std::stringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    std::erase_if(part, [](unsigned char c) { return std::isspace(c) != 0; });
    const std::size_t equals = std::min(part.find('='), part.size());
    const std::string name = part.substr(0, equals);
    double value = 0;
    const char* const end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data() + std::min(equals + 1, part.size()), end, value);
    if (error != std::errc{} || stop != end || !std::isfinite(value))
      throw Error(std::string(option) + ": expected name=number, not '" + engine::printable(part) + "'");
    if (!take(name, value)) throw Error(std::string(option) + ": there is no '" + engine::printable(name) + "'");
  }
}

std::string names(const auto& known) {
  std::string all;
  for (const auto& k : known) all += (all.empty() ? "" : ", ") + std::string(k.name);
  return all;
}

/// Never gives more than it was told to: what does not fit is refused instead of driving the machine into swap.
class LimitedMemory final : public kvcondense::MemoryResource<kvcondense::Cpu> {
 public:
  explicit LimitedMemory(std::size_t limit) : left_(limit) {}
  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    void* p = bytes <= left_ ? kvcondense::heap_memory().allocate(bytes, align) : nullptr;
    if (p != nullptr) left_ -= bytes;
    return p;
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    left_ += bytes;
    kvcondense::heap_memory().release(p, bytes, align);
  }

 private:
  std::size_t left_;
};

constexpr std::size_t most_memory = std::size_t{4} << 30;

/// Numbers for a step that no model ran: random where a policy ranks by them, neutral elsewhere.
struct RandomStep {
  std::vector<float> rows, mass, surprise, mean, covariance, hidden_norms;
  std::vector<kvcondense::TokenClass> classes;

  /// One token asks each query head something else; in a prompt all ask the same, so that rows are as many as tokens.
  kvcondense::TensorView<const float, 3> queries(const CacheShape& s, index_t tokens) const {
    return {rows.data(), {s.q_heads, tokens, s.head_dim}, {tokens == 1 ? s.head_dim : 0, s.head_dim, 1}};
  }
  kvcondense::StepInputs inputs(const any::AnyCache& cache, index_t layer, index_t tokens) {
    const CacheShape& s = cache.shape();
    const auto n = static_cast<std::size_t>(tokens);
    const auto dim = static_cast<std::size_t>(s.head_dim), heads = static_cast<std::size_t>(s.q_heads);
    mass.resize(static_cast<std::size_t>(cache.total_slots(layer)));
    for (std::size_t i = 0; i < mass.size(); ++i) mass[i] = kvcondense::random_uniform(3, i);
    surprise.resize(n), classes.resize(n), hidden_norms.assign(n, 1.0f), mean.assign(heads * dim, 0.0f), covariance.assign(heads * dim * dim, 0.0f);
    for (std::size_t i = 0; i < n; ++i) surprise[i] = kvcondense::random_uniform(4, i);
    for (std::size_t i = 0; i < heads * dim; ++i) covariance[i * dim + i % dim] = 1.0f;
    kvcondense::StepInputs in;
    in.attention = {cache.ragged(layer, mass.data()), cache.mass_rows(tokens)};
    in.raw_keys = in.values = kvcondense::dense_view(std::as_const(rows).data(), 1, tokens, s.head_dim);
    in.queries = in.raw_queries = queries(s, tokens);
    in.query_mean = kvcondense::dense_view(std::as_const(mean).data(), s.q_heads, s.head_dim);
    in.query_covariance = kvcondense::dense_view(std::as_const(covariance).data(), s.q_heads, s.head_dim, s.head_dim);
    in.surprise = surprise, in.classes = classes, in.hidden_norms = hidden_norms;
    return in;
  }
};

std::string number(double x, int digits = 3) { return short_number(x, digits); }

std::string bytes_text(double b) {
  return b >= 1e9 ? number(b / 1e9) + " GB" : b >= 1e6 ? number(b / 1e6) + " MB" : number(b / 1e3) + " kB";
}
std::string seconds_text(double s) { return s >= 1 ? number(s) + " s" : s >= 1e-3 ? number(s * 1e3) + " ms" : number(s * 1e6) + " us"; }

/// One column of the table: a full cache or a recipe's.
struct Column {
  std::string name;
  cost::Deployment deployment;
};

}  // namespace

cost::Model model_shape(const std::string& text) {
  cost::Model m;
  if (const cost::Model* known = cost::find_model(text)) return *known;
  if (text.find('=') != std::string::npos) {
    const std::pair<const char*, index_t cost::Model::*> fields[] = {
        {"layers", &cost::Model::layers},     {"hidden", &cost::Model::hidden},     {"intermediate", &cost::Model::intermediate},
        {"q_heads", &cost::Model::q_heads},   {"kv_heads", &cost::Model::kv_heads}, {"head_dim", &cost::Model::head_dim},
        {"vocab", &cost::Model::vocab}};
    read_numbers(text, "--model-shape", [&](const std::string& name, double x) {
      if (name == "tied") return m.tied = x != 0, true;
      for (const auto& f : fields)
        if (name == f.first) return m.*f.second = x > 0 && x < 1e12 && x == std::floor(x) ? static_cast<index_t>(x) : 0, true;
      return false;
    });
  } else {
    std::string why;
    const auto config = std::filesystem::is_directory(text) ? engine::read_config(text + "/config.json", why)
                                                            : kvcondense::Expected<engine::ModelConfig>(Status::io_error);
    if (!config)
      throw Error("--model-shape: " + (why.empty() ? "'" + engine::printable(text) + "' is no directory with config.json, no list of name=number, and none of " + names(cost::known_models) : why));
    m = {config->layers,   config->hidden,   config->intermediate,    config->q_heads,
         config->kv_heads, config->head_dim, config->vocab, config->tied_embeddings};
  }
  if (m.validate() != Status::ok)
    throw Error("--model-shape: layers, hidden, intermediate, q_heads, kv_heads, head_dim and vocab are whole numbers above 0, and kv_heads divides q_heads");
  return m;
}

cost::Device device_of(const std::string& text) {
  if (const cost::Device* known = cost::find_device(text)) return *known;
  if (text.find('=') == std::string::npos)
    throw Error("--gpu: '" + engine::printable(text) + "' is no list of name=number and none of " + names(cost::known_devices));
  cost::Device d;
  const std::pair<const char*, double cost::Device::*> fields[] = {{"flops", &cost::Device::flops},
                                                                   {"bandwidth", &cost::Device::bandwidth},
                                                                   {"memory", &cost::Device::memory},
                                                                   {"link", &cost::Device::link}};
  read_numbers(text, "--gpu", [&](const std::string& name, double x) {
    for (const auto& f : fields)
      if (name == f.first) return d.*f.second = x, true;
    return false;
  });
  if (d.validate() != Status::ok) throw Error("--gpu: flops, bandwidth, memory and link are numbers above 0");
  return d;
}

CacheFactors cache_factors(const std::string& recipe, const cost::Model& model, index_t context) {
  const CacheShape shape{.layers = model.layers, .q_heads = model.q_heads / model.kv_heads, .kv_heads = 1, .head_dim = model.head_dim};
  if (validate(shape) != Status::ok) throw Error("--model-shape: no cache has heads of " + std::to_string(model.head_dim));
  const RecipeSpec spec = read_recipe(recipe, shape, {});
  const auto fail = [&](Status s) {
    throw Error("recipe '" + engine::printable(recipe) + "': " +
                (s == Status::out_of_memory ? "its cache takes more than " + std::to_string(most_memory >> 30) + " GiB here; give a shorter --context"
                                            : std::string(to_string(s))));
  };
  if (spec.capabilities.needs.has(Input::gates))
    throw Error("recipe '" + engine::printable(recipe) + "': it keeps what a learned gate says; measure it with --model and give --of-16-bit");

  LimitedMemory memory(most_memory);
  auto made = any::make(spec.parsed, shape, any::on<kvcondense::Cpu>, memory);
  if (!made) throw Error("recipe '" + engine::printable(recipe) + "': " + std::string(made.message()));
  any::AnyCache& cache = *made;
  RandomStep step;
  step.rows.resize(static_cast<std::size_t>(std::max(context, shape.q_heads) * shape.head_dim));
  for (std::size_t i = 0; i < step.rows.size(); ++i) step.rows[i] = kvcondense::random_uniform(1, i) - 0.5f;

  // A prompt in one pass, a turn, then generated tokens, so that what waits for any of them has acted.
  const index_t generated = std::min<index_t>(16, context - 1);
  kvcondense::Workspace scratch;
  kvcondense::ReadCounts reads;
  double read_bytes = 0;  // of the last step
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * shape.head_dim));
  for (index_t t = 0; t <= generated; ++t) {
    const index_t tokens = t == 0 ? context - generated : 1;
    index_t slots = 0;
    for (index_t l = 0; l < shape.layers; ++l) slots = std::max(slots, cache.slots(l, 0));
    if (const Status s = scratch.reserve(cache.workspace_bytes(slots + tokens, tokens), memory); s != Status::ok) fail(s);
    kvcondense::Context<kvcondense::Cpu> context_of(scratch.bytes());
    if (t == 1)
      if (const Status s = cache.turn(context_of, generated); s != Status::ok) fail(s);
    for (index_t l = 0; l < shape.layers; ++l) {
      const auto rows = kvcondense::dense_view(std::as_const(step.rows).data(), 1, tokens, shape.head_dim);
      Status s = cache.append(context_of, l, rows, rows, {}, step.queries(shape, tokens));
      if (s == Status::ok && t == generated) {
        s = cache.attend(context_of, l, step.queries(shape, 1), kvcondense::dense_view(out.data(), shape.q_heads, 1, shape.head_dim), {.reads = &reads});
        // What several heads of the group chose is read once.
        const double once = reads.slots_read > 0 ? static_cast<double>(reads.slots_touched) / static_cast<double>(reads.slots_read) : 0.0;
        read_bytes += static_cast<double>(reads.slot_bytes) * once + static_cast<double>(reads.index_bytes);
      }
      if (s == Status::ok)
        s = cache.step(context_of, l, step.inputs(cache, l, tokens), t == 0 ? kvcondense::Phase::prefill_end : kvcondense::Phase::decode);
      if (s != Status::ok) fail(s);
    }
  }
  const double dense = static_cast<double>(context * shape.layers * shape.head_dim) * 4.0;
  const double held = static_cast<double>(cache.report().bytes()) / dense;
  return {held, cache.capabilities().reads_part ? read_bytes / dense : held};
}

std::string plan(const Options& o) {
  const PlanRequest& p = o.plan;
  const cost::Model model = model_shape(p.model_shape);
  const cost::Device device = device_of(p.gpu);
  const auto context = static_cast<double>(o.context), generated = static_cast<double>(p.generated);
  std::vector<Column> columns;
  const auto add = [&](const std::string& name, CacheFactors factors) {
    cost::Deployment d{.model = model, .device = device};
    d.bytes_per_weight = static_cast<double>(p.weight_bits) / 8;
    d.recipe.held = d.recipe.switched = factors.held;
    d.recipe.read = factors.read;
    require(d.validate(), "the plan");
    columns.push_back({name, d});
  };
  add("full cache", {});
  for (const std::string& r : o.recipes) add(r, cache_factors(r, model, o.context));
  if (p.of_16_bit > 0) add(number(p.of_16_bit) + " of 16 bit", {p.of_16_bit, p.of_16_bit});

  std::vector<std::vector<std::string>> rows(1, {""});
  for (const Column& c : columns) rows[0].push_back(c.name);
  const auto row = [&](const std::string& name, auto text) {
    rows.push_back({name});
    for (const Column& c : columns) rows.back().push_back(text(c.deployment));
  };
  const auto users = [&](const cost::Deployment& d) { return static_cast<double>(d.users(context, p.devices)); };
  const auto all_devices = static_cast<double>(p.devices);
  row("cache, of 16 bit", [&](const auto& d) { return number(d.recipe.held); });
  row("of it read by a decode step", [&](const auto& d) { return number(d.recipe.read / d.recipe.held); });
  row("cache of one user", [&](const auto& d) { return bytes_text(d.cache_bytes(context)); });
  row("users on " + std::to_string(p.devices) + (p.devices == 1 ? " device" : " devices"),
      [&](const auto& d) { return std::to_string(d.users(context, p.devices)); });
  row("prefill", [&](const auto& d) { return seconds_text(d.prefill_seconds(context) / all_devices); });
  row("bytes of a decode step, 1 user", [&](const auto& d) { return bytes_text(d.decode_bytes(context)); });
  row("decode step, 1 user", [&](const auto& d) { return seconds_text(d.decode_seconds(context) / all_devices); });
  row("decode step, all users", [&](const auto& d) {
    return users(d) < 1 ? std::string("-") : seconds_text(d.decode_seconds(context, users(d)) / all_devices);
  });
  row("tokens/s, all users", [&](const auto& d) {
    return users(d) < 1 ? std::string("-") : number(users(d) * all_devices / d.decode_seconds(context, users(d)));
  });
  row("change of users, out and in", [&](const auto& d) { return seconds_text(2 * d.switch_seconds(context)); });
  row("dialogue of " + std::to_string(p.rounds) + " rounds", [&](const auto& d) {
    return seconds_text(d.session_seconds(context, static_cast<double>(p.rounds), generated));
  });
  // Attention of one layer in a decode step of one user.
  const cost::AttentionShape heads{.q_heads = model.q_heads, .kv_heads = model.kv_heads, .head_dim = model.head_dim};
  const auto roof = [&](const cost::Deployment& d) {
    return cost::Roofline{.device = device, .bytes = {.cache = 2.0 * d.recipe.read}};
  };
  row("FLOP per byte, decode attention", [&](const auto& d) {
    const auto r = roof(d);
    const auto w = r.decode_fused(heads, o.context);
    return number(w.intensity()) + (r.compute_bound(w) ? " (arithmetic limits)" : " (memory limits)");
  });
  row("decode attention, one layer", [&](const auto& d) {
    const auto r = roof(d);
    return seconds_text(r.seconds(r.decode_fused(heads, o.context)));
  });
  row("answer of " + std::to_string(p.generated) + " tokens, PFLOP equivalents", [&](const auto& d) {
    cost::KineticsLaw law{.parameters = d.weights(), .layers = model.layers, .q_heads = model.q_heads,
                          .kv_heads = model.kv_heads, .head_dim = model.head_dim, .prompt = context,
                          .generated = generated, .flop_per_byte = device.ridge()};
    require(law.validate(), "the plan");
    auto c = law.dense();
    return number((c.flops + law.flop_per_byte * c.bytes * d.recipe.read) / 1e15);
  });
  row("tokens/s, cache on the host", [&](const auto& d) {
    cost::FlexGen f{.layers = static_cast<double>(model.layers), .hidden = static_cast<double>(model.hidden),
                    .intermediate = 1.5 * static_cast<double>(model.intermediate),  // three matrices, not two
                    .prompt = context,
                    .generated = generated, .block_batch = 32, .device_batch = 32};
    f.cache = {0, 1, 0};
    f.cache_factor = d.recipe.read * static_cast<double>(model.kv_heads * model.head_dim) / static_cast<double>(model.hidden);
    f.machine.host_to_device = f.machine.device_to_host_cache = f.machine.device_to_host_hidden = device.link;
    f.machine.matmul_prefill = f.machine.matmul_decode = f.machine.batched_prefill = f.machine.batched_decode = device.flops;
    require(f.validate(), "the plan");
    return number(f.overlapped_tokens_per_second());
  });

  const cost::IoBound io{context, static_cast<double>(model.head_dim), static_cast<double>(p.on_chip) * 512};
  std::ostringstream out;
  out << p.model_shape << " on " << p.gpu << ": " << number(model.parameters() / 1e9) << "e9 parameters of " << p.weight_bits
      << " bits, " << o.context << " tokens of context, " << p.generated << " generated\n\n"
      << aligned(rows) << "\nA prompt's attention moves at least " << bytes_text(2 * io.numbers())
      << " per head between memory and " << p.on_chip << " KiB on the chip (up to a constant).\n"
      << "Peaks of data sheets: times are lower bounds, users an upper one. A recipe's column takes the bytes of its cache,\n"
         "filled with random keys and values, for what is held, read and moved; methods whose budget follows the data need\n"
         "kvcondense-eval --model and --of-16-bit. Host attention is as fast as FlexGen's authors measured, batches are of 32.\n";
  return out.str();
}

}  // namespace eval
