// attend BUG [SEED [early]]    runs attention on tensor cores with one of the bugs of overlay.py and compares what the
// kernel wrote with what it writes without one; exit 1 when it differs. "early": asynchronous copies land at once.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include <kvcondense/backend/cuda/words.cuh>

using namespace kvcondense;

namespace {

constexpr int dim = 64, page_slots = 64, pages = 11, sinks = 4, window = 20, slots = sinks + pages * page_slots + window, group = 8;
using Codec = prim::GroupInt<4>;

void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(2);
}
void check(cudaError_t e) { check(e == cudaSuccess, "CUDA error"); }

/// What main took on the device; given back when it ends.
struct Taken {
  std::vector<void*> all;
  ~Taken() {
    for (void* p : all) check(cudaFree(p));
  }
}* taken = nullptr;

template <class T>
T* on_device(const std::vector<T>& x) {
  void* p = nullptr;
  check(cudaMalloc(&p, x.size() * sizeof(T)));
  taken->all.push_back(p);
  check(cudaMemcpyAsync(p, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice, nullptr));
  check(cudaStreamSynchronize(nullptr));
  return static_cast<T*>(p);
}

/// Exact first slots, pages of codes, exact newest slots.
prim::ColumnRuns column(const Codec& codec) {
  std::mt19937 random(3);
  std::vector<prim::SlotRun> runs;
  int begin = 0;
  const auto add = [&](std::size_t bytes, int n, bool coded) {
    std::vector<std::byte> page(bytes);
    for (std::byte& b : page) b = static_cast<std::byte>(random() & 0x37u);  // halves of them are small numbers
    runs.push_back({on_device(page), begin, 0, coded});
    begin += n;
  };
  add(2 * sinks * dim, sinks, false);
  for (int p = 0; p < pages; ++p) add(codec.page_bytes(page_slots, dim), page_slots, true);
  add(2 * window * dim, window, false);
  return {on_device(runs), on_device(std::vector<index_t>{0, static_cast<index_t>(runs.size())}), page_slots};
}

void choose(int bug) {
#if defined(KVCONDENSE_CUDA_FIBERS)
  planted_bug = bug;
#else
  check(cudaMemcpyToSymbol(planted_bug, &bug, sizeof bug));
#endif
}

}  // namespace

int main(int argc, char** argv) {
  using namespace prim::cuda_kernels;
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

  Taken mine;
  taken = &mine;
  const Codec keys{.axis = prim::GroupAxis::channel, .group_size = 64}, values{.axis = prim::GroupAxis::token, .group_size = 32};
  const prim::PagedHeads<Codec, Codec> heads{keys, values, {}, column(keys), column(values), on_device(std::vector<index_t>{slots}), 1};
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> q(group * dim);
  for (float& x : q) x = normal(random);
  std::vector<float> out(group * dim);
  prim::AttendRequest r;
  r.queries = dense_view(static_cast<const float*>(on_device(q)), index_t{group}, index_t{1}, index_t{dim});
  r.out = dense_view(on_device(out), index_t{group}, index_t{1}, index_t{dim});
  AttendPlan plan = plan_of({r}, 1, slots);
  plan.cut.row_blocks = most_pieces, plan.most = 1;  // one block, so that warps go through several tiles
  std::vector<std::byte> scratch(workspace_of(plan));
  check(place(plan, Scratch(std::span<std::byte>(on_device(scratch), scratch.size()))), "no workspace");
  const Expected<Context<Cuda>> ctx = Context<Cuda>::make(nullptr);
  check(static_cast<bool>(ctx), "no device");
  const RingLayout ring = ring_layout(keys, page_slots, values, page_slots, dim, dim);

  const auto run = [&](int with) {
    choose(with);
    check(cuda::launch(*ctx, attend_halves<Codec, Codec, dim>, {1, 1, 1}, halves_threads, halves_shared<dim>(ring), heads, plan, ring) == Status::ok, "not started");
    check(cudaMemcpyAsync(out.data(), plan.sums, out.size() * sizeof(float), cudaMemcpyDeviceToHost, nullptr));
    check(cudaStreamSynchronize(nullptr));
    return out;
  };
  const std::vector<float> right = run(0), got = run(bug);
  for (std::size_t i = 0; i < right.size(); ++i) {
    if (right[i] == got[i]) continue;
    std::printf("wrong result: %g instead of %g\n", static_cast<double>(got[i]), static_cast<double>(right[i]));
    return 1;
  }
  return std::printf("right\n"), 0;
}
