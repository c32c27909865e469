#pragma once

#include <algorithm>
#include <vector>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/retrieve/pipeline.hpp>

namespace kvcondense::retrieve {

/// What one decode step of a layer reads, told from a method's blocks: no cache is filled, so a context may be as long as
/// it likes. The least is read when the query heads of a KV head choose the same slots, the most when no two do.
struct StepReads {
  double index_bytes = 0;  ///< once per KV head; in the mean of steps where some go on with an earlier choice
  double slots_least = 0;  ///< summed over KV heads
  double slots_most = 0;

  /// `slot_bytes`: of a key and a value of one KV head as they are stored.
  double least(double slot_bytes) const { return index_bytes + slots_least * slot_bytes; }
  double most(double slot_bytes) const { return index_bytes + slots_most * slot_bytes; }
};

/// What only data decide.
struct ReadGuess {
  index_t layer = 2;      ///< first layers may read all
  index_t prompt = -1;    ///< slots that came in prompts; below 0: all
  double chosen = 1.0;    ///< part of the slots that compete, of a query head: where a score decides how many (`squeezed`, `magicpig`)
  double visited = 1.0;   ///< part of them that a walk looks at (`retrieval_attention`)
};

/// For a cache whose KV heads hold `slots` slots each.
template <class Policy>
StepReads step_reads(const Policy& policy, const CacheShape& shape, index_t slots, const ReadGuess& guess = {}) {
  const auto p = policy.pipeline();
  const auto heads = static_cast<double>(shape.kv_heads), n = static_cast<double>(slots);
  const StepReads all{0.0, heads * n, heads * n};
  if constexpr (!requires { p.summary; }) return all;
  else {
    const std::vector<index_t> each(static_cast<std::size_t>(shape.kv_heads), slots);
    const std::vector<index_t> prompt(each.size(), guess.prompt < 0 ? slots : guess.prompt);
    ReadView<Cpu> view;
    view.shape = shape, view.layer = guess.layer, view.seen = slots;
    view.slots = view.known = each.data(), view.prompt = prompt.data();
    if (p.reads_all(guess.layer) || p.takes_all(view)) return all;

    // Units that compete may end behind the last slot: who chooses the last one reads less.
    const UnitRange among = p.candidates(view, 0);
    const index_t size = p.partition.size(), units = among.size();
    const index_t compete = std::clamp<index_t>(slots - p.unit_begin(among.first), 0, units * size);
    double read = guess.chosen * static_cast<double>(compete), short_of = 0.0;
    if constexpr (requires { p.select.budget(view, index_t{}); }) {
      index_t unread = 0;
      if constexpr (requires { p.partition.unread(); }) unread = p.partition.unread();
      read = static_cast<double>(std::min(compete, std::min(units, p.select.budget(view, 0)) * (size - unread)));
      if (read < static_cast<double>(compete)) short_of = std::min(read, static_cast<double>(units * size - compete));
      if constexpr (requires { p.select.room(index_t{}); }) read = std::min(read, static_cast<double>(p.select.room(0)));
    }
    bool united = false;
    if constexpr (requires { p.reduce.unites(); }) united = p.reduce.unites();
    const double rows = united ? static_cast<double>(shape.group()) : static_cast<double>(p.rows(shape) / shape.kv_heads);
    const double kept = n - static_cast<double>(compete);

    index_t scored = units * size;
    if constexpr (requires { p.summary.walks(); })
      scored = static_cast<index_t>(guess.visited * static_cast<double>(scored * p.query.rows(shape.group())));
    StepReads reads;
    reads.index_bytes = heads * p.schedule.choosing() * static_cast<double>(p.summary.read_bytes(shape, scored));
    reads.slots_least = heads * (kept + read - short_of);
    reads.slots_most = heads * (kept + std::min(static_cast<double>(compete), rows * read));
    return reads;
  }
}

}  // namespace kvcondense::retrieve
