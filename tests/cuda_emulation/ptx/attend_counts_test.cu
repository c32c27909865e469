// What a tile costs attention on tensor cores, counted in the PTX that nvcc made: the difference of a long and a
// short head, so that what is done once a head is left out; and whether these instructions can be started while the
// bytes arrive. ATTEND_COUNTS=1 prints the instructions.

#include <map>
#include <random>

#include <kvcondense/backend/cuda/words.cuh>

#include "emulation.hpp"
#include "program_check.hpp"

using namespace kvcondense;
using ptx::test::expect, ptx::test::must, ptx::test::report;
namespace emulation = ptx::emulation;

namespace {

template <class T>
using Memory = ptx::test::Buffer<T>;

constexpr int page_slots = 64;

struct Cost {
  std::map<std::string, double> opcodes;
  double instructions = 0, sectors = 0, waves = 0, ideal_waves = 0;
  double of(std::string const& part) const {
    double n = 0;
    for (auto const& [opcode, count] : opcodes)
      if (opcode.find(part) != opcode.npos) n += count;
    return n;
  }
};

/// Pages of random codes, their parameters one half each; nobody looks at the sums. `width`: numbers of a coded row.
template <class Codec>
struct Column {
  std::vector<Memory<std::byte>*> pages;
  Memory<prim::SlotRun>* runs = nullptr;
  Memory<index_t>* offset = nullptr;
  Column(Codec const& codec, int slots, int dim, int sinks, int width) {
    std::mt19937 random(5);
    std::vector<prim::SlotRun> list;
    auto const add = [&](std::vector<std::byte> const& page, int begin, bool coded) {
      pages.push_back(new Memory<std::byte>(page));
      list.push_back({pages.back()->data(), begin, 0, coded});
    };
    if (sinks > 0) add(std::vector<std::byte>(static_cast<std::size_t>(2 * sinks * dim)), 0, false);
    for (int s = sinks; s < slots; s += page_slots) {
      std::vector<std::byte> page(codec.page_bytes(page_slots, width));
      for (auto& b : page) b = static_cast<std::byte>(random() & 0x37u);  // halves of them are numbers
      add(page, s, true);
    }
    runs = new Memory<prim::SlotRun>(list);
    offset = new Memory<index_t>(std::vector<index_t>{0, static_cast<index_t>(list.size())});
  }
  ~Column() {
    for (auto* p : pages) delete p;
    delete runs, delete offset;
  }
  prim::ColumnRuns view() const { return {runs->data(), offset->data(), page_slots}; }
};

constexpr int group = 4;

/// One head of which a block attends to all slots: `start(ctx, plan, slots)` starts its kernel.
template <int Dim, class Start>
Cost count(int slots, Start const& start) {
  using namespace prim::cuda_kernels;
  Memory<index_t> length(std::vector<index_t>{slots});
  Memory<float> q(std::vector<float>(group * Dim, 0.5f)), out(group * Dim);
  prim::AttendRequest r;
  r.queries = dense_view(static_cast<float const*>(q.data()), index_t{group}, index_t{1}, index_t{Dim});
  r.out = dense_view(out.data(), index_t{group}, index_t{1}, index_t{Dim});
  AttendPlan plan = plan_of({r}, 1, slots);
  plan.cut.row_blocks = most_pieces, plan.most = 1;
  Memory<std::byte> scratch(workspace_of(plan));
  expect(place(plan, Scratch(std::span<std::byte>(scratch.data(), workspace_of(plan)))), "a workspace");
  Expected<Context<Cuda>> const ctx = Context<Cuda>::make(nullptr);
  must(cudaDeviceSynchronize());
  emulation::reset_counters();
  expect(start(*ctx, plan, length.data()) == Status::ok, "a launch");
  must(cudaDeviceSynchronize());
  Cost c;
  auto const n = emulation::counters();
  c.instructions = static_cast<double>(n.warp_instructions),
  c.sectors = static_cast<double>(n.global_sectors), c.waves = static_cast<double>(n.shared_waves);
  c.ideal_waves = static_cast<double>(n.shared_ideal_waves);
  for (auto const& o : emulation::opcodes()) c.opcodes[o.opcode] += static_cast<double>(o.executed);
  return c;
}

template <int Dim, class K, class V>
Cost run(K const& key_codec, V const& value_codec, int slots, int sinks) {
  using namespace prim::cuda_kernels;
  Column<K> keys(key_codec, slots, Dim, sinks, Dim);
  Column<V> values(value_codec, slots, Dim, sinks, Dim);
  RingLayout const ring = ring_layout(key_codec, page_slots, value_codec, page_slots, Dim, Dim);
  return count<Dim>(slots, [&](Context<Cuda> const& ctx, AttendPlan const& plan, index_t const* lengths) {
    prim::PagedHeads<K, V> const heads{key_codec, value_codec, {}, keys.view(), values.view(), lengths, 1};
    return cuda::launch(ctx, attend_halves<K, V, Dim>, {1, 1, 1}, halves_threads, halves_shared<Dim>(ring), heads, plan, ring);
  });
}

/// Keys and values are coordinates, `Rank` of each.
template <int Dim, int Rank, class C>
Cost run_coordinates(C const& codec, int slots, int sinks) {
  using namespace prim::cuda_kernels;
  using Codec = prim::Latent<C>;
  Column<C> keys(codec, slots, Dim, sinks, Rank), values(codec, slots, Dim, sinks, Rank);
  std::vector<float> map(prim::LatentMap::header + prim::LatentMap::floats(Dim, Rank));
  map[0] = Rank, map[1] = 1.0f;
  Memory<float> table(map), queries(std::vector<float>(group * (Dim + 1), 0.25f)), sums(group * (Dim + 1));
  Codec const latent{codec, {.table = table.data(), .dim = Dim, .rank = Rank}};
  using Rows = StoredColumn<RingCodec<Codec>>;
  auto const& rows = ring_codec(latent);
  RingLayout const ring = ring_layout(Rows{rows, page_slots, Rank}, Rows{rows, page_slots, Rank}, Dim, Rank);
  return count<Dim>(slots, [&](Context<Cuda> const& ctx, AttendPlan const& plan, index_t const* lengths) {
    prim::PagedHeads<Codec, Codec> const heads{latent, latent, {}, keys.view(), values.view(), lengths, 1};
    return cuda::launch(ctx, attend_latent_halves<Codec, Codec, Dim, Rank>, {1, 1, 1}, halves_threads, latent_halves_shared<Dim, Rank>(ring), heads, plan,
                        LatentPlan{queries.data(), sums.data()}, ring);
  });
}

/// Of 64 slots, where `run` says what so many cost.
template <class Run>
Cost tile_of(Run const& run, int sinks) {
  constexpr int more = 2048;
  Cost const a = run(2048 + sinks), b = run(2048 + more + sinks);
  auto const each = [&](double x, double y) { return (y - x) * 64 / more; };
  Cost c;
  c.instructions = each(a.instructions, b.instructions), c.sectors = each(a.sectors, b.sectors);
  c.waves = each(a.waves, b.waves), c.ideal_waves = each(a.ideal_waves, b.ideal_waves);
  for (auto const& [opcode, n] : b.opcodes) {
    auto const before = a.opcodes.find(opcode);
    c.opcodes[opcode] = each(before == a.opcodes.end() ? 0 : before->second, n);
  }
  return c;
}
template <int Dim, class K, class V>
Cost tile(K const& k, V const& v, int sinks) {
  return tile_of([&](int slots) { return run<Dim>(k, v, slots, sinks); }, sinks);
}
template <int Rank, class C>
Cost tile_of_coordinates(C const& codec, int sinks) {
  return tile_of([&](int slots) { return run_coordinates<128, Rank>(codec, slots, sinks); }, sinks);
}

/// An H200: bytes a second that copies reach, multiprocessors, cycles a second while they do, and quarters of a
/// multiprocessor, each of which starts an instruction of a warp in a cycle.
constexpr double bandwidth = 4.3e12, processors = 132, clock_rate = 1.755e9, quarters = 4;
/// Instructions of a warp that a multiprocessor can start while its share of the bandwidth brings so many bytes.
constexpr double starts_of(double bytes) { return bytes * processors / bandwidth * clock_rate * quarters; }
static_assert(starts_of(9216) > 1985 && starts_of(9216) < 1987);

enum class BoundBy { memory, instructions };

struct Budget {
  std::string name;
  double bytes;         ///< that are copied for 64 slots
  double instructions;  ///< of PTX, of a warp
  double products;      ///< of 16 x 8 x 16
  BoundBy bound;        ///< counted in PTX; the machine has fewer instructions: see tests/cuda/sass.py
};

void check(Budget const& b, Cost const& c) {
  double const copied = 512 * c.of("cp.async.cg"), small = 256 * c.of("cp.async.ca");  // all are of 8 bytes here
  double const starts = starts_of(b.bytes);
  BoundBy const bound = c.instructions <= starts ? BoundBy::memory : BoundBy::instructions;
  std::printf("%s: %.0f instructions, bound by %s: the bytes leave time for %.0f; %.0f products, %.0f + %.0f bytes copied of %.0f, %.0f sectors in all, "
              "%.0f waves of %.0f\n",
              b.name.c_str(), c.instructions, bound == BoundBy::memory ? "memory" : "instructions", starts, c.of("mma.sync"), copied, small, b.bytes, c.sectors,
              c.waves, c.ideal_waves);
  if (std::getenv("ATTEND_COUNTS") != nullptr)
    for (auto const& [opcode, n] : c.opcodes)
      if (n > 0) std::printf("  %7.1f %s\n", n, opcode.c_str());
  expect(c.instructions <= b.instructions, b.name + ": instructions");
  expect(bound == b.bound, b.name + ": what it is bound by is not what is said");
  expect(c.of("mma.sync") <= b.products, b.name + ": products");
  expect(copied > 0 && copied + small == b.bytes, b.name + ": asynchronous copies of other bytes than the format's");
  expect(c.sectors * 32 <= 1.15 * b.bytes, b.name + ": bytes moved");
  expect(c.waves <= 1.1 * c.ideal_waves, b.name + ": bank conflicts");
  expect(c.of(".local") == 0, b.name + ": local memory");
}

template <int Bits>
prim::GroupInt<Bits> by(prim::GroupAxis axis, index_t group) {
  return {.axis = axis, .group_size = group};
}

}  // namespace

int main() {
  emulation::count_accesses(true);
  auto const k4 = by<4>(prim::GroupAxis::channel, 64), v4 = by<4>(prim::GroupAxis::token, 64);
  check({"4 bits", 9216, 2700, 80, BoundBy::instructions}, tile<128>(k4, v4, 0));
  check({"4 bits behind sinks", 9216, 2700, 80, BoundBy::instructions}, tile<128>(k4, v4, 4));
  check({"4 bits, keys by token", 9216, 3700, 64, BoundBy::instructions}, tile<128>(v4, v4, 0));
  check({"2 bits", 5120, 2720, 80, BoundBy::instructions}, tile<128>(by<2>(prim::GroupAxis::channel, 64), by<2>(prim::GroupAxis::token, 64), 0));
  // Tiles of 32: scales of keys are copied and folded twice for a group of 64.
  check({"8 bits", 17408 + 512, 3560, 96, BoundBy::memory}, tile<128>(by<8>(prim::GroupAxis::channel, 64), by<8>(prim::GroupAxis::token, 64), 0));
  check({"halves", 32768, 2400, 64, BoundBy::memory}, tile<128>(prim::ExactRows{}, prim::ExactRows{}, 0));
  check({"coordinates, 64 halves", 16384, 1490, 32, BoundBy::memory}, tile_of_coordinates<64>(prim::ExactRows{}, 0));
  check({"coordinates, 64 halves behind sinks", 16384, 2080, 32, BoundBy::memory}, tile_of_coordinates<64>(prim::ExactRows{}, 4));
  check({"coordinates, 128 halves", 32768, 2740, 64, BoundBy::memory}, tile_of_coordinates<128>(prim::ExactRows{}, 0));
  check({"coordinates, 64 of 4 bits", 5120, 2400, 32, BoundBy::instructions}, tile_of_coordinates<64>(by<4>(prim::GroupAxis::token, 32), 0));
  return report();
}
