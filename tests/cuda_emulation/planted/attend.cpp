// attend BUG [SEED [early]]    runs a kernel of attention with one of the bugs of overlay.py, the
// one that the bug's header is of, and compares what it wrote with what it writes without one; exit
// 1 when it differs. "none": all kernels. "early": asynchronous copies land at once.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "heads.hpp"

using namespace kvcondense;
using namespace prim::cuda_kernels;

namespace {

using planted::Memory;
using planted::Results;
using Codec = prim::GroupInt<4>;

constexpr Codec by_channel{.axis = prim::GroupAxis::channel, .group_size = 32},
    by_token{.axis = prim::GroupAxis::token, .group_size = 32};
constexpr cuda::Grid walks{1, planted::blocks}, rows_of_heads{planted::rows, planted::heads};

void choose(int bug) {
#if defined(KVCONDENSE_CUDA_FIBERS)
  planted_bug = bug;
#else
  planted::check(cudaMemcpyToSymbol(planted_bug, &bug, sizeof bug));
#endif
}
template <class... A>
void start(A&&... arguments) {
  const Expected<Context<Cuda>> ctx = Context<Cuda>::make(nullptr);
  planted::check(static_cast<bool>(ctx), "no device");
  planted::check(cuda::launch(*ctx, static_cast<A&&>(arguments)...) == Status::ok, "not started");
}
/// `run()` with a bug writes into `results` what it writes without one.
template <class Run>
void compare(int bug, const Results& results, Run&& run) {
  const auto with = [&](int which) {
    results.blank(), choose(which), run();
    return results.read();
  };
  const std::vector<float> right = with(0), got = with(bug);
  for (std::size_t i = 0; i < right.size(); ++i) {
    if (std::memcmp(&right[i], &got[i], sizeof(float)) == 0) continue;
    std::printf("wrong result: %g instead of %g\n", static_cast<double>(got[i]),
                static_cast<double>(right[i]));
    std::exit(1);
  }
}

void on_tensor_cores(int bug) {
  Memory memory;
  Results results(memory);
  const auto heads = planted::paged(by_channel, by_token, memory);
  const AttendPlan plan = planted::plan_of_call(memory, results);
  const RingLayout ring = ring_layout(by_channel, planted::page_slots, by_token,
                                      planted::page_slots, planted::dim, planted::dim);
  compare(bug, results, [&] {
    start(attend_halves<Codec, Codec, planted::dim>, walks, halves_threads,
          halves_shared<planted::dim>(ring), heads, plan, ring);
  });
}

void over_coordinates(int bug) {
  constexpr int rank = 32;
  Memory memory;
  Results results(memory);
  std::vector<float> table(static_cast<std::size_t>(prim::LatentMap::header +
                                                    prim::LatentMap::floats(planted::dim, rank)));
  table[0] = rank, table[prim::LatentMap::maps_at] = 1.0f;
  const prim::LatentMap map{.table = memory.take(table), .dim = planted::dim, .rank = rank};
  using Coordinates = prim::Latent<Codec>;
  const auto heads =
      planted::paged(Coordinates{by_channel, map}, Coordinates{by_token, map}, memory);
  const AttendPlan plan = planted::plan_of_call(memory, results);
  LatentPlan latent;
  latent.queries = memory.take(
      planted::normals(std::size_t{planted::heads} * planted::rows * (planted::dim + 1)));
  latent.sums = results.take(planted::heads * plan.most * planted::rows * (planted::dim + 1));
  const RingLayout ring =
      ring_layout(prim::cuda_kernels::StoredColumn<Codec>{by_channel, planted::page_slots, rank},
                  prim::cuda_kernels::StoredColumn<Codec>{by_token, planted::page_slots, rank},
                  planted::dim, planted::dim);
  compare(bug, results, [&] {
    start(attend_latent_halves<Coordinates, Coordinates, planted::dim, planted::dim>, walks,
          halves_threads, latent_halves_shared<planted::dim, planted::dim>(ring), heads, plan,
          latent, ring);
  });
}

void in_floats(int bug) {
  Memory memory;
  Results results(memory);
  const auto heads = planted::paged(by_channel, by_token, memory);
  const AttendPlan plan = planted::plan_of_call(memory, results);
  compare(bug, results, [&] {
    start(attend_piece<Codec, Codec>, walks, piece_threads,
          piece_shared({}, planted::dim, planted::dim), heads, plan);
    start(join_pieces<join_threads>, rows_of_heads, join_threads, sizeof(PieceSums), heads.slots,
          prim::PagedSummaries{}, plan);
  });
}

/// Logits of a token's rows are joined, so that lines read queries several times.
void columns(int bug) {
  Memory memory;
  Results results(memory);
  const auto heads = planted::paged(by_channel, by_token, memory);
  ColumnPlan plan;
  plan.kv_heads = planted::heads, plan.group = planted::group,
  plan.tokens = plan.rows = plan.lines = planted::tokens;
  plan.dim = planted::dim, plan.max_slots = planted::longest,
  plan.group_rule = prim::GroupReduce::max_logit;
  plan.queries = dense_view(
      static_cast<const float*>(memory.take(
          planted::normals(std::size_t{planted::heads} * planted::rows * planted::dim))),
      index_t{planted::heads * planted::group}, index_t{planted::tokens}, index_t{planted::dim});
  plan.cut.least = 8, plan.most = plan.cut.most(planted::longest);
  const index_t parts = planted::heads * plan.most * plan.lines;
  plan.top = results.take(parts), plan.total = results.take(parts);
  plan.final_top = results.take(planted::heads * plan.lines),
  plan.final_scale = results.take(planted::heads * plan.lines);
  std::vector<index_t> offset{0};
  for (const int coded : planted::pages) offset.push_back(offset.back() + planted::slots_of(coded));
  plan.out = {results.take(offset.back()), memory.take(offset), planted::heads};
  const std::size_t shared = column_shared({}, planted::dim);
  compare(bug, results, [&] {
    start(column_pieces<Codec, Codec>, walks, piece_threads, shared, heads, plan);
    start(join_lines<128>, cuda::Grid{1, planted::heads}, 128, std::size_t{0}, heads.slots, plan);
    start(column_tiles<Codec, Codec>,
          cuda::Grid{cuda::covering(planted::longest, piece_tile), planted::heads}, piece_threads,
          shared, heads, plan);
  });
}

struct Kernel {
  std::string_view header;
  void (*run)(int bug);
};
/// What all kernels have is tried in the first.
constexpr Kernel kernels[] = {{"attend_halves", on_tensor_cores},
                              {"attend_latent_halves", over_coordinates},
                              {"attend_piece", in_floats},
                              {"attend_columns", columns}};

}  // namespace

int main(int argc, char** argv) {
  int bug = -1, number = 0;
  for (const char* name : planted_names) {
    if (argc > 1 && std::strcmp(argv[1], name) == 0) bug = number;
    ++number;
  }
  if (bug < 0) {
    for (const char* name : planted_names) std::printf("%s\n", name);
    return 2;
  }
#if defined(KVCONDENSE_CUDA_FIBERS)
  if (argc > 2) cuda_fibers::options.seed = std::strtoull(argv[2], nullptr, 10);
  if (argc > 3) cuda_fibers::options.late_copies = false;
#endif
  const std::string_view name = argv[1], header = name.substr(0, name.find('/'));
  const Kernel* of_header = nullptr;
  for (const Kernel& k : kernels) {
    if (k.header == header) of_header = &k;
    if (bug == 0) k.run(0);
  }
  if (bug > 0) (of_header != nullptr ? of_header : kernels)->run(bug);
  return std::printf("right\n"), 0;
}
