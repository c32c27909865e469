// The sum of merged rows on CUDA, beside the CPU's.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <kvcondense/backend/cpu/segmented_combine.hpp>
#include <kvcondense/backend/cuda/segmented_combine.cuh>

#include "merge_links.hpp"
#include "numbers.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::DeviceLinks;
using test::DeviceRows;
using test::HostColumn;
using test::Links;
using test::normals;

namespace {

/// A head of float rows as the CPU's word reads it.
struct HostHead {
  float *keys, *values;
  index_t dim, width;

  index_t key_dim() const { return dim; }
  index_t value_dim() const { return width; }
  void key(index_t j, float* row) const { std::copy_n(keys + j * dim, dim, row); }
  void value(index_t j, float* row) const { std::copy_n(values + j * width, width, row); }
  void set_key(index_t j, const float* row) const { std::copy_n(row, dim, keys + j * dim); }
  void set_value(index_t j, const float* row) const { std::copy_n(row, width, values + j * width); }
};

/// The same over pages, a run each.
struct PagedHead {
  const HostColumn<prim::ExactRows>*keys, *values;
  index_t head;

  using Codec = prim::PageCodec<Cpu, prim::ExactRows>;
  index_t key_dim() const { return keys->dim(); }
  index_t value_dim() const { return values->dim(); }
  void key(index_t j, float* row) const { read(*keys, j, row); }
  void value(index_t j, float* row) const { read(*values, j, row); }
  void set_key(index_t j, const float* row) const { write(*keys, j, row); }
  void set_value(index_t j, const float* row) const { write(*values, j, row); }

 private:
  void read(const HostColumn<prim::ExactRows>& column, index_t j, float* row) const {
    column.each(head, j, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
      Codec::decode(column.exact(), column.page(run), place, 1, {row, 1, column.dim()});
    });
  }
  void write(const HostColumn<prim::ExactRows>& column, index_t j, const float* row) const {
    column.each(head, j, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
      Codec::encode(column.exact(), column.page(run), place, 1, {row, 1, column.dim()});
    });
  }
};

/// One fold: what is asked, and of which sizes.
struct Asked {
  index_t dim, width, fan, group;
  bool keys = true, values = true, directions = false, turned = false, biased = false;
  prim::RopeConfig rope{};
};

void compare(const Asked& a, const std::vector<index_t>& slots) {
  INFO("dim " << a.dim << " width " << a.width << " fan " << a.fan << " group " << a.group);
  Links l(slots, a.fan, 70);
  const index_t heads = l.heads(), most = *std::max_element(slots.begin(), slots.end());
  std::vector<float> keys = normals(heads * most * a.dim, 71), values = normals(heads * most * a.width, 72), bias = normals(l.total(), 73);
  std::vector<float> queries = normals(heads * a.group * 2 * a.dim, 74);
  queries[at(a.dim)] = a.group > 1 ? NAN : queries[at(a.dim)];  // what a NaN weighs is the sizes'
  std::vector<std::int32_t> turn(at(l.total())), order(at(l.total()));
  for (std::size_t i = 0; i < turn.size(); ++i) turn[i] = static_cast<std::int32_t>(i % 7) * 31 - 60;
  if (most > 1) std::fill_n(keys.end() - (most / 2) * a.dim, a.dim, 0.0f);  // a row without a direction
  const auto angles = prim::rope_angles(a.rope, a.dim);
  REQUIRE(angles);
  const auto request = [&](const prim::MergeLinks& links, const index_t* o, const prim::SlotRange* targets, const std::int32_t* by, float* b, const float* q,
                           std::int32_t* room) {
    prim::CombineRequest r;
    r.links = links, r.targets = targets, r.keys = a.keys, r.values = a.values;
    r.split = a.directions ? prim::RowSplit::direction : prim::RowSplit::none;
    if (a.turned) r.angles = &*angles, r.turn = {by, o, heads};
    if (a.biased) r.bias = {b, o, heads}, r.queries = dense_view(q, heads * a.group, 2, a.dim), r.softmax_scale = 0.2f;
    r.order = {room, o, heads};
    return r;
  };
  const std::vector<float> keys_before = keys, values_before = values, bias_before = bias;
  Context<Cpu> cpu;
  REQUIRE(prim::SegmentedCombine<Cpu>::run(
              cpu, request(l.view(), l.offset.data(), l.targets.data(), turn.data(), bias.data(), queries.data(), order.data()), [&](index_t h) {
                return HostHead{keys.data() + h * most * a.dim, values.data() + h * most * a.width, a.dim, a.width};
              }) == Status::ok);
  CHECK((!a.keys || most == 0 || keys != keys_before));
  test::each_way([&] {
    test::Device device;
    DeviceLinks d(device, l);
    const DeviceRows k(device, keys_before, slots, most, a.dim), v(device, values_before, slots, most, a.width);
    test::OnDevice<std::int32_t> by(device, turn), room(device, order);
    test::OnDevice<float> b(device, bias_before), q(device, queries);
    const auto asked = request(d.view(), d.offset.data(), d.targets.data(), by.data(), b.data(), q.data(), room.data());
    Context<Cuda> ctx = device.with_workspace(prim::SegmentedCombine<Cuda>::workspace_bytes(heads, l.total()));
    Context<Cuda> small = ctx.with_workspace(ctx.workspace().first(ctx.workspace().size() - 1));
    CHECK(prim::SegmentedCombine<Cuda>::run(small, asked, k.rows(), v.rows(), l.total()) == Status::workspace_too_small);
    REQUIRE(prim::SegmentedCombine<Cuda>::run(ctx, asked, k.rows(), v.rows(), l.total()) == Status::ok);
    close(k.read(), keys, 5e-6f, 1.0f);
    close(v.read(), values, 2e-6f, 1.0f);
    close(b.read(), bias, 2e-5f, 1.0f);
  });
}

}  // namespace

TEST_CASE("cuda segmented_combine: rows, directions, turned keys, biases, to 2e-5 of the CPU's") {
  const std::vector<index_t> slots{0, 1, 2, 37, 90};
  compare({.dim = 64, .width = 128, .fan = 1, .group = 1}, slots);
  compare({.dim = 80, .width = 48, .fan = 3, .group = 1, .directions = true}, slots);
  compare({.dim = 128, .width = 64, .fan = 1, .group = 4, .turned = true, .biased = true}, slots);
  compare({.dim = 64, .width = 64, .fan = 3, .group = 7, .values = false, .biased = true}, {5, 40});
  compare({.dim = 256, .width = 256, .fan = 2, .group = 3, .directions = true, .turned = true, .biased = true}, {3, 30});
  compare({.dim = 64, .width = 96, .fan = 1, .group = 3, .keys = false, .biased = true}, {33});
  compare({.dim = 64, .width = 96, .fan = 1, .group = 1}, {0, 0});
  compare({.dim = 96, .width = 64, .fan = 1, .group = 2, .turned = true, .biased = true, .rope = {.pairing = prim::RopePairing::interleaved, .rotary_dim = 40}},
          {3, 40});
}

TEST_CASE("cuda segmented_combine: bfloat16 in pages of several runs, to a step of that type") {
  constexpr index_t dim = 64, width = 80, heads = 2, group = 2;
  const std::vector<test::ColumnShape> shapes{{.sinks = 30, .window = 570}, {.sinks = 50}};
  const prim::ExactRows bf16{DType::bf16};
  using Column = HostColumn<prim::ExactRows>;
  const auto fresh_keys = [&] { return Column(bf16, bf16, dim, 64, shapes, 76); };
  const auto fresh_values = [&] { return Column(bf16, bf16, width, 64, shapes, 77); };
  const Links l({600, 50}, 2, 75);
  const Column keys = fresh_keys(), values = fresh_values();
  const std::vector<float> bias_before = normals(l.total(), 78), queries = normals(heads * group * dim, 79);
  std::vector<float> bias = bias_before;
  std::vector<std::int32_t> turn(at(l.total())), order(at(l.total()));
  for (std::size_t i = 0; i < turn.size(); ++i) turn[i] = static_cast<std::int32_t>(i % 7) * 31 - 60;
  const auto angles = prim::rope_angles({}, dim);
  REQUIRE(angles);
  const auto request = [&](const prim::MergeLinks& links, const index_t* o, const prim::SlotRange* targets, const std::int32_t* by, float* b, const float* q,
                           std::int32_t* room) {
    prim::CombineRequest r;
    r.links = links, r.targets = targets, r.angles = &*angles, r.turn = {by, o, heads}, r.bias = {b, o, heads};
    r.queries = dense_view(q, heads * group, 1, dim), r.softmax_scale = 0.2f, r.order = {room, o, heads};
    return r;
  };
  Links own = l;
  Context<Cpu> cpu;
  REQUIRE(prim::SegmentedCombine<Cpu>::run(
              cpu, request(own.view(), l.offset.data(), l.targets.data(), turn.data(), bias.data(), queries.data(), order.data()),
              [&](index_t h) { return PagedHead{&keys, &values, h}; }) == Status::ok);
  CHECK(bias != bias_before);
  const auto rows_of = [&](index_t h) { return shapes[at(h)].slots(); };
  test::each_way([&] {
    test::Device device;
    DeviceLinks d(device, l);
    Column::Copy k = fresh_keys().on(device), v = fresh_values().on(device);
    test::OnDevice<index_t> slots(device, l.slots);
    const SlotRows<Cuda> key_rows(bf16, k.view(), slots.data(), heads, 600, dim), value_rows(bf16, v.view(), slots.data(), heads, 600, width);
    test::OnDevice<std::int32_t> by(device, turn), room(device, order);
    test::OnDevice<float> b(device, bias_before), q(device, queries);
    Context<Cuda> ctx = device.with_workspace(prim::SegmentedCombine<Cuda>::workspace_bytes(heads, l.total()));
    const auto asked = request(d.view(), d.offset.data(), d.targets.data(), by.data(), b.data(), q.data(), room.data());
    REQUIRE(prim::SegmentedCombine<Cuda>::run(ctx, asked, key_rows, value_rows, l.total()) == Status::ok);
    // A sum as near to the middle of two bfloat16 as float rounding may go to the other one.
    index_t others = 0;
    const auto same = [&](const Column& column, const Column::Copy& copy) {
      std::vector<float> row(at(column.dim())), got(row.size());
      std::vector<std::vector<std::byte>> pages;
      for (const auto& page : copy.pages) pages.push_back(page.read());
      for (index_t h = 0; h < heads; ++h)
        for (index_t j = 0; j < rows_of(h); ++j)
          column.each(h, j, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
            std::byte* page = pages[at(&run - column.runs().runs)].data();
            prim::PageCodec<Cpu, prim::ExactRows>::decode(bf16, column.page(run), place, 1, {row.data(), 1, column.dim()});
            prim::PageCodec<Cpu, prim::ExactRows>::decode(bf16, {page, 0, column.dim()}, place, 1, {got.data(), 1, column.dim()});
            close(got, row, 8e-3f, 1e-3f);
            for (std::size_t c = 0; c < row.size(); ++c) others += got[c] != row[c];
          });
    };
    same(keys, k);
    same(values, v);
    CHECK(others < l.total() * (dim + width) / 1000);
    close(b.read(), bias, 1e-3f, 1.0f);
  });
}

TEST_CASE("cuda segmented_combine: what it refuses") {
  test::Device device;
  prim::CombineRequest request;
  request.links.fan = 0;
  CHECK(prim::SegmentedCombine<Cuda>::run(device, request, {}, {}, 0) == Status::invalid_argument);
  request.links.fan = 1, request.links.to.heads = 2;
  CHECK(prim::SegmentedCombine<Cuda>::run(device, request, {}, {}, 0) == Status::shape_mismatch);
  const SlotRows<Cuda> exact(prim::ExactRows{}, {}, nullptr, 2, 8, 64);
  CHECK(prim::SegmentedCombine<Cuda>::run(device, request, exact, exact, 16) == Status::workspace_too_small);
  const SlotRows<Cuda> wide(prim::ExactRows{}, {}, nullptr, 2, 8, 257);
  CHECK(prim::SegmentedCombine<Cuda>::run(device, request, wide, exact, 16) == Status::shape_mismatch);
  CHECK(prim::SegmentedCombine<Cuda>::run(device, request, exact, wide, 16) == Status::shape_mismatch);
  request.keys = request.values = false;  // rows that nobody asks for may be as they like
  CHECK(prim::SegmentedCombine<Cuda>::run(device, request, wide, wide, 16) == Status::workspace_too_small);
}
