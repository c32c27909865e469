#include <fuzz/fuzz.hpp>

#include <cmath>

#include <kvcondense/cpu.hpp>
#include <kvcondense/prim/paged_rows.hpp>
#include <kvcondense/storage/paged_view.hpp>

namespace kvcondense::fuzz {
namespace {

// A small pool, a table of anything, as many slots as it says; then what an engine does: attends, grows, shrinks, changes the
// table. Memory is exactly the pool, so that a page outside of it is the sanitizer's to see.
void run(Bytes bytes) {
  Reader in(bytes);
  const index_t heads = 1 + in.up_to(3), dim = 1 + in.up_to(16), page_slots = in.up_to(9), pool_pages = in.up_to(12);
  const bool hnd = in.up_to(1) == 1;
  const index_t slots = static_cast<std::int8_t>(in.byte());
  std::vector<float> keys(static_cast<std::size_t>(pool_pages * page_slots * heads * dim), 0.5f), values = keys;
  const auto layout = hnd ? prim::hnd_layout(page_slots, heads, dim, 1) : prim::nhd_layout(page_slots, heads, dim, 1);
  const prim::PagedTensor k{reinterpret_cast<std::byte*>(keys.data()), DType::f32, dim, layout}, v{reinterpret_cast<std::byte*>(values.data()), DType::f32, dim, layout};
  const auto table_of = [&](std::size_t entries) {
    std::vector<std::int32_t> table(entries);
    for (auto& page : table) page = in.up_to(1) == 0 ? in.up_to(15) : in.take<std::int32_t>();
    return table;
  };
  std::vector<std::int32_t> table = table_of(in.up_to(14));
  auto view = storage::PagedView::make(k, v, heads, page_slots, table, slots, pool_pages);
  if (!view) return;
  std::vector<float> q(static_cast<std::size_t>(heads * dim), 1.0f), out(q.size());
  std::vector<std::vector<std::int32_t>> tables{table};  // a view borrows them
  while (!in.done()) {
    switch (in.up_to(3)) {
      case 0: static_cast<void>(view->grow(static_cast<std::int8_t>(in.byte()))); break;
      case 1: {
        const index_t head = static_cast<std::int8_t>(in.byte());
        static_cast<void>(view->shrink(head, static_cast<std::int8_t>(in.byte())));
        break;
      }
      case 2: {
        tables.push_back(table_of(in.up_to(14)));
        if (view->use_table(tables.back()) != Status::ok) tables.pop_back();
        break;
      }
      default:
        for (index_t h = 0; h < heads; ++h) {
          REQUIRE((view->slots(h) >= 0 && view->slots(h) <= view->pages() * page_slots));
          for (index_t s = 0; s < view->slots(h); ++s) {
            const index_t page = view->sequence().page(s / page_slots);
            REQUIRE((page >= 0 && page < pool_pages));
            for (index_t d = 0; d < dim; ++d)
              REQUIRE(keys.at(static_cast<std::size_t>(layout.offset(page, h, s % page_slots, d))) == 0.5f);
          }
        }
    }
  }
}

std::vector<Input> seeds() {
  const auto input = [](std::initializer_list<int> list) {
    Input bytes;
    for (const int x : list) bytes.push_back(static_cast<std::byte>(x));
    return bytes;
  };
  return {input({1, 7, 4, 8, 0, 9, 3, 0, 5, 0, 2, 0, 7, 3, 0, 1, 3, 1, 0, 4, 3, 2, 2, 0, 1, 0, 2, 3}),
          input({3, 15, 8, 12, 1, 16, 2, 0, 0, 0, 1, 3, 1, 2, 7, 3, 0, 200, 3}), input({0, 0, 1, 1, 0, 1, 1, 0, 0, 3})};
}

}  // namespace

const Target page_tables{"page_tables", run, seeds};

}  // namespace kvcondense::fuzz
