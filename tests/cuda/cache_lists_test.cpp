// What lists of chosen slots have of their own in a cache on CUDA: orders that make room, files, tensor cores, refused memory.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/landmark.hpp>
#include <kvcondense/retrieve/rekv.hpp>
#include <kvcondense/retrieve/triforce.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

/// The checksum of a file whose bytes were changed.
void mend(std::vector<std::byte>& file) {
  Checksum sum;
  sum.add(std::span(file).first(file.size() - 8));
  const std::uint64_t s = sum.value();
  std::memcpy(file.data() + file.size() - 8, &s, 8);
}

}  // namespace

TEST_CASE("cuda cache retrieves: tensor cores read no biases and no raw keys by list, and say so") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  const auto refuses = [&](const auto& method) {
    test::Device device;
    auto c = make_cache<Cuda>(shape, method);
    REQUIRE(c);
    std::mt19937 random(7);
    test::OnDevice<float> q(device, cuda_cache::normal_numbers(4 * 40 * 64, random)), kv(device, cuda_cache::normal_numbers(2 * 40 * 64, random));
    test::OnDevice<float> out(device, std::vector<float>(4 * 64, 7.0f)), all(device, std::vector<float>(4 * 40 * 64));
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(40, 40));
    const auto rows = dense_view(static_cast<const float*>(kv.data()), 2, 40, 64);
    REQUIRE(c->forward(ctx, 0, dense_view(static_cast<const float*>(q.data()), 4, 40, 64), rows, rows, dense_view(all.data(), 4, 40, 64)) == Status::ok);
    const auto queries = dense_view(static_cast<const float*>(q.data()), 4, 1, 64);
    const auto outs = dense_view(out.data(), 4, 1, 64);
    CHECK(c->attend(ctx, 0, queries, outs, {}, prim::AttendMath::halves) == Status::not_supported);
    CHECK(out.read() == std::vector<float>(4 * 64, 7.0f));
    CHECK(c->attend(ctx, 0, queries, outs) == Status::ok);
    CHECK(out.read() != std::vector<float>(4 * 64, 7.0f));
  };
  const quant::GroupInt<4> codes{.group_size = 16, .residual_window = 6};
  refuses(recipe(codes, retrieve::Landmark{.tokens = 4, .blocks = 3}));
  refuses(recipe(position::Reindex{}, codes, retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8}));
}

TEST_CASE("cuda cache retrieves: what was chosen in the order of scores makes room, and is chosen anew when asked") {
  const CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  Pair pair(recipe(retrieve::TriForce{.chunk = 4, .tokens = 28}), "triforce(chunk=4, tokens=28)", shape);
  pair.forward(60, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  for (int i = 0; i < 26; ++i) {  // until nothing but the first chunk and the new ones is left
    pair.forward(1);
    const ReadCounts reads = pair.look();
    CHECK(reads.units_scored == 0);
    CHECK(reads.slots_read == 4 * std::max<index_t>(28, 4 + i + 1));
    if (i == 9) pair.exchange();
  }
  pair.on_host().choose_anew(), pair.on_device().choose_anew();
  CHECK(pair.look().units_scored > 0);  // by a call, which holds nothing
  pair.forward(1);                      // by a step
  CHECK(pair.look().units_scored == 0);
  pair.forward(7, prim::AttendMath::f32, pair.near, Phase::prefill_end);  // a second prompt
  pair.look();
  pair.truncate(80);  // before it was chosen
  CHECK(pair.look().units_scored > 0);
}

TEST_CASE("cuda cache retrieves: forged files of held units do no harm") {
  const CacheShape shape{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 16, .page_slots = 8};
  const auto method = recipe(retrieve::TriForce{.chunk = 4, .tokens = 16});
  Pair pair(method, "triforce(chunk=4, tokens=16)", shape);
  pair.forward(40, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  test::ByteList file;
  REQUIRE(save(pair.device(), pair.on_device(), file) == Status::ok);
  test::OnDevice<float> q(pair.device(), std::vector<float>(2 * 16, 0.5f)), out(pair.device(), std::vector<float>(2 * 16));
  int taken = 0, refused = 0;
  for (std::size_t i = 0; i < 240; ++i)  // held units stand in front
    for (const int value : {0x00, 0x01, 0x05, 0x7f, 0xff}) {
      std::vector<std::byte> forged = file.bytes;
      forged[i] = static_cast<std::byte>(value);
      mend(forged);
      auto fresh = make_cache<Cuda>(shape, method);
      REQUIRE(fresh);
      const Status status = load(pair.device(), *fresh, forged);
      REQUIRE((status == Status::ok || status == Status::corrupt_data || status == Status::incompatible));
      ++(status == Status::ok ? taken : refused);
      if (status != Status::ok || fresh->total_slots(0) > 100) continue;
      Context<Cuda> ctx = pair.device().with_workspace(fresh->workspace_bytes(100, 1));  // whatever was accepted is usable
      CHECK(fresh->attend(ctx, 0, dense_view(static_cast<const float*>(q.data()), 2, 1, 16), dense_view(out.data(), 2, 1, 16)) == Status::ok);
      pair.device().wait();
    }
  CHECK(taken > 100);
  CHECK(refused > 100);
}

TEST_CASE("cuda cache retrieves: a step that is refused memory holds what it held") {
  const auto none = [](auto&&...) {};
  cuda_cache::refuse_a_step(recipe(retrieve::TriForce{.chunk = 4, .tokens = 12}), 9, {0, 1, 2, 3, 4, 5, 6, -1}, 1, none);
  cuda_cache::refuse_a_step(recipe(position::Reindex{}, retrieve::ReKv{.frame = 2, .frames = 2, .init = 1, .question = 8}), 5, {0, 1, 2, 3, 4, 5, 6, -1}, 1, none);
  cuda_cache::refuse_a_step(recipe(retrieve::Landmark{.tokens = 3, .blocks = 2}), 9, {0, 1, 2, 3, 4, 5, 6, -1}, 1, none);
}
