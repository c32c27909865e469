#include <external/rig.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/external/coded_layer.hpp>
#include <support/model_facts.hpp>

using namespace kvcondense;
using test::at;
using test::EngineMemory;
using test::Layout;
using test::Tokens;

namespace {

using AnyPages = external::CodedPages<any::AnyQuant>;

/// An engine's pool of pages for codes, with a table and format ids.
struct CodeMemory {
  std::vector<std::byte> bytes;
  std::vector<std::int32_t> table;
  std::vector<std::int64_t> formats;
  std::byte* base;
  index_t key_step, value_step, pages;

  CodeMemory(const AnyPages& c, index_t heads, index_t n) : pages(n) {
    key_step = heads * c.key_bytes() + 64, value_step = heads * c.value_bytes() + 128;
    bytes.assign(at(n * (key_step + value_step)) + 64, std::byte{0x5a});
    base = bytes.data() + (64 - reinterpret_cast<std::uintptr_t>(bytes.data()) % 64) % 64;
    table.resize(at(n)), formats.assign(at(n), 0);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
  }
  external::CodedMemory borrow(EngineMemory& exact) {
    return {exact.borrow(), base, base + pages * key_step, key_step, value_step, table, pages, formats, {}};
  }
};

}  // namespace

TEST_CASE("coded pages: codes and attention in an engine's pages are those of a cache", "[external]") {
  const char* texts[] = {"group_int(bits=4, group_size=16, residual_window=6)", "kivi(bits=2, group_size=8, residual_window=16, sinks=2)",
                         "fp8(scale=block, block=16, residual_window=4)", "mx(format=fp6_e2m3, value_format=fp4, residual_window=3, sinks=2)",
                         "kitty(page=8, boost=25%, buffer=8, sinks=2)", "polar(group_size=8, centered=true, keep_window=2, sinks=2)",
                         "bipolar_int(bits=3, group_size=16, query_bits=0, residual_window=4)", "qserve(bits=4, residual_window=4)",
                         "comet(group_size=8, keep_window=4, sinks=2)", "bfp(bits=4, value_bits=5, block=16, residual_window=3, sinks=2)",
                         "nvfp4(key_scale=0.5, residual_window=5)", "ggml(format=q4_0, value_format=q5_1, residual_window=4, sinks=1)",
                         "turboquant(key_bits=4, value_bits=3, residual_window=5)", "hadamard(group_int(bits=4, group_size=16, residual_window=6), seed=3)",
                         "polar_recursive(levels=3, residual_window=5)", "kvquant(bits=3, outliers=6%, residual_window=4)",
                         "gear(bits=2, group_size=8, chunk=8, rank=2, sparse=25%, sinks=2)",
                         "bit_allocation(key_bits=3, value_bits=2, boundary=1, group_size=8)"};
  std::size_t i = 0;
  for (const char* text : texts) {
    const index_t group = i % 3 == 0 ? 1 : i % 3 == 1 ? 4 : 16, dim = i % 2 == 0 ? 64 : 128;
    const Layout layout = test::layouts[i++ % 6];
    CAPTURE(text, group, dim, static_cast<int>(layout));
    const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .dtype = i % 2 == 0 ? DType::f16 : DType::f32, .page_slots = 16};
    const test::RandomModel model(shape);
    const any::AnyRecipe recipe = test::stages(text, model.facts());
    auto cache = any::AnyCache::make(recipe, text, shape);
    auto coded = AnyPages::make(shape, recipe.quant, 16);
    REQUIRE(cache);
    REQUIRE(coded.status() == Status::ok);
    EngineMemory exact(shape, layout, 120);
    CodeMemory codes(*coded, 2, 9);
    Workspace work;
    REQUIRE(work.reserve(std::max(cache->workspace_bytes(120, 80), coded->workspace_bytes(120, 80, 200))) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    for (const index_t n : {61, 1, 1, 1, 19, 1, 3}) {
      const Tokens t(shape, n, 10 * i + static_cast<std::uint64_t>(coded->slots()));
      std::vector<float> want(at(2 * group * n * dim)), got(want.size());
      REQUIRE(cache->forward(ctx, 0, t.queries(), t.keys(), t.values(), dense_view(want.data(), 2 * group, n, dim)) == Status::ok);
      const index_t place = coded->place(coded->slots());
      exact.write({place, place}, t.keys(), t.values());
      REQUIRE(coded->append(n) == Status::ok);
      REQUIRE(coded->attend(ctx, codes.borrow(exact), {t.queries(), dense_view(got.data(), 2 * group, n, dim)}) == Status::ok);
      float worst = 0.0f;
      for (std::size_t j = 0; j < want.size(); ++j) if (const float diff = std::abs(got[j] - want[j]); !(diff <= worst)) worst = diff;
      REQUIRE(worst == 0.0f);
      REQUIRE(coded->code(ctx, codes.borrow(exact)) == Status::ok);
      // Pages whose exact rows are all codes now are the engine's.
      for (index_t p = (coded->sinks() + exact.page_slots - 1) / exact.page_slots; (p + 1) * exact.page_slots <= coded->window_begin(); ++p)
        exact.table[at(p)] = -1;
    }
    CHECK(coded->coded_keys() + coded->coded_values() >= 80);
    CHECK(coded->slots() == 87);
    for (std::size_t p = 0; p < codes.table.size(); ++p)
      CHECK((codes.formats[at(codes.table[p])] == coded->format()) == (static_cast<index_t>(p) < coded->pages()));
  }
}

TEST_CASE("coded pages: slots leave in place, alone or in whole pages", "[external]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  for (const bool alone : {true, false}) {
    const char* text = alone ? "group_int(bits=8, group_size=16, residual_window=6)" : "kivi(bits=4, group_size=16, residual_window=16, sinks=3)";
    CAPTURE(text);
    const any::AnyRecipe recipe = test::stages(text);
    auto coded = AnyPages::make(shape, recipe.quant, 16);
    REQUIRE(coded);
    EngineMemory exact(shape, Layout::nhd, 140);
    CodeMemory codes(*coded, 2, 9);
    Workspace work;
    REQUIRE(work.reserve(coded->workspace_bytes(140, 90, 200)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    const Tokens t(shape, 90, 3);
    exact.write({0, 0}, t.keys(), t.values());
    REQUIRE(coded->append(90) == Status::ok);
    REQUIRE(coded->code(ctx, codes.borrow(exact)) == Status::ok);
    // Attention before, over the slots that will stay: its mass says what attention afterwards is.
    const Tokens q(shape, 1, 5);
    std::vector<std::int32_t> kept;
    const index_t sinks = coded->sinks(), hi = std::max(coded->coded_keys(), coded->coded_values());
    for (std::int32_t s = 0; s < 90; ++s) {
      const bool in_code = s >= sinks && s < sinks + hi;
      const bool stays = in_code ? (alone ? s % 3 != 1 : (s - sinks) / 16 != 1 && (s - sinks) / 16 != 2) : s != 1 && s != 88;
      if (stays) kept.push_back(s);
    }
    const index_t offset[] = {0, 90, 180};
    std::vector<float> mass(180), out(2 * 64), after(2 * 64);
    prim::AttendRequest request{q.queries(), dense_view(out.data(), 2, 1, 64), {}, {mass.data(), offset, 2}, 1};
    REQUIRE(coded->attend(ctx, codes.borrow(exact), request) == Status::ok);

    const auto bytes = codes.bytes;
    const auto table = codes.table;
    const std::int32_t twice[] = {4, 4}, beyond[] = {90};
    CHECK(coded->keep(ctx, codes.borrow(exact), twice, codes.table) == Status::invalid_argument);
    CHECK(coded->keep(ctx, codes.borrow(exact), beyond, codes.table) == Status::invalid_argument);
    if (!alone) {
      std::vector<std::int32_t> single = kept;
      single.erase(std::find(single.begin(), single.end(), 9));
      CHECK(coded->keep(ctx, codes.borrow(exact), single, codes.table) == Status::not_supported);
    }
    CHECK((codes.bytes == bytes));
    // Pages of codes that others have too: none is written; where whole pages leave they only lose this sequence.
    std::vector<std::int32_t> owners(9, 1);
    owners[at(codes.table[alone ? 0 : 1])] = 2;
    external::CodedMemory shared = codes.borrow(exact);
    shared.owners = owners;
    const std::int32_t theirs = codes.table[1];
    if (alone) {
      CHECK(coded->keep(ctx, shared, kept, codes.table) == Status::invalid_argument);
      CHECK((codes.bytes == bytes));
      CHECK(coded->slots() == 90);
      shared.owners = {};
    }
    REQUIRE(coded->keep(ctx, shared, kept, codes.table) == Status::ok);
    if (!alone) {
      CHECK(codes.formats[at(theirs)] == coded->format());  // still the other sequence's
      CHECK(codes.formats[at(table[2])] == 0);
      REQUIRE(codes.table[static_cast<std::size_t>(coded->pages())] == theirs);
    }
    CHECK(std::count(codes.formats.begin(), codes.formats.end(), coded->format()) == coded->pages() + !alone);
    CHECK(coded->slots() == static_cast<index_t>(kept.size()));
    if (!alone) {
      CHECK((codes.bytes == bytes));  // pages change places in the table only
      CHECK(codes.table[0] == table[0]);
      CHECK(codes.table[1] == table[3]);
    }
    // What is left, weighed anew: the part of each slot in what stays.
    std::vector<float> mass_after(2 * kept.size());
    const index_t less[] = {0, coded->slots(), 2 * coded->slots()};
    request.out = dense_view(after.data(), 2, 1, 64), request.mass = {mass_after.data(), less, 2};
    REQUIRE(coded->attend(ctx, codes.borrow(exact), request) == Status::ok);
    for (index_t h = 0; h < 2; ++h) {
      float left = 0.0f;
      for (const std::int32_t j : kept) left += mass[at(90 * h + j)];
      std::vector<float> sum(64, 0.0f);
      for (std::size_t j = 0; j < kept.size(); ++j) {
        const float part = mass_after[at(less[h]) + j];
        REQUIRE(part == Approx(mass[at(90 * h + kept[j])] / left).epsilon(1e-3));
        for (std::size_t d = 0; d < 64; ++d) sum[d] += part * t.v[at((90 * h + kept[j]) * 64) + d];
      }
      for (std::size_t d = 0; d < 64; ++d) REQUIRE(after[at(64 * h) + d] == Approx(sum[d]).margin(alone ? 0.01 : 0.06));
    }
    // Tokens go on coming; a page that is the other sequence's leaves the table.
    if (!alone) codes.table.erase(std::find(codes.table.begin(), codes.table.end(), table[1]));
    const Tokens more(shape, 12, 8);
    const index_t place = coded->place(coded->slots());
    exact.write({place, place}, more.keys(), more.values());
    REQUIRE(coded->append(12) == Status::ok);
    REQUIRE(coded->code(ctx, codes.borrow(exact)) == Status::ok);
    CHECK(coded->slots() == static_cast<index_t>(kept.size()) + 12);
  }
}

TEST_CASE("coded pages: a page of another form is refused, and what else cannot be", "[external]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f16, .page_slots = 16};
  const auto make = [&](const char* text, index_t page_slots = 16) { return AnyPages::make(shape, test::stages(text).quant, page_slots); };
  auto coded = make("group_int(bits=4, group_size=16, residual_window=6)");
  REQUIRE(coded);
  CHECK(make("group_int(bits=8, group_size=16, residual_window=6)")->format() != coded->format());
  CHECK(make("group_int(bits=4, group_size=32, residual_window=6)")->format() != coded->format());
  CHECK(make("group_int(bits=4, group_size=16, residual_window=6)", 32)->format() != coded->format());
  // Layers of one pool whose rows or heads are others.
  CacheShape wide = shape, values = shape, heads = shape;
  wide.head_dim = wide.value_dim = 128, values.value_dim = 128, heads.q_heads = heads.kv_heads = 4;
  std::vector<std::int64_t> ids{coded->format()};
  for (const CacheShape& s : {wide, values, heads}) {
    const auto other = AnyPages::make(s, test::stages("group_int(bits=4, group_size=16, residual_window=6)").quant, 16);
    REQUIRE(other);
    CHECK(std::count(ids.begin(), ids.end(), other->format()) == 0);
    ids.push_back(other->format());
  }
  CHECK(make("kivi(bits=2, group_size=8, residual_window=16)", 12).status() == Status::invalid_argument);
  for (const char* text : {"mikv", "zipcache", "smooth_attention(group_int(bits=4))"}) CHECK(make(text).status() == Status::not_supported);

  EngineMemory exact(shape, Layout::hnd, 90);
  CodeMemory codes(*coded, 2, 6);
  Workspace work;
  REQUIRE(work.reserve(coded->workspace_bytes(90, 60, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  const Tokens t(shape, 60, 3);
  exact.write({0, 0}, t.keys(), t.values());
  CHECK(coded->append(std::numeric_limits<index_t>::max()) == Status::out_of_range);
  REQUIRE(coded->append(60) == Status::ok);
  CHECK(coded->append(std::numeric_limits<index_t>::max()) == Status::out_of_range);
  const auto before = codes.bytes;
  const auto refused = [&](const external::CodedMemory& m, Status want) {
    CHECK(coded->code(ctx, m) == want);
    CHECK(coded->coded_keys() == 0);
    CHECK((codes.bytes == before));
  };
  external::CodedMemory m = codes.borrow(exact);
  codes.formats[at(codes.table[2])] = 16;  // an fp16 page inside a chain of codes
  refused(m, Status::incompatible);
  codes.formats[at(codes.table[2])] = 0;
  m.keys += 32, refused(m, Status::invalid_argument);
  m = codes.borrow(exact), m.key_step -= 128, refused(m, Status::invalid_argument);
  m = codes.borrow(exact), m.table = m.table.first(3), refused(m, Status::out_of_range);
  m = codes.borrow(exact), m.formats = m.formats.first(3), refused(m, Status::shape_mismatch);
  const std::vector<std::int32_t> owners(6, 2), twice{0, 1, 0, 2}, beyond{0, 1, 6, 2};
  m = codes.borrow(exact), m.owners = owners, refused(m, Status::invalid_argument);
  m = codes.borrow(exact), m.table = twice, refused(m, Status::invalid_argument);
  m = codes.borrow(exact), m.table = beyond, refused(m, Status::out_of_range);
  Context<Cpu> none;
  CHECK(coded->code(none, codes.borrow(exact)) == Status::workspace_too_small);
  REQUIRE(coded->code(ctx, codes.borrow(exact)) == Status::ok);
  CHECK(coded->coded_keys() == 54);
  codes.formats[at(codes.table[1])] = make("group_int(bits=8, group_size=16)")->format();
  std::vector<float> out(2 * 64);
  const Tokens q(shape, 1, 9);
  CHECK(coded->attend(ctx, codes.borrow(exact), {q.queries(), dense_view(out.data(), 2, 1, 64)}) == Status::incompatible);
  codes.formats[at(codes.table[1])] = coded->format();
  std::vector<float> mass(120);
  const index_t uneven[] = {0, 59, 120};
  CHECK(coded->attend(ctx, codes.borrow(exact), {q.queries(), dense_view(out.data(), 2, 1, 64), {}, {mass.data(), uneven, 2}, 1}) == Status::shape_mismatch);

  // NaN among the rows is coded as 0 and counted; nothing due is nothing done.
  auto other = make("group_int(bits=4, group_size=16, residual_window=0)");
  REQUIRE(other);
  CodeMemory fresh(*other, 2, 6);
  std::vector<float> bad = t.k;
  bad[7] = NAN;
  exact.write({0, 0}, dense_view(static_cast<const float*>(bad.data()), 2, 60, 64), t.values());
  CHECK(other->code(ctx, fresh.borrow(exact)) == Status::ok);
  REQUIRE(other->append(60) == Status::ok);
  index_t repaired = 0;
  REQUIRE(other->code(ctx, fresh.borrow(exact), &repaired) == Status::ok);
  CHECK(repaired == 1);
  CHECK(other->coded_values() == 60);
}

TEST_CASE("coded pages: a policy lets slots leave them as a cache with both stages does", "[external]") {
  struct Case {
    const char *policy, *quant;
  };
  for (const Case c : {Case{"sink_window(sinks=4, recent=40)", "group_int(bits=8, group_size=16, residual_window=6)"},
                       Case{"tova(tokens=44)", "hadamard(group_int(bits=8, group_size=16, residual_window=6))"},
                       Case{"tova(tokens=44)", "group_int(bits=4, group_size=16, residual_window=6)"},
                       Case{"page_round(tova(tokens=44), page=16)", "kivi(bits=4, group_size=16, residual_window=16)"},
                       Case{"chunkkv(tokens=44, window=8, chunk=5)", "fp8(scale=block, block=16, residual_window=4)"}}) {
    const std::string text = std::string(c.policy) + " + " + c.quant;
    CAPTURE(text);
    const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
    auto cache = any::AnyCache::make(test::stages(text), text, shape);
    auto condenser = test::AnyCondenser::make(shape, test::stages(c.policy), {external::Sharing::per_layer});
    auto coded = AnyPages::make(shape, test::stages(c.quant).quant, 16);
    REQUIRE(cache);
    REQUIRE(condenser);
    REQUIRE(coded);
    EngineMemory exact(shape, Layout::nhd, 240);
    CodeMemory codes(*coded, 2, 12);
    Workspace work;
    REQUIRE(work.reserve(std::max({cache->workspace_bytes(120, 80), coded->workspace_bytes(120, 80, 200), condenser->workspace_bytes(120, 80, 200)})) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    std::uint64_t seed = 40;
    for (const index_t n : {70, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1, 1}) {
      const Tokens t(shape, n, seed += 10);
      std::vector<float> want(at(6 * n * 64)), got(want.size());
      REQUIRE(cache->forward(ctx, 0, t.queries(), t.keys(), t.values(), dense_view(want.data(), 6, n, 64)) == Status::ok);
      const index_t place = coded->place(coded->slots());
      exact.write({place, place}, t.keys(), t.values());
      REQUIRE(coded->append(n) == Status::ok);
      REQUIRE(coded->attend(ctx, codes.borrow(exact), {t.queries(), dense_view(got.data(), 6, n, 64)}) == Status::ok);
      float worst = 0.0f;
      for (std::size_t j = 0; j < want.size(); ++j) if (const float diff = std::abs(got[j] - want[j]); !(diff <= worst)) worst = diff;
      REQUIRE(worst < 1e-5f);
      const external::CodedLayer<any::AnyQuant> layer{&*coded, codes.borrow(exact)};
      REQUIRE(condenser->step(ctx, 0, layer, n, {.queries = t.queries()}) == Status::ok);
      if (condenser->leaves(0)) {
        REQUIRE(coded->keep(ctx, codes.borrow(exact), condenser->kept(0).of(1), codes.table) == Status::ok);
        REQUIRE(condenser->accept(0) == Status::ok);
      }
      REQUIRE(coded->code(ctx, codes.borrow(exact)) == Status::ok);
      REQUIRE(coded->slots() == cache->slots(0, 0));
      for (index_t j = 0; j < coded->slots(); ++j) REQUIRE(condenser->token(0, 1, j) == cache->token(0, 1, j));
    }
    CHECK(coded->slots() >= 44 - 15);  // pages of 16 may leave a part of the budget free
    CHECK(coded->coded_keys() > 30);
    // The condenser knows how many slots there must be.
    REQUIRE(coded->append(1) == Status::ok);
    const Tokens t(shape, 2, 5);
    CHECK(condenser->step(ctx, 0, external::CodedLayer<any::AnyQuant>{&*coded, codes.borrow(exact)}, 2, {.queries = t.queries()}) == Status::shape_mismatch);
  }
}

TEST_CASE("coded pages: what a policy decides and codes cannot do is declined", "[external]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  auto condenser = test::AnyCondenser::make(shape, test::stages("tova(tokens=44)"), {external::Sharing::per_layer});
  auto each = test::AnyCondenser::make(shape, test::stages("tova(tokens=44)"));
  auto coded = AnyPages::make(shape, test::stages("kivi(bits=4, group_size=16, residual_window=16)").quant, 16);
  REQUIRE(condenser);
  REQUIRE(each);
  REQUIRE(coded);
  EngineMemory exact(shape, Layout::nhd, 140);
  CodeMemory codes(*coded, 2, 9);
  Workspace work;
  REQUIRE(work.reserve(std::max(coded->workspace_bytes(120, 80, 200), condenser->workspace_bytes(120, 80, 200))) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  const auto come = [&](index_t n) {
    const Tokens t(shape, n, static_cast<std::uint64_t>(coded->slots() + 1));
    const index_t place = coded->place(coded->slots());
    exact.write({place, place}, t.keys(), t.values());
    REQUIRE(coded->append(n) == Status::ok);
    const external::CodedLayer<any::AnyQuant> layer{&*coded, codes.borrow(exact)};
    // Heads that keep lists of their own could never leave.
    CHECK(each->step(ctx, 0, layer, n, {.queries = t.queries()}) == Status::not_supported);
    CHECK(each->length() == 0);
    REQUIRE(condenser->step(ctx, 0, layer, n, {.queries = t.queries()}) == Status::ok);
  };
  come(60);
  REQUIRE(coded->code(ctx, codes.borrow(exact)) == Status::ok);
  REQUIRE(coded->coded_keys() > 0);
  REQUIRE(condenser->decline(0) == Status::ok);
  for (const index_t slots : {61, 62}) {
    come(1);
    REQUIRE(condenser->leaves(0));
    REQUIRE(coded->keep(ctx, codes.borrow(exact), condenser->kept(0).of(0), codes.table) == Status::not_supported);
    REQUIRE(condenser->decline(0) == Status::ok);
    CHECK(condenser->slots(0, 1) == slots);
    CHECK(coded->slots() == slots);
  }
}
