#include <eval/suite_rank.hpp>

#include <algorithm>

namespace eval {
namespace {

/// Sum and number of the tasks' shares.
std::pair<double, int> recall_sum(const SuiteRow& row) {
  double sum = 0;
  int tasks = 0;
  for (const Counts& c : {row.needles.all(), row.life.of_requests(), row.life.of_turns(), row.plan.all(), row.induction.all()})
    if (c.asked > 0) sum += c.share(), ++tasks;
  return {sum, tasks};
}

}  // namespace

double error_of(const SuiteResults& results, const SuiteRow& row) { return results.has_model() ? row.result.text.mean_kl() : row.result.mean_error(); }
bool has_error(const SuiteResults& results, const SuiteRow& row) { return results.has_model() ? row.result.text.predictions > 0 : !row.result.layer_error.empty(); }

double recall_of(const SuiteRow& row) {
  const auto [sum, tasks] = recall_sum(row);
  return tasks == 0 ? 0 : sum / tasks;
}
bool has_recall(const SuiteRow& row) { return recall_sum(row).second > 0; }

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
