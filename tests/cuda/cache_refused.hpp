#pragma once

// A cache on CUDA that is refused memory.

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "cache_pair.hpp"

namespace cuda_cache {

/// Requests for memory are refused, one after the other, in `rounds` of six tokens; the slots of a head are then `left`.
template <class R>
void lose_nothing(const R& method, int rounds, index_t left) {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  // Other rows in every round: which of them were lost or counted twice shows.
  const index_t size = 2 * 6 * 16;
  test::OnDevice<float> x(device, normal_numbers(3 * rounds * size, random)), out(device, std::vector<float>(at(size))), mass(device, std::vector<float>(2 * 64));
  const auto rows = [&](int round, int what) { return dense_view(static_cast<const float*>(x.data()) + (3 * round + what) * size, 2, 6, 16); };
  const auto refuses = [](Status s) {
    REQUIRE((s == Status::ok || s == Status::out_of_memory));
    return s != Status::ok;
  };
  std::vector<float> expected_keys, expected_values;
  std::vector<std::int32_t> expected_tokens;
  std::vector<std::byte> expected_file;  // has means, numbers per slot and what was counted too
  int requests = 0;
  for (int k = 1 << 20; k >= 0; k = k == 1 << 20 ? requests : k - 1) {  // first with all it wants, of which requests are counted
    test::RefusingMemory memory(k);
    {
      auto made = make_cache<Cuda>(shape, method, memory);
      if (!made) {
        CHECK(made.status() == Status::out_of_memory);
      } else {
        auto& c = *made;
        Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(64, 6));
        for (int i = 0; i < rounds; ++i) {
          const index_t before = c.total_slots(0);
          const auto queries = rows(i, 0), keys = rows(i, 1), values = rows(i, 2);
          if (refuses(c.append(ctx, 0, keys, values))) {
            REQUIRE(c.total_slots(0) == before);
            REQUIRE(c.pending() == 0);
            REQUIRE(c.attend(ctx, 0, dense_view(queries.data, 2, 1, 16), dense_view(out.data(), 2, 1, 16)) == Status::ok);
            device.wait();
            memory.left = 1 << 20;
            REQUIRE(c.append(ctx, 0, keys, values) == Status::ok);
          }
          AttendOutputs measure;
          if (c.wants_mass(0)) {
            measure.mass = c.ragged(0, mass.data());
            REQUIRE(c.attend(ctx, 0, queries, dense_view(out.data(), 2, 6, 16), measure) == Status::ok);
          }
          StepInputs seen;
          seen.attention = {measure.mass, c.mass_rows(6)}, seen.queries = queries;
          if (refuses(c.step(ctx, 0, seen))) {
            REQUIRE(c.total_slots(0) == before + 12);
            REQUIRE(c.pending() == 6);
            memory.left = 1 << 20;
            REQUIRE(c.step(ctx, 0, seen) == Status::ok);
          }
        }
        REQUIRE(c.slots(0, 1) == left);
        test::OnDevice<float> k_rows(device, std::vector<float>(at(left * 16))), v_rows(device, std::vector<float>(at(left * 16)));
        REQUIRE(c.read(ctx, 0, 1, 0, dense_view(k_rows.data(), left, 16), dense_view(v_rows.data(), left, 16)) == Status::ok);
        std::vector<std::int32_t> tokens(at(left));
        REQUIRE(c.tokens(ctx, 0, 1, tokens) == Status::ok);
        if (expected_tokens.empty()) expected_tokens = tokens, expected_keys = k_rows.read(), expected_values = v_rows.read(), requests = (1 << 20) - memory.left;
        REQUIRE(tokens == expected_tokens);
        REQUIRE(k_rows.read() == expected_keys);
        REQUIRE(v_rows.read() == expected_values);
        memory.left = 1 << 20;
        test::ByteList file;
        REQUIRE(save(ctx, c, file) == Status::ok);
        if (expected_file.empty()) expected_file = file.bytes;
        REQUIRE((file.bytes == expected_file));
      }
    }
    REQUIRE(memory.out == 0);
  }
  CHECK(requests > 20);
}

/// A cache of two layers that share rows, the second of which was refused memory in its step.
template <class R>
struct Sharing {
  static constexpr index_t tokens = 14, all = 2 * tokens;

  test::Device& device;
  test::RefusingMemory& memory;
  Cache<Cuda, R>& cache;
  Context<Cuda> ctx;
  const std::vector<float>& rows;  ///< [head][all], of either layer
  test::OnDevice<float>&x, &out;

  TensorView<const float, 3> part(index_t first, index_t n) const { return {x.data() + first * 16, {2, n, 16}, {all * 16, 16, 1}}; }
  Status forward(index_t layer, index_t first, index_t n) {
    REQUIRE(cache.append(ctx, layer, part(first, n), part(first, n)) == Status::ok);
    REQUIRE(cache.attend(ctx, layer, part(first, n), dense_view(out.data(), 2, n, 16)) == Status::ok);
    return cache.step(ctx, layer);
  }
  index_t shared() {
    const auto report = cache.report(ctx);
    REQUIRE(report);
    return report->across_rows;
  }
  /// Of the second head, the first tokens.
  std::vector<float> keys(index_t layer) {
    test::OnDevice<float> k(device, std::vector<float>(at(tokens * 16))), v(device, std::vector<float>(at(tokens * 16)));
    REQUIRE(cache.read(ctx, layer, 1, 0, dense_view(k.data(), tokens, 16), dense_view(v.data(), tokens, 16)) == Status::ok);
    return k.read();
  }
  std::span<const float> keys_given() const { return std::span(rows).subspan(at(all * 16), at(tokens * 16)); }
};

/// Requests for memory in the step that shares rows of two layers are refused from the k-th on, for each k: some or none of `most` rows are shared then, and
/// `then(sharing, rows that are)` finds nothing lost.
template <class R, class Then>
void share_less(const R& method, index_t most, Then&& then) {
  const CacheShape two{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  constexpr index_t tokens = Sharing<R>::tokens, all = Sharing<R>::all;
  test::Device device;
  std::mt19937 random(5);
  const std::vector<float> rows = normal_numbers(2 * all * 16, random);
  test::OnDevice<float> x(device, rows), out(device, std::vector<float>(at(2 * all * 16)));
  int part = 0, none = 0;
  for (int k = 0; k < 40; ++k) {
    test::RefusingMemory memory(1 << 20);
    {
      auto made = make_cache<Cuda>(two, method, memory);
      REQUIRE(made);
      Sharing<R> s{device, memory, *made, device.with_workspace(made->workspace_bytes(all, tokens)), rows, x, out};
      REQUIRE(s.forward(0, 0, tokens) == Status::ok);
      REQUIRE(s.cache.append(s.ctx, 1, s.part(0, tokens), s.part(0, tokens)) == Status::ok);
      memory.left = k;
      REQUIRE(s.cache.step(s.ctx, 1) == Status::ok);
      const index_t now = s.shared();
      part += now > 0 && now < most, none += now == 0;
      then(s, now);
      device.wait();
    }
    REQUIRE(memory.out == 0);
  }
  CHECK(part > 0);
  CHECK(none > 0);
}

}  // namespace cuda_cache
