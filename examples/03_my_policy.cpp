// A policy of one's own: a struct that names the blocks of the eviction pipeline. One block is new
// (attention that fades), the others are the library's; the cache and quantization need no change.

#include <algorithm>
#include <cstdio>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

namespace mine {

using kvc::Status;

/// Accumulate block: the attention of earlier steps counts `keep` times as much at every step.
struct FadingSum {
  float keep = 0.9f;

  constexpr kvc::index_t lanes() const { return 1; }  // a number per slot that the cache keeps

  template <kvc::Backend B, class Group>
  Status observe(kvc::Context<B>& ctx, const kvc::StepView<B>& view, const Group& group,
                 float scale, kvc::evict::LaneViews lane) const {
    return group.add(ctx, view, scale, keep, lane[0]);
  }
  template <kvc::Backend B, class Group>
  Status score(kvc::Context<B>& ctx, const kvc::StepView<B>&, const Group&, float,
               kvc::evict::LaneViews lane, kvc::RaggedView<float> out) const {
    return kvc::prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);
  }
};

/// Keeps the first tokens, the newest, and those that drew attention lately.
struct Fading {
  static constexpr kvc::Descriptor about{"fading", kvc::Stage::evict, "this file"};
  static constexpr kvc::Inputs needs = kvc::Input::attention;

  kvc::index_t tokens = 64;
  kvc::index_t sinks = 4;
  kvc::index_t recent = 16;
  constexpr auto pipeline() const {
    using namespace kvc::evict;
    return Pipeline{AttentionMass<PerHead, FadingSum>{all_rows(), Reduce::mean},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{recent}},
                    Absolute{tokens},
                    TopK{},
                    EveryM{.every = 8}};
  }
  Status validate(const kvc::CacheShape&) const {
    return tokens > sinks + recent ? Status::ok : Status::invalid_argument;
  }
};

// One plain sentence per missing piece, where a concept would only say no.
static_assert(kvc::evict::check_eviction_policy<Fading, kvc::Cpu>());

}  // namespace mine

int main() {
  const kvc::CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 64};
  auto cache = kvc::make_cache<kvc::Cpu>(
      shape, kvc::recipe(mine::Fading{.tokens = 64}, kvc::quant::GroupInt<4>{}));
  kvc::Workspace scratch;
  if (!cache || scratch.reserve(cache->workspace_bytes(256, 1)) != kvc::Status::ok) return 1;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());

  std::vector<float> rows(10 * 64),
      out(6 * 64);  // of each token: six queries, two keys, two values
  const auto part = [&](kvc::index_t first, kvc::index_t heads) {
    return kvc::dense_view<const float>(rows.data() + first * 64, heads, 1, 64);
  };
  kvc::index_t most = 0;
  for (std::uint64_t token = 0; token < 200; ++token) {
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = kvc::random_uniform(token, i) - 0.5f;
    // forward gives the policy the attention it asked for.
    const kvc::Status done = cache->forward(ctx, 0, part(0, 6), part(6, 2), part(8, 2),
                                            kvc::dense_view(out.data(), 6, 1, 64));
    if (done != kvc::Status::ok) return 1;
    most = std::max(most, cache->slots(0, 0));
  }

  bool kept = cache->slots(0, 0) == 64 && most == 64 + 7;
  for (kvc::index_t s = 0; s < 4; ++s) kept = kept && cache->token(0, 1, s) == s;
  for (kvc::index_t s = 0; s < 16; ++s) kept = kept && cache->token(0, 1, 63 - s) == 199 - s;
  std::printf("200 tokens, at most %lld slots, first and newest kept: %s\n",
              static_cast<long long>(most), kept ? "yes" : "no");
  return kept ? 0 : 1;
}
