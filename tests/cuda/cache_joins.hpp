#pragma once

// What caches are put through whose tokens join the newest slot of their head before they are attended.

#include <string>
#include <string_view>

#include <kvcondense/merge/dmc.hpp>

#include "cache_coordinates.hpp"

namespace cuda_cache {

/// Every way by which tokens come, join, leave or are taken back. `stored`, `within`: of stored numbers, of outputs.
template <class R>
void joins(const R& method, std::string_view text, const CacheShape& shape, float within = 2e-5f, const any::ModelFacts& facts = {}) {
  INFO(text << ", head_dim " << shape.head_dim << ", group " << shape.q_heads / shape.kv_heads);
  Pair<R> pair(method, std::string(text), shape, facts);
  pair.allow(shape.dtype == DType::f32 ? 2e-6f : shape.dtype == DType::f16 ? 2e-3f : 1.6e-2f);  // two steps of the type: a mean may be rounded otherwise
  const auto feed = [&](auto& to, index_t n) { to.forward(n, prim::AttendMath::f32, within); };
  feed(pair, 23);
  for (int i = 0; i < 6; ++i) feed(pair, 1);
  pair.look(within);  // a query without its token
  pair.exchange();
  feed(pair, 9);
  {
    Pair<R> other = pair.fork();
    feed(other, 3);
    feed(pair, 2);
    feed(other, 1);
  }
  pair.space(3);
  feed(pair, 4);
  pair.truncate(pair.on_device().length() - 2);  // what is left of the newest slot can be joined no more
  feed(pair, 1);
  pair.remove(pair.on_device().length() - 4, pair.on_device().length() - 2);
  feed(pair, 2);
  pair.remove(pair.on_device().length() - 1, pair.on_device().length());
  feed(pair, 1);
  pair.exchange();
  pair.turn(3);
  feed(pair, 5);
  pair.truncate(2);
  feed(pair, 1);
  pair.truncate(0);
  feed(pair, 1);
  feed(pair, 40);
  pair.compare_reports();
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->merged_slots > 10);
}

inline constexpr merge::Dmc some{.window = 4, .init = 0.3f};

}  // namespace cuda_cache
