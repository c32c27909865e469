#include <algorithm>
#include <catch2/catch.hpp>
#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/storage/paged_view.hpp>
#include <numeric>
#include <random>
#include <support/cache_rig.hpp>
#include <support/fill.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using prim::PagedLayout;
using prim::PagedTensor;
using storage::PagedView;
using storage::PageTables;

namespace {

using Table = std::vector<std::int32_t>;

enum class Order { nhd, hnd, nhd_joined, hnd_joined, vllm };

/// A pool as an engine would have it, filled with what is not to be read.
struct Pool {
  index_t pages, slots, heads, dim, value_dim;
  std::vector<std::byte> keys, values;
  PagedTensor k, v;

  Pool(Order order, DType dtype, index_t n, index_t page_slots, index_t kv_heads, index_t d, index_t vd)
      : pages(n), slots(page_slots), heads(kv_heads), dim(d), value_dim(vd) {
    const std::size_t size = size_of(dtype);
    const index_t one = n * page_slots * kv_heads * d, other = n * page_slots * kv_heads * vd;
    const bool joined = order == Order::nhd_joined || order == Order::hnd_joined;
    keys.assign(static_cast<std::size_t>(joined ? 2 * one : one) * size, std::byte{0x7f});  // NaN in every type
    values.assign(static_cast<std::size_t>(other) * size, std::byte{0x7f});
    k = {keys.data(), dtype, d, {}}, v = {values.data(), dtype, vd, {}};
    switch (order) {
      case Order::nhd: k.layout = prim::nhd_layout(slots, heads, d), v.layout = prim::nhd_layout(slots, heads, vd); break;
      case Order::hnd: k.layout = prim::hnd_layout(slots, heads, d), v.layout = prim::hnd_layout(slots, heads, vd); break;
      case Order::nhd_joined: k.layout = v.layout = prim::nhd_layout(slots, heads, d, 2); break;
      case Order::hnd_joined: k.layout = v.layout = prim::hnd_layout(slots, heads, d, 2); break;
      case Order::vllm: {
        const index_t x = 16 / static_cast<index_t>(size);
        k.layout = prim::vllm_key_layout(slots, heads, d, x), v.layout = prim::vllm_value_layout(slots, heads, vd);
      }
    }
    if (joined) v.data = keys.data() + static_cast<std::size_t>(page_slots * kv_heads * d) * size;
  }
};

struct Random {
  std::vector<float> q, k, v;
  Random(index_t q_heads, index_t kv_heads, index_t tokens, index_t dim, index_t value_dim, std::uint64_t seed)
      : q(static_cast<std::size_t>(q_heads * tokens * dim)), k(static_cast<std::size_t>(kv_heads * tokens * dim)),
        v(static_cast<std::size_t>(kv_heads * tokens * value_dim)) {
    test::fill_normal(q.data(), q.size(), seed), test::fill_normal(k.data(), k.size(), seed + 1), test::fill_normal(v.data(), v.size(), seed + 2);
  }
};

}  // namespace

TEST_CASE("paged view: the worked offsets of every layout", "[storage][paged_view]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "paged_layout");
  const index_t p = o.at("page_size"), heads = o.at("H"), d = o.at("d");
  const auto indptr = o.at("indptr").get<Table>(), indices = o.at("indices").get<Table>(), last = o.at("last_page_len").get<Table>();
  const PageTables tables{indptr, indices, last};
  REQUIRE(tables.validate(p) == Status::ok);
  const PagedLayout nhd = prim::nhd_layout(p, heads, d, 2), hnd = prim::hnd_layout(p, heads, d, 2);
  for (const auto& e : o.at("examples")) {
    const index_t r = e.at("request"), token = e.at("token"), h = e.at("head"), i = e.at("dim");
    CHECK(tables.slots(r, p) == o.at("seq_lens")[static_cast<std::size_t>(r)].get<index_t>());
    const index_t page = tables.pages(r)[static_cast<std::size_t>(token / p)];
    CHECK(page == e.at("page").get<index_t>());
    CHECK(token % p == e.at("slot").get<index_t>());
    const index_t begin = e.at("kv").get<index_t>() * p * heads * d;
    CHECK(begin + nhd.offset(page, h, token % p, i) == e.at("nhd_offset").get<index_t>());
    CHECK(begin + hnd.offset(page, h, token % p, i) == e.at("hnd_offset").get<index_t>());
  }
  const auto& vllm = o.at("vllm");
  const index_t bs = vllm.at("block_size"), kv = vllm.at("kv_heads"), dim = vllm.at("head_dim");
  const PagedLayout keys = prim::vllm_key_layout(bs, kv, dim, vllm.at("x")), values = prim::vllm_value_layout(bs, kv, dim);
  for (const auto& e : vllm.at("examples")) {
    const index_t token = e.at("token"), block = vllm.at("block_table")[static_cast<std::size_t>(token / bs)];
    CHECK(block * bs + token % bs == e.at("slot").get<index_t>());
    CHECK(keys.offset(block, e.at("head"), token % bs, e.at("dim")) == e.at("k_offset").get<index_t>());
    CHECK(values.offset(block, e.at("head"), token % bs, e.at("dim")) == e.at("v_offset").get<index_t>());
  }

  const auto& waste = o.at("waste");
  const auto lengths = waste.at("seq_lens").get<std::vector<index_t>>();
  Pool pool(Order::nhd, DType::f32, 16, waste.at("block"), 1, 4, 4);
  Table all(16);
  std::iota(all.begin(), all.end(), 0);
  index_t allocated = 0, used = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    auto view = PagedView::make(pool.k, pool.v, 1, pool.slots, all, lengths[i], pool.pages);
    REQUIRE(view);
    const index_t room = view->pages_needed() * pool.slots;
    CHECK(room == waste.at("allocated")[i].get<index_t>());
    CHECK(view->utilisation() == Approx(static_cast<double>(lengths[i]) / static_cast<double>(room)));
    allocated += room, used += lengths[i];
  }
  CHECK(static_cast<double>(used) / static_cast<double>(allocated) == Approx(waste.at("utilisation").get<double>()));
  for (const auto& a : o.at("append")) {
    const index_t length = a.at("seq_len_before");
    const Table exact(all.begin(), all.begin() + (length + p - 1) / p);
    auto view = PagedView::make(pool.k, pool.v, 1, p, exact, length, pool.pages);
    REQUIRE(view);
    CHECK((view->pages_lacking(1) == 1) == a.at("new_page_needed").get<bool>());
  }
}

TEST_CASE("paged view: attention through any table in any layout is that of the dense rows", "[storage][paged_view]") {
  struct Case {
    index_t group, dim, value_dim, page_slots, slots, tokens;
  };
  for (const Case c : {Case{1, 64, 64, 16, 37, 1}, Case{4, 80, 80, 4, 50, 3}, Case{7, 96, 96, 1, 20, 1}, Case{16, 128, 128, 16, 129, 2},
                       Case{2, 112, 112, 16, 16, 16}, Case{8, 256, 256, 5, 33, 1}, Case{3, 64, 64, 16, 1, 1}})
    for (const Order order : {Order::nhd, Order::hnd, Order::nhd_joined, Order::hnd_joined, Order::vllm})
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        constexpr index_t kv = 2;
        const index_t q_heads = kv * c.group, pages = (c.slots + c.page_slots - 1) / c.page_slots;
        Pool pool(order, dtype, pages + 9, c.page_slots, kv, c.dim, c.value_dim);
        Table table(static_cast<std::size_t>(pages + 9));
        std::iota(table.begin(), table.end(), 0);
        std::shuffle(table.begin(), table.end(), std::mt19937(static_cast<unsigned>(c.slots)));
        auto view = PagedView::make(pool.k, pool.v, kv, c.page_slots, table, 0, pool.pages);
        REQUIRE(view);
        const Random data(q_heads, kv, c.slots, c.dim, c.value_dim, 3);
        Context<Cpu> none;
        const auto keys = dense_view(data.k.data(), kv, c.slots, c.dim), values = dense_view(data.v.data(), kv, c.slots, c.value_dim);
        prim::append_paged(none, view->sequence(), keys, values);
        REQUIRE(view->grow(c.slots) == Status::ok);

        CacheShape shape{.q_heads = q_heads, .kv_heads = kv, .head_dim = c.dim, .value_dim = c.value_dim, .dtype = dtype};
        test::CacheRig rig(shape, recipe(), c.slots, c.slots);
        const auto queries = dense_view(data.q.data(), q_heads, c.tokens, c.dim);
        std::vector<float> want(static_cast<std::size_t>(q_heads * c.tokens * c.value_dim)), got(want.size()), lse(static_cast<std::size_t>(q_heads * c.tokens));
        REQUIRE(rig.cache.append(rig.ctx, 0, keys, values) == Status::ok);
        REQUIRE(rig.cache.attend(rig.ctx, 0, queries, dense_view(want.data(), q_heads, c.tokens, c.value_dim)) == Status::ok);
        prim::AttendRequest request{queries, dense_view(got.data(), q_heads, c.tokens, c.value_dim), dense_view(lse.data(), q_heads, c.tokens)};
        request.softmax_scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
        REQUIRE(prim::Attend<Cpu>::run(rig.ctx, request, kv, [&](index_t h) { return prim::PagedHead{&view->sequence(), h}; }) == Status::ok);
        CAPTURE(static_cast<int>(order), to_string(dtype), c.dim, c.slots);
        CHECK(got == want);  // the same rows, the same sums in the same order
      }
}

TEST_CASE("paged view: a policy evicts in the engine's own pages as it does in a cache", "[storage][paged_view]") {
  constexpr index_t kv = 2, group = 3, dim = 64, q_heads = kv * group, prompt = 150, more = 40;
  const CacheShape shape{.q_heads = q_heads, .kv_heads = kv, .head_dim = dim, .dtype = DType::f16};
  const auto run_both = [&](auto policy, bool by_mass) {
    for (const Order order : {Order::nhd, Order::hnd_joined, Order::vllm}) {
      test::CacheRig rig(shape, recipe(policy), prompt + more, prompt);
      Pool pool(order, DType::f16, 64, 8, kv, dim, dim);
      Table all(64);
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), std::mt19937(1));
      auto made = PagedView::make(pool.k, pool.v, kv, pool.slots, all, 0, pool.pages);
      REQUIRE(made);
      PagedView view = std::move(*made);
      auto pipeline = policy.pipeline();
      std::vector<std::vector<std::vector<float>>> lanes(static_cast<std::size_t>(pipeline.lanes()), std::vector<std::vector<float>>(kv));
      index_t seen = 0;
      std::vector<float> window;  // [tokens, q_heads, dim]
      for (index_t step = 0; step <= more; ++step) {
        const index_t n = step == 0 ? prompt : 1;
        const Random data(q_heads, kv, n, dim, dim, static_cast<std::uint64_t>(100 + step));
        const auto keys = dense_view(data.k.data(), kv, n, dim), values = dense_view(data.v.data(), kv, n, dim);
        const auto queries = dense_view(data.q.data(), q_heads, n, dim);
        std::vector<float> want(data.q.size()), got(data.q.size());
        REQUIRE(rig.cache.forward(rig.ctx, 0, queries, keys, values, dense_view(want.data(), q_heads, n, dim)) == Status::ok);

        // The engine: append, attend, choose, keep.
        prim::append_paged(rig.ctx, view.sequence(), keys, values);
        REQUIRE(view.grow(n) == Status::ok);
        seen += n;
        std::vector<index_t> offset{0};
        for (index_t h = 0; h < kv; ++h) offset.push_back(offset.back() + view.slots(h));
        std::vector<float> mass(static_cast<std::size_t>(offset.back()));
        prim::AttendRequest request{queries, dense_view(got.data(), q_heads, n, dim)};
        request.softmax_scale = 1.0f / std::sqrt(static_cast<float>(dim));
        const index_t mass_rows = pipeline.attention().of(n);
        if (by_mass) request.mass = {mass.data(), offset.data(), kv}, request.mass_rows = mass_rows;
        REQUIRE(prim::Attend<Cpu>::run(rig.ctx, request, kv, [&](index_t h) { return prim::PagedHead{&view.sequence(), h}; }) == Status::ok);
        CHECK(got == want);

        const PagedRows key_rows(view.sequence(), false), value_rows(view.sequence(), true);
        CacheShape scaled = shape;
        scaled.softmax_scale = request.softmax_scale;
        // The engine keeps the queries of a few tokens for policies that look back.
        for (index_t t = 0; t < n; ++t)
          for (index_t h = 0; h < q_heads; ++h)
            for (index_t d = 0; d < dim; ++d) window.push_back(queries(h, t, d));
        const index_t rows = std::max<index_t>(n, std::min<index_t>(8, seen));
        window.erase(window.begin(), window.end() - rows * q_heads * dim);
        std::vector<std::byte> column_scratch(prim::AttendColumns<Cpu>::workspace_bytes(1, scaled, rows));
        const PagedColumns columns(view.sequence(), scaled, {window.data(), {q_heads, rows, dim}, {dim, q_heads * dim, 1}}, column_scratch);
        StepView<Cpu> sv{.shape = scaled, .appended = n, .seen = seen, .stepped = seen, .next_position = seen, .generated = step,
                         .phase = step == 0 ? Phase::prefill_end : Phase::decode};
        sv.offset = offset.data(), sv.keys = &key_rows, sv.values = &value_rows, sv.columns = &columns;
        if (by_mass) sv.inputs.attention = {{mass.data(), offset.data(), kv}, mass_rows};
        std::vector<std::vector<float>> flat(lanes.size());
        std::vector<RaggedView<float>> lane_views;
        for (std::size_t l = 0; l < lanes.size(); ++l) {
          for (index_t h = 0; h < kv; ++h) {
            auto& row = lanes[l][static_cast<std::size_t>(h)];
            row.resize(static_cast<std::size_t>(view.slots(h)), 0.0f);
            flat[l].insert(flat[l].end(), row.begin(), row.end());
          }
          lane_views.push_back({flat[l].data(), offset.data(), kv});
        }
        std::vector<std::int32_t> kept(mass.size());
        std::vector<index_t> count(kv), wanted(kv);
        std::vector<std::byte> scratch(pipeline.workspace_bytes(scaled, offset.back()) + Scratch::align);
        const evict::KeepSet keep{{kept.data(), offset.data(), kv}, count.data(), wanted.data()};
        REQUIRE(pipeline.observe(rig.ctx, sv, lane_views) == Status::ok);
        const bool fires = pipeline.fires(sv);
        if (fires) REQUIRE(pipeline.choose(rig.ctx, sv, lane_views, keep, Scratch(scratch)) == Status::ok);
        for (index_t h = 0; h < kv; ++h) {
          const index_t n_kept = fires ? count[static_cast<std::size_t>(h)] : view.slots(h);
          for (std::size_t l = 0; l < lanes.size(); ++l) {
            std::vector<float> row(flat[l].begin() + offset[static_cast<std::size_t>(h)], flat[l].begin() + offset[static_cast<std::size_t>(h) + 1]);
            if (fires)
              for (index_t i = 0; i < n_kept; ++i) row[static_cast<std::size_t>(i)] = row[static_cast<std::size_t>(keep.slots.row(h)[i])];
            row.resize(static_cast<std::size_t>(n_kept));
            lanes[l][static_cast<std::size_t>(h)] = row;
          }
          if (fires) {
            prim::keep_paged(view.sequence(), h, {keep.slots.row(h), static_cast<std::size_t>(n_kept)});
            REQUIRE(view.shrink(h, n_kept) == Status::ok);
          }
          REQUIRE(n_kept == rig.cache.slots(0, h));
        }
      }
      // Pages behind the longest head go back to the engine.
      CHECK(view.pages_needed() == (view.longest() + 7) / 8);
      CHECK(view.longest() <= 40 + more);  // snapkv evicts once
      REQUIRE(view.use_table(std::span<const std::int32_t>(all).first(static_cast<std::size_t>(view.pages_needed()))) == Status::ok);
      CHECK(view.use_table(std::span<const std::int32_t>(all).first(static_cast<std::size_t>(view.pages_needed() - 1))) == Status::out_of_range);
    }
  };
  run_both(evict::H2O{.heavy = 24, .recent = 24}, true);
  run_both(evict::Knorm{.tokens = 40, .recent = 8}, false);
  run_both(evict::SnapKV{.tokens = 40, .window = 8}, true);
  run_both(evict::RKV{.tokens = 40, .slack = 10}, false);
  run_both(evict::SinkWindow{.recent = 36, .sinks = 4}, false);
}

TEST_CASE("paged view: hostile tables are refused", "[storage][paged_view]") {
  Pool pool(Order::nhd, DType::f16, 8, 4, 2, 16, 16);
  const auto refuse = [&](const Table& t, index_t slots) { return PagedView::make(pool.k, pool.v, 2, 4, t, slots, pool.pages).status(); };
  CHECK(refuse({0, 1, 2}, 12) == Status::ok);
  CHECK(refuse({0, 1, 2}, 13) == Status::out_of_range);  // too short
  CHECK(refuse({}, 1) == Status::out_of_range);
  CHECK(refuse({}, 0) == Status::ok);
  CHECK(refuse({0, 8}, 5) == Status::out_of_range);
  CHECK(refuse({0, -1}, 5) == Status::out_of_range);
  CHECK(refuse({0, 2147483647}, 5) == Status::out_of_range);
  CHECK(refuse({3, 1, 3}, 5) == Status::invalid_argument);  // named twice
  CHECK(refuse({0}, -1) == Status::invalid_argument);
  PagedTensor none = pool.k;
  none.data = nullptr;
  CHECK(PagedView::make(none, pool.v, 2, 4, Table{0}, 1, 8).status() == Status::invalid_argument);
  none = pool.k;
  none.dim = 1000;
  CHECK(PagedView::make(none, pool.v, 2, 4, Table{0}, 1, 8).status() == Status::invalid_argument);
  CHECK(PagedView::make(pool.k, pool.v, 0, 4, Table{0}, 1, 8).status() == Status::invalid_argument);
  CHECK(PagedView::make(pool.k, pool.v, 2, 0, Table{0}, 1, 8).status() == Status::invalid_argument);
  test::CountingMemory poor;
  poor.refuse_from = 0;
  CHECK(PagedView::make(pool.k, pool.v, 2, 4, Table{0}, 1, 8, poor).status() == Status::out_of_memory);

  // A refused table leaves the old one in use.
  const Table good{5, 6};
  auto view = PagedView::make(pool.k, pool.v, 2, 4, good, 8, pool.pages);
  REQUIRE(view);
  CHECK(view->use_table(Table{5, 5}) == Status::invalid_argument);
  CHECK(view->use_table(Table{5}) == Status::out_of_range);
  CHECK(view->sequence().page(4) == 6);
  CHECK(view->pages() == 2);
  CHECK(view->grow(1) == Status::out_of_range);
  CHECK(view->slots(0) == 8);
  CHECK(view->shrink(0, 9) == Status::out_of_range);
  CHECK(view->shrink(2, 1) == Status::out_of_range);
  CHECK(view->shrink(1, -1) == Status::out_of_range);

  const Table indptr{0, 2, 3}, indices{5, 2, 7}, last{3, 4};
  CHECK(PageTables{indptr, indices, last}.validate(4) == Status::ok);
  CHECK(PageTables{indptr, indices, last}.validate(3) == Status::out_of_range);
  const Table zero{0, 4};
  CHECK(PageTables{indptr, indices, zero}.validate(4) == Status::out_of_range);
  const Table down{0, 3, 2}, beyond{0, 2, 9}, begins{1, 2, 3}, negative{0, 2, -1};
  for (const Table* t : {&down, &beyond, &begins, &negative}) CHECK(PageTables{*t, indices, last}.validate(4) == Status::shape_mismatch);
  CHECK(PageTables{indptr, indices, indices}.validate(4) == Status::shape_mismatch);
  CHECK(PageTables{{}, {}, {}}.validate(4) == Status::shape_mismatch);
}
