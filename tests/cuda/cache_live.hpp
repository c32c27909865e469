#pragma once

// What caches with codes are put through.

#include <string>

#include <kvcondense/any/model_facts.hpp>

#include "cache_pair.hpp"
#include "cache_shapes.hpp"

namespace cuda_cache {

/// A prompt, tokens, a roll back, a removal, files that change sides: decoded codes are the same bits on both sides after each.
template <class R>
void lives(Pair<R>& pair, float within = Pair<R>::near) {
  const auto forward = [&](index_t tokens) { pair.forward(tokens, prim::AttendMath::f32, within); };
  forward(40);
  for (int i = 0; i < 5; ++i) forward(1);
  forward(3);
  pair.compare_reports();
  pair.truncate(44);
  pair.remove(3, 9);
  pair.exchange();
  forward(6);
  pair.exchange();
  forward(1);
  pair.compare_reports();
}

/// A fork goes on beside what it was taken of, and tokens of it are removed: neither sees what becomes of the other.
template <class R>
Pair<R> goes_apart(Pair<R>& pair, float within) {
  const auto forward = [&](auto& to, index_t tokens) { to.forward(tokens, prim::AttendMath::f32, within); };
  Pair<R> twin = pair.fork();
  forward(twin, 9);
  forward(pair, 2);
  twin.compare();
  twin.remove(7, 31);
  forward(twin, 12);
  pair.compare();
  return twin;
}

/// Tokens are taken back and removed amid groups, room is made for others, files change sides.
template <class R>
void is_cut(Pair<R>& pair, float within) {
  const auto forward = [&](index_t tokens) { pair.forward(tokens, prim::AttendMath::f32, within); };
  pair.truncate(pair.on_device().length() - 11);
  forward(1);
  pair.remove(pair.on_device().length() / 4, pair.on_device().length() / 2);
  pair.turn(4);
  forward(4);
  pair.exchange();
  forward(9);
  pair.compare_reports();
}

inline constexpr const char* heavy_text = "h2o(heavy=20, recent=8) + ";
inline constexpr const char* ends_text = "sink_window(recent=20, sinks=3) + ";

/// Alone, and behind methods by which rows move and leave.
template <class Q>
void stays(const Q& quant, const std::string& text, const CacheShape& shape, const any::ModelFacts& facts = {}) {
  INFO(text << ", heads of " << shape.head_dim);
  Pair pair(recipe(quant), text, shape, facts);
  lives(pair);
}
template <class Q>
void leaves(const Q& quant, const std::string& text, const CacheShape& shape, const any::ModelFacts& facts = {}) {
  INFO(text << ", heads of " << shape.head_dim);
  Pair pair(recipe(heavy, quant), heavy_text + text, shape, facts);
  lives(pair);
  Pair twin = pair.fork();
  twin.forward(4);
  pair.forward(3);
  pair.exchange();
}

}  // namespace cuda_cache
