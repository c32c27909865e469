// What a decode step of eviction costs beside the attention it follows: `share` is the time of `step` (and of `turn`, where a
// method acts before turns) over the time of `attend`, both of the same tokens, one after the other, at about 4,096 slots a
// head. Where attention is counted as it is computed (`Cache::attend_counted`), a part of that work is done in attention: there
// `share` is what both calls take above attention that measures nothing, over that, and `beside_mass` what they take above
// attention that measures a mass, over that: the other methods' share. Of each layer and token chance says which attention is
// timed: the one that counts, or one without a mass or with one before it. So a layer is cold to what is timed, all three are
// of the same minutes, and none comes always behind the same other one, which would be worth a percent. Attention is the same
// work at every token of a layer, so it is medians of it, layer by layer, that are compared. Steps are not, since slots may leave in bursts: every one is
// timed, behind attention that counts, and they count in the mean. Layers take turns, so
// that no layer's slots are still in a processor's cache when their turn comes. Every word of the catalogue that evicts or
// gives budgets has its rows; `--benchmark_filter=tova` runs those that name it.

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <evict_model.hpp>
#include <evict_rows.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>

namespace {

using namespace kvcondense;
using bench::Row;
using Clock = std::chrono::steady_clock;

constexpr index_t chunk = 128;
/// The most that any method lets a head hold.
constexpr index_t most_slots = 9216;

double seconds(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

/// Of layers, which may hold unlike numbers of slots: medians are taken of each.
class Times {
 public:
  void add(index_t layer, double s) { all_[static_cast<std::size_t>(layer)].push_back(s); }
  double mean() const {
    double sum = 0.0, n = 0.0;
    for (const auto& layer : all_) sum += std::accumulate(layer.begin(), layer.end(), 0.0), n += static_cast<double>(layer.size());
    return n > 0.0 ? sum / n : 0.0;
  }
  double middle() const {
    double sum = 0.0;
    for (std::vector<double> some : all_) {
      if (some.empty()) return 0.0;
      const auto half = some.begin() + static_cast<std::ptrdiff_t>(some.size() / 2);
      std::nth_element(some.begin(), half, some.end());
      sum += *half;
    }
    return sum / static_cast<double>(all_.size());
  }

 private:
  std::array<std::vector<double>, static_cast<std::size_t>(bench::shape.layers)> all_;
};

/// A cache that is fed with noise. A prompt is appended and condensed without being attended to: what it would have drawn is
/// noise, too, and decode steps cost what they cost whatever the numbers are.
class Fed {
 public:
  Fed(any::AnyCache& cache, Context<Cpu>& ctx) : cache_(cache), ctx_(ctx) {}

  /// Of attention that measures or counts what the policy asks for, and of steps; where it counts, also of attention that does
  /// nothing else, and that measures a mass.
  Times attend{}, step{}, plain{}, measured{};
  double turn_seconds = 0;

  Status prompt(index_t tokens) {
    for (index_t at = 0; at < tokens; at += chunk)
      for (index_t l = 0; l < bench::shape.layers; ++l) {
        const index_t n = std::min(chunk, tokens - at);
        data_.draw(n);
        if (const Status s = take(l); s != Status::ok) return s;
        const Phase phase = at + n == tokens ? Phase::prefill_end : Phase::prefill_chunk;
        if (const Status s = cache_.step(ctx_, l, data_.inputs(made_up(l, phase)), phase); s != Status::ok) return s;
      }
    return Status::ok;
  }

  /// What probes ask about is the whole prompt; the tokens that ask are taken back.
  Status probe(index_t tokens) {
    for (index_t l = 0; l < bench::shape.layers; ++l) {
      data_.draw(8);
      if (const Status s = take(l); s != Status::ok) return s;
      StepInputs in = data_.inputs({});
      in.probe_last = tokens;
      if (const Status s = cache_.step(ctx_, l, in, Phase::probe); s != Status::ok) return s;
    }
    return cache_.truncate(tokens);
  }

  Status token() {
    for (index_t l = 0; l < bench::shape.layers; ++l) {
      data_.draw(1);
      if (const Status s = take(l); s != Status::ok) return s;
      counting_ = counting_ || cache_.counts_attention(l, 1, Phase::decode);
      const auto timed = counting_ ? chance_() % 3 : 0;
      Clock::time_point from;
      if (timed > 0) {
        AttendOutputs measure;
        if (timed == 2) measure.mass = room(l);
        from = Clock::now();
        if (const Status s = cache_.attend(ctx_, l, data_.queries(), data_.out(), measure); s != Status::ok) return s;
        (timed == 2 ? measured : plain).add(l, seconds(from));
      }
      Times unused, &attends = timed > 0 ? unused : attend;
      const bool counted = cache_.counts_attention(l, 1, Phase::decode);
      AttendOutputs measure;
      if (!counted && cache_.wants_mass(l, Phase::decode)) measure.mass = room(l);
      from = Clock::now();
      if (const Status s = counted ? cache_.attend_counted(ctx_, l, data_.queries(), data_.out(), measure, Phase::decode)
                                   : cache_.attend(ctx_, l, data_.queries(), data_.out(), measure);
          s != Status::ok)
        return s;
      attends.add(l, seconds(from));
      const StepInputs inputs = data_.inputs({measure.mass, cache_.mass_rows(1)});
      from = Clock::now();
      if (const Status s = cache_.step(ctx_, l, inputs, Phase::decode); s != Status::ok) return s;
      step.add(l, seconds(from));
    }
    ++tokens_;
    return Status::ok;
  }

  Status turn(index_t incoming) {
    const auto from = Clock::now();
    const Status s = cache_.turn(ctx_, incoming);
    turn_seconds += seconds(from);
    return s;
  }

  bool counts() const { return counting_; }
  /// Of a layer and token: steps and turns, and what attention takes beyond this, where it counts.
  double above(const Times& attention) const {
    const double turns = turn_seconds / static_cast<double>(std::max<index_t>(1, tokens_ * bench::shape.layers));
    return step.mean() + turns + (counting_ ? attend.middle() - attention.middle() : 0.0);
  }

 private:
  Status take(index_t layer) { return cache_.append(ctx_, layer, data_.keys(), data_.values()); }
  RaggedView<float> room(index_t layer) {
    mass_.resize(static_cast<std::size_t>(cache_.total_slots(layer)));
    return cache_.ragged(layer, mass_.data());
  }
  AttentionView made_up(index_t layer, Phase phase) {
    if (!cache_.wants_mass(layer, phase)) return {};
    const RaggedView<float> mass = room(layer);
    bench::draw_positive(mass_);
    return {mass, cache_.mass_rows(chunk)};
  }

  any::AnyCache& cache_;
  Context<Cpu>& ctx_;
  bench::TokenData data_;
  std::vector<float> mass_;
  std::mt19937 chance_;
  index_t tokens_ = 0;
  bool counting_ = false;
};

void step_share(benchmark::State& state, const Row& row) {
  static const bench::Model model;
  auto made = any::make(row.recipe, bench::shape, any::on<Cpu>, heap_memory(), model.facts());
  if (!made) return state.SkipWithError(std::string(made.message()).c_str());
  any::AnyCache& cache = *made;
  Workspace work;
  if (work.reserve(cache.workspace_bytes(most_slots, chunk)) != Status::ok) return state.SkipWithError("memory");
  Context<Cpu> ctx(work.bytes());
  Fed fed(cache, ctx);
  Status s = fed.prompt(row.prompt);
  if (s == Status::ok && cache.capabilities().probes) s = fed.probe(row.prompt);
  if (s == Status::ok && row.turn > 0) s = fed.turn(row.turn);
  fed.turn_seconds = 0;
  index_t tokens = 0, slots = 0;
  for (auto _ : state) {
    if (s == Status::ok) s = fed.token();
    if (s == Status::ok && row.turn > 0 && ++tokens % row.turn == 0) s = fed.turn(row.turn);
  }
  if (s != Status::ok) return state.SkipWithError(to_string(s));
  for (index_t l = 0; l < bench::shape.layers; ++l) slots += cache.total_slots(l);
  const double attention = fed.counts() ? fed.plain.middle() : fed.attend.mean(), own = fed.above(fed.plain);
  state.counters["attend_us"] = attention * 1e6;
  state.counters["step_us"] = own * 1e6;
  state.counters["share"] = own / attention;
  if (fed.counts()) state.counters["beside_mass"] = fed.above(fed.measured) / fed.measured.middle();
  state.counters["slots"] = static_cast<double>(slots) / static_cast<double>(bench::shape.layers * bench::shape.kv_heads);
}

const int listed = [] {
  for (const Row& r : bench::rows())
    benchmark::RegisterBenchmark(r.recipe.c_str(), step_share, r)->Iterations(r.tokens)->Unit(benchmark::kMillisecond);
  return 0;
}();

}  // namespace
