// A method without the library's cache: an engine with keys and values of its own asks which slots
// stay, and moves the rows itself.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

int main() {
  constexpr kvc::index_t heads = 4, slots = 300, dim = 48, budget = 100, recent = 20;
  const kvc::CacheShape shape{.q_heads = 12, .kv_heads = heads, .head_dim = dim};

  // The engine's own memory, any strides: [kv_heads, slots, dim].
  std::vector<float> keys(heads * slots * dim);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = kvc::random_uniform(5, i) - 0.5f;
  const kvc::DenseRows rows(kvc::dense_view<const float>(keys.data(), heads, slots, dim));

  const auto method = kvc::evict::Knorm{.tokens = budget, .recent = recent}.pipeline();

  // What a step looks like: a prompt of 300 tokens just ended, every head holds all of them.
  const kvc::index_t offset[] = {0, slots, 2 * slots, 3 * slots, 4 * slots};
  kvc::StepView<kvc::Cpu> step{.shape = shape, .appended = slots, .seen = slots};
  step.phase = kvc::Phase::prefill_end;
  step.offset = offset;
  step.keys = &rows;

  // Lanes are the numbers a policy remembers per slot (here: the length of each key). They belong
  // to the engine, live as long as the slots and move with them; the answer goes into `keep`.
  std::vector<float> memory(heads * slots);
  const kvc::RaggedView<float> lane[] = {{memory.data(), offset, heads}};
  std::vector<std::int32_t> kept(heads * slots);
  kvc::index_t count[heads], wanted[heads];
  const kvc::evict::KeepSet keep{{kept.data(), offset, heads}, count, wanted};

  std::vector<std::byte> scratch(method.workspace_bytes(shape, heads * slots) +
                                 kvc::Scratch::align);
  kvc::Context<kvc::Cpu> ctx;
  kvc::Status s = method.observe(ctx, step, lane);
  if (s == kvc::Status::ok && method.fires(step))
    s = method.choose(ctx, step, lane, keep, kvc::Scratch(scratch));
  if (s != kvc::Status::ok) return std::printf("%s\n", to_string(s)), 1;

  // The claim, the long way: the newest stay, and the shortest of the others.
  bool right = true;
  for (kvc::index_t h = 0; h < heads; ++h) {
    std::vector<std::pair<double, std::int32_t>> length;
    for (std::int32_t t = 0; t < slots - recent; ++t) {
      double sum = 0;
      for (kvc::index_t d = 0; d < dim; ++d) {
        const double x = keys[static_cast<std::size_t>((h * slots + t) * dim + d)];
        sum += x * x;
      }
      length.emplace_back(sum, t);
    }
    std::sort(length.begin(), length.end());
    std::vector<std::int32_t> want;
    for (std::size_t i = 0; i < budget - recent; ++i) want.push_back(length[i].second);
    std::sort(want.begin(), want.end());
    for (std::int32_t t = slots - recent; t < slots; ++t) want.push_back(t);
    right = right && count[h] == budget && std::equal(want.begin(), want.end(), keep.slots.row(h));
  }
  std::printf("%lld of %lld slots stay in each head: %s\n", static_cast<long long>(count[0]),
              static_cast<long long>(slots), right ? "the shortest keys and the newest" : "wrong");
  return right ? 0 : 1;
}
