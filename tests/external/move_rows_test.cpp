#include <external/rig.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/external/rerotate.hpp>

using namespace kvcondense;
using namespace kvcondense::external;
using test::at;
using test::EngineMemory;
using test::Layout;
using test::Tokens;

TEST_CASE("move rows: what stays comes to the front of every head, in any layout, without scratch for rows", "[external]") {
  for (const Layout layout : test::layouts)
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      const CacheShape shape{.q_heads = 3, .kv_heads = 3, .head_dim = 80, .value_dim = 48, .dtype = dtype};
      EngineMemory m(shape, layout, 60);
      const Tokens t(shape, 50, 3);
      m.write({0, 0, 0}, t.keys(), t.values());
      // Heads keep different slots, one of them none; unequal lengths.
      std::vector<std::int32_t> kept(150);
      const index_t offset[] = {0, 50, 100, 150};
      index_t count[] = {0, 0, 0};
      for (std::int32_t j = 0; j < 50; ++j) {
        if (j % 3 != 1) kept[at(count[0]++)] = j;
        if (j > 40 || j == 2) kept[at(100 + count[2]++)] = j;
      }
      const KeptLists lists{{kept.data(), offset, 3}, count};
      std::vector<std::vector<float>> keys[3], values[3];
      for (index_t h = 0; h < 3; ++h)
        for (const std::int32_t j : lists.of(h)) keys[h].push_back(m.key(h, j)), values[h].push_back(m.value(h, j));
      std::vector<std::byte> scratch(Scratch::align + MoveRows::workspace_bytes(m.pages));
      Context<Cpu> ctx(scratch);
      REQUIRE(MoveRows::validate(m.borrow(), shape, lists, 50, m.table, {}, Scratch(scratch)) == Status::ok);
      CHECK(MoveRows::validate(m.borrow(), shape, lists, 50, m.table, {}, Scratch(std::span(scratch).first(8))) == Status::workspace_too_small);
      MoveRows::run(ctx, m.borrow(), lists, m.table, {});
      for (index_t h = 0; h < 3; ++h)
        for (index_t i = 0; i < count[h]; ++i) {
          REQUIRE(m.key(h, i) == keys[h][at(i)]);
          REQUIRE(m.value(h, i) == values[h][at(i)]);
        }
    }
}

TEST_CASE("move rows: a shared page is owned first where the next row of any head comes to it", "[external]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64};
  std::vector<half> rows(at(6 * 16 * 2 * 64));
  const std::int32_t table[] = {4, 0, 5}, owners[] = {1, 1, 1, 1, 2, 1};
  BorrowedLayer b = borrow_blocks(rows.data(), rows.data(), shape, 16, 6, table);
  b.owners = owners;
  std::vector<std::int32_t> kept(80);
  std::iota(kept.begin(), kept.begin() + 40, 0), std::iota(kept.begin() + 40, kept.end(), 0);
  const index_t offset[] = {0, 40, 80};
  for (const auto& [first, want] : {std::pair<index_t, index_t>{10, 1}, {0, 1}, {16, 0}, {15, 1}, {40, 0}}) {
    const index_t count[] = {first, 40};
    index_t place[3] = {-1, -1, -1};
    CAPTURE(first);
    CHECK(pages_to_own(b, {{kept.data(), offset, 2}, count}, place) == want);
    CHECK(place[0] == want - 1);
  }
}

TEST_CASE("move rows: places of cells part without moving a row", "[external]") {
  std::vector<std::int32_t> cells{9, 4, 7, 1, 0, 3};
  const std::int32_t kept[] = {1, 2, 5};
  CHECK(part_places(cells, kept) == 3);
  CHECK(cells[0] == 4);
  CHECK(cells[1] == 7);
  CHECK(cells[2] == 3);
  std::sort(cells.begin() + 3, cells.end());
  CHECK((cells == std::vector<std::int32_t>{4, 7, 3, 0, 1, 9}));
  CHECK(part_places(cells, {}) == 0);
}

TEST_CASE("move rows: borrowed arrays with any strides", "[external]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 6, .dtype = DType::f16};
  std::vector<half> numbers(4 * 7 * 2 * 6 * 2);
  // [slots, channels, heads]: channels lie two apart.
  const TensorView<half, 3> keys{numbers.data(), {2, 7, 6}, {1, 12, 2}}, values{numbers.data() + 84, {2, 7, 6}, {1, 12, 2}};
  const BorrowedLayer b = borrow_contiguous(keys, values);
  std::vector<std::byte> scratch(256);
  REQUIRE(check(b, shape, 7, Scratch(scratch)) == Status::ok);
  CHECK(check(b, shape, 8, Scratch(scratch)) == Status::out_of_range);
  const index_t slots[] = {0, 0};
  const Tokens t(shape, 7, 2);
  Context<Cpu> none;
  prim::append_paged(none, b.sequence(slots), t.keys(), t.values());
  CHECK(static_cast<float>(keys(1, 4, 5)) == Approx(t.keys()(1, 4, 5)).epsilon(1e-3));
  CHECK(static_cast<float>(values(0, 6, 2)) == Approx(t.values()(0, 6, 2)).epsilon(1e-3));
  // Arrays without room hold nothing, and a layout of any numbers is no layout.
  const BorrowedLayer empty = borrow_contiguous(TensorView<half, 3>{numbers.data(), {2, 0, 6}, {1, 12, 2}}, values);
  CHECK(check(empty, shape, 0, Scratch(scratch)) == Status::ok);
  CHECK(check(empty, shape, 1, Scratch(scratch)) == Status::out_of_range);
  BorrowedLayer huge = b;
  huge.keys.layout.chunk = std::numeric_limits<index_t>::max();  // all numbers of a row side by side, over those of the other head
  CHECK(check(huge, shape, 7, Scratch(scratch)) == Status::invalid_argument);
  huge.keys.dim = huge.values.dim = 0;
  CHECK(check(huge, shape, 7, Scratch(scratch)) == Status::shape_mismatch);
  // Three heads in one array and two in the other are no layer.
  CHECK(check(borrow_contiguous(keys, TensorView<half, 3>{numbers.data(), {3, 7, 6}, {1, 18, 3}}), shape, 1, Scratch(scratch)) == Status::shape_mismatch);
}

TEST_CASE("rerotate keys: turned where they lie, they are what the model would have written there", "[external]") {
  for (const Layout layout : test::layouts)
    for (const prim::RopePairing pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved}) {
      const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = layout == Layout::hnd ? DType::f16 : DType::f32};
      const prim::RopeConfig rope{.pairing = pairing, .rotary_dim = 48, .base = 5000.0, .scaling = prim::RopeScaling::linear, .factor = 2.0};
      const auto angles = prim::rope_angles(rope, 64);
      REQUIRE(angles);
      const Tokens t(shape, 20, 6);
      std::vector<index_t> from, to;
      for (index_t j = 0; j < 20; ++j) from.push_back(3 * j + 5000 * (j > 12)), to.push_back(j);
      Context<Cpu> none;
      const auto turned = [&](const std::vector<index_t>& positions) {
        std::vector<float> k(t.k.size());
        REQUIRE(prim::Rope<Cpu>::rotate(none, *angles, t.keys(), TensorView<const index_t, 2>{positions.data(), {1, 20}, {20, 1}},
                                        dense_view(k.data(), 2, 20, 64)) == Status::ok);
        return k;
      };
      const auto was = turned(from), wanted = turned(to);
      EngineMemory m(shape, layout, 30);
      m.write({0, 0}, dense_view(static_cast<const float*>(was.data()), 2, 20, 64), t.values());
      std::vector<std::byte> scratch(RerotateKeys::workspace_bytes(m.pages));
      Context<Cpu> ctx(scratch);
      REQUIRE(RerotateKeys::run(ctx, m.borrow(), shape, rope, from, to) == Status::ok);
      const double margin = shape.dtype == DType::f16 ? 4e-3 : 2e-5;
      for (index_t h = 0; h < 2; ++h)
        for (index_t j = 0; j < 20; ++j) {
          const auto key = m.key(h, j), value = m.value(h, j);
          for (index_t d = 0; d < 64; ++d) {
            REQUIRE(key[at(d)] == Approx(wanted[at((h * 20 + j) * 64 + d)]).margin(margin));
            REQUIRE(value[at(d)] == Approx(t.v[at((h * 20 + j) * 64 + d)]).margin(margin));
          }
        }
      // Closing up is that; and a list per head.
      EngineMemory other(shape, layout, 30);
      other.write({0, 0}, dense_view(static_cast<const float*>(was.data()), 2, 20, 64), t.values());
      REQUIRE(RerotateKeys::run(ctx, other.borrow(), shape, rope, from) == Status::ok);
      CHECK((other.key(1, 19) == m.key(1, 19)));
      std::vector<index_t> both = from, there = to;
      both.insert(both.end(), to.begin(), to.begin() + 5), there.insert(there.end(), from.begin(), from.begin() + 5);
      other.write({0, 0}, dense_view(static_cast<const float*>(was.data()), 2, 20, 64), t.values());
      const auto before = other.key(1, 7);
      const index_t offset[] = {0, 20, 25};
      REQUIRE(RerotateKeys::run(ctx, other.borrow(), shape, rope, {both.data(), offset, 2}, {there.data(), offset, 2}) == Status::ok);
      CHECK((other.key(0, 19) == m.key(0, 19)));
      CHECK((other.key(1, 7) == before));
    }
}

TEST_CASE("rerotate keys: what cannot be is refused before a key has turned", "[external]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f16};
  EngineMemory m(shape, Layout::cells, 30);
  m.owners.assign(at(m.pages), 1);
  Tokens t(shape, 20, 6);
  t.k[0] = NAN, t.k[64] = 60000.0f, t.k[64 + 32] = 60000.0f;
  m.write({0, 0}, t.keys(), t.values());
  std::vector<std::byte> scratch(RerotateKeys::workspace_bytes(m.pages));
  Context<Cpu> ctx(scratch), none;
  std::vector<index_t> from(20), to(20);
  for (index_t j = 0; j < 20; ++j) from[at(j)] = 2 * j, to[at(j)] = j;
  const auto keys = m.keys;
  const auto refused = [&](Status want, const prim::RopeConfig& rope = {}) {
    CHECK(RerotateKeys::run(ctx, m.borrow(), shape, rope, from, to) == want);
    CHECK((m.keys == keys));
  };
  refused(Status::not_supported, {.scaling = prim::RopeScaling::dynamic_ntk});
  refused(Status::invalid_argument, {.rotary_dim = 66});
  to[19] = -1, refused(Status::invalid_argument);
  to[19] = index_t{1} << 31, refused(Status::invalid_argument);
  to.pop_back(), refused(Status::shape_mismatch);
  to.push_back(19);
  m.owners[at(m.table[19])] = 2, refused(Status::invalid_argument);
  m.owners[at(m.table[19])] = 1;
  CHECK(RerotateKeys::run(none, m.borrow(), shape, {}, from, to) == Status::workspace_too_small);
  m.table[3] = m.table[4], refused(Status::invalid_argument);
  m.table[3] = static_cast<std::int32_t>(m.pages), refused(Status::out_of_range);
  std::iota(m.table.begin(), m.table.end(), 0);
  // A cell that stays where it is may be another sequence's too; numbers stay numbers.
  m.write({0, 0}, t.keys(), t.values());
  m.owners[0] = 2, to = from, to[0] = 0, to[1] = 1;
  REQUIRE(RerotateKeys::run(ctx, m.borrow(), shape, {}, from, to) == Status::ok);
  for (const float x : m.key(0, 1)) CHECK(std::isfinite(x));
  CHECK(m.key(0, 1)[0] == 65504.0f);  // would be 82906
  REQUIRE(RerotateKeys::run(ctx, m.borrow(), shape, prim::RopeConfig{}, std::span<const index_t>{}, std::span<const index_t>{}) == Status::ok);
}
