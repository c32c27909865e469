#pragma once

#include <span>

#include <kvcondense/core/config.hpp>

namespace eval {

using kvcondense::index_t;

/// KL(softmax(full) || softmax(other)) in nats. Exactly 0 when both are the same numbers.
double kl_divergence(std::span<const float> full, std::span<const float> other);

/// What predictions of one recipe over one text add up to.
struct TextSums {
  index_t predictions = 0;
  index_t agreements = 0;  ///< same most likely token as the full cache
  double kl = 0;           ///< sum of kl_divergence
  double kl_most = 0;
  double bits = 0;  ///< sum of -log2 of the probability given to what really follows

  /// One prediction. `next` is the token that really follows.
  void add(std::span<const float> full, std::span<const float> other, std::int32_t next);
  void add(const TextSums& more);

  double mean_kl() const { return per_prediction(kl); }
  double agreement() const { return per_prediction(static_cast<double>(agreements)); }
  double mean_bits() const { return per_prediction(bits); }

 private:
  double per_prediction(double sum) const {
    return predictions == 0 ? 0 : sum / static_cast<double>(predictions);
  }
};

/// |other - exact| / |exact| over everything added (Euclidean norms).
struct ErrorSums {
  double difference = 0;  ///< sum of squares
  double exact = 0;       ///< sum of squares

  void add(std::span<const float> exact_row, std::span<const float> other_row);
  double relative() const;
};

/// What the single tokens of a text read of what was there, where a recipe reads a part: sums over layers, query heads and tokens.
struct ReadSums {
  index_t rows = 0;
  double slots = 0;  ///< tokens read, as a part of all
  double mass = 0;   ///< exact attention that fell on them

  double slot_share() const { return rows == 0 ? 0 : slots / static_cast<double>(rows); }
  double mass_share() const { return rows == 0 ? 0 : mass / static_cast<double>(rows); }
};

/// Exact attention of one query head over `count` rows of keys, `step` numbers apart: how much of it falls on `read`, which ascends.
double mass_on(std::span<const float> query, const float* keys, std::size_t step, index_t count, float scale,
               std::span<const index_t> read);

/// Recalled tokens of values: by how many tokens back the nearest earlier mention of the value
/// begins, and by how deep that mention lies in what was read by then.
struct RecallSums {
  static constexpr index_t bands = 3;
  static constexpr index_t band_end[bands - 1] = {
      256, 512};  ///< near: below 256, middle: below 512, far: the rest

  static constexpr index_t quarters = 4;  ///< of the text so far, the oldest first

  index_t asked[bands] = {};
  index_t right[bands] = {};
  index_t deep_asked[quarters] = {};
  index_t deep_right[quarters] = {};

  /// One token, the `before`-th from the start of the text, whose value was last mentioned
  /// `distance` tokens ago.
  void add(index_t distance, index_t before, bool hit);
  void add(const RecallSums& more);
  index_t asked_all() const;
  double all() const;  ///< 0 when nothing was asked
};

}  // namespace eval
