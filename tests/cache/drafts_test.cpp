#include <support/cache_model.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 64};

/// Outputs of `steps` single tokens, each preceded by `drafts` tokens that are taken back.
std::vector<float> decode(index_t drafts, index_t steps) {
  auto cache = make_cache<Cpu>(shape, recipe());
  REQUIRE(cache.has_value());
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(512, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(5), other(6);
  std::vector<float> all;
  const auto forward = [&](const test::Tokens& t, bool draft) {
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.head_dim));
    const auto view = dense_view(out.data(), shape.q_heads, t.n, shape.head_dim);
    if (!draft) {
      REQUIRE(cache->forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), view) == Status::ok);
      all.insert(all.end(), out.begin(), out.end());
      return;
    }
    REQUIRE(cache->append(ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(cache->attend(ctx, 0, t.queries(shape), view) == Status::ok);
  };
  forward(test::Tokens(shape, 60, random), false);
  for (index_t i = 0; i < steps; ++i) {
    const index_t length = cache->length();
    for (index_t d = 0; d < drafts; ++d) forward(test::Tokens(shape, 1, other), true);
    REQUIRE(cache->truncate(length) == Status::ok);
    REQUIRE(cache->next_position() == length);
    forward(test::Tokens(shape, 1, random), false);
  }
  return all;
}

}  // namespace

TEST_CASE("cache: drafts taken back leave no trace, bit for bit", "[cache][truncate]") {
  REQUIRE(decode(5, 12) == decode(0, 12));
}
