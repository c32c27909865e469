#include <eval/tune_search.hpp>

#include <algorithm>
#include <cmath>
#include <set>

#include <eval/error.hpp>
#include <eval/printed.hpp>

namespace eval {
namespace {

Error unreachable(double bytes_per_token, const std::vector<Outcome>& all) {
  const Outcome* least = nullptr;
  for (const Outcome& o : all)
    if (o.refused.empty() && (least == nullptr || o.bytes_per_token < least->bytes_per_token)) least = &o;
  if (least == nullptr) return Error("no candidate is a recipe here: " + (all.empty() ? std::string("there is none") : all.front().refused));
  return Error("no candidate takes at most " + printed("%.1f", bytes_per_token) + " bytes per token; the smallest, " + least->recipe + ", takes " +
               printed("%.1f", least->bytes_per_token));
}

}  // namespace

Search halve(std::vector<Candidate> candidates, double bytes_per_token, const Halving& how, const kvcondense::any::Registry& registry, const Judge& judge) {
  Search search;
  for (index_t rung = 0;; ++rung) {
    const bool last = rung + 1 >= how.rungs;
    search.tried.push_back(candidates.size());
    const std::vector<Outcome> outcomes = judge(candidates, rung);
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      const Outcome& o = outcomes[i];
      if (rung == 0) (o.refused.empty() ? search.large : search.refused) += o.fits ? 0 : 1;
      if (o.refused.empty() && o.fits && o.bytes_per_token <= bytes_per_token && !std::isnan(o.loss)) order.push_back(i);
    }
    if (order.empty()) throw unreachable(bytes_per_token, outcomes);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return outcomes[a].loss < outcomes[b].loss; });
    // Two candidates may come to the same recipe: by their sizes, or by a knob turned to its default.
    std::set<std::string> seen;
    std::erase_if(order, [&](std::size_t i) { return !seen.insert(outcomes[i].canonical.empty() ? outcomes[i].recipe : outcomes[i].canonical).second; });
    const auto least = static_cast<std::size_t>(how.best);
    const std::size_t stay = last ? least : std::max(least, (order.size() + static_cast<std::size_t>(how.keep) - 1) / static_cast<std::size_t>(how.keep));
    order.resize(std::min(order.size(), stay));
    if (last) {
      for (const std::size_t i : order) search.best.push_back({candidates[i], outcomes[i]});
      return search;
    }
    std::vector<Candidate> next;
    std::set<std::string> texts;
    const auto add = [&](const Candidate& c) {
      if (texts.insert(c.text()).second) next.push_back(c);
    };
    for (const std::size_t i : order) add(candidates[i]);
    // Knobs are turned where there is a rung left that chooses among them.
    if (rung + 2 < how.rungs)
      for (std::size_t n = 0; n < std::min(order.size(), static_cast<std::size_t>(how.turn)); ++n)
        for (const Candidate& c : turned(candidates[order[n]], registry)) add(c);
    candidates = std::move(next);
  }
}

}  // namespace eval
