#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/near_share.hpp>

namespace kvcondense::storage {

/// When tokens leave the device, and how many.
struct AlisaPhases {
  index_t p1 = 0;      ///< the first step in which the oldest tokens lie on the host
  index_t p2 = 0;      ///< the first step in which the oldest of those lie nowhere
  double alpha = 0.0;  ///< from p1 on: part of all tokens that is on the host or nowhere, at least
  double beta = 0.0;   ///< from p2 on: part of those that lies nowhere

  bool operator==(const AlisaPhases&) const = default;
};

enum class AlisaPlace : std::uint8_t { device, host, deleted };

/// Where the tokens of one step lie: [0, deleted) nowhere, [deleted, hosted) on the host, [hosted, tokens) on the device. The
/// last one is the step's own.
struct AlisaPlaces {
  index_t deleted = 0;
  index_t hosted = 0;
  index_t tokens = 0;

  constexpr AlisaPlace of(index_t token) const {
    return token >= hosted ? AlisaPlace::device : token >= deleted ? AlisaPlace::host : AlisaPlace::deleted;
  }
  constexpr index_t on_device() const { return tokens - hosted; }
  constexpr index_t on_host() const { return hosted - deleted; }
};

/// Bytes of keys and values of a token in all layers: 16 bit on the device, codes per channel on the host.
struct AlisaBytes {
  index_t batch = 1;
  index_t layers = 1;
  index_t channels = 1;  ///< of the keys of a layer: kv_heads * head_dim
  index_t host_bits = 8;

  constexpr index_t numbers() const { return 2 * batch * layers * channels; }
  constexpr bool sane() const {
    const auto d = [](index_t x) { return static_cast<double>(x); };
    const double most = 1099511627776.0;
    return batch >= 1 && layers >= 1 && channels >= 1 && host_bits >= 1 && host_bits <= 16 && 2.0 * d(batch) * d(layers) * d(channels) <= most;
  }
  constexpr index_t device_token() const { return 2 * numbers(); }
  constexpr index_t host_token() const { return (numbers() * host_bits + 7) / 8; }
  /// Of a step and a least number per channel, in 16 bit, which stay on the device.
  constexpr index_t parameters() const { return 4 * numbers(); }
};

/// What one step does, for who knows what that takes. Where only data say which tokens a step chooses, numbers are means.
struct AlisaStep {
  index_t step = 0;
  AlisaPlaces places{};
  double read = 0;         ///< tokens that attention reads, its own included
  double loaded = 0;       ///< of them from the host
  double recomputed = 0;   ///< of them from what the caller saved of their layers' inputs
  index_t stored = 0;      ///< tokens that move to the host in front of the step
  double load_bytes = 0;
  double store_bytes = 0;
};

/// Seconds of a step.
struct AlisaTimes {
  double compute = 0;
  double memory = 0;
  double recompute = 0;

  constexpr double sum() const { return compute + memory + recompute; }
};

/// Which part of the chosen far tokens is among the oldest `part` of all far ones: as many as anywhere.
struct EvenPicks {
  constexpr double operator()(double part) const { return part; }
};

/// Plans where the tokens of a sparse window lie while an answer grows: on the device, on the host, or nowhere until they are needed.
///
/// Idea     of a sparse window the newest half never moves, and the oldest tokens are seldom chosen: what does not fit on the
///          device goes to the host, and when loading from there takes longer than to compute it again, the oldest of it goes.
/// Source   the three phases of ALISA, arXiv:2403.17312; there is no code of the authors.
/// Needs    lengths, slots of the device, `ratio` of the selection (retrieve/alisa_window.hpp); for a search what a step costs.
/// Shapes   step j has the prompt, j generated tokens and its own; three numbers say where all of them lie.
/// Cost     a few operations per step, no memory; a search calls the caller's model six times per step and pair of alpha and beta.
/// Numbers  k = round(ratio * (prompt + j) / 2), at least 1. Phase I, j < p1: all on the device. Phase II: the oldest floor(alpha
///          (prompt + j)), or as many more as do not fit, are on the host, but never the newest k nor the step's own. Phase III, j >=
///          p2: of those the oldest floor(beta x) are deleted. Nothing comes back: a chosen token that is loaded or recomputed
///          is so for its step alone, in room of the caller's. Sums in double, step after step.
/// Differs  the paper leaves open of what alpha and beta are parts, and searches all four numbers greedily. Here p1 and p2 are the
///          best of all for each alpha and beta, by a shortest path through the phases, and these two are tried in turn: what is
///          found is the best of the grid.
/// Errors   validate: invalid_argument unless 0 < ratio <= 1, 0 <= p1 <= p2, alpha and beta are in [0, 1], lengths are neither
///          negative nor above 2^31, host_bits is in [1, 16] and a token has at least two numbers and at most 2^40;
///          out_of_memory where phase I, or a window and its query, need more slots than there are. `places`, `cost`:
///          out_of_range for steps and tokens that do not exist. `search`: invalid_argument without an alpha or a beta.
struct AlisaPlacement {
  static constexpr Descriptor about{"alisa_placement", Stage::storage, "arXiv:2403.17312"};

  index_t prompt = 0;
  index_t steps = 0;
  index_t slots = 0;  ///< tokens that the device has room for
  double ratio = 0.2;
  AlisaBytes bytes{};
  AlisaPhases phases{};

  /// The newest tokens in front of a step's own that it reads in any case, and of the others as many, or all.
  index_t near(index_t step) const { return std::min(prompt + step, prim::NearShare{ratio}.of(prompt + step)); }
  index_t far(index_t step) const { return std::min(prompt + step - near(step), near(step)); }

  Status validate() const {
    constexpr index_t most = index_t{1} << 31;
    const auto part = [](double x) { return x >= 0.0 && x <= 1.0; };
    const auto length = [](index_t x) { return x >= 0 && x <= most; };
    if (!(ratio > 0.0 && ratio <= 1.0) || !length(prompt) || !length(steps) || !length(slots)) return Status::invalid_argument;
    if (phases.p1 < 0 || phases.p2 < phases.p1 || !part(phases.alpha) || !part(phases.beta) || !bytes.sane()) return Status::invalid_argument;
    if (steps == 0) return Status::ok;
    const index_t whole = std::min(phases.p1, steps);  // steps of phase I
    const bool fits = (whole == 0 || prompt + whole <= slots) && near(steps - 1) + 1 <= slots;
    return fits ? Status::ok : Status::out_of_memory;
  }

  Expected<AlisaPlaces> places(index_t step) const {
    if (step < 0 || step >= steps) return Status::out_of_range;
    return at(step);
  }
  /// What a step costs that chose these tokens beside its own.
  Expected<AlisaStep> cost(index_t step, std::span<const index_t> chosen) const {
    if (step < 0 || step >= steps) return Status::out_of_range;
    AlisaStep s = begin(step, at(step), step == 0 ? AlisaPlaces{} : at(step - 1));
    for (const index_t token : chosen) {
      if (token < 0 || token >= prompt + step) return Status::out_of_range;
      const AlisaPlace place = s.places.of(token);
      s.loaded += place == AlisaPlace::host, s.recomputed += place == AlisaPlace::deleted;
    }
    s.read = static_cast<double>(chosen.size() + 1);
    return priced(s);
  }
  /// The same in the mean. `picks(part)`: see EvenPicks; it ascends from 0 to 1.
  template <class Picks = EvenPicks>
  AlisaStep expected(index_t step, Picks&& picks = {}) const {
    return mean(step, at(step), step == 0 ? AlisaPlaces{} : at(step - 1), picks);
  }
  /// Seconds of all steps. `model(AlisaStep) -> AlisaTimes`.
  template <class Model, class Picks = EvenPicks>
  double seconds(Model&& model, Picks&& picks = {}) const {
    double sum = 0;
    for (index_t j = 0; j < steps; ++j) sum += model(expected(j, picks)).sum();
    return sum;
  }

  /// What a search found.
  struct Found {
    AlisaPhases phases{};
    double seconds = std::numeric_limits<double>::infinity();
  };
  /// The phases that take the least time, of these parts, of equal ones the first. `phases` does not count.
  template <class Model, class Picks = EvenPicks>
  Expected<Found> search(std::span<const double> alphas, std::span<const double> betas, Model&& model, Picks&& picks = {}) const {
    AlisaPlacement plan = *this;
    if (alphas.empty() || betas.empty()) return Status::invalid_argument;
    Found best;
    for (const double alpha : alphas)
      for (const double beta : betas) {
        plan.phases = {0, 0, alpha, beta};
        if (const Status s = plan.validate(); s != Status::ok) return s;
        if (const Found f = plan.shortest(model, picks); f.seconds < best.seconds) best = f;
      }
    return best;
  }

 private:
  enum Phase { one, two, three };

  AlisaPlaces in(Phase phase, index_t step) const {
    const index_t n = prompt + step;
    AlisaPlaces p{0, 0, n + 1};
    if (phase == one) return p;
    p.hosted = std::clamp<index_t>(std::max(part(phases.alpha, n), n + 1 - slots), 0, n - near(step));
    if (phase == three) p.deleted = part(phases.beta, p.hosted);
    return p;
  }
  AlisaPlaces at(index_t step) const { return in(step < phases.p1 ? one : step < phases.p2 ? two : three, step); }
  /// Rounded down, but what lands just below an integer counts as that integer.
  static index_t part(double x, index_t n) { return std::min(n, static_cast<index_t>(x * static_cast<double>(n) + 1e-9)); }

  AlisaStep begin(index_t step, const AlisaPlaces& now, const AlisaPlaces& before) const {
    AlisaStep s;
    s.step = step, s.places = now;
    s.stored = now.hosted - std::max(std::min(before.hosted, now.hosted), now.deleted);
    return s;
  }
  AlisaStep priced(AlisaStep s) const {
    s.load_bytes = s.loaded * static_cast<double>(bytes.host_token());
    s.store_bytes = static_cast<double>(s.stored) * static_cast<double>(bytes.host_token());
    return s;
  }
  template <class Picks>
  AlisaStep mean(index_t step, const AlisaPlaces& now, const AlisaPlaces& before, Picks&& picks) const {
    AlisaStep s = begin(step, now, before);
    const auto chosen = static_cast<double>(far(step)), all = static_cast<double>(prompt + step - near(step));
    const auto older = [&](index_t n) { return n == 0 ? 0.0 : chosen * picks(static_cast<double>(n) / all); };
    s.read = static_cast<double>(near(step) + 1) + chosen;
    s.recomputed = older(now.deleted);
    s.loaded = older(now.hosted) - s.recomputed;
    return priced(s);
  }

  /// The best way through the phases, step after step, of which each way in so far is known by its time and where it went on.
  template <class Model, class Picks>
  Found shortest(Model&& model, Picks&& picks) const {
    Found way[3];
    way[one] = {{steps, steps, phases.alpha, phases.beta}, 0.0};
    for (index_t j = 0; j < steps; ++j) {
      const auto step = [&](Phase from, Phase to) {
        const AlisaPlaces before = j == 0 ? AlisaPlaces{} : in(from, j - 1);
        Found f = way[from];
        if (from == one && to != one) f.phases.p1 = j;
        if (from != three && to == three) f.phases.p2 = j;
        f.seconds += model(mean(j, in(to, j), before, picks)).sum();
        return f;
      };
      const auto better = [](const Found& a, const Found& b) { return b.seconds < a.seconds ? b : a; };
      const Found second = better(step(one, two), step(two, two));
      const Found third = better(better(step(one, three), step(two, three)), step(three, three));
      if (prompt + j + 1 <= slots) way[one] = step(one, one);
      else way[one].seconds = std::numeric_limits<double>::infinity();
      way[two] = second, way[three] = third;
    }
    Found best = way[one];
    for (const Phase p : {two, three})
      if (way[p].seconds < best.seconds) best = way[p];
    return best;
  }
};

}  // namespace kvcondense::storage
