#include <cstring>

#include <catch2/catch.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/reuse/pie.hpp>
#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using reuse::KeptRun;
using reuse::Pie;
using reuse::TextEdit;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "pie"); }
using Edits = std::vector<TextEdit>;

Pie planned(const Edits& edits, index_t tokens) {
  Pie p;
  REQUIRE(p.plan(edits, tokens) == Status::ok);
  return p;
}

}  // namespace

TEST_CASE("pie: the worked edits move what the text moves", "[reuse][pie]") {
  const auto m = oracle().at("multi_edit");
  Edits edits;
  for (const auto& e : m.at("edits_start_end_newlen")) edits.push_back({e[0], e[1], e[2]});
  const Pie p = planned(edits, m.at("old_len"));
  CHECK(p.new_tokens() == m.at("new_len").get<index_t>());
  for (index_t t = 0; t < p.old_tokens(); ++t) CHECK(p.position(t) == m.at("new_position_of_old")[static_cast<std::size_t>(t)].get<index_t>());
  index_t groups = 0;
  for (const KeptRun& k : p.kept()) {
    const auto& tokens = m.at("delta_groups").at(std::to_string(k.shift));
    for (index_t t = k.begin; t < k.end; ++t) CHECK(std::find(tokens.begin(), tokens.end(), t) != tokens.end());
    ++groups;
  }
  CHECK(groups == 4);
  CHECK(p.computed() == 6);
  REQUIRE(p.fresh().size() == 3);
  CHECK(p.fresh()[0].begin == 3);
  CHECK(p.fresh()[0].end == 7);
  CHECK(p.fresh()[1].begin == 10);
  CHECK(p.fresh()[2].begin == p.fresh()[2].end);
}

TEST_CASE("pie: the worked keys, inserted and deleted, in both pairings", "[reuse][pie]") {
  const auto o = oracle();
  const index_t dim = o.at("head_dim"), n = static_cast<index_t>(o.at("K_rotated_half_split").size());
  Context<Cpu> ctx;
  const auto run = [&](const Edits& edits, const char* pairing_key, prim::RopePairing pairing) {
    const Pie p = planned(edits, n);
    const auto angles = prim::rope_angles({.pairing = pairing, .base = o.at("base")}, dim);
    REQUIRE(angles);
    const auto old = test::floats(o.at(pairing_key));
    std::vector<float> got(static_cast<std::size_t>(p.new_tokens() * dim), 99.0f), values(got.size(), 99.0f);
    REQUIRE(p.run(ctx, *angles, {dense_view(old.data(), 1, n, dim), dense_view(old.data(), 1, n, dim)},
                  {dense_view(got.data(), 1, p.new_tokens(), dim), dense_view(values.data(), 1, p.new_tokens(), dim)}) == Status::ok);
    for (const KeptRun& k : p.kept())
      for (index_t t = k.begin; t < k.end; ++t)
        for (index_t d = 0; d < dim; ++d) CHECK(values[static_cast<std::size_t>((t + k.shift) * dim + d)] == old[static_cast<std::size_t>(t * dim + d)]);
    return std::pair{p.new_tokens(), got};
  };
  const auto& ins = o.at("insert");
  const index_t at = ins.at("at"), count = ins.at("count");
  {
    const auto [length, got] = run({{at, at, count}}, "K_rotated_half_split", prim::RopePairing::half_split);
    CHECK(length == n + count);
    for (index_t t = 0; t < n; ++t)
      for (index_t d = 0; d < dim; ++d)
        CHECK(got[static_cast<std::size_t>((t < at ? t : t + count) * dim + d)] == Approx(ins.at("K_after")[static_cast<std::size_t>(t)][static_cast<std::size_t>(d)].get<double>()).margin(2e-6));
    for (index_t d = 0; d < count * dim; ++d) CHECK(got[static_cast<std::size_t>(at * dim + d)] == 99.0f);  // the new tokens' own
  }
  const auto& del = o.at("delete");
  const index_t first = del.at("first"), gone = del.at("count");
  {
    const auto [length, got] = run({{first, first + gone, 0}}, "K_rotated_half_split", prim::RopePairing::half_split);
    const auto want = test::floats(del.at("K_after_tail"));
    CHECK(length == n - gone);
    for (std::size_t i = 0; i < want.size(); ++i) CHECK(got[static_cast<std::size_t>(first * dim) + i] == Approx(want[i]).margin(2e-6));
  }
  {  // interleaved pairs: the same as rotating the raw key to the new place
    const auto [length, got] = run({{at, at, count}}, "K_rotated_interleaved", prim::RopePairing::interleaved);
    const auto angles = prim::rope_angles({.pairing = prim::RopePairing::interleaved}, dim);
    auto raw = test::floats(o.at("K_unrotated"));
    std::vector<float> cos(2), sin(2);
    for (index_t t = at; t < n; ++t) {
      prim::rope_cos_sin(*angles, t + count, cos.data(), sin.data());
      prim::rotate_row(raw.data() + t * dim, raw.data() + t * dim, cos.data(), sin.data(), 2, angles->pairing);
      for (index_t d = 0; d < dim; ++d) CHECK(got[static_cast<std::size_t>((t + count) * dim + d)] == Approx(raw[static_cast<std::size_t>(t * dim + d)]).margin(2e-6));
    }
  }
  const auto& c = o.at("compose");
  const auto angles = prim::rope_angles({.base = o.at("base")}, dim);
  auto row = test::floats(o.at("K_rotated_half_split")[c.at("k_index").get<std::size_t>()]);
  for (const index_t shift : {3, -2})
    REQUIRE(Pie::turn(ctx, *angles, dense_view(std::as_const(row).data(), 1, 1, dim), shift, dense_view(row.data(), 1, 1, dim)) == Status::ok);
  for (std::size_t d = 0; d < row.size(); ++d) CHECK(row[d] == Approx(c.at("plus3_minus2")[d].get<double>()).margin(2e-6));
}

TEST_CASE("pie: an edited cache holds what a cache of the edited text holds, where nothing looks back", "[reuse][pie]") {
  // Rows depend on their token only, so the cache of the new text is known.
  for (const index_t dim : {64, 80, 128}) {
    const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32};
    const prim::RopeConfig rope{.base = 5e5, .scaling = prim::RopeScaling::linear, .factor = 2.0};
    const auto angles = prim::rope_angles(rope, dim);
    REQUIRE(angles);
    std::vector<int> old_text(40), new_text;
    for (int i = 0; i < 40; ++i) old_text[static_cast<std::size_t>(i)] = i;
    const Edits edits{{3, 5, 4}, {8, 8, 2}, {30, 40, 1}};
    const Pie p = planned(edits, 40);
    int next = 100;
    for (index_t t = 0, e = 0; t <= 40; ++t) {
      if (e < 3 && edits[static_cast<std::size_t>(e)].begin == t) {
        for (index_t i = 0; i < edits[static_cast<std::size_t>(e)].tokens; ++i) new_text.push_back(next++);
        t = edits[static_cast<std::size_t>(e++)].end;
        if (t == edits[static_cast<std::size_t>(e - 1)].begin && t < 40) new_text.push_back(old_text[static_cast<std::size_t>(t)]);
        else --t;
        continue;
      }
      if (t < 40) new_text.push_back(old_text[static_cast<std::size_t>(t)]);
    }
    REQUIRE(static_cast<index_t>(new_text.size()) == p.new_tokens());

    const auto paged = recipe(retrieve::Quest{.page = 4, .tokens = 8, .dense_layers = 0});
    test::CacheRig before(shape, paged, 64, 64), after(shape, paged, 64, 64), want(shape, paged, 64, 64);
    const auto append = [&](auto& rig, const std::vector<int>& text, index_t first, index_t last) {
      const index_t n = last - first;
      std::vector<float> k(static_cast<std::size_t>(2 * n * dim)), v(k.size()), cos(static_cast<std::size_t>(dim)), sin(cos);
      for (index_t l = 0; l < 2; ++l) {
        for (index_t h = 0; h < 2; ++h)
          for (index_t t = 0; t < n; ++t) {
            float* row = k.data() + (h * n + t) * dim;
            const auto seed = static_cast<std::uint64_t>(text[static_cast<std::size_t>(first + t)] * 10 + l * 2 + h);
            test::fill_normal(row, static_cast<std::size_t>(dim), seed);
            test::fill_normal(v.data() + (h * n + t) * dim, static_cast<std::size_t>(dim), seed + 5000);
            prim::rope_cos_sin(*angles, first + t, cos.data(), sin.data());
            prim::rotate_row(row, row, cos.data(), sin.data(), angles->pairs, angles->pairing);
          }
        REQUIRE(rig.cache.append(rig.ctx, l, dense_view(std::as_const(k).data(), 2, n, dim), dense_view(std::as_const(v).data(), 2, n, dim)) == Status::ok);
      }
    };
    append(before, old_text, 0, 40);
    append(want, new_text, 0, p.new_tokens());
    std::size_t fresh = 0;
    index_t at = 0;
    for (const KeptRun& k : p.kept()) {
      for (; fresh < p.fresh().size() && p.fresh()[fresh].begin < k.begin + k.shift; ++fresh) append(after, new_text, p.fresh()[fresh].begin, p.fresh()[fresh].end);
      REQUIRE(Pie::copy(after.ctx, rope, before.cache, after.cache, k) == Status::ok);
      at = k.end + k.shift;
    }
    append(after, new_text, at, p.new_tokens());
    REQUIRE(after.cache.length() == p.new_tokens());
    CHECK(after.cache.next_position() == p.new_tokens());
    // An index over turned keys is that of keys which were never anywhere else.
    for (index_t l = 0; l < 2; ++l) {
      REQUIRE(after.cache.step(after.ctx, l) == Status::ok);
      REQUIRE(want.cache.step(want.ctx, l) == Status::ok);
      for (index_t h = 0; h < 2; ++h)
        for (index_t plane = 0; plane < 2; ++plane) {
          const auto &got = after.cache.layers()[l].index[h].plane[plane], &same = want.cache.layers()[l].index[h].plane[plane];
          REQUIRE(got.size() == (p.new_tokens() + 3) / 4 * dim * 4);
          REQUIRE(same.size() == got.size());
          std::vector<float> x(static_cast<std::size_t>(got.size()) / 4), y(x);
          std::memcpy(x.data(), got.data(), x.size() * 4), std::memcpy(y.data(), same.data(), y.size() * 4);
          for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(x[i] == Approx(y[i]).margin(5e-6));
        }
    }
    std::vector<float> a(static_cast<std::size_t>(p.new_tokens() * dim)), b(a), c(a), d(a);
    for (index_t l = 0; l < 2; ++l)
      for (index_t h = 0; h < 2; ++h) {
        REQUIRE(after.cache.read(l, h, 0, dense_view(a.data(), p.new_tokens(), dim), dense_view(b.data(), p.new_tokens(), dim)) == Status::ok);
        REQUIRE(want.cache.read(l, h, 0, dense_view(c.data(), p.new_tokens(), dim), dense_view(d.data(), p.new_tokens(), dim)) == Status::ok);
        for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(c[i]).margin(5e-6));
        CHECK(b == d);
      }
  }
}

TEST_CASE("pie: edits that cannot be are refused and the plan stays", "[reuse][pie]") {
  Pie p = planned({{2, 3, 0}}, 10);
  for (const auto& [edits, why] : std::vector<std::pair<Edits, Status>>{
           {{{3, 2, 1}}, Status::invalid_argument}, {{{-1, 2, 1}}, Status::invalid_argument}, {{{2, 4, 0}, {3, 5, 0}}, Status::invalid_argument},
           {{{5, 6, 0}, {1, 2, 0}}, Status::invalid_argument}, {{{2, 11, 0}}, Status::out_of_range}, {{{2, 3, -1}}, Status::invalid_argument}}) {
    CHECK(p.plan(edits, 10) == why);
    CHECK(p.new_tokens() == 9);
    CHECK(p.kept().size() == 2);
  }
  CHECK(p.position(2) == -1);
  CHECK(p.position(9) == 8);
  CHECK(p.position(10) == -1);
  REQUIRE(p.plan({}, 0) == Status::ok);
  CHECK(p.kept().empty());
  CHECK(p.position(0) == -1);
  REQUIRE(p.plan(Edits{{0, 5, 0}}, 5) == Status::ok);
  CHECK(p.new_tokens() == 0);

  Context<Cpu> ctx;
  const auto angles = prim::rope_angles({}, 4);
  std::vector<float> rows(40);
  const auto view = dense_view(rows.data(), 1, 10, 4);
  CHECK(p.run(ctx, *angles, {view, view}, {view, view}) == Status::shape_mismatch);

  // Caches that gave tokens up, or turn keys themselves, and frequencies that depend on the length.
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32};
  const auto short_ones = recipe(evict::Knorm{.tokens = 8, .recent = 2});
  test::CacheRig full(shape, recipe(), 32, 16), other(shape, recipe(), 32, 16);
  test::CacheRig few(shape, short_ones, 32, 16), few_too(shape, short_ones, 32, 16);
  std::vector<float> x(16 * 16, 0.5f);
  const auto tokens = dense_view(std::as_const(x).data(), 1, 16, 16);
  REQUIRE(full.cache.append(full.ctx, 0, tokens, tokens) == Status::ok);
  REQUIRE(few.cache.append(few.ctx, 0, tokens, tokens) == Status::ok);
  REQUIRE(few.cache.step(few.ctx, 0) == Status::ok);
  const KeptRun run{2, 5, 1};
  REQUIRE(few.cache.slots(0, 0) == 8);
  CHECK(Pie::copy(few.ctx, {}, few.cache, few_too.cache, run) == Status::not_supported);
  CHECK(Pie::copy(full.ctx, {.scaling = prim::RopeScaling::dynamic_ntk, .factor = 2.0}, full.cache, other.cache, run) == Status::not_supported);
  CHECK(Pie::copy(full.ctx, {}, full.cache, other.cache, {2, 17, 0}) == Status::out_of_range);
  CHECK(other.cache.length() == 0);
  test::CacheRig raw(shape, recipe(position::Reindex{}), 32, 16), raw_too(shape, recipe(position::Reindex{}), 32, 16);
  REQUIRE(raw.cache.append(raw.ctx, 0, tokens, tokens) == Status::ok);
  CHECK(Pie::copy(raw.ctx, {}, raw.cache, raw_too.cache, run) == Status::not_supported);
}
