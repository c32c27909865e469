#pragma once

#include <functional>
#include <string>
#include <vector>

#include <eval/tune_candidates.hpp>
#include <kvcondense/core/config.hpp>

namespace eval {

using kvcondense::index_t;

/// What a rung found out about one candidate.
struct Outcome {
  std::string recipe;          ///< sized
  std::string refused;         ///< why there is none; else empty
  double bytes_per_token = 0;  ///< of it, or of its smallest form where that is too large
  bool fits = false;
  double loss = 0;             ///< less is better
  std::string canonical{};     ///< of the recipe, defaults left out: what tells recipes apart; empty: `recipe` does
};

/// Sizes and measures candidates, in rung 0, 1, ...: each looks longer than the one before.
using Judge = std::function<std::vector<Outcome>(const std::vector<Candidate>&, index_t rung)>;

struct Halving {
  index_t rungs = 3;
  index_t keep = 3;    ///< one in so many goes on
  index_t turn = 4;    ///< the best so many are tried with each knob turned, in the rungs between the first and the last
  index_t best = 5;    ///< that are left
};

struct Finalist {
  Candidate candidate;
  Outcome outcome;
};

struct Search {
  std::vector<Finalist> best;           ///< least loss first
  std::vector<std::size_t> tried;       ///< in each rung
  std::size_t refused = 0, large = 0;   ///< of the first rung: no cache takes them, or none is small enough
};

/// Successive halving: of what fits the best go on to the next rung, in the order of their loss; what is as good stays in the order of
/// the candidates. Throws Error that names the smallest size found, where nothing fits.
Search halve(std::vector<Candidate> candidates, double bytes_per_token, const Halving& how, const kvcondense::any::Registry& registry, const Judge& judge);

}  // namespace eval
