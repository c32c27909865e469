// Speculative decoding: drafted tokens are appended and attended, but no step sees them until the
// model has accepted some. What is rejected leaves no trace, bit for bit.

#include <cstdio>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

namespace {

const kvc::CacheShape shape{.q_heads = 8, .kv_heads = 2, .head_dim = 64};
using Rows = std::vector<float>;

Rows draw(kvc::index_t heads, kvc::index_t tokens, std::uint64_t seed) {
  Rows rows(static_cast<std::size_t>(heads * tokens * 64));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = 2 * kvc::random_uniform(seed, i) - 1;
  return rows;
}

/// The first `n` tokens of [heads, tokens, 64].
kvc::TensorView<const float, 3> first(const Rows& rows, kvc::index_t heads, kvc::index_t n) {
  auto v =
      kvc::dense_view(rows.data(), heads, static_cast<kvc::index_t>(rows.size()) / heads / 64, 64);
  v.extent[1] = n;
  return v;
}

/// Thirty rounds in which the model accepts `accepted` of five tokens; with `drafts` all five were
/// tried first. Returns every output, and how many slots are left.
Rows generate(bool drafts, kvc::index_t& slots) {
  auto cache = kvc::make_cache<kvc::Cpu>(
      shape, kvc::recipe(kvc::evict::H2O{.heavy = 32, .recent = 32},
                         kvc::quant::Kivi<4>{.group_size = 16, .residual_window = 16}));
  kvc::Workspace scratch;
  if (!cache || scratch.reserve(cache->workspace_bytes(256, 64)) != kvc::Status::ok) return {};
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());
  Rows all, mass(2 * 256);
  kvc::Status s = kvc::Status::ok;
  const auto then = [&](kvc::Status next) { s = s == kvc::Status::ok ? next : s; };

  for (std::uint64_t round = 0; round < 30; ++round) {
    const Rows q = draw(8, 5, 3 * round), k = draw(2, 5, 3 * round + 1),
               v = draw(2, 5, 3 * round + 2);
    const auto accepted = static_cast<kvc::index_t>(1 + kvc::random_bits(7, round) % 5);
    const kvc::index_t before = cache->length();
    Rows out(q.size());
    const auto all_out = kvc::dense_view(out.data(), 8, 5, 64);
    if (drafts) {
      // All five at once, causal among themselves; the model compares its answers with the
      // drafts...
      then(cache->append(ctx, 0, first(k, 2, 5), first(v, 2, 5)));
      then(cache->attend(ctx, 0, first(q, 8, 5), all_out));
      then(cache->truncate(before + accepted));  // ...and the others were never there.
    } else {
      then(cache->append(ctx, 0, first(k, 2, accepted), first(v, 2, accepted)));
    }
    // H2O counts the attention of accepted tokens only, so it is measured now.
    auto kept_out = all_out;
    kept_out.extent[1] = accepted;
    const auto seen = cache->ragged(0, mass.data());
    then(cache->attend(ctx, 0, first(q, 8, accepted), kept_out, {.mass = seen}));
    then(cache->step(ctx, 0, {seen, cache->mass_rows(accepted)}));
    for (kvc::index_t h = 0; h < 8; ++h)
      for (kvc::index_t t = 0; t < accepted; ++t) all.push_back(kept_out(h, t, 63));
  }
  slots = cache->slots(0, 0);
  return s == kvc::Status::ok ? all : Rows{};
}

}  // namespace

int main() {
  kvc::index_t with = 0, without = 0;
  const Rows a = generate(true, with), b = generate(false, without);
  std::printf("%zu numbers, %lld slots: with drafts %s\n", a.size(), static_cast<long long>(with),
              a == b ? "the same, bit for bit" : "something else");
  return !a.empty() && a == b && with == without && with == 64 ? 0 : 1;
}
