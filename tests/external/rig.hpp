#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/external/condenser.hpp>
#include <support/fill.hpp>

namespace kvcondense::test {

inline std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

enum class Layout { contiguous, nhd, hnd, vllm, cells, cell_channels };
inline constexpr Layout layouts[] = {Layout::contiguous, Layout::nhd, Layout::hnd, Layout::vllm, Layout::cells, Layout::cell_channels};

/// Keys and values of one layer as an engine would have them, in places that nobody uses NaN.
struct EngineMemory {
  CacheShape shape;
  Layout layout;
  index_t page_slots, pages;
  std::vector<std::byte> keys, values;
  std::vector<std::int32_t> table;
  std::vector<std::int32_t> owners;

  EngineMemory(const CacheShape& s, Layout l, index_t room, unsigned seed = 1) : shape(s), layout(l) {
    page_slots = l == Layout::contiguous ? room : l == Layout::cells || l == Layout::cell_channels ? 1 : l == Layout::vllm ? 16 : 5;
    pages = l == Layout::contiguous ? 1 : (room + page_slots - 1) / page_slots + 3;
    const auto bytes = [&](index_t dim) { return at(pages * page_slots * s.kv_heads * dim) * size_of(s.dtype); };
    keys.assign(bytes(s.head_dim), std::byte{0xff}), values.assign(bytes(s.values()), std::byte{0xff});
    table.resize(at(pages));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(seed));
  }

  external::BorrowedLayer borrow() {
    const index_t h = shape.kv_heads, d = shape.head_dim, v = shape.values();
    external::BorrowedLayer b;
    b.keys = {keys.data(), shape.dtype, d, {}}, b.values = {values.data(), shape.dtype, v, {}};
    b.table = table, b.page_slots = page_slots, b.pool_pages = pages, b.heads = h, b.owners = owners;
    switch (layout) {
      case Layout::contiguous:
      case Layout::hnd: b.keys.layout = prim::hnd_layout(page_slots, h, d), b.values.layout = prim::hnd_layout(page_slots, h, v); break;
      case Layout::nhd: b.keys.layout = prim::nhd_layout(page_slots, h, d), b.values.layout = prim::nhd_layout(page_slots, h, v); break;
      case Layout::vllm:
        b.keys.layout = prim::vllm_key_layout(page_slots, h, d, 16 / static_cast<index_t>(size_of(shape.dtype)));
        b.values.layout = prim::vllm_value_layout(page_slots, h, v);
        break;
      case Layout::cells: b.keys.layout = prim::cell_layout(h, d), b.values.layout = prim::cell_layout(h, v); break;
      case Layout::cell_channels: b.keys.layout = prim::cell_layout(h, d), b.values.layout = prim::cell_channel_layout(pages, v); break;
    }
    return b;
  }

  void write(const std::vector<index_t>& slots, TensorView<const float, 3> k, TensorView<const float, 3> v) {
    const external::BorrowedLayer b = borrow();
    Context<Cpu> none;
    prim::append_paged(none, b.sequence(slots.data()), k, v);
  }
  std::vector<float> key(index_t head, index_t slot) {
    const external::BorrowedLayer b = borrow();
    std::vector<float> row(at(shape.head_dim));
    prim::cpu::read_paged(b.keys, b.page(slot), head, slot % page_slots, row.data());
    return row;
  }
  std::vector<float> value(index_t head, index_t slot) {
    const external::BorrowedLayer b = borrow();
    std::vector<float> row(at(shape.values()));
    prim::cpu::read_paged(b.values, b.page(slot), head, slot % page_slots, row.data());
    return row;
  }
};

/// Random tokens of a layer.
struct Tokens {
  CacheShape shape;
  index_t n;
  std::vector<float> q, k, v;
  Tokens(const CacheShape& s, index_t tokens, std::uint64_t seed)
      : shape(s), n(tokens), q(at(s.q_heads * n * s.head_dim)), k(at(s.kv_heads * n * s.head_dim)), v(at(s.kv_heads * n * s.values())) {
    fill_normal(q.data(), q.size(), seed), fill_normal(k.data(), k.size(), seed + 1), fill_normal(v.data(), v.size(), seed + 2);
  }
  TensorView<const float, 3> queries() const { return dense_view(q.data(), shape.q_heads, n, shape.head_dim); }
  TensorView<const float, 3> keys() const { return dense_view(k.data(), shape.kv_heads, n, shape.head_dim); }
  TensorView<const float, 3> values() const { return dense_view(v.data(), shape.kv_heads, n, shape.values()); }
};

using AnyCondenser = external::Condenser<any::AnyRecipe>;

inline any::AnyRecipe stages(const std::string& text, const any::ModelFacts& facts = {}) {
  const auto parsed = any::parse(text, facts);
  INFO(text);
  REQUIRE(parsed);
  return parsed->stages;
}

}  // namespace kvcondense::test
