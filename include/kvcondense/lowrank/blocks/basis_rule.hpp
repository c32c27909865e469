#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/projection.hpp>

namespace kvcondense::lowrank {

/// How many columns of a basis are stored.
enum class RankRule : std::uint8_t {
  part,    ///< the same part of every head's numbers
  energy,  ///< as many as hold a part of the energy (squared singular values)
  spread,  ///< as many as a part of the sum of singular values leaves room for: entries whose running sum is below it
  table    ///< what the file says for every head
};

/// The smallest rank whose columns hold `part` of the energy; energies descend.
template <class T>
constexpr index_t rank_by_energy(const T* energy, index_t n, double part) {
  double all = 0.0, sum = 0.0;
  for (index_t i = 0; i < n; ++i) all += static_cast<double>(energy[i]);
  index_t r = 0;
  while (r < n && sum < part * all) sum += static_cast<double>(energy[r++]);
  return std::max<index_t>(r, 1);
}

/// How many singular values have a running sum, as a part of the sum of all, below `part`.
template <class T>
index_t rank_by_spread(const T* energy, index_t n, double part) {
  double all = 0.0, sum = 0.0;
  const auto sigma = [&](index_t i) { return std::sqrt(std::max(static_cast<double>(energy[i]), 0.0)); };
  for (index_t i = 0; i < n; ++i) all += sigma(i);
  index_t r = 0;
  for (; r < n; ++r)
    if ((sum += sigma(r)) >= part * all) break;
  return std::max<index_t>(r, 1);
}

/// The rank of one head's basis: a multiple of `tile`, or all columns.
struct BasisRule {
  RankRule rule = RankRule::part;
  double keep = 0.5;
  index_t tile = 8;

  index_t rank(const HeadBases& b, HeadIndex at) const {
    const index_t head = b.at(at.layer, at.head);
    const float* energy = b.energy == nullptr ? nullptr : b.energy + head * b.columns;
    index_t r = 0;
    bool up = true;
    switch (rule) {
      case RankRule::part:
        r = static_cast<index_t>(keep * static_cast<double>(b.dim) + 1e-9), up = false;
        break;
      case RankRule::energy: r = rank_by_energy(energy, b.columns, keep); break;
      case RankRule::spread: r = rank_by_spread(energy, b.columns, keep); break;
      case RankRule::table: r = static_cast<index_t>(b.ranks[head]); break;
    }
    return std::clamp<index_t>((r / tile + (up && r % tile != 0)) * tile, std::min(tile, b.columns), b.columns);
  }

  prim::Projection projection(const HeadBases& b, HeadIndex at) const {
    if (b.empty()) return {};
    return {b.encoder(at.layer, at.head), b.decoder(at.layer, at.head), b.mean_of(at.layer, at.head),
            static_cast<std::int32_t>(rank(b, at)), static_cast<std::int32_t>(b.columns), static_cast<std::int32_t>(b.dim)};
  }

  Status validate(const HeadBases& b, const CacheShape& shape, index_t dim) const {
    if (!(keep > 0.0 && keep <= 1.0) || tile < 1) return Status::invalid_argument;
    if (b.empty()) return Status::missing_input;
    if (b.layers != shape.layers || b.groups != shape.kv_heads || b.dim != dim || b.columns < 1 || b.columns > dim)
      return Status::shape_mismatch;
    if ((rule == RankRule::energy || rule == RankRule::spread) && b.energy == nullptr) return Status::missing_input;
    if (rule == RankRule::table && b.ranks == nullptr) return Status::missing_input;
    if (!b.finite()) return Status::invalid_argument;
    for (index_t i = 0; rule == RankRule::table && i < b.layers * b.groups; ++i)
      if (!(b.ranks[i] >= 1.0f && b.ranks[i] <= static_cast<float>(b.columns))) return Status::invalid_argument;
    return Status::ok;
  }
};

/// A stage whose bases are known beforehand; `Method` has its word and its defaults: about, keep, rule, tile, window and
/// whether the window tumbles.
template <class Method>
struct KnownBases {
  static constexpr Descriptor about = Method::about;
  static constexpr Inputs needs{};
  static constexpr bool key_weights = requires { Method::key_weights; };

  double keep = Method::keep;        ///< part of a key's numbers, of their energy or singular values, by `rule`
  double value_keep = Method::keep;  ///< of values, likewise
  RankRule rule = Method::rule;
  index_t tile = Method::tile;       ///< ranks are multiples of it
  index_t window = Method::window;   ///< newest slots that stay exact; where it tumbles, slots that are coded at once
  index_t sinks = 0;                 ///< first slots that stay exact
  bool keys = true;
  bool values = true;
  BasisList bases{};                 ///< borrowed

  prim::Projection key_transform(const CacheShape&, HeadIndex at) const {
    return keys ? key_rule().projection(list().keys, at) : prim::Projection{};
  }
  prim::Projection value_transform(const CacheShape&, HeadIndex at) const {
    return values ? value_rule().projection(list().values, at) : prim::Projection{};
  }
  constexpr Flush key_flush() const { return keys ? flush() : Flush{0, 0}; }
  constexpr Flush value_flush() const { return values ? flush() : Flush{0, 0}; }
  constexpr bool differs_per_head() const { return true; }

  /// Bases of raw keys want raw keys: a rotation between coordinates and scores cannot be absorbed.
  bool takes_keys(bool raw) const { return !keys || (list().keys.keys == KeyForm::raw) == raw; }

  const char* missing() const {
    const NamedBases* found = bases.find(about.word);
    const bool all = found != nullptr && (!keys || !found->keys.empty()) && (!values || !found->values.empty());
    return all ? nullptr : "bases";
  }
  Status validate(const CacheShape& shape) const {
    if (!keys && !values) return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    if (sinks < 0 || window < (Method::tumbles ? 1 : 0)) return Status::invalid_argument;
    Status s = keys ? key_rule().validate(list().keys, shape, shape.head_dim) : Status::ok;
    if (s == Status::ok && values) s = value_rule().validate(list().values, shape, shape.values());
    return s;
  }

 private:
  constexpr Flush flush() const { return Method::tumbles ? block_flush(window) : fifo_flush(window); }
  NamedBases list() const {
    const NamedBases* found = bases.find(about.word);
    return found == nullptr ? NamedBases{} : *found;
  }
  BasisRule key_rule() const { return {rule, keep, tile}; }
  BasisRule value_rule() const { return {rule, value_keep, tile}; }
};

}  // namespace kvcondense::lowrank
