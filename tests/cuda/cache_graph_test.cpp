// RetrievalAttention in a cache on CUDA: a graph of keys, and walks over it.

#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/retrieval_attention.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;
using cuda_cache::parity;

namespace {

constexpr retrieve::RetrievalAttention method{.tokens = 12, .sinks = 2, .local = 6, .degree = 4, .beam = 16, .hubs = 3, .hub_keys = 2};
const std::string text = cuda_cache::setting("retrieval_attention");

/// A graph of other bounds than the method's, which a prompt's last query or every call asks.
template <class Schedule>
struct Walks {
  static constexpr Descriptor about{"walks", Stage::retrieve, ""};
  static constexpr retrieve::KeyState keys = retrieve::KeyState::rotated;
  retrieve::KeyGraph graph{4, 16, 3, 2};
  constexpr auto pipeline() const {
    return retrieve::Pipeline{retrieve::Tokens{}, graph, retrieve::EachQuery{}, retrieve::PlainScore{}, retrieve::ByHeads{retrieve::Heads::each}, retrieve::TopVisited{9},
                              retrieve::KeepEnds{2, 3}, Schedule{}, retrieve::Aggregate::last};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

}  // namespace

KVCONDENSE_CUDA_RETRIEVES("retrieval_attention", method)

TEST_CASE("cuda cache retrieves: walks over a graph that a prompt begins, in every group and head_dim") {
  for (CacheShape shape : cuda_cache::shapes()) {
    shape.layers = 1;
    Pair pair(recipe(method), text, shape);
    pair.forward(60), pair.look();
    pair.forward(1), pair.look();
    pair.forward(3), pair.look();
    pair.exchange(), pair.look();
    pair.truncate(50), pair.look();  // links to slots that are gone
    pair.forward(5), pair.look();
    pair.remove(30, 34), pair.look();
    auto fork = pair.fork();
    fork.forward(1), fork.look();
    pair.forward(1), pair.look();
  }
}
TEST_CASE("cuda cache retrieves: a graph whose first slots leave is made anew") {
  Pair pair(recipe(evict::SinkWindow{.recent = 30, .sinks = 3}, method), "sink_window(recent=30, sinks=3) + " + text,
            CacheShape{.q_heads = 3, .kv_heads = 1, .head_dim = 16, .page_slots = 4});
  pair.forward(31), pair.look();
  for (int i = 0; i < 4; ++i) pair.forward(1), pair.look();
  CHECK(pair.on_host().total_slots(0) == 33);
}
TEST_CASE("cuda cache retrieves: a graph of keys that become codes") {
  parity(of(quant::GroupInt<2>{.group_size = 16, .residual_window = 6}, method), "group_int(bits=2, group_size=16, residual_window=6) + " + text, cuda_cache::shapes()[0], false, 4e-4f);
}
TEST_CASE("cuda cache retrieves: a beam and hubs as large as they may be") {
  Pair pair(recipe(retrieve::RetrievalAttention{.tokens = 40, .sinks = 2, .local = 6, .degree = 64, .beam = 256, .hubs = 20, .hub_keys = 256}),
            "retrieval_attention(tokens=40, sinks=2, local=6, degree=64, beam=256, hubs=20, hub_keys=256)", CacheShape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .page_slots = 16});
  pair.forward(270), pair.look();
  pair.forward(1), pair.look();
}
TEST_CASE("cuda cache retrieves: what walks hold is what they would choose") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  constexpr index_t n = 40;
  test::Device device;
  std::mt19937 random(11);
  test::OnDevice<float> q(device, cuda_cache::normal_numbers(4 * n * 16, random)), k(device, cuda_cache::normal_numbers(2 * n * 16, random));
  test::OnDevice<float> v(device, cuda_cache::normal_numbers(2 * n * 16, random)), out(device, std::vector<float>(test::at(4 * n * 16)));
  const auto rows = [](test::OnDevice<float>& x, index_t heads) { return dense_view(static_cast<const float*>(x.data()), heads, n, 16); };
  const auto answer = [&](const auto& method_of, bool scores) {
    auto c = make_cache<Cuda>(shape, recipe(method_of));
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(n, n));
    REQUIRE(c->forward(ctx, 0, rows(q, 4), rows(k, 2), rows(v, 2), dense_view(out.data(), 4, n, 16), {}, Phase::prefill_end) == Status::ok);
    test::OnDevice<float> last(device, std::vector<float>(test::at(4 * 16), 7.0f));
    const TensorView<const float, 3> asked{q.data() + (n - 1) * 16, {4, 1, 16}, {n * 16, 16, 1}};
    ReadCounts reads;
    AttendOutputs measure;
    measure.reads = &reads;
    REQUIRE(c->attend(ctx, 0, asked, dense_view(last.data(), 4, 1, 16), measure) == Status::ok);
    CHECK((reads.units_scored > 0) == scores);
    CHECK(reads.slots_read == 4 * (9 + 2 + 3));
    return last.read();
  };
  CHECK(answer(Walks<retrieve::WhenAsked>{}, false) == answer(Walks<retrieve::EveryCall>{}, true));
}
TEST_CASE("cuda cache retrieves: what is held before anything was learned says how many slots there were") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  constexpr index_t n = 30;
  test::Device device;
  std::mt19937 random(13);
  const std::vector<float> x = cuda_cache::normal_numbers(4 * n * 16, random);
  std::vector<float> host_out(x.size());
  test::OnDevice<float> dx(device, x), out(device, host_out);
  const auto method = recipe(Walks<retrieve::WhenAsked>{});
  auto host = make_cache<Cpu>(shape, method);
  auto c = make_cache<Cuda>(shape, method);
  REQUIRE(host);
  REQUIRE(c);
  std::vector<std::byte> scratch(host->workspace_bytes(n, n));
  Context<Cpu> cpu(scratch);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(n, n));
  const auto feed = [&](index_t first, index_t tokens, Phase phase) {
    const auto rows = [&](const float* from, index_t heads) { return TensorView<const float, 3>{from + first * 16, {heads, tokens, 16}, {n * 16, 16, 1}}; };
    REQUIRE(host->forward(cpu, 0, rows(x.data(), 4), rows(x.data(), 2), rows(x.data(), 2), dense_view(host_out.data(), 4, tokens, 16), {}, phase) == Status::ok);
    REQUIRE(c->forward(ctx, 0, rows(dx.data(), 4), rows(dx.data(), 2), rows(dx.data(), 2), dense_view(out.data(), 4, tokens, 16), {}, phase) == Status::ok);
    test::ByteList a, b;
    REQUIRE(save(*host, a) == Status::ok);
    REQUIRE(save(ctx, *c, b) == Status::ok);
    REQUIRE(a.bytes == b.bytes);
  };
  feed(0, 20, Phase::prefill_chunk);
  feed(20, 1, Phase::decode);  // chooses among nothing, and holds that
  feed(21, 2, Phase::decode);
}
TEST_CASE("cuda cache retrieves: a graph that kernels have no room for is refused") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16};
  const auto made = [&](const retrieve::KeyGraph& graph) { return make_cache<Cuda>(shape, recipe(Walks<retrieve::EveryCall>{graph})).status(); };
  CHECK(made({128, 256, 1024, 256}) == Status::ok);
  for (const retrieve::KeyGraph& graph : {retrieve::KeyGraph{129, 16, 3, 2}, retrieve::KeyGraph{0, 16, 3, 2}, retrieve::KeyGraph{4, 257, 3, 2}, retrieve::KeyGraph{4, 0, 3, 2},
                                          retrieve::KeyGraph{4, 16, 1025, 2}, retrieve::KeyGraph{4, 16, 0, 2}, retrieve::KeyGraph{4, 16, 3, 257}, retrieve::KeyGraph{4, 16, 3, 0}})
    CHECK(made(graph) == Status::not_supported);
}
