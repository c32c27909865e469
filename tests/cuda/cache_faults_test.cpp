// Caches on CUDA whose calls are refused, and numbers that are none.

#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/budget/global_top.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/tome.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_pair.hpp"
#include "cache_refused.hpp"

using namespace kvcondense;
using namespace cuda_cache;
using test::at;

TEST_CASE("cuda cache: a call that is refused changes nothing") {
  test::RefusingMemory memory(1 << 20);
  test::Device device;
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::vector<float> numbers(2 * 6 * 16, 0.5f);
  numbers[3] = 7e4f;
  test::OnDevice<float> x(device, numbers), out(device, numbers);
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 6, 16);
  {
    auto made = make_cache<Cuda>(shape, recipe(evict::H2O{.heavy = 2, .recent = 1}), memory);
    REQUIRE(made);
    auto& c = *made;
    Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(16, 6));
    CHECK(c.append(ctx, 1, rows, rows) == Status::out_of_range);
    CHECK(c.append(ctx, 0, dense_view(rows.data, 2, 6, 15), rows) == Status::shape_mismatch);
    const std::vector<index_t> positions{1, 2, 3};
    CHECK(c.append(ctx, 0, rows, rows, positions) == Status::shape_mismatch);
    CHECK(c.step(ctx, 0) == Status::order_violation);
    memory.left = 0;
    CHECK(c.append(ctx, 0, rows, rows) == Status::out_of_memory);
    CHECK(c.total_slots(0) == 0);
    memory.left = 1 << 20;
    REQUIRE(c.append(ctx, 0, rows, rows) == Status::ok);
    const auto report = c.report(device);
    REQUIRE(report);
    CHECK(report->repaired_numbers == 2);  // a half cannot hold 70000: once as a key, once as a value
    CHECK(c.step(ctx, 0) == Status::missing_input);
    test::OnDevice<float> mass(device, std::vector<float>(12));
    test::OnDevice<index_t> other(device, {0, 6, 12});
    CHECK(c.step(ctx, 0, AttentionView{{mass.data(), other.data(), 2}, 6}) == Status::shape_mismatch);
    AttendOutputs measure;
    measure.mass = c.ragged(0, mass.data());
    REQUIRE(c.attend(ctx, 0, rows, dense_view(out.data(), 2, 6, 16), measure) == Status::ok);
    Context<Cuda> small = device.context().with_workspace(ctx.workspace().first(64));
    CHECK(c.step(small, 0, AttentionView{measure.mass, 6}) == Status::workspace_too_small);
    CHECK(c.forward(small, 0, rows, rows, rows, dense_view(out.data(), 2, 6, 16)) == Status::workspace_too_small);
    CHECK(c.pending() == 6);
    CHECK(c.total_slots(0) == 12);
    REQUIRE(c.step(ctx, 0, AttentionView{measure.mass, 6}) == Status::ok);
    CHECK(c.total_slots(0) == 6);
    CHECK(c.truncate(device, 7) == Status::out_of_range);
    CHECK(c.turn(ctx, -1) == Status::invalid_argument);
  }
  CHECK(memory.out == 0);
  CHECK(make_cache<Cuda>(shape, recipe(evict::H2O{.heavy = -1})).status() == Status::invalid_argument);
  CHECK(make_cache<Cuda>({.page_slots = 257}, recipe()).status() == Status::invalid_argument);  // as on the CPU
}

TEST_CASE("cuda cache: inputs that it misses") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  test::OnDevice<float> x(device, std::vector<float>(2 * 6 * 16, 0.5f));
  const auto rows = [&](index_t n) { return dense_view(static_cast<const float*>(x.data()), 2, n, 16); };
  auto c = make_cache<Cuda>(shape, recipe(evict::RKV{.tokens = 15, .window = 4, .kernel = 3, .slack = 2}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(16, 6));
  REQUIRE(c->append(ctx, 0, rows(6), rows(6)) == Status::ok);
  const auto step = [&](TensorView<const float, 3> queries, Phase phase = Phase::automatic) {
    StepInputs in;
    in.queries = queries;
    return c->step(ctx, 0, in, phase);
  };
  CHECK(step({}) == Status::missing_input);
  CHECK(step(rows(3)) == Status::missing_input);  // the window has four
  CHECK(step(dense_view(rows(6).data, 1, 6, 16)) == Status::shape_mismatch);
  CHECK(step(rows(6), Phase::probe) == Status::ok);  // asks a method that looks at no probes
  CHECK(c->pending() == 6);
  CHECK(step(rows(6)) == Status::ok);
  auto shared = make_cache<Cuda>(shape, recipe(budget::GlobalTop{evict::Knorm{.tokens = 4, .recent = 1}, 0.5}));
  REQUIRE(shared);
  Context<Cuda> room = device.with_workspace(shared->workspace_bytes(16, 6));
  REQUIRE(shared->append(room, 0, rows(6), rows(6)) == Status::ok);
  REQUIRE(shared->step(room, 0) == Status::ok);
  CHECK(shared->step(room, 0, Phase::turn) == Status::order_violation);  // `turn` sees all layers
  Context<Cuda> little = room.with_workspace(room.workspace().first(64));
  CHECK(shared->turn(little) == Status::workspace_too_small);
  CHECK(shared->total_slots(0) == 12);
  REQUIRE(shared->turn(room) == Status::ok);
  CHECK(shared->total_slots(0) == 6);
}

TEST_CASE("cuda cache: what it plans for single tokens is enough for what a pool wants") {
  test::Device device;
  const CacheShape shape{.q_heads = 8, .kv_heads = 8, .head_dim = 64, .page_slots = 16};
  test::OnDevice<float> x(device, std::vector<float>(8 * 64, 0.5f));
  const auto row = dense_view(static_cast<const float*>(x.data()), 8, 1, 64);
  auto c = make_cache<Cuda>(shape, recipe(evict::RKV{.tokens = 62, .window = 6, .kernel = 3, .slack = 2}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 1));
  StepInputs in;
  in.queries = row;
  for (int i = 0; i < 66; ++i) {
    REQUIRE(c->append(ctx, 0, row, row) == Status::ok);
    REQUIRE(c->step(ctx, 0, in, Phase::decode) == Status::ok);
  }
  CHECK(c->total_slots(0) == 8 * 62);
}

TEST_CASE("cuda cache: a report counts the queries that are kept") {
  test::Device device;
  const CacheShape shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  const auto fixed = [&](index_t window) {
    auto c = make_cache<Cuda>(shape, recipe(evict::RKV{.tokens = 15, .window = window, .kernel = 3, .slack = 2}));
    REQUIRE(c);
    const auto report = c->report(device);
    REQUIRE(report);
    return report->fixed_bytes;
  };
  CHECK(fixed(9) - fixed(4) == 5 * 2 * at(shape.layers * shape.q_heads * shape.head_dim) * sizeof(float));  // of both halves
}

TEST_CASE("cuda cache: a number that is none is counted once, though it becomes a code later") {
  test::Device device;
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::vector<float> numbers(2 * 6 * 16, 0.5f);
  numbers[3] = 7e4f, numbers[20] = NAN;  // beyond a half
  test::OnDevice<float> x(device, numbers);
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 6, 16);
  auto c = make_cache<Cuda>(shape, recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(16, 6));
  REQUIRE(c->append(ctx, 0, rows, rows) == Status::ok);
  REQUIRE(c->step(ctx, 0) == Status::ok);
  const auto report = c->report(device);
  REQUIRE(report);
  CHECK(report->coded_bytes > 0);
  CHECK(report->repaired_numbers == 4);  // keys and values
}

TEST_CASE("cuda cache: device memory that is refused loses nothing") {
  lose_nothing(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 2, .sinks = 2}), 8, 32);
  // Numbers per slot are not counted twice when a step is made again.
  const std::vector<float> shares{0.5f, 0.5f};
  const HeadTable table{shares.data(), 1, 2};
  lose_nothing(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 9, .recent = 6}, 1.5, table}, quant::GroupInt<8>{.group_size = 8, .residual_window = 2, .sinks = 2}), 3, 15);
  // Groups that lose slots, and pages of them that are joined.
  lose_nothing(recipe(evict::SinkWindow{.recent = 17, .sinks = 3}, quant::GroupInt<4>{.key_axis = prim::GroupAxis::channel, .value_axis = prim::GroupAxis::channel, .group_size = 4, .sinks = 2}), 7, 20);
  lose_nothing(recipe(evict::H2O{.heavy = 9, .recent = 6}, quant::Kivi<4>{.group_size = 2, .residual_window = 2, .sinks = 2}), 5, 15);
}

TEST_CASE("cuda cache: device memory that is refused loses nothing, of other stages", "[.][sweep]") {
  // Queries of earlier steps are not lost, nor counted twice.
  lose_nothing(recipe(evict::RKV{.tokens = 15, .window = 8, .kernel = 3, .slack = 2}), 4, 15);
  // Means of what left, what slots weigh and where they stand; sets among slots that stay.
  lose_nothing(recipe(evict::Compensate{evict::SinkWindow{.recent = 17, .sinks = 3}}, merge::D2O{.mass = merge::Mass::log_count, .place = merge::Place::pivot}), 5, 20);
  lose_nothing(recipe(merge::ToMe{.tokens = 16, .slack = 0, .sinks = 2, .recent = 4}), 5, 16);
  // Tables by which raw keys turn.
  lose_nothing(recipe(evict::SinkWindow{.recent = 17, .sinks = 3}, position::Rerotate{}), 4, 20);
}

namespace {
/// Tokens [2, 5) of nine are removed from a fork, of whose requests the first `refusals` alone are granted.
template <class R>
void remove_all_or_nothing(const R& method, int most_refusals) {
  const CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(2 * 9 * 16, random));
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 9, 16);
  test::RefusingMemory memory(1 << 20);
  {
    auto c = make_cache<Cuda>(shape, method, memory);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(16, 9));
    for (index_t layer = 0; layer < 2; ++layer) {
      REQUIRE(c->append(ctx, layer, rows, rows) == Status::ok);
      REQUIRE(c->step(ctx, layer) == Status::ok);
    }
    const auto read = [&](Cache<Cuda, R>& of, index_t layer) {
      const index_t n = of.slots(layer, 1);
      test::OnDevice<float> k(device, std::vector<float>(at(n * 16))), v(device, std::vector<float>(at(n * 16)));
      REQUIRE(of.read(ctx, layer, 1, 0, dense_view(k.data(), n, 16), dense_view(v.data(), n, 16)) == Status::ok);
      return k.read();
    };
    const std::vector<float> all = read(*c, 0);
    int refusals = 0;
    for (bool refused = true; refused; ++refusals) {
      auto twin = c->fork(ctx);
      REQUIRE(twin);
      memory.left = refusals;  // its layers want pages of their own
      const Status s = twin->remove(ctx, 2, 5);
      memory.left = 1 << 20;
      refused = s != Status::ok;
      if (refused) CHECK(s == Status::out_of_memory);
      for (index_t layer = 0; layer < 2; ++layer) {
        CHECK(twin->total_slots(layer) == (refused ? 18 : 12));
        CHECK(read(*c, layer) == all);
        if (refused) CHECK(read(*twin, layer) == all);
      }
      // What the other side writes now is not seen: pages that were copied are those which are read.
      if (refused) {
        REQUIRE(c->remove(ctx, 8, 9) == Status::ok);
        for (index_t layer = 0; layer < 2; ++layer) {
          REQUIRE(c->append(ctx, layer, dense_view(rows.data, 2, 1, 16), dense_view(rows.data, 2, 1, 16)) == Status::ok);
          CHECK(read(*twin, layer) == all);
        }
        REQUIRE(c->truncate(ctx, 0) == Status::ok);
        for (index_t layer = 0; layer < 2; ++layer) {
          REQUIRE(c->append(ctx, layer, rows, rows) == Status::ok);
          REQUIRE(c->step(ctx, layer) == Status::ok);
          CHECK(read(*twin, layer) == all);
        }
      }
    }
    CHECK(refusals > most_refusals);  // both layers were refused pages
  }
  CHECK(memory.out == 0);
}
}  // namespace

TEST_CASE("cuda cache: a removal that is refused removes nothing from any layer") {
  remove_all_or_nothing(recipe(), 12);
  // Two pages of a group each become one, which a fork must have for itself.
  remove_all_or_nothing(recipe(quant::GroupInt<4>{.key_axis = prim::GroupAxis::channel, .value_axis = prim::GroupAxis::channel, .group_size = 4}), 8);
}

#if defined(KVCONDENSE_CUDA_FIBERS)
TEST_CASE("cuda cache: first slots that came are not forgotten when a step could not be planned") {
  test::Device device;
  using Column = cache::CudaColumn<prim::GroupInt<4>>;
  std::vector<prim::PartCounts> told(2);
  Column column({.codec = {.axis = prim::GroupAxis::token, .group_size = 0}, .flush = fifo_flush(1), .sinks = 2, .heads = 2, .dim = 16, .page_slots = 4}, cuda::device_memory());
  REQUIRE(column.make() == Status::ok);
  column.tell_at(told);
  REQUIRE(column.reserve(device, 2, 3) == Status::ok);
  column.count(2, 3);
  cache::CudaKept all;
  REQUIRE(all.make(2, [](index_t) { return index_t{5}; }) == Status::ok);
  REQUIRE(column.reserve_codes(device, false, true, all) == Status::ok);
  REQUIRE(column.settle(device) == Status::ok);
  test::OnDevice<index_t> slots(device, {5, 5});
  cuda::DeviceArray<prim::KeptRange> ranges;
  REQUIRE(ranges.resize(column.range_count()) == Status::ok);
  const auto step = [&] { return column.step(device, slots.data(), {{}, slots.data()}, false, true, ranges.data(), nullptr, {}, {}); };
  CHECK(column.device().fresh == 2);
  cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;  // the first launch
  CHECK(step() == Status::not_supported);
  cuda_fibers::runtime.fail_at = -1;
  CHECK(column.device().fresh == 2);
  REQUIRE(step() == Status::ok);
  CHECK(column.device().fresh == 0);
  CHECK(told[0].first == 2);
  CHECK(told[0].coded == 2);
}

namespace {
/// Calls of the runtime fail in the step of one of three rounds, one after the other. Either nothing has changed and the step can be made again,
/// or the layer says so until it is reset.
template <class R>
void step_whole_or_torn(const R& method, int round) {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(2 * 6 * 16, random)), out(device, std::vector<float>(2 * 6 * 16)), mass(device, std::vector<float>(2 * 64));
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 6, 16);
  std::vector<float> expected, first;
  std::vector<std::byte> expected_file;  // has means, numbers per slot and what was counted too
  int again = 0, torn = 0;
  bool fails = true;
  for (int k = -1; fails; ++k) {  // first without any failure
    auto c = make_cache<Cuda>(shape, method);
    REQUIRE(c);
    Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 6));
    const auto all = [&] {
      std::vector<float> numbers;
      for (index_t h = 0; h < 2; ++h) {
        const index_t n = c->slots(0, h);
        test::OnDevice<float> keys(device, std::vector<float>(at(n * 16))), values(device, std::vector<float>(at(n * 16)));
        REQUIRE(c->read(ctx, 0, h, 0, dense_view(keys.data(), n, 16), dense_view(values.data(), n, 16)) == Status::ok);
        for (const auto* side : {&keys, &values})
          for (const float number : side->read()) numbers.push_back(number);
      }
      return numbers;
    };
    const auto step = [&](bool failing) {
      REQUIRE(c->append(ctx, 0, rows, rows) == Status::ok);
      if (c->length() == 6) {  // after a reset too
        const std::vector<float> fresh = all();
        if (first.empty()) first = fresh;
        REQUIRE(fresh == first);
      }
      AttendOutputs measure;
      if (c->wants_mass(0)) {
        measure.mass = c->ragged(0, mass.data());
        REQUIRE(c->attend(ctx, 0, rows, dense_view(out.data(), 2, 6, 16), measure) == Status::ok);
      }
      const AttentionView seen{measure.mass, c->mass_rows(6)};
      if (failing) cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls + k, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;
      ctx.clear_error();
      const Status s = c->step(ctx, 0, seen);
      const bool reached = !failing || cuda_fibers::runtime.calls > cuda_fibers::runtime.fail_at;
      cuda_fibers::runtime.fail_at = -1;
      CHECK(ctx.error().code == (failing && reached ? cudaErrorLaunchOutOfResources : cudaSuccess));
      fails = fails && reached;
      if (s == Status::ok) return;
      if (c->attend(ctx, 0, rows, dense_view(out.data(), 2, 6, 16)) == Status::ok) {
        ++again;
        REQUIRE(c->pending() == 6);
        REQUIRE(c->step(ctx, 0, seen) == Status::ok);
        return;
      }
      ++torn;
      std::vector<std::int32_t> ids(at(c->slots(0, 0)));
      CHECK(c->append(ctx, 0, rows, rows) == Status::device_error);
      CHECK(c->step(ctx, 0, seen) == Status::device_error);
      CHECK(c->tokens(ctx, 0, 0, ids) == Status::device_error);
      CHECK(c->truncate(ctx, 0) == Status::device_error);
      CHECK(c->remove(ctx, 0, 0) == Status::device_error);
      CHECK(c->turn(ctx) == Status::device_error);
      CHECK(c->fork(ctx).status() == Status::device_error);
      CHECK(c->read(ctx, 0, 0, 0, dense_view(out.data(), 1, 16), dense_view(out.data(), 1, 16)) == Status::device_error);
      REQUIRE(c->reset(ctx) == Status::ok);
      CHECK(c->total_slots(0) == 0);
    };
    for (int i = 0; i < 3; ++i) step(i == round && k >= 0);
    while (c->length() < 18) step(false);  // from the start where it was reset
    const std::vector<float> read = all();
    test::ByteList file;
    REQUIRE(save(ctx, *c, file) == Status::ok);
    if (k < 0) expected = read, expected_file = file.bytes;
    REQUIRE(read == expected);
    REQUIRE((file.bytes == expected_file));
  }
  CHECK(again > 0);
  CHECK(torn > 0);
}
}  // namespace

namespace {
/// Refuses one request, and from there on the runtime fails in its call `then`.
struct FailingMemory final : MemoryResource<Cuda> {
  int left = 1 << 20, then = 0;

  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    if (left-- != 0) return cuda::device_memory().allocate(bytes, align);
    cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls + then, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;
    return nullptr;
  }
  void release(void* p, std::size_t bytes, std::size_t align) noexcept override { cuda::device_memory().release(p, bytes, align); }
};
}  // namespace

TEST_CASE("cuda cache: an append that is refused memory, and then the table of what there is, says that the layer is lost") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(2 * 70 * 16, random)), out(device, std::vector<float>(2 * 16));
  const auto rows = [&](index_t n) { return dense_view(static_cast<const float*>(x.data()), 2, n, 16); };
  int whole = 0, torn = 0;
  for (int left = 0; left < 90; left += 7)
    for (int k = 0; k < 12; ++k) {
      FailingMemory memory;
      auto c = make_cache<Cuda>(shape, recipe(), memory);
      REQUIRE(c);
      Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(80, 70));
      REQUIRE(c->append(ctx, 0, rows(3), rows(3)) == Status::ok);
      REQUIRE(c->step(ctx, 0) == Status::ok);
      device.wait();
      memory.left = left, memory.then = k;
      const Status s = c->append(ctx, 0, rows(70), rows(70));
      memory.left = 1 << 20, cuda_fibers::runtime.fail_at = -1;
      if (s == Status::ok) continue;
      CHECK(c->total_slots(0) == 6);
      const Status attended = c->attend(ctx, 0, rows(1), dense_view(out.data(), 2, 1, 16));
      CHECK((attended == Status::ok || attended == Status::device_error));
      ++(attended == Status::ok ? whole : torn);
      REQUIRE(c->reset(ctx) == Status::ok);
      REQUIRE(c->append(ctx, 0, rows(70), rows(70)) == Status::ok);
    }
  CHECK(whole > 0);
  CHECK(torn > 0);
}

TEST_CASE("cuda cache: a step that the device refuses in part is made again or said to be lost") {
  step_whole_or_torn(recipe(evict::SinkWindow{.recent = 9, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 2, .sinks = 2}), 2);
  step_whole_or_torn(recipe(evict::H2O{.heavy = 5, .recent = 4}), 2);
  step_whole_or_torn(recipe(evict::H2O{.heavy = 5, .recent = 4}, quant::Kivi<4>{.group_size = 2, .residual_window = 2}), 2);
}

TEST_CASE("cuda cache: a step of other stages that the device refuses in part is made again or said to be lost", "[.][sweep]") {
  // The first codes of a layer: the device has counted them when the host has not.
  step_whole_or_torn(recipe(quant::GroupInt<4>{.group_size = 8, .residual_window = 2}), 0);
  step_whole_or_torn(recipe(evict::Compensate{evict::H2O{.heavy = 5, .recent = 4}}, merge::D2O{.mass = merge::Mass::log_count, .place = merge::Place::pivot}), 2);
  step_whole_or_torn(recipe(merge::ToMe{.tokens = 10, .slack = 0, .sinks = 1, .recent = 2}), 2);
}
#endif
