#pragma once

// What attention with planted bugs runs on: memory of exactly the asked size, and heads of uneven
// length, of exact first slots, pages of codes and exact newest slots.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include <kvcondense/backend/cuda/words.cuh>

namespace planted {

using namespace kvcondense;

inline void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(2);
}
inline void check(cudaError_t e) { check(e == cudaSuccess, "CUDA error"); }

/// Memory of the device, given back when the program ends.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (void* p : all_) check(cudaFree(p));
  }
  template <class T>
  T* take(const std::vector<T>& x) {
    void* p = nullptr;
    check(cudaMalloc(&p, x.size() * sizeof(T)));
    all_.push_back(p);
    write(static_cast<T*>(p), x);
    return static_cast<T*>(p);
  }
  template <class T>
  static void write(T* to, const std::vector<T>& x) {
    check(cudaMemcpyAsync(to, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice, nullptr));
    check(cudaStreamSynchronize(nullptr));
  }

 private:
  std::vector<void*> all_;
};

/// Arrays that kernels write. What they leave alone is compared too.
class Results {
 public:
  explicit Results(Memory& memory) : memory_(memory) {}
  float* take(index_t n) {
    arrays_.push_back({nullptr, std::vector<float>(static_cast<std::size_t>(n), 7.0f)});
    return arrays_.back().data = memory_.take(arrays_.back().blank);
  }
  void blank() const {
    for (const Array& a : arrays_) Memory::write(a.data, a.blank);
  }
  std::vector<float> read() const {
    std::vector<float> all;
    for (const Array& a : arrays_) {
      const std::size_t before = all.size();
      all.resize(before + a.blank.size());
      check(cudaMemcpyAsync(all.data() + before, a.data, a.blank.size() * sizeof(float),
                            cudaMemcpyDeviceToHost, nullptr));
    }
    check(cudaStreamSynchronize(nullptr));
    return all;
  }

 private:
  struct Array {
    float* data;
    std::vector<float> blank;
  };
  Memory& memory_;
  std::vector<Array> arrays_;
};

inline constexpr int dim = 64, page_slots = 32, sinks = 4, window = 20, group = 4, tokens = 2,
                     rows = group * tokens;
/// Pages of codes of each head, whose pieces have 256 slots: two blocks meet in the middle of the
/// second head. One of no slots, one of exact ones alone.
inline constexpr int pages[] = {8, 9, -1, 0}, heads = 4, longest = sinks + 9 * page_slots + window,
                     blocks = 2;
inline int slots_of(int pages_of_head) {
  return pages_of_head < 0 ? 0 : sinks + pages_of_head * page_slots + window;
}

/// Random bits of which halves are small numbers.
inline std::vector<std::byte> bits(std::size_t n, std::mt19937& random) {
  std::vector<std::byte> page(n);
  for (std::byte& b : page) b = static_cast<std::byte>(random() & 0x37u);
  return page;
}
inline std::vector<float> normals(std::size_t n) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& e : x) e = normal(random);
  return x;
}

template <class Codec>
prim::ColumnRuns column(const Codec& codec, Memory& memory) {
  std::mt19937 random(3);
  std::vector<prim::SlotRun> runs;
  std::vector<index_t> offset{0};
  for (const int coded : pages) {
    int begin = 0;
    const auto add = [&](std::size_t bytes, int n, bool codes) {
      runs.push_back({memory.take(bits(bytes, random)), begin, 0, codes});
      begin += n;
    };
    if (coded >= 0) add(2 * sinks * dim, sinks, false);
    for (int p = 0; p < coded; ++p) add(codec.page_bytes(page_slots, dim), page_slots, true);
    if (coded >= 0) add(2 * window * dim, window, false);
    offset.push_back(static_cast<index_t>(runs.size()));
  }
  return {memory.take(runs), memory.take(offset), page_slots};
}
template <class Codec>
prim::PagedHeads<Codec, Codec> paged(const Codec& keys, const Codec& values, Memory& memory) {
  std::vector<index_t> slots;
  for (const int coded : pages) slots.push_back(slots_of(coded));
  return {keys, values, {}, column(keys, memory), column(values, memory), memory.take(slots),
          heads};
}

/// Of queries that are normal, as the library makes it, but that all arrays are alone.
inline prim::cuda_kernels::AttendPlan plan_of_call(Memory& memory, Results& results) {
  constexpr std::size_t numbers = std::size_t{heads} * rows * dim;
  prim::AttendRequest r;
  r.queries = dense_view(static_cast<const float*>(memory.take(normals(numbers))),
                         index_t{heads * group}, index_t{tokens}, index_t{dim});
  r.out = dense_view(results.take(numbers), index_t{heads * group}, index_t{tokens}, index_t{dim});
  prim::cuda_kernels::AttendPlan plan = prim::cuda_kernels::plan_of({r}, heads, longest);
  plan.cut.least = 8, plan.most = plan.cut.most(longest);
  const index_t parts = heads * plan.most * rows;
  plan.sums = results.take(parts * dim), plan.top = results.take(parts),
  plan.total = results.take(parts);
  plan.final_top = results.take(heads * rows), plan.final_scale = results.take(heads * rows);
  return plan;
}

}  // namespace planted
