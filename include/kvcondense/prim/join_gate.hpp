#pragma once

#include <cmath>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::prim {

/// What a model that was trained for it says in one component of its keys and queries: whether a token joins the newest slot
/// of its head instead of taking one, and what it counts there.
///
/// Source   Dynamic Memory Compression, arXiv:2403.09636: k - init > 0 joins; it counts sigmoid(q + init) + slack.
/// Numbers  a key component that is NaN does not join.
struct JoinGate {
  bool active = false;
  index_t window = 0;         ///< a slot is the mean of so many of its newest tokens; 0: of all
  float init = 5.0f;
  float slack = 0.0078125f;
  bool first = false;         ///< the component is the first one instead of the last
  bool rotated = true;        ///< queries and keys come with the model's rotation

  KVCONDENSE_HD bool joins(float key) const { return key > init; }
  float weight(float query) const { return 1.0f / (1.0f + std::exp(-query - init)) + slack; }
};

/// The component that a gate reads, and the one that turns with it.
///
/// Numbers  `read` undoes rotation and attention factor; `clear` makes of R(p) x that what R(p) makes of x without the
///          component, and, unless `turns`, sets the component to 0 once more behind the rotation, as training does.
struct ControlComponent {
  index_t at = 0;
  index_t partner = -1;  ///< -1: it does not turn
  bool first_of_pair = false;
  bool turns = false;    ///< rows turn further after `clear`
  float frequency = 0.0f;
  float factor = 1.0f;

  /// angles: null where rows come without rotation.
  static ControlComponent of(const JoinGate& gate, const RopeAngles* angles, index_t dim) {
    ControlComponent c;
    c.at = gate.first ? 0 : dim - 1;
    if (angles == nullptr) return c;
    const bool half = angles->pairing == RopePairing::half_split;
    const index_t far = half ? angles->pairs : 1, step = half ? 1 : 2;
    for (index_t t = 0; t < angles->pairs; ++t) {
      const index_t a = t * step, b = a + far;
      if (a != c.at && b != c.at) continue;
      c.first_of_pair = a == c.at;
      c.partner = c.first_of_pair ? b : a;
      c.frequency = angles->frequency[t];
      c.factor = angles->attention_factor;
    }
    return c;
  }

  /// What the component was before the rotation.
  float read(const float* row, index_t position) const {
    if (partner < 0) return row[at];
    const double angle = static_cast<double>(position) * static_cast<double>(frequency);
    const auto c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle));
    return (first_of_pair ? row[at] * c + row[partner] * s : row[at] * c - row[partner] * s) / factor;
  }

  void clear(float* row, index_t position) const {
    if (partner < 0) {
      row[at] = 0.0f;
      return;
    }
    const double angle = static_cast<double>(position) * static_cast<double>(frequency);
    const auto c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle));
    const float raw = first_of_pair ? row[partner] * c - row[at] * s : row[partner] * c + row[at] * s;
    row[partner] = raw * c;
    row[at] = turns ? (first_of_pair ? -raw * s : raw * s) : 0.0f;
  }
};

}  // namespace kvcondense::prim
