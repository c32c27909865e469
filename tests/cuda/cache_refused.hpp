#pragma once

// A cache on CUDA that is refused memory.

#include <cstddef>
#include <cstdint>
#include <random>
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

}  // namespace cuda_cache
