// Words in CUDA graphs: a graph captured once and launched again and again, over lengths and rows that changed on the device, does what the same
// calls do. None of them allocates or waits.

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <kvcondense/cuda.cuh>

#include "device.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;

namespace {

constexpr prim::AttendMath both_maths[] = {prim::AttendMath::f32, prim::AttendMath::halves};

/// What `use` enqueues on the stream of a device, as a graph. It is not done when it is captured.
class Captured {
 public:
  template <class Use>
  Captured(test::Device& device, Use&& use) : stream_(device.context().stream()) {
    REQUIRE(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal) == cudaSuccess);
    use();
    cudaGraph_t graph = nullptr;
    REQUIRE(cudaStreamEndCapture(stream_, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&exec_, graph, 0) == cudaSuccess);
    REQUIRE(cudaGraphDestroy(graph) == cudaSuccess);
  }
  ~Captured() { static_cast<void>(cudaGraphExecDestroy(exec_)); }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;
  void launch() { REQUIRE(cudaGraphLaunch(exec_, stream_) == cudaSuccess); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

/// Runs calls that may only enqueue.
template <class Use>
void only_enqueues(Use&& use) {
  const test::HostWork before = test::host_work();
  use();
  CHECK(test::host_work() == before);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

std::vector<float> normal_numbers(index_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n));
  for (float& v : x) v = normal(random);
  return x;
}

constexpr index_t dim = 64, group = 2;

/// What a call of attention gives, in each of the maths.
struct Outputs {
  index_t heads, tokens;
  test::OnDevice<float> out, lse, mass;
  Outputs(test::Device& device, index_t kv_heads, index_t queries, index_t mass_slots)
      : heads(kv_heads), tokens(queries), out(device, std::vector<float>(at(2 * kv_heads * group * queries * dim), 7.0f)),
        lse(device, std::vector<float>(at(2 * kv_heads * group * queries), 7.0f)), mass(device, std::vector<float>(at(2 * mass_slots), 7.0f)) {}

  prim::AttendRequest request(int which, float* queries, const index_t* mass_offset) {
    const index_t q_heads = heads * group, slots = mass_offset == nullptr ? 0 : static_cast<index_t>(mass.read().size()) / 2;
    prim::AttendRequest r;
    r.queries = dense_view(static_cast<const float*>(queries), q_heads, tokens, dim);
    r.out = dense_view(out.data() + which * q_heads * tokens * dim, q_heads, tokens, dim);
    r.lse = dense_view(lse.data() + which * q_heads * tokens, q_heads, tokens);
    if (slots > 0) r.mass = {mass.data() + which * slots, mass_offset, heads}, r.mass_rows = 1;
    r.softmax_scale = 0.125f;
    return r;
  }
  /// All numbers, one behind the other.
  std::vector<float> read() const {
    std::vector<float> all = out.read();
    for (const auto* more : {&lse, &mass})
      for (const float x : more->read()) all.push_back(x);
    return all;
  }
};

/// Rows of a column in pages of exact numbers, as a cache has them.
class Column {
 public:
  static constexpr index_t page_slots = 64;
  Column(test::Device& device, index_t heads, index_t pages)
      : bytes_(device, std::vector<std::byte>(at(heads * pages) * page_bytes())), table_(device, pages_of(heads * pages)), offset_(device, offsets(heads, pages)),
        nothing_(device, offsets(heads, 0)), counts_(device, std::vector<prim::PartCounts>(at(heads))), runs_(device, std::vector<prim::SlotRun>(at(heads * pages))),
        heads_(heads) {}

  /// New rows of all heads, which `slots` counts already, and where all rows then lie.
  Status append(Context<Cuda>& ctx, const index_t* slots, TensorView<const float, 3> rows, index_t* repaired) {
    const prim::ColumnParts parts{{nullptr, nothing_.data(), heads_, page_slots, dim}, {nullptr, nothing_.data(), heads_, page_slots, dim},
                                  {table_.data(), offset_.data(), heads_, page_slots, dim}, nullptr, counts_.data(), 0};
    const Status s = prim::HeadSlots::append(ctx, prim::ExactRows{}, parts, 0, slots, rows, repaired);
    return s == Status::ok ? prim::HeadSlots::lay(ctx, parts, offset_.data(), runs_.data()) : s;
  }
  prim::ColumnRuns runs() { return {runs_.data(), offset_.data(), page_slots}; }
  std::vector<std::byte> read() const { return bytes_.read(); }

 private:
  static std::size_t page_bytes() { return prim::ExactRows{}.page_bytes(page_slots, dim); }
  static std::vector<index_t> offsets(index_t heads, index_t pages) {
    std::vector<index_t> o;
    for (index_t h = 0; h <= heads; ++h) o.push_back(h * pages);
    return o;
  }
  std::vector<std::byte*> pages_of(index_t pages) {
    std::vector<std::byte*> p;
    for (index_t i = 0; i < pages; ++i) p.push_back(bytes_.data() + at(i) * page_bytes());
    return p;
  }
  test::OnDevice<std::byte> bytes_;
  test::OnDevice<std::byte*> table_;
  test::OnDevice<index_t> offset_, nothing_;
  test::OnDevice<prim::PartCounts> counts_;
  test::OnDevice<prim::SlotRun> runs_;
  index_t heads_;
};

/// Lengths grow where they are.
template <int Threads>
__global__ void __launch_bounds__(Threads) grow(index_t* slots, index_t heads, index_t by) {
  if (static_cast<index_t>(threadIdx.x) < heads) slots[threadIdx.x] += by;
}

}  // namespace

TEST_CASE("cuda capture: attention over codes has the lengths and queries that are there when its graph is launched") {
  // Both columns change from codes to exact rows, at different slots; heads may be shorter than what lies in their pages.
  const std::vector<test::ColumnShape> key_shape{{4, 160, 40}, {0, 64, 300}, {2, 320, 20, 3}}, value_shape{{4, 190, 10}, {0, 354, 10}, {2, 330, 10, 1}};
  const std::vector<std::vector<index_t>> lengths{{10, 64, 0}, {120, 257, 150}, {204, 364, 342}, {1, 300, 342}};
  constexpr index_t heads = 3, most = 364, tokens = 1, room = 204 + 364 + 342;
  const prim::GroupInt<4> key_codec{.axis = prim::GroupAxis::channel, .group_size = 32}, value_codec{.axis = prim::GroupAxis::token, .group_size = 32};
  const test::HostColumn<prim::GroupInt<4>> host_keys(key_codec, {}, dim, 64, key_shape, 11), host_values(value_codec, {}, dim, 64, value_shape, 12);
  test::each_way([&] {
    test::Device device;
    auto keys = host_keys.on(device), values = host_values.on(device);
    std::mt19937 random(13);
    test::OnDevice<index_t> slots(device, lengths[0]), offset(device, {0, 0, 0, 0});
    test::OnDevice<float> queries(device, std::vector<float>(at(heads * group * tokens * dim)));
    const prim::PagedHeads<prim::GroupInt<4>, prim::GroupInt<4>> paged{key_codec, value_codec, {}, keys.view(), values.view(), slots.data(), heads};
    Outputs launched(device, heads, tokens, room), called(device, heads, tokens, room);
    std::size_t need = 0;
    const auto requests = [&](Outputs& to) { return std::vector<prim::AttendRequest>{to.request(0, queries.data(), offset.data()), to.request(1, queries.data(), offset.data())}; };
    const std::vector<prim::AttendRequest> graph_requests = requests(launched), own_requests = requests(called);
    for (const auto& r : own_requests) need = std::max(need, prim::Attend<Cuda>::workspace_bytes(r, heads, most));
    Context<Cuda> ctx = device.with_workspace(need);
    const auto attend = [&](const std::vector<prim::AttendRequest>& r) {
      for (int m = 0; m < 2; ++m) REQUIRE(prim::Attend<Cuda>::run(ctx, r[at(m)], paged, most, both_maths[m]) == Status::ok);
    };
    const std::vector<float> blank = launched.read();
    Captured graph(device, [&] { attend(graph_requests); });
    device.wait();
    CHECK(same_bits(launched.read(), blank));  // captured, not done
    std::vector<float> before = blank;
    for (const std::vector<index_t>& n : lengths) {
      slots.write(n);
      offset.write({0, n[0], n[0] + n[1], n[0] + n[1] + n[2]});
      queries.write(normal_numbers(heads * group * tokens * dim, random));
      graph.launch();
      only_enqueues([&] { attend(own_requests); });
      device.wait();
      const std::vector<float> got = launched.read();
      CHECK(same_bits(got, called.read()));
      CHECK_FALSE(same_bits(got, before));
      before = got;
    }
  });
}

TEST_CASE("cuda capture: a graph appends the rows and attends to the slots that are there when it is launched") {
  constexpr index_t heads = 2, pages = 6, tokens = 40, queries = 2, rounds = 8;
  test::each_way([&] {
    test::Device device;
    std::mt19937 random(17);
    test::OnDevice<float> rows(device, std::vector<float>(at(2 * heads * tokens * dim))), q(device, std::vector<float>(at(heads * group * queries * dim)));
    struct State {
      Column keys, values;
      test::OnDevice<index_t> slots, repaired;
      Outputs outputs;
      explicit State(test::Device& on) : keys(on, heads, pages), values(on, heads, pages), slots(on, {0, 0}), repaired(on, {0}), outputs(on, heads, queries, 0) {}
    } replayed(device), called(device);
    const index_t most = pages * Column::page_slots;
    Context<Cuda> ctx = device.with_workspace(prim::Attend<Cuda>::workspace_bytes(called.outputs.request(0, q.data(), nullptr), heads, most));
    const auto step = [&](State& state, const std::vector<prim::AttendRequest>& requests) {
      REQUIRE(cuda::launch(ctx, grow<32>, {1}, 32, 0, state.slots.data(), heads, tokens) == Status::ok);
      const float* x = rows.data();
      REQUIRE(state.keys.append(ctx, state.slots.data(), dense_view(x, heads, tokens, dim), state.repaired.data()) == Status::ok);
      REQUIRE(state.values.append(ctx, state.slots.data(), dense_view(x + heads * tokens * dim, heads, tokens, dim), state.repaired.data()) == Status::ok);
      const prim::PagedHeads<prim::ExactRows, prim::ExactRows> paged{{}, {}, {}, state.keys.runs(), state.values.runs(), state.slots.data(), heads};
      for (int m = 0; m < 2; ++m) REQUIRE(prim::Attend<Cuda>::run(ctx, requests[at(m)], paged, most, both_maths[m]) == Status::ok);
    };
    const auto requests = [&](State& state) { return std::vector<prim::AttendRequest>{state.outputs.request(0, q.data(), nullptr), state.outputs.request(1, q.data(), nullptr)}; };
    const std::vector<prim::AttendRequest> graph_requests = requests(replayed), own_requests = requests(called);
    Captured graph(device, [&] { step(replayed, graph_requests); });
    device.wait();
    CHECK(replayed.slots.read() == std::vector<index_t>{0, 0});
    std::vector<float> before;
    for (index_t r = 0; r < rounds; ++r) {
      CAPTURE(r);
      std::vector<float> fresh = normal_numbers(2 * heads * tokens * dim, random);
      if (r == rounds - 1) fresh[5] = 1e6f, fresh[6] = NAN;  // what a half cannot hold is counted
      rows.write(fresh);
      q.write(normal_numbers(heads * group * queries * dim, random));
      if (r == 4)
        for (State* s : {&replayed, &called}) s->slots.write({4 * tokens, 3 * tokens - 7});  // the newest rows of one head have left
      graph.launch();
      only_enqueues([&] { step(called, own_requests); });
      device.wait();
      const std::vector<float> got = replayed.outputs.read();
      CHECK(same_bits(got, called.outputs.read()));
      CHECK_FALSE(same_bits(got, before));
      CHECK(same_bits(replayed.keys.read(), called.keys.read()));
      CHECK(same_bits(replayed.values.read(), called.values.read()));
      before = got;
    }
    CHECK(replayed.slots.read() == std::vector<index_t>{8 * tokens, 7 * tokens - 7});
    CHECK(replayed.repaired.read() == std::vector<index_t>{2});
    CHECK(called.repaired.read() == std::vector<index_t>{2});
  });
}

TEST_CASE("cuda capture: a call that waits or allocates ends a capture, and the context says so") {
  test::Device device;
  Context<Cuda>& ctx = device.context();
  cuda::DeviceArray<int> memory;
  REQUIRE(memory.resize(3) == Status::ok);
  const auto refuses = [&](Status wanted, auto&& call) {
    REQUIRE(cudaStreamBeginCapture(ctx.stream(), cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(memory.fill_bytes(ctx, 0) == Status::ok);  // a graph has room for that
    Context<Cuda>::clear_error();
    CHECK(call() == wanted);
    CHECK(ctx.error().code == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaGetLastError() == cudaSuccess);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(ctx.stream(), &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    static_cast<void>(cudaGetLastError());
    Context<Cuda>::clear_error();
  };
  refuses(Status::device_error, [&] { return ctx.wait(); });
  refuses(Status::out_of_memory, [&] { return memory.resize(5); });
  CHECK(memory.size() == 3);
  const test::HostWork before = test::host_work();
  Captured well(device, [&] { CHECK(memory.fill_bytes(ctx, 1) == Status::ok); });
  CHECK(test::host_work() == before);
  well.launch();
  std::vector<int> got(3);
  REQUIRE(memory.download(ctx, std::span<int>(got)) == Status::ok);
  device.wait();
  CHECK(got == std::vector<int>(3, 0x01010101));
#if defined(KVCONDENSE_CUDA_FIBERS)
  CHECK(test::host_work().waits == before.waits + 1);  // what is counted is seen
  REQUIRE(memory.resize(9) == Status::ok);
  CHECK(test::host_work().allocations == before.allocations + 1);
#endif
}
