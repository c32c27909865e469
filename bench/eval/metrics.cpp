#include <eval/metrics.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <engine/sampling.hpp>

namespace eval {
namespace {

/// The logarithm of the sum of exp(logits).
double log_sum(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float l : logits) sum += std::exp(l - top);
  return top + std::log(sum);
}

double ratio(double part, double whole) { return whole == 0 ? 0 : part / whole; }
double ratio(index_t part, index_t whole) {
  return ratio(static_cast<double>(part), static_cast<double>(whole));
}

}  // namespace

double kl_divergence(std::span<const float> full, std::span<const float> other) {
  const double full_sum = log_sum(full), other_sum = log_sum(other);
  double kl = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    const double log_p = static_cast<double>(full[i]) - full_sum;
    const double log_q = static_cast<double>(other[i]) - other_sum;
    kl += std::exp(log_p) * (log_p - log_q);
  }
  return std::max(kl, 0.0);  // rounding may leave -1e-17
}

void TextSums::add(std::span<const float> full, std::span<const float> other, std::int32_t next) {
  const double one = kl_divergence(full, other);
  predictions += 1;
  agreements += engine::greedy(full) == engine::greedy(other);
  kl += one;
  kl_most = std::max(kl_most, one);
  bits += engine::bits(other, next);
}

void TextSums::add(const TextSums& more) {
  predictions += more.predictions;
  agreements += more.agreements;
  kl += more.kl;
  kl_most = std::max(kl_most, more.kl_most);
  bits += more.bits;
}

void ErrorSums::add(std::span<const float> exact_row, std::span<const float> other_row) {
  for (std::size_t i = 0; i < exact_row.size(); ++i) {
    const double e = exact_row[i], d = static_cast<double>(other_row[i]) - e;
    difference += d * d;
    exact += e * e;
  }
}

double ErrorSums::relative() const {
  if (exact == 0 && difference > 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(ratio(difference, exact));
}

void RecallSums::add(index_t distance, index_t before, bool hit) {
  index_t b = 0;
  while (b < bands - 1 && distance >= band_end[b]) ++b;
  asked[b] += 1;
  right[b] += hit;
  const index_t mention = before - distance;
  const index_t q =
      std::clamp<index_t>(mention * quarters / std::max<index_t>(before, 1), 0, quarters - 1);
  deep_asked[q] += 1;
  deep_right[q] += hit;
}

void RecallSums::add(const RecallSums& more) {
  for (index_t b = 0; b < bands; ++b) {
    asked[b] += more.asked[b];
    right[b] += more.right[b];
  }
  for (index_t q = 0; q < quarters; ++q) {
    deep_asked[q] += more.deep_asked[q];
    deep_right[q] += more.deep_right[q];
  }
}

index_t RecallSums::asked_all() const { return std::accumulate(asked, asked + bands, index_t{0}); }

double RecallSums::all() const {
  return ratio(std::accumulate(right, right + bands, index_t{0}), asked_all());
}

double mass_on(std::span<const float> query, const float* keys, std::size_t step, index_t count, float scale,
               std::span<const index_t> read) {
  double top = -std::numeric_limits<double>::infinity(), all = 0, part = 0;
  std::size_t at = 0;
  for (index_t j = 0; j < count; ++j) {
    const float* k = keys + static_cast<std::size_t>(j) * step;
    double dot = 0;
    for (std::size_t d = 0; d < query.size(); ++d) dot += static_cast<double>(query[d]) * static_cast<double>(k[d]);
    const double logit = static_cast<double>(scale) * dot;
    if (logit > top) {
      const double shrink = std::exp(top - logit);
      all *= shrink, part *= shrink, top = logit;
    }
    const double weight = std::exp(logit - top);
    all += weight;
    if (at < read.size() && read[at] == j) part += weight, ++at;
  }
  return all > 0 ? part / all : 0;
}

}  // namespace eval
