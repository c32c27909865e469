#include <eval/suite_rank.hpp>

#include <algorithm>
#include <array>

namespace eval {
namespace {

std::array<Counts, 4> tasks_of(const SuiteRow& row) { return {row.needles.all(), row.life.of_requests(), row.life.of_turns(), row.plan.all()}; }

}  // namespace

double error_of(const SuiteResults& results, const SuiteRow& row) { return results.has_model() ? row.result.text.mean_kl() : row.result.mean_error(); }
bool has_error(const SuiteResults& results, const SuiteRow& row) { return results.has_model() ? row.result.text.predictions > 0 : !row.result.layer_error.empty(); }

double recall_of(const SuiteRow& row) {
  double sum = 0, tasks = 0;
  for (const Counts& c : tasks_of(row))
    if (c.asked > 0) sum += c.share(), ++tasks;
  return tasks == 0 ? 0 : sum / tasks;
}
bool has_recall(const SuiteRow& row) {
  const auto tasks = tasks_of(row);
  return std::any_of(tasks.begin(), tasks.end(), [](const Counts& c) { return c.asked > 0; });
}

bool was_asked_all(const SuiteResults& results, const SuiteRow& row) {
  const SuiteRow& full = results.rows.at(0);
  const auto mine = tasks_of(row), all = tasks_of(full);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (mine[i].asked != all[i].asked) return false;
  return row.result.text.predictions == full.result.text.predictions;
}

Rows front_of(Rows rows, const Loss& loss) {
  std::stable_sort(rows.begin(), rows.end(), [&](const SuiteRow* a, const SuiteRow* b) {
    const std::size_t x = a->result.report.bytes(), y = b->result.report.bytes();
    return x != y ? x < y : loss(*a) < loss(*b);
  });
  Rows front;
  for (const SuiteRow* r : rows)
    if (front.empty() || loss(*r) < loss(*front.back())) front.push_back(r);
  return front;
}

}  // namespace eval
