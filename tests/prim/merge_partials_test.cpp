#include <catch2/catch.hpp>
#include <cmath>
#include <kvcondense/cpu.hpp>
#include <limits>
#include <random>
#include <support/fill.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using prim::LogBase;
using prim::MergePartials;
using prim::PartialAttention;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

float number(const nlohmann::json& x) { return x.is_string() ? -inf : x.get<float>(); }

/// One part with one head and one query.
struct Part {
  std::vector<float> out;
  float lse;
  PartialAttention view() const {
    return {dense_view(out.data(), 1, 1, static_cast<index_t>(out.size())), dense_view(&lse, 1, 1)};
  }
};

Part merged(const std::vector<Part>& parts, LogBase base, std::size_t dim = 2) {
  std::vector<PartialAttention> views;
  for (const Part& p : parts) views.push_back(p.view());
  Part all{std::vector<float>(dim, 7.0f), 7.0f};
  Context<Cpu> ctx;
  REQUIRE(MergePartials<Cpu>::run(ctx, views, dense_view(all.out.data(), 1, 1, static_cast<index_t>(dim)), dense_view(&all.lse, 1, 1), base) == Status::ok);
  return all;
}

}  // namespace

TEST_CASE("merge partials: the worked parts, in both bases and in any order", "[prim][merge_partials]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "lse_merge");
  for (const LogBase base : {LogBase::natural, LogBase::two}) {
    const char* key = base == LogBase::two ? "lse_base2" : "lse";
    std::vector<Part> parts;
    for (const auto& p : o.at("partials")) parts.push_back({test::floats(p.at("out")), number(p.at(key))});
    REQUIRE(parts.size() == 4);
    const auto check = [&](const Part& all) {
      for (std::size_t d = 0; d < 2; ++d) CHECK(all.out[d] == Approx(o.at("merged").at("out")[d].get<double>()).epsilon(1e-5));
      CHECK(all.lse == Approx(number(o.at("merged").at(key))).epsilon(1e-5));
    };
    check(merged(parts, base));
    std::swap(parts[0], parts[3]);
    check(merged(parts, base));
    // Two by two gives the same, and a part without slots changes nothing.
    check(merged({merged({parts[0], parts[1]}, base), merged({parts[2], parts[3]}, base)}, base));
    check(merged({merged({parts[0], parts[1], parts[2]}, base), parts[3]}, base));
    CHECK(merged({parts[0], parts[1]}, base).out == merged({parts[0]}, base).out);
  }
  // The parts themselves, by attention over their slots.
  const auto k = test::floats(o.at("K")), v = test::floats(o.at("V")), q = test::floats(o.at("q"));
  std::vector<Part> own;
  for (const auto& slots : o.at("parts")) {
    std::vector<float> keys, values;
    for (const auto slot : slots.get<std::vector<std::size_t>>()) {
      keys.insert(keys.end(), k.begin() + static_cast<std::ptrdiff_t>(4 * slot), k.begin() + static_cast<std::ptrdiff_t>(4 * slot + 4));
      values.insert(values.end(), v.begin() + static_cast<std::ptrdiff_t>(2 * slot), v.begin() + static_cast<std::ptrdiff_t>(2 * slot + 2));
    }
    const auto n = static_cast<index_t>(slots.size());
    auto cache = make_cache<Cpu>({.head_dim = 4, .value_dim = 2, .dtype = DType::f32, .softmax_scale = o.at("scale").get<float>()}, recipe());
    REQUIRE(cache);
    std::vector<std::byte> work(cache->workspace_bytes(n + 1, n + 1));
    Context<Cpu> ctx(work);
    Part part{{0.0f, 0.0f}, -inf};
    if (n > 0) REQUIRE(cache->append(ctx, 0, dense_view(keys.data(), 1, n, 4), dense_view(values.data(), 1, n, 2)) == Status::ok);
    REQUIRE(cache->attend(ctx, 0, dense_view(q.data(), 1, 1, 4), dense_view(part.out.data(), 1, 1, 2), {.lse = dense_view(&part.lse, 1, 1)}) == Status::ok);
    const auto& want = o.at("partials")[own.size()];
    for (std::size_t d = 0; d < 2; ++d) CHECK(part.out[d] == Approx(want.at("out")[d].get<double>()).margin(1e-6));
    if (n > 0) CHECK(part.lse == Approx(number(want.at("lse"))).margin(1e-6));
    else CHECK(part.lse == -inf);
    own.push_back(part);
  }
  const Part joined = merged(own, LogBase::natural);
  for (std::size_t d = 0; d < 2; ++d) CHECK(joined.out[d] == Approx(o.at("merged").at("out")[d].get<double>()).margin(1e-6));
  const Part none = merged({{{0, 0}, -inf}, {{0, 0}, -inf}}, LogBase::natural);
  CHECK(none.out == std::vector<float>{0, 0});
  CHECK(none.lse == -inf);
  CHECK(merged({}, LogBase::natural).lse == -inf);
}

TEST_CASE("merge partials: split attention is attention, whatever the split", "[prim][merge_partials]") {
  struct Case {
    index_t group, dim, slots, tokens;
  };
  for (const Case c : {Case{1, 64, 40, 1}, Case{4, 80, 33, 3}, Case{7, 96, 21, 2}, Case{16, 128, 50, 1}, Case{2, 256, 17, 5}}) {
    constexpr index_t kv = 2;
    const index_t q_heads = kv * c.group;
    std::vector<float> q(static_cast<std::size_t>(q_heads * c.tokens * c.dim)), k(static_cast<std::size_t>(kv * c.slots * c.dim)), v(k.size());
    test::fill_normal(q.data(), q.size(), 1), test::fill_normal(k.data(), k.size(), 2), test::fill_normal(v.data(), v.size(), 3);
    const CacheShape shape{.q_heads = q_heads, .kv_heads = kv, .head_dim = c.dim, .dtype = DType::f32};
    Workspace work;
    Context<Cpu> ctx;
    const auto attend = [&](index_t first, index_t last, std::vector<float>& out, std::vector<float>& lse) {
      auto cache = make_cache<Cpu>(shape, recipe());
      REQUIRE(cache);
      REQUIRE(work.reserve(cache->workspace_bytes(c.slots, c.slots)) == Status::ok);
      ctx = Context<Cpu>(work.bytes());
      const TensorView<const float, 3> keys{k.data() + first * c.dim, {kv, last - first, c.dim}, {c.slots * c.dim, c.dim, 1}};
      const TensorView<const float, 3> values{v.data() + first * c.dim, {kv, last - first, c.dim}, {c.slots * c.dim, c.dim, 1}};
      if (last > first) REQUIRE(cache->append(ctx, 0, keys, values) == Status::ok);
      out.resize(q.size()), lse.resize(static_cast<std::size_t>(q_heads * c.tokens));
      for (index_t t = 0; t < c.tokens; ++t)  // each query sees everything
        REQUIRE(cache->attend(ctx, 0, {q.data() + t * c.dim, {q_heads, 1, c.dim}, {c.tokens * c.dim, c.dim, 1}},
                              {out.data() + t * c.dim, {q_heads, 1, c.dim}, {c.tokens * c.dim, c.dim, 1}},
                              {.lse = {lse.data() + t, {q_heads, 1}, {c.tokens, 1}}}) == Status::ok);
    };
    std::vector<float> want, want_lse;
    attend(0, c.slots, want, want_lse);
    std::mt19937 random(5);
    for (int parts = 1; parts <= 5; ++parts) {
      std::vector<index_t> cut{0, c.slots};
      for (int i = 1; i < parts; ++i) cut.push_back(static_cast<index_t>(random()) % (c.slots + 1));
      std::sort(cut.begin(), cut.end());
      std::vector<std::vector<float>> outs(cut.size() - 1), lses(cut.size() - 1);
      std::vector<PartialAttention> views;
      for (std::size_t i = 0; i + 1 < cut.size(); ++i) {
        attend(cut[i], cut[i + 1], outs[i], lses[i]);
        views.push_back({dense_view(std::as_const(outs[i]).data(), q_heads, c.tokens, c.dim), dense_view(std::as_const(lses[i]).data(), q_heads, c.tokens)});
      }
      // Into the first part's own memory.
      REQUIRE(MergePartials<Cpu>::run(ctx, views, dense_view(outs[0].data(), q_heads, c.tokens, c.dim), dense_view(lses[0].data(), q_heads, c.tokens)) == Status::ok);
      for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(outs[0][i] == Approx(want[i]).margin(2e-6));
      for (std::size_t i = 0; i < want_lse.size(); ++i) REQUIRE(lses[0][i] == Approx(want_lse[i]).margin(1e-5));
    }
  }
}

TEST_CASE("merge partials: huge logits, NaN and views that do not fit", "[prim][merge_partials]") {
  const Part far = merged({{{1, 2}, 3e4f}, {{5, 6}, -3e4f}}, LogBase::natural);
  CHECK(far.out == std::vector<float>{1, 2});
  CHECK(far.lse == 3e4f);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Part bad = merged({{{1, 2}, 0.0f}, {{5, 6}, nan}}, LogBase::natural);
  CHECK(std::isnan(bad.out[0]));
  CHECK(std::isnan(bad.lse));
  // A part without slots may hold anything.
  const Part empty = merged({{{1, 2}, 0.0f}, {{nan, nan}, -inf}}, LogBase::natural);
  CHECK(empty.out == std::vector<float>{1, 2});

  Context<Cpu> ctx;
  const Part p{{1, 2, 3}, 0.0f};
  std::vector<float> out(3), lse(2);
  const std::vector<PartialAttention> parts{p.view()};
  CHECK(MergePartials<Cpu>::run(ctx, parts, dense_view(out.data(), 1, 1, 2)) == Status::shape_mismatch);
  CHECK(MergePartials<Cpu>::run(ctx, parts, dense_view(out.data(), 1, 1, 3), dense_view(lse.data(), 1, 2)) == Status::shape_mismatch);
  CHECK(out == std::vector<float>{0, 0, 0});
  REQUIRE(MergePartials<Cpu>::run(ctx, parts, dense_view(out.data(), 1, 1, 3)) == Status::ok);
  CHECK(out == p.out);
}

TEST_CASE("merge partials: parts of another shape are refused, each by its own number, and nothing is written", "[prim][merge_partials]") {
  const std::vector<float> rows(2 * 3 * 4, 1.0f), lses(2 * 3, 0.0f);
  std::vector<float> out(2 * 3 * 4, 7.0f), lse(2 * 3, 7.0f);
  const auto with = [&](index_t heads, index_t tokens, index_t dim, index_t lse_heads, index_t lse_tokens, index_t own = 2) {
    const PartialAttention parts[] = {{dense_view(rows.data(), 2, 3, 4), dense_view(lses.data(), 2, 3)},
                                      {dense_view(rows.data(), heads, tokens, dim), dense_view(lses.data(), lse_heads, lse_tokens)}};
    Context<Cpu> ctx;
    return MergePartials<Cpu>::run(ctx, parts, dense_view(out.data(), 2, 3, 4), dense_view(lse.data(), own, 3));
  };
  REQUIRE(with(1, 3, 4, 2, 3) == Status::shape_mismatch);
  REQUIRE(with(2, 2, 4, 2, 3) == Status::shape_mismatch);
  REQUIRE(with(2, 3, 3, 2, 3) == Status::shape_mismatch);
  REQUIRE(with(2, 3, 4, 1, 3) == Status::shape_mismatch);
  REQUIRE(with(2, 3, 4, 2, 2) == Status::shape_mismatch);
  REQUIRE(with(2, 3, 4, 2, 3, 1) == Status::shape_mismatch);
  for (const float x : out) REQUIRE(x == 7.0f);
  REQUIRE(with(2, 3, 4, 2, 3) == Status::ok);
  for (const float x : out) REQUIRE(x == 1.0f);
}

TEST_CASE("merge partials: a part without a number makes its row one without a number", "[prim][merge_partials]") {
  for (const std::size_t bad : {std::size_t{0}, std::size_t{1}}) {
    std::vector<Part> parts = {{{1, 2}, 0.5f}, {{3, 4}, 0.25f}};
    parts[bad].lse = std::numeric_limits<float>::quiet_NaN();
    const Part all = merged(parts, LogBase::natural);
    REQUIRE((std::isnan(all.out[0]) && std::isnan(all.out[1]) && std::isnan(all.lse)));
  }
}
