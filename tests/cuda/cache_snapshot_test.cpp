// Files of caches on CUDA beside those of caches on the CPU.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <span>
#include <string_view>
#include <vector>

#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using test::at;
using Bytes = std::vector<std::byte>;

namespace {

template <class R>
Bytes file_of(test::Device& device, const Cache<Cuda, R>& c) {
  test::ByteList file;
  REQUIRE(save(device, c, file) == Status::ok);
  return file.bytes;
}
template <class R>
Bytes host_file(Pair<R>& pair) {
  test::ByteList file;
  REQUIRE(pair.on_host().save(file) == Status::ok);
  return file.bytes;
}

/// Not byte by byte in what a failure prints.
void require_same(const Bytes& file, const Bytes& expected) {
  const auto at = std::mismatch(file.begin(), file.end(), expected.begin(), expected.end()).first - file.begin();
  INFO("the same to byte " << at << " of " << file.size() << ", where " << expected.size() << " are expected");
  const bool same = file == expected;
  REQUIRE(same);
}

/// Where no slot leaves and windows are whole pages of the CPU's, both write the same bytes, and either reads them.
template <class R>
void same_file(const R& method, std::string_view text, const CacheShape& shape, std::initializer_list<index_t> calls) {
  INFO(text);
  Pair<R> pair(method, text, shape);
  require_same(file_of(pair.device(), pair.on_device()), host_file(pair));
  for (const index_t n : calls) {
    pair.forward(n);
    const Bytes file = file_of(pair.device(), pair.on_device());
    require_same(file, host_file(pair));
    pair.exchange();
    require_same(file_of(pair.device(), pair.on_device()), file);
  }
}

/// Where all codes are in groups and slots leave nothing else, tombstones and pages that were joined lie alike too. `prompt` fits the budget; scores of both backends are not the same to the last bit.
template <class R>
void same_tombstones(const R& method, std::string_view text, const CacheShape& shape, index_t prompt, index_t first, index_t last) {
  INFO(text);
  Pair<R> pair(method, text, shape);
  const auto same = [&] {
    const Bytes file = file_of(pair.device(), pair.on_device());
    require_same(file, host_file(pair));
    pair.exchange();
    require_same(file_of(pair.device(), pair.on_device()), file);
  };
  pair.forward(prompt);
  pair.remove(first, last);
  same();
  pair.forward(1);
  pair.truncate(pair.on_device().length() - 11);
  same();
  for (int i = 0; i < 90; ++i) {
    pair.forward(1);
    if (i % 7 == 0) same();
  }
  same();
  pair.compare_reports();
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->coded_again > 0);
  CHECK(report->dead_bytes > 0);
}

/// Steps, files that change sides, steps. `waits`: tokens may wait for a step, which looks at no queries.
template <class R>
void go_on(const R& method, std::string_view text, const CacheShape& shape, const any::ModelFacts& facts = {}, bool waits = true) {
  INFO(text);
  Pair<R> pair(method, text, shape, facts);
  pair.exchange();
  pair.forward(3);
  pair.exchange();
  pair.forward(50);
  for (int i = 0; i < 5; ++i) pair.forward(1);
  pair.exchange();
  for (int i = 0; i < 3; ++i) pair.forward(2);
  pair.exchange();
  pair.forward(17);
  if (waits) {
    pair.forward(3, prim::AttendMath::f32, pair.near, Phase::probe);  // of a method that looks at no probes
    REQUIRE(pair.on_device().pending() == 3);
    pair.exchange();
  }
  pair.forward(1);
  pair.turn(4);
  pair.forward(1);
  pair.compare_reports();
}

struct Small {
  CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 8, .page_slots = 8};
  test::Device device;
  test::OnDevice<float> x{device, numbers()}, out{device, std::vector<float>(2 * 40 * 8)};

  static std::vector<float> numbers() {
    std::mt19937 random(5);
    return cuda_cache::normal_numbers(2 * 40 * 8, random);
  }
  auto rows(index_t n) { return dense_view(static_cast<const float*>(x.data()), 2, n, 8); }
  template <class R>
  void feed(Cache<Cuda, R>& c, index_t n) {
    Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(128, n));
    REQUIRE(c.forward(ctx, 0, rows(n), rows(n), rows(n), dense_view(out.data(), 2, n, 8)) == Status::ok);
    device.wait();
  }
  template <class R>
  auto make(const R& method, MemoryResource<Cuda>& memory = cuda::device_memory()) {
    auto c = make_cache<Cuda>(shape, method, memory);
    REQUIRE(c);
    return std::move(*c);
  }
};

/// How much device memory was out at once.
struct CountingMemory final : MemoryResource<Cuda> {
  std::size_t out = 0, most = 0;

  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    void* p = cuda::device_memory().allocate(bytes, align);
    if (p != nullptr) most = std::max(most, out += bytes);
    return p;
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
    out -= bytes;
    cuda::device_memory().release(p, bytes, align);
  }
};

void mend(Bytes& file) {
  Checksum sum;
  sum.add(std::span(file).first(file.size() - 8));
  const std::uint64_t s = sum.value();
  std::memcpy(file.data() + file.size() - 8, &s, 8);
}

/// What leaves moves the codes behind it.
struct Coded {
  static inline const auto method = recipe(evict::SinkWindow{.recent = 9, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 2, .sinks = 2});
  static inline const auto another = recipe(evict::SinkWindow{.recent = 9, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 2, .sinks = 3});
};
/// Groups of keys keep tombstones: of the first of them one slot stays.
struct Grouped {
  static inline const auto method = recipe(evict::SinkWindow{.recent = 9, .sinks = 3}, quant::Kivi<4>{.group_size = 4, .residual_window = 4, .sinks = 2});
  static inline const auto another = recipe(evict::SinkWindow{.recent = 9, .sinks = 3}, quant::Kivi<4>{.group_size = 4, .residual_window = 4, .sinks = 3});
};

}  // namespace

TEST_CASE("cuda cache: a file of slots of which none has left is that of the CPU, byte for byte") {
  same_file(recipe(), "exact", {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .value_dim = 24, .page_slots = 8}, {1, 7, 20, 1});
  same_file(recipe(), "exact", {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 5}, {12, 3});
  same_file(recipe(quant::Kivi<4>{.group_size = 32, .residual_window = 32, .sinks = 3}), "kivi4(group=32, residual=32, sinks=3)",
            {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 32}, {2, 33, 40, 16});
  // In lanes; and pages with a gap between codes and their parameters.
  same_file(recipe(quant::GroupInt<4>{.residual_window = 32}), "int4(residual=32)", {.q_heads = 2, .kv_heads = 1, .head_dim = 64}, {40, 56, 8});
  same_file(recipe(quant::GroupInt<4>{.group_size = 0, .residual_window = 4}), "int4(group=0, residual=4)",
            {.q_heads = 2, .kv_heads = 2, .head_dim = 10, .dtype = DType::bf16, .page_slots = 1}, {9, 1, 4});
}

TEST_CASE("cuda cache: a file of groups that have lost slots is that of the CPU, byte for byte") {
  constexpr prim::GroupAxis channel = prim::GroupAxis::channel;
  same_tombstones(recipe(quant::GroupInt<4>{.key_axis = channel, .value_axis = channel, .group_size = 8, .residual_window = 8}),
                  "int4(key_axis=channel, value_axis=channel, group=8, residual=8)", {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16}, 61, 9, 31);
  same_tombstones(recipe(evict::SinkWindow{.recent = 47, .sinks = 3}, quant::GroupInt<3>{.key_axis = channel, .value_axis = channel, .group_size = 8, .residual_window = 8}),
                  "sink_window(recent=47, sinks=3) + group_int(bits=3, key_axis=channel, value_axis=channel, group=8, residual=8)",
                  {.q_heads = 2, .kv_heads = 2, .head_dim = 10, .value_dim = 6, .dtype = DType::bf16, .page_slots = 24}, 50, 3, 5);
  // In lanes.
  same_tombstones(recipe(evict::SinkWindow{.recent = 60, .sinks = 3}, quant::GroupInt<4>{.key_axis = channel, .value_axis = channel, .group_size = 16, .residual_window = 32}),
                  "sink_window(recent=60, sinks=3) + int4(key_axis=channel, value_axis=channel, group=16, residual=32)", {.q_heads = 2, .kv_heads = 1, .head_dim = 64}, 63, 20, 30);
}

TEST_CASE("cuda cache: either backend goes on from the file of the other") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  go_on(recipe(), "exact", shape);
  go_on(recipe(evict::H2O{.heavy = 20, .recent = 10}), "h2o(heavy=20, recent=10)", shape);
  go_on(recipe(evict::RKV{.tokens = 30, .window = 6, .kernel = 3, .slack = 4}), "rkv(tokens=30, window=6, kernel=3, slack=4)", shape, {}, false);
  go_on(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 6, .sinks = 2}),
        "sink_window(recent=29, sinks=3) + int4(group=8, residual=6, sinks=2)", shape);
  go_on(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32, .sinks = 5}), "kivi4(group=16, residual=32, sinks=5)",
        {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16});
  go_on(recipe(evict::H2O{.heavy = 30, .recent = 12}, quant::Kivi<4>{.group_size = 8, .residual_window = 8, .sinks = 2}),
        "h2o(heavy=30, recent=12) + kivi4(group=8, residual=8, sinks=2)", shape);
  const std::vector<float> shares{0.5f, 0.1f, 0.4f};
  any::ModelFacts facts;
  facts.shares = {shares.data(), 1, 3};
  // Codes in lanes, of heads that are not equally long, which have left here and there.
  go_on(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 20, .recent = 8}, 1.5, facts.shares}, quant::GroupInt<8>{.residual_window = 12, .sinks = 5}),
        "head_table(h2o(heavy=20, recent=8), beta=1.5) + int8(residual=12, sinks=5)", {.q_heads = 6, .kv_heads = 3, .head_dim = 32}, facts);
}

TEMPLATE_TEST_CASE("cuda cache: a fork writes the file of the other side, and loading one leaves the other alone", "", Coded, Grouped) {
  const auto& method = TestType::method;
  Small s;
  auto c = s.make(method), other = s.make(method);
  s.feed(c, 20);
  s.feed(other, 31);
  auto twin = c.fork(s.device);
  REQUIRE(twin);
  const Bytes file = file_of(s.device, c);
  REQUIRE(file_of(s.device, *twin) == file);
  s.feed(*twin, 3);
  REQUIRE(file_of(s.device, c) == file);
  REQUIRE(load(s.device, *twin, file_of(s.device, other)) == Status::ok);
  REQUIRE(file_of(s.device, c) == file);
  REQUIRE(file_of(s.device, *twin) == file_of(s.device, other));
}

TEMPLATE_TEST_CASE("cuda cache: a file that is cut or flipped is refused and the cache stays", "", Coded, Grouped) {
  const auto& method = TestType::method;
  Small s;
  auto c = s.make(method), other = s.make(method);
  s.feed(c, 18);
  s.feed(other, 5);
  const Bytes good = file_of(s.device, c), mine = file_of(s.device, other);
  for (std::size_t n = 0; n < good.size(); n += 3) REQUIRE(load(s.device, other, std::span(good).first(n)) == Status::corrupt_data);
  for (std::size_t i = 0; i < good.size(); i += 5) {
    Bytes bad = good;
    bad[i] ^= static_cast<std::byte>(1 << i % 8);
    REQUIRE(load(s.device, other, bad) == Status::corrupt_data);
  }
  REQUIRE(file_of(s.device, other) == mine);
  // A whole file of another cache.
  auto exact = s.make(recipe());
  REQUIRE(load(s.device, exact, good) == Status::incompatible);
  auto more = s.make(TestType::another);
  REQUIRE(load(s.device, more, good) == Status::incompatible);
  REQUIRE(load(s.device, other, good) == Status::ok);
  REQUIRE(file_of(s.device, other) == good);
}

TEST_CASE("cuda cache: forged bytes with a right checksum do no harm") {
  Small s;
  const int which = GENERATE(0, 1, 2);
  const auto forge = [&](const auto& r) {
    auto c = s.make(r);
    s.feed(c, 15);
    const Bytes good = file_of(s.device, c);
    int taken = 0, refused = 0;
    for (std::size_t i = 0; i + 8 < good.size(); i += 1 + i / 600)  // what counts stands in front
      for (const int value : {0x00, 0x01, 0x7f, 0xff}) {
        if (good[i] == static_cast<std::byte>(value)) continue;
        Bytes forged = good;
        forged[i] = static_cast<std::byte>(value);
        mend(forged);
        CountingMemory memory;
        auto fresh = s.make(r, memory);
        const Status status = load(s.device, fresh, forged);
        REQUIRE(memory.most < 4 * good.size() + 65536);
        REQUIRE((status == Status::ok || status == Status::corrupt_data || status == Status::incompatible));
        ++(status == Status::ok ? taken : refused);
        if (status != Status::ok) REQUIRE(fresh.length() == 0);
        else if (fresh.length() < 100 && fresh.pending() < 100 && i % 7 == 0) s.feed(fresh, 3);  // whatever was accepted must be usable
      }
    CHECK(taken > 100);
    CHECK(refused > 100);
  };
  if (which == 0) forge(recipe(evict::H2O{.heavy = 4, .recent = 3}));
  else if (which == 1) forge(recipe(quant::Kivi<4>{.group_size = 4, .residual_window = 4, .sinks = 1}));
  else forge(Grouped::method);
}

TEMPLATE_TEST_CASE("cuda cache: device memory that is refused while a file is read or written loses nothing", "", Coded, Grouped) {
  const auto& method = TestType::method;
  Small s;
  auto c = s.make(method);
  s.feed(c, 30);
  const Bytes file = file_of(s.device, c);
  test::RefusingMemory memory(1 << 20);
  {
    auto other = s.make(method, memory);
    s.feed(other, 7);
    const Bytes mine = file_of(s.device, other);
    int refusals = 0;
    for (bool refused = true; refused; refusals += refused) {
      memory.left = refusals;
      const Status status = load(s.device, other, file);
      memory.left = 1 << 20;
      refused = status != Status::ok;
      if (refused) REQUIRE(status == Status::out_of_memory);
      REQUIRE(file_of(s.device, other) == (refused ? mine : file));
    }
    CHECK(refusals > 10);
    for (int left = 0; left < 3; ++left) {  // a page, its zeros, who writes them
      memory.left = left;
      test::ByteList sink;
      REQUIRE(save(s.device, other, sink) == Status::out_of_memory);
      memory.left = 1 << 20;
    }
    REQUIRE(file_of(s.device, other) == file);
  }
  CHECK(memory.out == 0);
}

TEMPLATE_TEST_CASE("cuda cache: a sink that stops anywhere is an io_error", "", Coded, Grouped) {
  const auto& method = TestType::method;
  Small s;
  auto c = s.make(method);
  s.feed(c, 20);
  const Bytes file = file_of(s.device, c);
  for (std::size_t room = 0; room < file.size(); room += 11) {
    test::ByteList sink;
    sink.room = room;
    REQUIRE(save(s.device, c, sink) == Status::io_error);
    REQUIRE(std::equal(sink.bytes.begin(), sink.bytes.end(), file.begin()));
  }
}

TEST_CASE("cuda cache: tombstones in groups of the CPU are read") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 8};
  const auto read = [&](const auto& method, std::string_view text) {
    INFO(text);
    Pair pair(method, text, shape);
    pair.forward(40);
    std::vector<std::byte> scratch(pair.on_host().workspace_bytes(64, 1));
    Context<Cpu> cpu(scratch);
    for (const index_t first : {3, 30, 17}) {
      REQUIRE(pair.on_host().remove(cpu, first, first + 2) == Status::ok);
      REQUIRE(load(pair.device(), pair.on_device(), host_file(pair)) == Status::ok);
      pair.compare();
    }
    for (int i = 0; i < 10; ++i) pair.forward(3);
    pair.remove(1, 20);
    pair.forward(1);
    pair.exchange();
    pair.compare_reports();
  };
  read(recipe(quant::Kivi<4>{.group_size = 8, .residual_window = 8}), "kivi4(group=8, residual=8)");
  // Groups of one slot, which the CPU moves.
  read(recipe(quant::GroupInt<4>{.key_axis = prim::GroupAxis::channel, .group_size = 1}), "int4(key_axis=channel, group=1)");
}

TEST_CASE("cuda cache: what was counted goes with a file") {
  Small s;
  auto c = s.make(recipe(evict::SinkWindow{.recent = 9, .sinks = 3}));
  std::vector<float> bad = Small::numbers();
  bad[3] = std::numeric_limits<float>::infinity(), bad[200] = std::numeric_limits<float>::quiet_NaN();
  test::OnDevice<float> x(s.device, bad);
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 20, 8);
  Context<Cuda> ctx = s.device.with_workspace(c.workspace_bytes(64, 20));
  REQUIRE(c.append(ctx, 0, rows, rows) == Status::ok);
  REQUIRE(c.step(ctx, 0) == Status::ok);
  const Bytes file = file_of(s.device, c);
  auto other = s.make(recipe(evict::SinkWindow{.recent = 9, .sinks = 3}));
  REQUIRE(load(s.device, other, file) == Status::ok);
  s.feed(other, 1);
  auto twin = other.fork(s.device);
  REQUIRE(twin);
  for (auto* each : {&c, &other, &*twin}) CHECK(each->report(s.device)->repaired_numbers == 4);
  REQUIRE(load(s.device, other, file) == Status::ok);
  REQUIRE(file_of(s.device, other) == file);
  for (auto* each : {&c, &other}) {
    REQUIRE(each->reset(s.device) == Status::ok);
    CHECK(each->report(s.device)->repaired_numbers == 0);
  }
  REQUIRE(file_of(s.device, c) == file_of(s.device, other));
}

#if defined(KVCONDENSE_CUDA_FIBERS)
TEMPLATE_TEST_CASE("cuda cache: calls of the runtime that fail while a file is read or written lose nothing", "", Coded, Grouped) {
  const auto& method = TestType::method;
  Small s;
  auto c = s.make(method), other = s.make(method);
  s.feed(c, 30);
  s.feed(other, 7);
  const Bytes file = file_of(s.device, c), mine = file_of(s.device, other);
  const auto failing = [&](auto&& call, auto&& done) {
    int refusals = 0;
    bool failed = true;
    for (int k = 0; failed; ++k) {
      cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls + k, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;
      const Status status = call();
      failed = cuda_fibers::runtime.calls > cuda_fibers::runtime.fail_at;
      cuda_fibers::runtime.fail_at = -1;
      if (status == Status::ok) {  // what gives memory back has nobody to tell
        done();
        continue;
      }
      REQUIRE(failed);
      ++refusals;
      REQUIRE(file_of(s.device, other) == mine);
    }
    CHECK(refusals > 10);
    REQUIRE(file_of(s.device, c) == file);
  };
  test::ByteList sink;
  failing([&] { return sink.bytes.clear(), save(s.device, c, sink); }, [&] { REQUIRE(sink.bytes == file); });
  failing([&] { return load(s.device, other, file); },
          [&] {
            REQUIRE(file_of(s.device, other) == file);
            REQUIRE(load(s.device, other, mine) == Status::ok);
          });
}

TEMPLATE_TEST_CASE("cuda cache: a torn layer writes no file, and one that is read mends it", "", Coded, Grouped) {
  const auto& method = TestType::method;
  Small s;
  auto whole = s.make(method);
  s.feed(whole, 30);
  const Bytes file = file_of(s.device, whole);
  int torn = 0;
  for (int k = 0; torn < 3; ++k) {
    REQUIRE(k < 100);
    auto c = s.make(method);
    s.feed(c, 20);
    Context<Cuda> ctx = s.device.with_workspace(c.workspace_bytes(64, 6));
    REQUIRE(c.append(ctx, 0, s.rows(6), s.rows(6)) == Status::ok);
    cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls + k, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;
    static_cast<void>(c.step(ctx, 0));
    cuda_fibers::runtime.fail_at = -1;
    if (c.attend(ctx, 0, s.rows(1), dense_view(s.out.data(), 2, 1, 8)) != Status::device_error) continue;
    ++torn;
    test::ByteList sink;
    CHECK(save(s.device, c, sink) == Status::device_error);
    CHECK(sink.bytes.empty());
    REQUIRE(load(s.device, c, file) == Status::ok);
    CHECK(file_of(s.device, c) == file);
    s.feed(c, 2);
  }
}
#endif
