#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("slot_exposure: counts the rows that see a slot, one by one", "[prim][slot_exposure]") {
  const index_t lengths[] = {0, 1, 9, 5};
  const index_t rows = GENERATE(0, 1, 4, 5, 20);
  CAPTURE(rows);
  std::vector<index_t> offset{0};
  for (const index_t n : lengths) offset.push_back(offset.back() + n);
  test::Guarded<float> exposure(static_cast<std::size_t>(offset.back()), 2.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::add(ctx, rows, {exposure.data(), offset.data(), 4}) == Status::ok);
  for (index_t h = 0; h < 4; ++h)
    for (index_t j = 0; j < lengths[h]; ++j) {
      int seen = 2;
      for (index_t row = 0; row < rows; ++row) seen += j <= lengths[h] - rows + row;
      REQUIRE(exposure.data()[offset[static_cast<std::size_t>(h)] + j] == static_cast<float>(seen));
    }
  REQUIRE(exposure.ok());
}

TEST_CASE("slot_exposure: means divide by the rows, and nothing seen is nothing", "[prim][slot_exposure]") {
  const float sum[] = {3.0f, 2.0f, 5.0f}, rows[] = {4.0f, 1.0f, 0.0f};
  const index_t offset[] = {0, 1, 3};
  test::Guarded<float> out(3);
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::mean(ctx, {sum, offset, 2}, {rows, offset, 2}, {out.data(), offset, 2}) == Status::ok);
  REQUIRE((out.data()[0] == 0.75f && out.data()[1] == 2.0f && out.data()[2] == 0.0f));
  REQUIRE(out.ok());
}

TEST_CASE("slot_exposure: logarithms of sums are open until a row sees the slot, and become means", "[prim][slot_exposure]") {
  float logs[] = {3, 3, 3, 3, 3}, rows[] = {0, 1, 4, 0, 900}, out[5];
  const index_t offset[] = {0, 3, 3, 5};
  const float none = -std::numeric_limits<float>::infinity();
  Context<Cpu> ctx;
  REQUIRE(prim::SlotExposure<Cpu>::open_logs(ctx, {rows, offset, 3}, {logs, offset, 3}) == Status::ok);
  REQUIRE(std::vector<float>(logs, logs + 5) == std::vector<float>{none, 3, 3, none, 3});
  for (const float decay : {0.0f, 0.5f, 0.9f}) {
    REQUIRE(prim::SlotExposure<Cpu>::decayed_mean(ctx, {logs, offset, 3}, {rows, offset, 3}, decay, {out, offset, 3}) == Status::ok);
    REQUIRE((out[0] == none && out[3] == none));
    for (const std::size_t j : {1u, 2u, 4u})
      REQUIRE(out[j] == Approx(3.0 - std::log(1.0 - std::pow(static_cast<double>(decay), static_cast<double>(rows[j])))).epsilon(1e-6));
  }
}
