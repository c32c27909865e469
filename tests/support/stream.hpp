#pragma once

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/prim/rope.hpp>
#include <support/fill.hpp>

namespace kvcondense::test {

/// A stream of tokens through a cache with one eviction policy and one position stage: one query head,
/// one KV head, exact float storage. `require_attention` computes what attention must give, in
/// double, from raw keys and the position of every slot.
template <class Position, class Evict = evict::SinkWindow>
struct Stream {
  using R = decltype(recipe(Evict{}, Position{}));
  static constexpr index_t dim = 32;

  Stream(const Position& position, index_t token_count, index_t sinks = 2, index_t recent = 9)
      : Stream(position, token_count, Evict{.recent = recent, .sinks = sinks}) {}
  Stream(const Position& position, index_t token_count, const Evict& evict)
      : tokens(token_count), size(static_cast<std::size_t>(token_count * dim)), raw_q(size), raw_k(size), v(size) {
    auto made = make_cache<Cpu>(CacheShape{.head_dim = dim, .dtype = DType::f32},
                                recipe(evict, position));
    REQUIRE(made.status() == Status::ok);
    cache = std::move(*made);
    REQUIRE(work.reserve(cache.workspace_bytes(256, 1)) == Status::ok);
    fill_normal(raw_q.data(), size, 1);
    fill_normal(raw_k.data(), size, 2);
    fill_normal(v.data(), size, 3);
    angles = *prim::rope_angles(position.rope, dim);
    rotated_q = raw_q, rotated_k = raw_k;
    for (auto* x : {&rotated_q, &rotated_k})
      for (index_t t = 0; t < tokens; ++t) turn(x->data() + t * dim, t);
  }

  /// Token t through the cache; remembers which tokens its query saw, and returns the attention.
  std::vector<float> forward(index_t t, const std::vector<float>& q, const std::vector<float>& k,
                             Phase phase = Phase::automatic) {
    std::vector<float> out(dim), mass(256);
    Context<Cpu> ctx(work.bytes());
    const auto one = [&](const std::vector<float>& x) { return dense_view(x.data() + t * dim, 1, 1, dim); };
    REQUIRE(cache.append(ctx, 0, one(k), one(v)) == Status::ok);
    seen = kept();
    REQUIRE(cache.attend(ctx, 0, one(q), dense_view(out.data(), 1, 1, dim),
                         {.mass = cache.ragged(0, mass.data())}) == Status::ok);
    REQUIRE(cache.step(ctx, 0, {cache.ragged(0, mass.data()), 1}, phase) == Status::ok);
    return out;
  }

  void remove(index_t first, index_t last) {
    Context<Cpu> ctx(work.bytes());
    REQUIRE(cache.remove(ctx, first, last) == Status::ok);
  }

  std::vector<index_t> kept() const {
    std::vector<index_t> ids;
    for (index_t i = 0; i < cache.slots(0, 0); ++i) ids.push_back(cache.token(0, 0, i));
    return ids;
  }
  index_t slots_seen() const { return static_cast<index_t>(seen.size()); }

  /// `position(token, slot)` is where a key must stand, `at` where the query must.
  template <class F>
  void require_attention(const std::vector<float>& got, index_t query, F&& position, index_t at,
                         double logit_factor = 1.0) const {
    std::vector<double> weight, want(dim);
    double sum = 0.0;
    for (std::size_t s = 0; s < seen.size(); ++s) {
      const index_t delta = position(seen[s], static_cast<index_t>(s)) - at;  // only the difference matters
      double logit = 0.0;
      for (index_t d = 0; d < dim; ++d) logit += static_cast<double>(raw_q[index(query, d)]) * turned(seen[s], d, delta);
      weight.push_back(std::exp(logit * logit_factor / std::sqrt(static_cast<double>(dim))));
      sum += weight.back();
    }
    for (std::size_t s = 0; s < seen.size(); ++s)
      for (index_t d = 0; d < dim; ++d)
        want[static_cast<std::size_t>(d)] += weight[s] / sum * static_cast<double>(v[index(seen[s], d)]);
    for (std::size_t d = 0; d < want.size(); ++d) REQUIRE(got[d] == Approx(want[d]).margin(1e-5));
  }

  index_t tokens;
  std::size_t size;
  std::vector<float> raw_q, raw_k, v, rotated_q, rotated_k;
  Cache<Cpu, R> cache;

 private:
  static std::size_t index(index_t t, index_t d) { return static_cast<std::size_t>(t * dim + d); }

  void turn(float* row, index_t position) const {
    float cos_sin[2 * dim];
    prim::rope_cos_sin(angles, position, cos_sin, cos_sin + dim);
    prim::rotate_row(row, row, cos_sin, cos_sin + dim, angles.pairs, angles.pairing);
  }

  /// Component d of raw key t at a position, in double.
  double turned(index_t t, index_t d, index_t position) const {
    const bool split = angles.pairing == prim::RopePairing::half_split;
    if (d >= 2 * angles.pairs) return static_cast<double>(raw_k[index(t, d)]);
    const index_t pair = split ? d % angles.pairs : d / 2;
    const bool second = split ? d >= angles.pairs : d % 2 == 1;
    const double angle = static_cast<double>(position) * static_cast<double>(angles.frequency[pair]);
    const double x = static_cast<double>(raw_k[index(t, split ? pair : 2 * pair)]);
    const double y = static_cast<double>(raw_k[index(t, split ? pair + angles.pairs : 2 * pair + 1)]);
    return second ? y * std::cos(angle) + x * std::sin(angle) : x * std::cos(angle) - y * std::sin(angle);
  }

  prim::RopeAngles angles;
  Workspace work;
  std::vector<index_t> seen;
};

}  // namespace kvcondense::test
