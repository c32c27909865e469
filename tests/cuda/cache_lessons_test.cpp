// What a prompt teaches a cache on CUDA: in every order of threads, refused, forged. Methods: cache_taught_test.cpp, cache_channels_test.cpp.

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <kvcondense/retrieve/infinigen.hpp>
#include <kvcondense/retrieve/pqcache.hpp>
#include <kvcondense/retrieve/retrieval_attention.hpp>
#include <kvcondense/retrieve/sparq.hpp>
#include <kvcondense/retrieve/squeezed.hpp>
#include <support/byte_list.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;

namespace {

constexpr CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
constexpr retrieve::Squeezed squeezed{.clusters = 0.3, .coarse = 0.1, .observe = 5, .iterations = 3};
constexpr retrieve::RetrievalAttention graph{.tokens = 12, .sinks = 2, .local = 6, .degree = 4, .beam = 16, .hubs = 3, .hub_keys = 2};
retrieve::InfiniGen infinigen(const any::ModelFacts& facts) { return {.query_axes = facts.query_axes, .part = 0.3, .alpha = 1.0, .dense_layers = 0}; }

template <class Make>
void in_every_order(Make&& make, const std::string& text) {
  INFO(text);
  test::each_way([&] {
    test::Device device;
    const cuda_cache::Model model(device, shape);
    Pair pair(make(model.on_device()), text, shape, model.on_host());
    pair.forward(40);
    for (int i = 0; i < 2; ++i) pair.forward(1), pair.look();
  });
}

/// A prompt of `tokens` tokens, then single ones.
template <class C>
Status feed(C& c, Context<Cuda>& ctx, test::OnDevice<float>& x, index_t at, index_t tokens, test::OnDevice<float>& out, Phase phase = Phase::automatic) {
  const auto rows = [&](index_t heads) { return TensorView<const float, 3>{x.data() + at * 16, {heads, tokens, 16}, {64 * 16, 16, 1}}; };
  return c.forward(ctx, 0, rows(6), rows(2), rows(2), dense_view(out.data(), 6, tokens, 16), {}, phase);
}

}  // namespace

TEST_CASE("cuda cache lessons: the same in every order of threads and blocks") {
  in_every_order(of(squeezed), "squeezed(clusters=30%, coarse=10%, observe=5, iterations=3)");
  in_every_order(of(retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.4, .sinks = 2}), cuda_cache::setting("pqcache"));
  in_every_order(of(retrieve::SparQ{.channels = 5, .tokens = 20}), cuda_cache::setting("sparq"));
  in_every_order(of(graph), cuda_cache::setting("retrieval_attention"));
  in_every_order([](const any::ModelFacts& facts) { return recipe(infinigen(facts)); }, cuda_cache::setting("infinigen"));
}

namespace {

/// A prompt whose step gets too little scratch, or no memory: nothing is learned, and the next one teaches what it would have. `room(pipeline)`: what
/// is too little.
template <class Method, class Room>
void teaches_or_not(const Method& method, Room&& room) {
  test::RefusingMemory memory(1 << 20);
  test::Device device;
  std::mt19937 random(3);
  test::OnDevice<float> x(device, cuda_cache::normal_numbers(6 * 64 * 16, random)), out(device, std::vector<float>(6 * 40 * 16));
  const auto file_of = [&](auto& c) {
    test::ByteList file;
    REQUIRE(save(device.context(), c, file) == Status::ok);
    return file.bytes;
  };
  {
    auto refused = make_cache<Cuda>(shape, recipe(method), memory);
    auto plain = make_cache<Cuda>(shape, recipe(method));
    REQUIRE(refused);
    REQUIRE(plain);
    Context<Cuda> ctx = device.with_workspace(plain->workspace_bytes(64, 40));
    // A step has room for the lesson, or does nothing.
    StepInputs queries;
    queries.queries = {x.data(), {6, 40, 16}, {64 * 16, 16, 1}};
    const TensorView<const float, 3> rows{x.data(), {2, 40, 16}, {64 * 16, 16, 1}};
    REQUIRE(plain->append(ctx, 0, rows, rows) == Status::ok);
    Context<Cuda> small = device.context().with_workspace(ctx.workspace().first(room(method.pipeline())));
    REQUIRE(plain->step(small, 0, queries, Phase::prefill_end) == Status::workspace_too_small);
    REQUIRE(plain->pending() == 40);
    REQUIRE(plain->step(ctx, 0, queries, Phase::prefill_end) == Status::ok);
    for (int left = 0;; ++left) {  // every request for memory is refused once
      memory.left = left;
      const Status s = feed(*refused, ctx, x, 0, 40, out);
      memory.left = 1 << 20;
      if (s == Status::ok) break;
      REQUIRE(s == Status::out_of_memory);
      REQUIRE(refused->length() == 0);
      REQUIRE(left < 100);
    }
    REQUIRE(file_of(*refused) == file_of(*plain));
    test::OnDevice<float> a(device, std::vector<float>(6 * 16)), b(device, std::vector<float>(6 * 16));
    REQUIRE(feed(*refused, ctx, x, 40, 1, a) == Status::ok);
    REQUIRE(feed(*plain, ctx, x, 40, 1, b) == Status::ok);
    CHECK(a.read() == b.read());
    REQUIRE(refused->reset(device) == Status::ok);
    CHECK(refused->report(device)->index_bytes == 0);
    REQUIRE(feed(*refused, ctx, x, 0, 40, out) == Status::ok);  // it learns anew
  }
  CHECK(memory.out == 0);
}

}  // namespace

TEST_CASE("cuda cache lessons: a prompt that is refused teaches nothing") {
  teaches_or_not(squeezed, [](const auto& p) {
    return prim::KeyClusters::fit_bytes(cache::CudaUnitSummary<retrieve::KeyClusters>::plan(p.summary, 40), 40, 16, 3);
  });
  const auto half = [](const auto& p) { return cache::CudaLearning<std::remove_cvref_t<decltype(p)>>::fit_bytes(p, shape, 40) / 2; };
  teaches_or_not(retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.4, .sinks = 2}, half);
  test::Device device;
  const cuda_cache::Model model(device, shape);
  teaches_or_not(infinigen(model.on_device()), half);
  teaches_or_not(graph, half);
}

TEST_CASE("cuda cache lessons: a prompt's end has to say its queries, where they teach") {
  test::Device device;
  std::mt19937 random(3);
  test::OnDevice<float> x(device, cuda_cache::normal_numbers(6 * 64 * 16, random));
  const auto without_queries = [&](const auto& method) {
    auto c = make_cache<Cuda>(shape, recipe(method));
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(40, 40));
    const TensorView<const float, 3> rows{x.data(), {2, 40, 16}, {64 * 16, 16, 1}};
    REQUIRE(c->append(ctx, 0, rows, rows) == Status::ok);
    const Status s = c->step(ctx, 0, Phase::prefill_end);
    device.wait();
    return s;
  };
  CHECK(without_queries(squeezed) == Status::missing_input);
  CHECK(without_queries(graph) == Status::missing_input);
  CHECK(without_queries(infinigen(cuda_cache::Model(device, shape).on_device())) == Status::missing_input);
  CHECK(without_queries(retrieve::PqCache{.bits = 3, .keep = 0.4, .sinks = 2}) == Status::ok);
}

TEST_CASE("cuda cache lessons: numbers of a file by which kernels would go astray are refused") {
  test::Device device;
  constexpr index_t dim = 16, fine = 6, coarse = 2;
  std::vector<float> good(test::at(retrieve::FoundClusters::floats(fine, coarse, dim)), 0.5f);
  for (index_t c = 0; c < fine; ++c) good[good.size() - 4 - test::at(fine) + test::at(c)] = static_cast<float>(c % coarse);
  good[good.size() - 2] = fine, good[good.size() - 1] = coarse;
  const auto pipeline = squeezed.pipeline();
  const auto load = [&](const std::vector<float>& numbers, std::size_t bytes) {
    test::ByteList file;
    ByteWriter w(file);
    w.put(static_cast<std::uint32_t>(numbers.size()));
    w.bytes(std::as_bytes(std::span(numbers)));
    cache::CudaFound found(cuda::device_memory());
    REQUIRE(found.make(1, prim::ClusterHead::lead) == Status::ok);
    ByteReader r(std::span<const std::byte>(file.bytes).first(std::min(bytes, file.bytes.size())));
    const Status s = found.load(r, device.context(), [&](std::span<const float> x) { return cache::CudaLearning<decltype(pipeline)>::fits(pipeline, shape, x); });
    if (s != Status::ok) return s;
    test::ByteList again;
    ByteWriter v(again);
    found.save(v, device.context());
    REQUIRE(again.bytes == file.bytes);
    return s;
  };
  CHECK(load(good, SIZE_MAX) == Status::ok);
  CHECK(load({}, SIZE_MAX) == Status::ok);  // nothing was learned
  for (const std::size_t cut : {std::size_t{2}, std::size_t{100}}) CHECK(load(good, cut) == Status::corrupt_data);
  const auto with = [&](std::size_t from_end, float x) {
    std::vector<float> bad = good;
    bad[bad.size() - from_end] = x;
    return load(bad, SIZE_MAX);
  };
  CHECK(with(2, fine + 1) == Status::corrupt_data);
  CHECK(with(1, coarse + 1) == Status::corrupt_data);
  CHECK(with(5, coarse) == Status::corrupt_data);  // a parent that there is not
  CHECK(with(5, 0.5f) == Status::corrupt_data);
  CHECK(with(4 + fine + 2 * coarse * dim + 1, -1.0f) == Status::corrupt_data);  // keys of a cluster
  CHECK(with(30, std::numeric_limits<float>::infinity()) == Status::corrupt_data);
}
