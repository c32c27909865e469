#include <eval/speed.hpp>

#include <algorithm>
#include <chrono>

namespace eval {
namespace {

double quantile(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  const double at = q * static_cast<double>(v.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, v.size() - 1);
  return v[low] + (at - static_cast<double>(low)) * (v[high] - v[low]);
}

}  // namespace

std::vector<Speed> measure_speed(const std::vector<Step>& steps, index_t rounds, index_t tokens,
                                 Progress& progress) {
  using Clock = std::chrono::steady_clock;
  std::vector<Speed> speeds(steps.size());
  if (rounds < 1) return speeds;
  std::vector<std::vector<double>> seconds(steps.size());
  for (index_t round = 0; round < rounds + 1; ++round) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const auto begin = Clock::now();
      for (index_t t = 0; t < tokens; ++t) steps[i](round * tokens + t);
      // A clock may stand still over a short turn; ratios need something to divide by.
      const double s = std::max(std::chrono::duration<double>(Clock::now() - begin).count(), 1e-9);
      progress.done(static_cast<double>(tokens), "timing");
      if (round > 0) seconds[i].push_back(s);  // the first round warms up
    }
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    std::vector<double> ratios;
    for (std::size_t r = 0; r < seconds[i].size(); ++r)
      ratios.push_back(seconds[0][r] / seconds[i][r]);
    speeds[i].tokens_per_second = static_cast<double>(tokens) / quantile(seconds[i], 0.5);
    speeds[i].of_full = quantile(ratios, 0.5);
    speeds[i].spread = (quantile(ratios, 0.75) - quantile(ratios, 0.25)) / speeds[i].of_full;
  }
  return speeds;
}

}  // namespace eval
