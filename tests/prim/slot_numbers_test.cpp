#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("slot_numbers: mixes scale and keep, and never reads what it does not keep", "[prim][slot_numbers]") {
  const index_t offset[] = {0, 2, 2, 5};  // the second head is empty
  const float x[] = {1.0f, 2.0f, 3.0f, 4.0f, 5.0f};
  test::Guarded<float> out(5, std::nanf(""));
  Context<Cpu> ctx;
  const RaggedView<float> view{out.data(), offset, 3};
  REQUIRE(prim::SlotNumbers<Cpu>::mix(ctx, {x, offset, 3}, 2.0f, 0.0f, view) == Status::ok);
  for (int i = 0; i < 5; ++i) REQUIRE(out.data()[i] == 2.0f * x[i]);
  REQUIRE(prim::SlotNumbers<Cpu>::mix(ctx, {x, offset, 3}, 1.0f, 0.5f, view) == Status::ok);
  for (int i = 0; i < 5; ++i) REQUIRE(out.data()[i] == 2.0f * x[i]);
  REQUIRE(prim::SlotNumbers<Cpu>::fill(ctx, 3.0f, view) == Status::ok);
  for (int i = 0; i < 5; ++i) REQUIRE(out.data()[i] == 3.0f);
  REQUIRE(prim::SlotNumbers<Cpu>::index(ctx, view) == Status::ok);
  const float places[] = {0.0f, 1.0f, 0.0f, 1.0f, 2.0f};
  for (int i = 0; i < 5; ++i) REQUIRE(out.data()[i] == places[i]);
  REQUIRE(out.ok());
}

TEST_CASE("slot_numbers: sums over heads reach every head, and need equal lengths", "[prim][slot_numbers]") {
  const index_t offset[] = {0, 2, 4, 6}, ragged[] = {0, 1, 4, 6};
  const float x[] = {1.0f, 2.0f, 10.0f, 20.0f, 100.0f, 200.0f};
  test::Guarded<float> out(6, 1.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::SlotNumbers<Cpu>::sum_heads(ctx, {x, offset, 3}, 2.0f, 1.0f, {out.data(), offset, 3}) == Status::ok);
  for (int i = 0; i < 6; ++i) REQUIRE(out.data()[i] == (i % 2 == 0 ? 223.0f : 445.0f));
  REQUIRE(prim::SlotNumbers<Cpu>::sum_heads(ctx, {x, ragged, 3}, 2.0f, 1.0f, {out.data(), ragged, 3}) ==
          Status::not_supported);
  REQUIRE(out.data()[0] == 223.0f);
  REQUIRE(out.ok());
}
