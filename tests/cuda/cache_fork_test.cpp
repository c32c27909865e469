// Forks of a cache on CUDA beside forks of the one on the CPU.

#include <random>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using test::at;

namespace {

/// Both sides of forks go on, each on its own; what one does the other does not see.
template <class R>
void go_on(const R& method, const char* text, const CacheShape& shape) {
  INFO(text);
  Pair<R> first(method, text, shape);
  first.forward(37);
  for (int i = 0; i < 3; ++i) first.forward(1);
  Pair<R> second = first.fork();
  second.compare();
  second.forward(5);
  first.compare();
  first.forward(1);
  second.compare();
  {
    Pair<R> third = second.fork(), fourth = third.fork();
    for (int i = 0; i < 9; ++i) third.forward(2);
    fourth.compare();
    second.compare();
    fourth.forward(1);
  }
  second.compare();
  second.forward(1);
  first.forward(12);
  Pair<R> last = first.fork();
  REQUIRE(first.on_device().reset(first.device()) == Status::ok);
  last.compare();
  last.remove(3, 4);
  last.forward(3);
  last.truncate(last.on_device().length() - 2);
  last.forward(4);
  second.compare();
}

/// Some of the tokens wait for a step when the other side comes to be.
template <class R>
void go_on_from_pending(const R& method, const char* text, const CacheShape& shape) {
  INFO(text);
  Pair<R> first(method, text, shape);
  first.forward(50);
  first.forward(3, prim::AttendMath::f32, first.near, Phase::probe);  // of a method that looks at no probes
  REQUIRE(first.on_device().pending() == 3);
  Pair<R> second = first.fork();
  second.compare();
  second.forward(2);
  first.compare();
  first.forward(1);
  second.compare();
  Pair<R> third = second.fork();
  third.forward(20);
  second.compare();
  second.forward(1);
  third.compare();
}

/// Pages of its own are refused to a fork, one after the other, where a step would write those that the other side has too: neither side changes,
/// and the step can be made again.
template <class R>
void refuse_pages(const R& method, index_t tokens) {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, cuda_cache::normal_numbers(2 * 40 * 16, random));
  const auto rows = [&](index_t n) { return dense_view(static_cast<const float*>(x.data()), 2, n, 16); };
  test::RefusingMemory memory(1 << 20);
  {
    auto c = make_cache<Cuda>(shape, method, memory);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 40));
    REQUIRE(c->append(ctx, 0, rows(tokens), rows(tokens)) == Status::ok);
    REQUIRE(c->step(ctx, 0) == Status::ok);
    const auto all = [&](auto& of) {
      std::vector<float> numbers;
      for (index_t h = 0; h < 2; ++h) {
        const index_t n = of.slots(0, h);
        test::OnDevice<float> k(device, std::vector<float>(at(n * 16))), v(device, std::vector<float>(at(n * 16)));
        REQUIRE(of.read(ctx, 0, h, 0, dense_view(k.data(), n, 16), dense_view(v.data(), n, 16)) == Status::ok);
        for (const auto* side : {&k, &v})
          for (const float number : side->read()) numbers.push_back(number);
      }
      return numbers;
    };
    const std::vector<float> before = all(*c);
    auto twin = c->fork(ctx);
    REQUIRE(twin);
    int refusals = 0;
    for (bool refused = true; refused; ++refusals) {
      REQUIRE(twin->append(ctx, 0, rows(2), rows(2)) == Status::ok);
      const std::vector<float> fresh = all(*twin);
      memory.left = refusals;
      const Status s = twin->step(ctx, 0);
      memory.left = 1 << 20;
      refused = s != Status::ok;
      if (refused) {
        CHECK(s == Status::out_of_memory);
        CHECK(twin->pending() == 2);
        REQUIRE(all(*twin) == fresh);
        REQUIRE(twin->truncate(ctx, tokens) == Status::ok);
      }
      REQUIRE(all(*c) == before);
    }
    CHECK(refusals > 2);
    REQUIRE(c->append(ctx, 0, rows(2), rows(2)) == Status::ok);
    REQUIRE(c->step(ctx, 0) == Status::ok);
    CHECK(all(*c) == all(*twin));
  }
  CHECK(memory.out == 0);
}

}  // namespace

TEST_CASE("cuda cache: forks share pages and go on apart", "[ways]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  go_on(recipe(), "exact", shape);
  go_on(recipe(evict::H2O{.heavy = 20, .recent = 10}), "h2o(heavy=20, recent=10)", shape);
  go_on(recipe(evict::RKV{.tokens = 30, .window = 6, .kernel = 3, .slack = 4}), "rkv(tokens=30, window=6, kernel=3, slack=4)", shape);
  go_on(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 6, .sinks = 2}),
        "sink_window(recent=29, sinks=3) + int4(group=8, residual=6, sinks=2)", shape);
  // Groups of codes along slots.
  go_on(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32, .sinks = 5}), "kivi4(group=16, residual=32, sinks=5)",
        {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16});
}

TEST_CASE("cuda cache: forks of tokens that no step has seen") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  go_on_from_pending(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 6, .sinks = 2}),
                     "sink_window(recent=29, sinks=3) + int4(group=8, residual=6, sinks=2)", shape);
  go_on_from_pending(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32}), "kivi4(group=16, residual=32)", shape);
}

TEST_CASE("cuda cache: rows that saw a slot are told on in forks and files behind tokens that were taken back") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  Pair first(recipe(evict::ObservedAttention{.keep = 0.5, .sinks = 1, .recent = 4}), "observed_attention(keep=50%, sinks=1, recent=4)", shape);
  first.forward(30);
  first.forward(5);
  first.truncate(31);  // behind a step that counted them
  Pair second = first.fork();
  first.exchange();
  for (auto* side : {&first, &second}) {
    side->forward(2);
    side->forward(9, prim::AttendMath::f32, first.near, Phase::prefill_end);
    REQUIRE(side->on_device().slots(1, 0) == 21);
  }
}

TEST_CASE("cuda cache: a fork whose step is refused pages leaves both sides as they were") {
  refuse_pages(recipe(evict::SinkWindow{.recent = 20, .sinks = 3}), 23);
  refuse_pages(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 2, .sinks = 2}), 32);
  // The page into which others are joined is one that the other side has too.
  refuse_pages(recipe(evict::SinkWindow{.recent = 9, .sinks = 3}, quant::GroupInt<4>{.key_axis = prim::GroupAxis::channel, .value_axis = prim::GroupAxis::channel, .group_size = 2, .residual_window = 2}), 12);
}

TEST_CASE("cuda cache: a fork takes no pages before it writes, and one that is refused leaves the other as it was") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, cuda_cache::normal_numbers(2 * 30 * 16, random));
  const auto rows = [&](index_t n) { return dense_view(static_cast<const float*>(x.data()), 2, n, 16); };
  test::RefusingMemory memory(1 << 20);
  {
    auto c = make_cache<Cuda>(shape, recipe(evict::SinkWindow{.recent = 20, .sinks = 3}), memory);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 30));
    REQUIRE(c->append(ctx, 0, rows(23), rows(23)) == Status::ok);
    REQUIRE(c->step(ctx, 0) == Status::ok);
    const index_t before = memory.out;
    auto empty = make_cache<Cuda>(shape, recipe(evict::SinkWindow{.recent = 20, .sinks = 3}), memory);
    const index_t bare = memory.out - before;
    {
      auto twin = c->fork(ctx);
      REQUIRE(twin);
      CHECK(memory.out - before == 2 * bare + 3);  // tables of pages of both columns, and the tokens of slots
      const index_t forked = memory.out;
      REQUIRE(twin->append(ctx, 0, rows(1), rows(1)) == Status::ok);
      CHECK(memory.out == forked + 4);  // the last page of every head
    }
    CHECK(memory.out == before + bare);
    std::vector<float> expected;
    const auto all = [&] {
      test::OnDevice<float> k(device, std::vector<float>(at(23 * 16))), v(device, std::vector<float>(at(23 * 16)));
      REQUIRE(c->read(ctx, 0, 1, 0, dense_view(k.data(), 23, 16), dense_view(v.data(), 23, 16)) == Status::ok);
      return k.read();
    };
    expected = all();
    bool refused = true;
    for (int left = 0; refused; ++left) {
      memory.left = left;
      auto twin = c->fork(ctx);
      refused = !twin;
      if (refused) CHECK(twin.status() == Status::out_of_memory);
      memory.left = 1 << 20;
      REQUIRE(all() == expected);
    }
  }
  CHECK(memory.out == 0);
}
