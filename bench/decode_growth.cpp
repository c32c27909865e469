// What a generated token costs in the layers of a large model, and how that grows: append, attention and step of a stack of
// layers, under the full cache and under recipes that take turns within one run. Matrix products, which are the same for
// all, are not part of it.
//
// Caches hold what they would after a prompt of so many tokens: keys, values and, for those that rank slots by it, attention
// of random numbers, in chunks. Budgets are a quarter of the context.
//
//   time     of a token and a layer, in the median of the rounds; `of full` is the full cache's time over it, round by round
// All recipes have as many layers, so many that the full cache is larger than the processor's caches (--cold-mib), within 2 to 32: a
// condensed one may fit where the full one does not, as in a model.
//
//   growth   exponents p of time ~ n^p and bytes ~ n^p, least squares of the logarithms: 1 is linear, 0 is constant

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <eval/host.hpp>
#include <eval/speed.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/core/huge_memory.hpp>
#include <kvcondense/cpu.hpp>

namespace {

using namespace kvcondense;

std::size_t size(index_t n) { return static_cast<std::size_t>(n); }

/// `{4}`: a quarter of the context, `{8}` an eighth.
std::vector<std::string> demo_recipes() {
  return {"sliding_window(window={4})",
          "sink_window(sinks=4, recent={4})",
          "sink_window(sinks=4, recent={4}) + reindex",
          "h2o(heavy={8}, recent={8})",
          "tova(tokens={4})",
          "knorm(tokens={4}, recent=32)",
          "snapkv(tokens={4}, window=32)",
          "ada(snapkv(tokens={4}, window=32))",
          "int8",
          "kivi4",
          "kivi2",
          "h2o(heavy={8}, recent={8}) + kivi2",
          "ada(snapkv(tokens={4}, window=32)) + kivi4"};
}

std::string filled(std::string recipe, index_t context) {
  for (const index_t part : {4, 8}) {
    const std::string hole = "{" + std::to_string(part) + "}";
    for (std::size_t at; (at = recipe.find(hole)) != std::string::npos;) recipe.replace(at, hole.size(), std::to_string(context / part));
  }
  return recipe;
}

/// A stack of layers under one recipe, behind a prompt.
class Stack {
 public:
  static constexpr index_t chunk = 512;

  Stack(const std::string& recipe, const CacheShape& shape, index_t context, const std::vector<float>& numbers, MemoryResource<Cpu>& memory)
      : shape_(shape), numbers_(numbers), random_(static_cast<std::uint32_t>(context)) {
    auto made = any::make(recipe, shape, any::on<Cpu>, memory);
    if (!made) {
      why_ = std::string(made.message());
      return;
    }
    cache_ = std::make_unique<any::AnyCache>(*std::move(made));
    if (work_.reserve(cache_->workspace_bytes(context + 2 * chunk, chunk)) != Status::ok) why_ = "no memory for its workspace";
    ctx_ = Context<Cpu>(work_.bytes());
    out_.resize(size(shape.q_heads * shape.head_dim));
    for (index_t at = 0; at < context && why_.empty(); at += chunk) {
      const index_t n = std::min(chunk, context - at);
      for (index_t l = 0; l < shape.layers; ++l) feed(l, n, at + n == context ? Phase::prefill_end : Phase::prefill_chunk);
    }
  }

  /// One token through all layers.
  void token() {
    for (index_t l = 0; l < shape_.layers; ++l) feed(l, 1, Phase::decode);
  }

  const std::string& why() const { return why_; }
  double bytes_per_layer() const { return static_cast<double>(cache_->report().bytes()) / static_cast<double>(shape_.layers); }
  double ratio() const { return cache_->report().ratio(); }

 private:
  /// Somewhere in the numbers, on a row's boundary: no two chunks are alike, and none is made anew while time is taken.
  TensorView<const float, 3> rows(index_t heads, index_t n) {
    const index_t dim = shape_.head_dim, most = (static_cast<index_t>(numbers_.size()) - heads * n * dim) / dim;
    return dense_view(numbers_.data() + static_cast<index_t>(random_() % static_cast<std::uint32_t>(most)) * dim, heads, n, dim);
  }

  void feed(index_t layer, index_t n, Phase phase) {
    const bool prompt = phase != Phase::decode;
    Status s = cache_->append(ctx_, layer, rows(shape_.kv_heads, n), rows(shape_.kv_heads, n));
    const TensorView<const float, 3> queries = rows(shape_.q_heads, n);
    AttendOutputs measure;
    if (cache_->wants_mass(layer, phase)) {
      mass_.resize(size(cache_->total_slots(layer)));
      measure.mass = cache_->ragged(layer, mass_.data());
      if (prompt)
        for (float& m : mass_) m = std::abs(numbers_[random_() % numbers_.size()]);
    }
    if (s == Status::ok && !prompt) s = cache_->attend(ctx_, layer, queries, dense_view(out_.data(), shape_.q_heads, 1, shape_.head_dim), measure);
    const StepInputs inputs{.attention = {measure.mass, cache_->mass_rows(n)}, .queries = queries};
    if (s == Status::ok) s = cache_->step(ctx_, layer, inputs, phase);
    if (s != Status::ok && why_.empty()) why_ = to_string(s);
  }

  CacheShape shape_;
  const std::vector<float>& numbers_;
  std::minstd_rand random_;
  std::unique_ptr<any::AnyCache> cache_;
  Workspace work_;
  Context<Cpu> ctx_;
  std::vector<float> out_, mass_;
  std::string why_;
};

/// The slope of log y over log x.
double exponent(const std::vector<double>& x, const std::vector<double>& y) {
  const double n = static_cast<double>(x.size());
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double a = std::log(x[i]), b = std::log(y[i]);
    sx += a, sy += b, sxx += a * a, sxy += a * b;
  }
  return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

struct Options {
  std::vector<std::string> recipes;
  std::vector<index_t> contexts = {2048, 4096, 16384, 65536};
  std::vector<index_t> kv_heads = {8};
  index_t group = 4, head_dim = 128, layers = 0, cold_mib = 512, rounds = 3, tokens = 128;
  std::string memory = "huge", json;
};

/// One row of the tables, over what grows.
struct Curve {
  std::vector<double> n, seconds, bytes;
};

class Run {
 public:
  explicit Run(const Options& o) : o_(o) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const index_t heads = *std::max_element(o.kv_heads.begin(), o.kv_heads.end()) * o.group;
    numbers_.resize(size(2 * heads * Stack::chunk * o.head_dim));
    for (float& x : numbers_) x = normal(random);
  }

  int all() {
    std::printf("Append, attention and step of a token and layer; %lld query heads to a KV head, head size %lld; kernels: %s; memory: %s; %s\n", static_cast<long long>(o_.group),
                static_cast<long long>(o_.head_dim), prim::cpu::row_ops().name, o_.memory.c_str(), eval::host_line().c_str());
    std::vector<std::string> recipes{"keep_all"};
    recipes.insert(recipes.end(), o_.recipes.begin(), o_.recipes.end());
    by_context_.resize(recipes.size()), by_heads_.resize(recipes.size());
    const auto most = *std::max_element(o_.contexts.begin(), o_.contexts.end());
    for (const index_t context : o_.contexts)
      for (const index_t heads : o_.kv_heads) {
        if (heads != o_.kv_heads.back() && context != most) continue;  // heads grow at the longest context, contexts at the last number of heads
        measure(recipes, context, heads);
      }
    growth(recipes, "context", by_context_);
    growth(recipes, "KV heads", by_heads_);
    if (!o_.json.empty()) std::ofstream(o_.json) << json_.dump(1) << "\n";
    return failed_ ? 1 : 0;
  }

 private:
  MemoryResource<Cpu>& memory() { return o_.memory == "huge" ? static_cast<MemoryResource<Cpu>&>(huge_) : heap_memory(); }

  void measure(const std::vector<std::string>& recipes, index_t context, index_t heads) {
    const double layer = static_cast<double>(2 * heads * context * o_.head_dim * 2);
    const auto fitting = static_cast<index_t>(static_cast<double>(o_.cold_mib << 20) / layer) + 1;
    const index_t layers = o_.layers > 0 ? o_.layers : std::clamp<index_t>(fitting, 2, 32);
    const CacheShape shape{.layers = layers, .q_heads = heads * o_.group, .kv_heads = heads, .head_dim = o_.head_dim};
    std::printf("\n%lld tokens, %lld layers, %lld KV heads\n\n| recipe | of 16 bit | us | of full | spread |\n|---|--:|--:|--:|--:|\n", static_cast<long long>(context),
                static_cast<long long>(layers), static_cast<long long>(heads));
    std::vector<std::unique_ptr<Stack>> stacks;
    std::vector<std::size_t> which;
    std::vector<eval::Step> steps;
    for (std::size_t r = 0; r < recipes.size(); ++r) {
      auto stack = std::make_unique<Stack>(filled(recipes[r], context), shape, context, numbers_, memory());
      if (!stack->why().empty()) {
        std::fprintf(stderr, "%s: %s\n", recipes[r].c_str(), stack->why().c_str());
        failed_ = true;
        if (r == 0) return;
        continue;
      }
      steps.emplace_back([s = stack.get()](index_t) { s->token(); });
      stacks.push_back(std::move(stack)), which.push_back(r);
    }
    eval::Progress silent(true);
    const std::vector<eval::Speed> speeds = eval::measure_speed(steps, o_.rounds, o_.tokens, silent);
    for (std::size_t i = 0; i < stacks.size(); ++i) {
      const std::string& recipe = recipes[which[i]];
      const double seconds = 1 / speeds[i].tokens_per_second / static_cast<double>(layers);
      if (!stacks[i]->why().empty()) std::fprintf(stderr, "%s: %s\n", recipe.c_str(), stacks[i]->why().c_str()), failed_ = true;
      std::printf("| `%s` | %.3f | %.1f | %.2fx | %.0f %% |\n", filled(recipe, context).c_str(), stacks[i]->ratio(), 1e6 * seconds, speeds[i].of_full, 100 * speeds[i].spread);
      json_.push_back({{"context", context}, {"layers", layers}, {"kv_heads", heads}, {"recipe", filled(recipe, context)}, {"of_16_bit", stacks[i]->ratio()},
                       {"seconds", seconds}, {"of_full", speeds[i].of_full}, {"spread", speeds[i].spread}, {"bytes_per_layer", stacks[i]->bytes_per_layer()}});
      const auto add = [&](Curve& c, index_t n) {
        c.n.push_back(static_cast<double>(n)), c.seconds.push_back(seconds), c.bytes.push_back(stacks[i]->bytes_per_layer());
      };
      if (heads == o_.kv_heads.back()) add(by_context_[which[i]], context);
      if (context == *std::max_element(o_.contexts.begin(), o_.contexts.end())) add(by_heads_[which[i]], heads);
    }
    std::fflush(stdout);
  }

  static void growth(const std::vector<std::string>& recipes, const char* over, const std::vector<Curve>& curves) {
    if (curves[0].n.size() < 2) return;
    std::printf("\nGrowth over %s\n\n| recipe | time | bytes |\n|---|--:|--:|\n", over);
    for (std::size_t r = 0; r < recipes.size(); ++r)
      if (curves[r].n.size() > 1)
        std::printf("| `%s` | %.2f | %.2f |\n", recipes[r].c_str(), exponent(curves[r].n, curves[r].seconds), exponent(curves[r].n, curves[r].bytes));
  }

  Options o_;
  HugeMemory huge_;
  std::vector<float> numbers_;
  std::vector<Curve> by_context_, by_heads_;
  nlohmann::json json_ = nlohmann::json::array();
  bool failed_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  Options o;
  o.recipes = demo_recipes();
  CLI::App app("What a generated token costs in the layers of a large model, and how that grows");
  app.add_option("--recipe", o.recipes, "Beside the full cache; {4} is a quarter of the context; may be repeated");
  app.add_option("--contexts", o.contexts, "Tokens behind which a token is generated")->delimiter(',')->check(CLI::Range(512, 1 << 20))->capture_default_str();
  app.add_option("--kv-heads", o.kv_heads, "KV heads; several: at the longest context")->delimiter(',')->check(CLI::Range(1, 128))->capture_default_str();
  app.add_option("--group", o.group, "Query heads to a KV head")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--head-dim", o.head_dim, "Head size")->check(CLI::Range(8, 256))->capture_default_str();
  app.add_option("--layers", o.layers, "Layers; 0: as many as make the full cache larger than --cold-mib, 2 to 32")->check(CLI::Range(0, 128))->capture_default_str();
  app.add_option("--cold-mib", o.cold_mib, "More than the processor's caches hold")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--rounds", o.rounds, "Turns of each recipe")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--tokens", o.tokens, "Of a turn; blocks of codes are written once in 128")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--memory", o.memory, "Of caches: heap, or huge for pages of 2 MiB where the system has them")->check(CLI::IsMember({"heap", "huge"}))->capture_default_str();
  app.add_option("--json", o.json, "Where the numbers go");
  CLI11_PARSE(app, argc, argv);
  return Run(o).all();
}
