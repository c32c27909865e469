#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_rig.hpp>
#include <support/oracle.hpp>

namespace kvcondense::test {

/// Keys and values of a worked case: one KV head, [tokens][dim], in a float32 cache, all of them stepped.
template <class... S>
struct RetrieveRig {
  using R = RecipeOf<S...>;
  CacheShape shape;
  CacheRig<R> rig;
  index_t tokens;

  RetrieveRig(const nlohmann::json& keys, const nlohmann::json& values, index_t q_heads, float scale, S... stages,
              const nlohmann::json* last_query = nullptr)
      : shape(shape_of(keys, values, q_heads, scale)),
        rig(shape, recipe(stages...), 4096, static_cast<index_t>(keys.size())),
        tokens(static_cast<index_t>(keys.size())) {
    const std::vector<float> k = floats(keys), v = floats(values);
    // A step that ends a prompt may choose by its last query.
    std::vector<float> q(static_cast<std::size_t>(q_heads * tokens * shape.head_dim));
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(7 * i));
    if (last_query != nullptr)
      for (index_t h = 0; h < q_heads; ++h)
        for (index_t d = 0; d < shape.head_dim; ++d)
          q[static_cast<std::size_t>(((h + 1) * tokens - 1) * shape.head_dim + d)] =
              (*last_query)[static_cast<std::size_t>(h)][static_cast<std::size_t>(d)].get<float>();
    forward(k, v, q, tokens);
  }

  static CacheShape shape_of(const nlohmann::json& keys, const nlohmann::json& values, index_t q_heads, float scale) {
    return {.layers = 1,
            .q_heads = q_heads,
            .kv_heads = 1,
            .head_dim = static_cast<index_t>(keys[0].size()),
            .value_dim = static_cast<index_t>(values[0].size()),
            .dtype = DType::f32,
            .page_slots = 8,
            .softmax_scale = scale};
  }

  std::vector<float> forward(const std::vector<float>& k, const std::vector<float>& v, const std::vector<float>& q, index_t n) {
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.values()));
    REQUIRE(rig.cache.forward(rig.ctx, 0, dense_view(q.data(), shape.q_heads, n, shape.head_dim),
                              dense_view(k.data(), 1, n, shape.head_dim), dense_view(v.data(), 1, n, shape.values()),
                              dense_view(out.data(), shape.q_heads, n, shape.values())) == Status::ok);
    return out;
  }

  struct Seen {
    std::vector<float> out, lse;
    std::vector<std::vector<int>> slots;  ///< per query head
    ReadCounts reads;
  };
  /// One query token [q_heads][head_dim].
  Seen attend(const std::vector<float>& q) {
    Seen s;
    const auto heads = static_cast<std::size_t>(shape.q_heads);
    const index_t room = rig.cache.slots(0, 0) + 1;
    std::vector<SlotRun> runs(heads * static_cast<std::size_t>(room));
    std::vector<index_t> count(heads);
    s.out.resize(heads * static_cast<std::size_t>(shape.values()));
    s.lse.resize(heads);
    REQUIRE(rig.cache.attend(rig.ctx, 0, dense_view(q.data(), shape.q_heads, 1, shape.head_dim),
                             dense_view(s.out.data(), shape.q_heads, 1, shape.values()),
                             {.lse = dense_view(s.lse.data(), shape.q_heads, 1),
                              .reads = &s.reads,
                              .runs = {runs.data(), room, count.data()}}) == Status::ok);
    for (index_t h = 0; h < shape.q_heads; ++h) {
      s.slots.emplace_back();
      for (index_t i = 0; i < count[static_cast<std::size_t>(h)]; ++i)
        for (int slot = runs[static_cast<std::size_t>(h * room + i)].first; slot < runs[static_cast<std::size_t>(h * room + i)].last; ++slot)
          s.slots.back().push_back(slot);
    }
    return s;
  }
};

/// The slots of pages.
inline std::vector<int> slots_of_pages(const nlohmann::json& pages, int page, int slots) {
  std::vector<int> all;
  for (const auto& p : pages)
    for (int i = p.get<int>() * page; i < std::min(slots, (p.get<int>() + 1) * page); ++i) all.push_back(i);
  return all;
}

}  // namespace kvcondense::test
