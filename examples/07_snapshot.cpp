// A cache to bytes and back, codes as codes. A damaged file, or one of another recipe, is refused,
// and the cache that should have taken it stays as it was.

#include <algorithm>
#include <cstdio>
#include <span>
#include <utility>
#include <vector>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>

namespace kvc = kvcondense;

namespace {

/// Where the bytes go: a file, a socket, here memory. False would mean io_error.
struct Bytes final : kvc::ByteSink {
  std::vector<std::byte> all;
  bool write(std::span<const std::byte> more) noexcept override {
    all.insert(all.end(), more.begin(), more.end());
    return true;
  }
};

const kvc::CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 64};

auto make(kvc::index_t group_size) {
  return kvc::make_cache<kvc::Cpu>(
      shape, kvc::recipe(kvc::evict::Knorm{.tokens = 96, .recent = 16},
                         kvc::quant::Kivi<2>{.group_size = group_size, .residual_window = 32}));
}

}  // namespace

int main() {
  auto cache = make(32), copy = make(32), other = make(16);
  kvc::Workspace scratch;
  if (!cache || !copy || !other ||
      scratch.reserve(cache->workspace_bytes(256, 200)) != kvc::Status::ok)
    return 1;
  kvc::Context<kvc::Cpu> ctx(scratch.bytes());

  std::vector<float> rows(4 * 200 * 64), here(rows.size()), there(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = kvc::random_uniform(3, i) - 0.5f;
  const auto part = [&](kvc::index_t heads, kvc::index_t n) {
    return kvc::dense_view<const float>(rows.data(), heads, n, 64);
  };
  Bytes file;
  if (cache->forward(ctx, 0, part(4, 200), part(2, 200), part(2, 200),
                     kvc::dense_view(here.data(), 4, 200, 64)) != kvc::Status::ok ||
      kvc::save(*cache, file) != kvc::Status::ok || kvc::load(*copy, file.all) != kvc::Status::ok)
    return 1;

  // Both go on alike, bit for bit: evictions, flushes and attention.
  bool same = true;
  for (int token = 0; token < 50; ++token) {
    for (auto [which, out] : {std::pair{&*cache, &here}, std::pair{&*copy, &there}})
      same = same && which->forward(ctx, 0, part(4, 1), part(2, 1), part(2, 1),
                                    kvc::dense_view(out->data(), 4, 1, 64)) == kvc::Status::ok;
    same = same && std::equal(here.begin(), here.begin() + 4 * 64, there.begin());
  }

  const kvc::Status recipe = kvc::load(*other, file.all);
  file.all[file.all.size() / 2] ^= std::byte{1};
  const kvc::Status damaged = kvc::load(*copy, file.all);
  std::printf("%zu bytes; another recipe: %s; one flipped bit: %s\n", file.all.size(),
              to_string(recipe), to_string(damaged));
  const bool refused = recipe == kvc::Status::incompatible && damaged == kvc::Status::corrupt_data;
  return same && refused && other->length() == 0 && copy->length() == 250 ? 0 : 1;
}
