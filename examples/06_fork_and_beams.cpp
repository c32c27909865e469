// One prompt, four continuations: forks share its pages until one of them writes; beams change
// places with reorder, and nothing is copied but the pages that differ.

#include <cstdio>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

int main() {
  const kvc::CacheShape shape{.q_heads = 8, .kv_heads = 2, .head_dim = 64};
  auto prompt = kvc::make_cache<kvc::Cpu>(shape, kvc::recipe(kvc::quant::Kivi<4>{}));
  kvc::Workspace scratch;
  if (!prompt || scratch.reserve(prompt->workspace_bytes(1024, 640)) != kvc::Status::ok) return 1;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());

  // The rows of a token depend on a seed, as they would on its text: queries, then keys and values.
  std::vector<float> rows(8 * 640 * 64), out(rows.size());
  const auto part = [&](kvc::index_t heads, kvc::index_t n) {
    return kvc::dense_view<const float>(rows.data(), heads, n, 64);
  };
  const auto feed = [&](auto& cache, kvc::index_t n, std::uint64_t seed) {
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = kvc::random_uniform(seed, i) - 0.5f;
    return cache.forward(ctx, 0, part(8, n), part(2, n), part(2, n),
                         kvc::dense_view(out.data(), 8, n, 64));
  };
  kvc::Status s = feed(*prompt, 640, 1);

  std::vector<std::remove_reference_t<decltype(*prompt)>> beams;
  for (int b = 0; b < 4; ++b) {
    auto copy = prompt->fork();
    if (!copy) return 1;
    beams.push_back(*std::move(copy));
  }
  for (std::uint64_t b = 0; b < 4; ++b)
    if (s == kvc::Status::ok) s = feed(beams[b], 1, 100 + b);
  const kvc::Report first = beams[0].report();

  // What each beam answers to one query.
  const auto answer = [&](std::size_t b) {
    if (s == kvc::Status::ok)
      s = beams[b].attend(ctx, 0, part(8, 1), kvc::dense_view(out.data(), 8, 1, 64));
    return std::vector<float>(out.begin(), out.begin() + 8 * 64);
  };
  const auto before0 = answer(0), before2 = answer(2);

  // Beam search keeps beams 0 and 2, twice each: beams[i] becomes what beams[map[i]] was.
  const kvc::index_t map[] = {0, 2, 2, 0};
  if (s == kvc::Status::ok) s = kvc::reorder(std::span(beams), std::span<const kvc::index_t>(map));

  const bool moved = answer(0) == before0 && answer(1) == before2 && answer(2) == before2 &&
                     answer(3) == before0 && before0 != before2;
  std::printf("a beam holds %zu bytes, %zu of them shared; beams moved: %s\n", first.bytes(),
              first.shared_bytes, moved ? "yes" : "no");
  return s == kvc::Status::ok && moved && 2 * first.shared_bytes > first.bytes() ? 0 : 1;
}
