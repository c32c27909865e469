// Calls of a condenser and of coded pages that cannot be: places that are not there, views of another shape, and every size of
// workspace and every request of memory that is refused on the way. Nothing happens then, and the same call works afterwards.

#include <functional>
#include <limits>
#include <optional>

#include <external/rig.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/external/coded_layer.hpp>
#include <support/memory.hpp>

using namespace kvcondense;
using external::Sharing;
using test::AnyCondenser;
using test::at;
using test::EngineMemory;
using test::Layout;
using test::Tokens;

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32};

/// `call` with every workspace from none to the first that will do: workspace_too_small until then.
long squeezed(std::span<std::byte> bytes, const std::function<Status(Context<Cpu>&)>& call) {
  for (std::size_t n = 0;; n += Scratch::align) {
    REQUIRE(n <= bytes.size());
    Context<Cpu> ctx(bytes.first(n));
    const Status s = call(ctx);
    if (s == Status::ok) return static_cast<long>(n / Scratch::align);
    REQUIRE(s == Status::workspace_too_small);
  }
}

/// `call` with its n-th request refused, for every n.
long refused(test::CountingMemory& memory, const std::function<Status()>& call) {
  for (long n = 0;; ++n) {
    memory.refuse_from = memory.requests + n;
    const Status s = call();
    memory.refuse_from = -1;
    if (s == Status::ok) return n;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE(n < 1000);
  }
}

}  // namespace

TEST_CASE("condenser: layers, numbers of tokens and views that are not there are refused by every call", "[external][refusals]") {
  auto c = AnyCondenser::make(shape, test::stages("knorm(tokens=8, recent=2)"));
  REQUIRE(c);
  EngineMemory m(shape, Layout::nhd, 60);
  const Tokens t(shape, 20, 4);
  m.write({0, 0}, t.keys(), t.values());
  const external::BorrowedLayer rows = m.borrow();
  Workspace work;
  REQUIRE(work.reserve(c->workspace_bytes(60, 20, m.pages)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::vector<float> out(4 * 20 * 32), lse(4 * 20);
  const auto attend = [&](index_t layer, index_t tokens, TensorView<const float, 3> q, TensorView<float, 3> o, TensorView<float, 2> l = {}) {
    return c->attend(ctx, layer, rows, tokens, q, o, l);
  };
  const auto query = [&](index_t heads, index_t n, index_t dim) { return dense_view(static_cast<const float*>(t.q.data()), heads, n, dim); };
  const auto to = [&](index_t heads, index_t n, index_t dim) { return dense_view(out.data(), heads, n, dim); };

  for (const index_t layer : {-1, 2}) {
    CHECK(c->step(ctx, layer, rows, 20) == Status::out_of_range);
    CHECK(c->compact(ctx, layer, rows) == Status::out_of_range);
    CHECK(c->relist(ctx, layer, rows) == Status::out_of_range);
    CHECK(c->accept(layer) == Status::out_of_range);
    CHECK(c->decline(layer) == Status::out_of_range);
    CHECK(attend(layer, 20, query(4, 1, 32), to(4, 1, 32)) == Status::out_of_range);
  }
  for (const auto& call : {std::function([&] { return c->compact(ctx, 0, rows); }), {[&] { return c->relist(ctx, 0, rows); }}, {[&] { return c->accept(0); }}, {[&] { return c->decline(0); }}})
    CHECK(call() == Status::order_violation);  // nothing was decided
  CHECK(c->step(ctx, 0, rows, -1) == Status::invalid_argument);
  CHECK(c->step(ctx, 0, rows, 0) == Status::order_violation);                               // a step brings tokens,
  CHECK(c->step(ctx, 0, rows, 3, {}, Phase::turn) == Status::order_violation);              // and a turn none
  CHECK(c->step(ctx, 0, rows, 0, {.incoming = -1}, Phase::turn) == Status::invalid_argument);
  for (const index_t p : {index_t{-1}, std::numeric_limits<index_t>::max()}) {
    const index_t positions[] = {p};
    CHECK(c->step(ctx, 0, rows, 1, {}, Phase::automatic, positions) == Status::invalid_argument);
  }
  CHECK(c->truncate(-1) == Status::out_of_range);
  CHECK(c->missing(0, -1, {}) == nullptr);
  CHECK(c->missing(7, 1, {}) == nullptr);

  CHECK(attend(0, 20, query(4, 2, 32), to(4, 2, 32), dense_view(lse.data(), 4, 2)) == Status::ok);
  CHECK(attend(0, 20, query(2, 2, 32), to(4, 2, 32)) == Status::shape_mismatch);
  CHECK(attend(0, 20, query(4, 2, 16), to(4, 2, 32)) == Status::shape_mismatch);
  CHECK(attend(0, 20, query(4, 2, 32), to(2, 2, 32)) == Status::shape_mismatch);
  CHECK(attend(0, 20, query(4, 2, 32), to(4, 1, 32)) == Status::shape_mismatch);
  CHECK(attend(0, 20, query(4, 2, 32), to(4, 2, 16)) == Status::shape_mismatch);
  CHECK(attend(0, 20, query(4, 2, 32), to(4, 2, 32), dense_view(lse.data(), 2, 2)) == Status::shape_mismatch);
  CHECK(attend(0, 20, query(4, 2, 32), to(4, 2, 32), dense_view(lse.data(), 4, 1)) == Status::shape_mismatch);
  CHECK(attend(0, -1, query(4, 1, 32), to(4, 1, 32)) == Status::order_violation);
  CHECK(attend(0, 1, query(4, 2, 32), to(4, 2, 32)) == Status::order_violation);  // more queries than new tokens

  REQUIRE(c->step(ctx, 0, rows, 20) == Status::ok);
  REQUIRE(c->leaves(0));
  CHECK(c->relist(ctx, 0, rows) == Status::incompatible);  // heads keep slots of their own
  CHECK(c->accept(0) == Status::incompatible);
  CHECK(c->fork().status() == Status::order_violation);
  CHECK(c->step(ctx, 0, rows, 1) == Status::order_violation);
  REQUIRE(c->compact(ctx, 0, rows) == Status::ok);
  CHECK((c->slots(0, 0) == 8 && c->length(0) == 20 && c->length(1) == 0));
}

TEST_CASE("condenser: memory of an engine that is not what it says is refused", "[external][refusals]") {
  EngineMemory m(shape, Layout::nhd, 40);
  std::vector<std::byte> room(256);
  const auto check = [&](const std::function<void(external::BorrowedLayer&)>& change, index_t slots = 10) {
    external::BorrowedLayer b = m.borrow();
    change(b);
    return external::check(b, shape, slots, Scratch(room));
  };
  CHECK(check([](auto&) {}) == Status::ok);
  CHECK(check([](auto& b) { b.values.dim = 16; }) == Status::shape_mismatch);
  CHECK(check([](auto& b) { b.page_slots = 0; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.page_slots = index_t{1} << 32; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.pool_pages = -1; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.pool_pages = index_t{1} << 32; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.keys.data = nullptr; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.keys.data = b.values.data = nullptr; }, 0) == Status::ok);
  CHECK(check([](auto& b) { b.keys.layout.chunk = 0; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.keys.layout.slot = 0; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.keys.layout.page = index_t{1} << 47; }) == Status::invalid_argument);
  CHECK(check([](auto& b) { b.keys.layout.page = index_t{1} << 45; }) == Status::invalid_argument);  // times its pages
  CHECK(check([](auto& b) { b.values.layout.head = 1; }) == Status::invalid_argument);               // heads share numbers
}

TEST_CASE("condenser: every size of workspace and every request that is refused on the way changes nothing", "[external][refusals]") {
  long sizes = 0, requests = 0;
  for (const char* text : {"knorm(tokens=8, recent=2)", "h2o(heavy=5, recent=4)", "snapkv(tokens=10, window=4, kernel=3)", "rkv(tokens=12, window=4, kernel=3, slack=2)",
                           "h2o(heavy=5, recent=4) + d2o(mass=log_count)", "h2o(heavy=5, recent=4) + keepkv(window=5, least=0.1)", "h2o(heavy=5, recent=4) + cam(targets=3)"})
    for (const Sharing sharing : {Sharing::per_head, Sharing::per_layer, Sharing::per_sequence}) {
      const bool folds = std::string(text).find(" + ") != std::string::npos;
      if (folds && sharing == Sharing::per_sequence) continue;
      CAPTURE(text, static_cast<int>(sharing));
      const any::AnyRecipe recipe = test::stages(text);
      test::CountingMemory memory;
      {
        std::optional<AnyCondenser> small, large;
        const auto make = [&](std::optional<AnyCondenser>& to) {
          auto made = AnyCondenser::make(shape, recipe, {sharing}, memory);
          if (!made) return made.status();
          to.emplace(std::move(*made));
          return Status::ok;
        };
        requests += refused(memory, [&] { return make(small); });
        REQUIRE(make(large) == Status::ok);
        std::vector<EngineMemory> of_small(2, EngineMemory(shape, Layout::hnd, 40)), of_large = of_small;
        Workspace work;
        REQUIRE(work.reserve(small->workspace_bytes(40, 20, of_small[0].pages)) == Status::ok);
        Context<Cpu> ctx(work.bytes());
        for (const index_t n : {20, 1, 1}) {
          std::vector<Tokens> tokens;
          for (index_t l = 0; l < 2; ++l) {
            tokens.emplace_back(shape, n, static_cast<std::uint64_t>(100 * l + n));
            const Tokens& t = tokens.back();
            const StepInputs in{.queries = t.queries(), .values = t.values()};
            for (auto* side : {&of_small, &of_large}) {
              const AnyCondenser& c = side == &of_small ? *small : *large;
              (*side)[at(l)].write({c.slots(l, 0), c.slots(l, 1)}, t.keys(), t.values());
            }
            const index_t before = small->length(l);
            sizes += squeezed(work.bytes(), [&](Context<Cpu>& few) {
              const Status s = small->step(few, l, of_small[at(l)].borrow(), n, in);
              if (s != Status::ok) REQUIRE(small->length(l) == before);
              return s;
            });
            requests += refused(memory, [&] { return large->step(ctx, l, of_large[at(l)].borrow(), n, in); });
          }
          sizes += squeezed(work.bytes(), [&](Context<Cpu>& few) { return small->settle(few); });
          REQUIRE(large->settle(ctx) == Status::ok);
          for (index_t l = 0; l < 2; ++l) {
            REQUIRE(small->leaves(l) == large->leaves(l));
            for (index_t h = 0; h < 2; ++h) REQUIRE(small->kept(l).count[h] == large->kept(l).count[h]);
            sizes += squeezed(work.bytes(), [&](Context<Cpu>& few) { return small->compact(few, l, of_small[at(l)].borrow()); });
            REQUIRE(large->compact(ctx, l, of_large[at(l)].borrow()) == Status::ok);
            REQUIRE((of_small[at(l)].keys == of_large[at(l)].keys && of_small[at(l)].values == of_large[at(l)].values));
            std::vector<float> out(4 * 32), other(4 * 32);
            const auto q = dense_view(static_cast<const float*>(tokens[0].q.data()), 4, 1, 32);
            sizes += squeezed(work.bytes(), [&](Context<Cpu>& few) { return small->attend(few, l, of_small[at(l)].borrow(), 0, q, dense_view(out.data(), 4, 1, 32)); });
            REQUIRE(large->attend(ctx, l, of_large[at(l)].borrow(), 0, q, dense_view(other.data(), 4, 1, 32)) == Status::ok);
            REQUIRE(out == other);
          }
          requests += refused(memory, [&] { return small->fork().status(); });
        }
      }
      REQUIRE(memory.live_bytes == 0);
    }
  REQUIRE(sizes > 500);
  REQUIRE(requests > 300);
}

TEST_CASE("coded pages: shapes, sizes and memory that are not theirs are refused", "[external][refusals]") {
  using Pages = external::CodedPages<any::AnyQuant>;
  const any::AnyRecipe recipe = test::stages("group_int(bits=4, group_size=16, residual_window=6)");
  CacheShape none = shape;
  none.kv_heads = 0;
  CHECK(Pages::make(none, recipe.quant, 16).status() == Status::invalid_argument);
  CHECK(Pages::make(shape, test::stages("group_int(bits=4, group_size=48)").quant, 16).status() == Status::invalid_argument);
  for (const index_t page : {0, 65537}) CHECK(Pages::make(shape, recipe.quant, page).status() == Status::invalid_argument);
  CHECK(Pages::make(shape, recipe.quant, 16, -1).status() == Status::invalid_argument);
  test::CountingMemory memory;
  refused(memory, [&] { return Pages::make(shape, recipe.quant, 16, 0, memory).status(); });

  auto c = Pages::make(shape, recipe.quant, 16);
  REQUIRE(c);
  EngineMemory exact(shape, Layout::nhd, 60);
  const index_t key_step = (2 * c->key_bytes() + 63) / 64 * 64, value_step = (2 * c->value_bytes() + 63) / 64 * 64, pages = 4;
  std::vector<std::byte> bytes(at(pages * (key_step + value_step) + 64));
  std::byte* base = bytes.data() + (64 - reinterpret_cast<std::uintptr_t>(bytes.data()) % 64) % 64;
  std::vector<std::int32_t> table{2, 0, 3, 1};
  std::vector<std::int64_t> formats(4, 0);
  const auto memory_of = [&] { return external::CodedMemory{exact.borrow(), base, base + pages * key_step, key_step, value_step, table, pages, formats, {}}; };
  const Tokens t(shape, 40, 9);
  exact.write({0, 0}, t.keys(), t.values());
  CHECK(c->append(-1) == Status::out_of_range);
  CHECK(c->append(0x7fffffff) == Status::ok);
  auto full = std::move(*c);
  CHECK(full.append(1) == Status::out_of_range);
  c = Pages::make(shape, recipe.quant, 16);
  REQUIRE((c && c->append(40) == Status::ok));
  Workspace work;
  REQUIRE(work.reserve(c->workspace_bytes(40, 40, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());

  std::vector<float> out(4 * 40 * 32, 3.0f), lse(4 * 2);
  const auto query = [&](index_t heads, index_t n, index_t dim) { return dense_view(static_cast<const float*>(t.q.data()), heads, n, dim); };
  const auto to = [&](index_t heads, index_t n, index_t dim) { return dense_view(out.data(), heads, n, dim); };
  CHECK(c->attend(ctx, memory_of(), {query(2, 2, 32), to(4, 2, 32)}) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {query(4, 2, 16), to(4, 2, 32)}) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {query(4, 2, 32), to(2, 2, 32)}) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {query(4, 2, 32), to(4, 1, 32)}) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {query(4, 2, 32), to(4, 2, 16)}) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {query(4, 2, 32), to(4, 2, 32), dense_view(lse.data(), 2, 2)}) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {query(4, 2, 32), to(4, 2, 32), dense_view(lse.data(), 4, 1)}) == Status::shape_mismatch);
  const index_t offset[] = {0, 40, 80};
  std::vector<float> mass(80);
  prim::AttendRequest one{query(4, 2, 32), to(4, 2, 32), {}, {mass.data(), offset, 1}, 1};
  CHECK(c->attend(ctx, memory_of(), one) == Status::shape_mismatch);
  CHECK(c->attend(ctx, memory_of(), {TensorView<const float, 3>{t.q.data(), {4, 41, 32}, {0, 0, 1}}, TensorView<float, 3>{out.data(), {4, 41, 32}, {0, 0, 1}}}) == Status::out_of_range);
  CHECK(out == std::vector<float>(4 * 40 * 32, 3.0f));

  const auto coded = [&](const std::function<void(external::CodedMemory&)>& change) {
    external::CodedMemory m = memory_of();
    change(m);
    return c->code(ctx, m);
  };
  const auto bad = Status::invalid_argument;
  CHECK(coded([](auto& m) { m.keys = nullptr; }) == bad);
  CHECK(coded([](auto& m) { m.values = nullptr; }) == bad);
  CHECK(coded([](auto& m) { m.keys += 8; }) == bad);
  CHECK(coded([](auto& m) { m.values += 8; }) == bad);
  CHECK(coded([](auto& m) { m.key_step += 8; }) == bad);
  CHECK(coded([](auto& m) { m.value_step += 8; }) == bad);
  CHECK(coded([](auto& m) { m.key_step = 64; }) == bad);
  CHECK(coded([](auto& m) { m.value_step = 0; }) == bad);
  const std::int32_t owners[] = {1, 1};
  CHECK(coded([&](auto& m) { m.owners = owners; }) == Status::shape_mismatch);
  CHECK(coded([](auto& m) { m.pool_pages = 3; }) == Status::shape_mismatch);
  CHECK(coded([](auto& m) { m.exact.keys.data = nullptr; }) == bad);
  CHECK(coded([](auto& m) { m.exact.values.data = nullptr; }) == bad);
  CHECK(coded([](auto& m) { m.exact.table = m.exact.table.first(2); }) == Status::out_of_range);
  std::vector<std::int32_t> places = exact.table;
  const auto placed = [&](std::size_t i, std::int32_t page) {
    places = exact.table, places[i] = page;
    return coded([&](auto& m) { m.exact.table = places; });
  };
  CHECK(placed(3, -1) == Status::out_of_range);
  CHECK(placed(3, static_cast<std::int32_t>(exact.pages)) == Status::out_of_range);
  CHECK(placed(3, exact.table[1]) == bad);  // named twice
  CHECK((c->coded_keys() == 0 && formats == std::vector<std::int64_t>(4, 0)));
  squeezed(work.bytes(), [&](Context<Cpu>& few) { return c->code(few, memory_of()); });
  CHECK(c->coded_keys() == 34);
  std::vector<std::int32_t> kept(36);
  std::iota(kept.begin(), kept.end(), 2);
  std::vector<std::int32_t> other = table;
  CHECK(c->keep(ctx, memory_of(), kept, other) == bad);  // another table than the one that is seen
  CHECK(c->keep(ctx, memory_of(), kept, std::span(table).first(3)) == bad);
  const std::int32_t before_first[] = {-1, 3};
  CHECK(c->keep(ctx, memory_of(), before_first, table) == bad);
  CHECK(c->slots() == 40);
  CHECK(c->keep(ctx, memory_of(), kept, table) == Status::ok);
  CHECK(c->slots() == 36);
}
