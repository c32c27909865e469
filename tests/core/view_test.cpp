#include <vector>

#include <catch2/catch.hpp>
#include <kvcondense/core/view.hpp>

using namespace kvcondense;

TEST_CASE("view: some tokens of rows are seen where they lie, whatever the strides", "[core][view]") {
  std::vector<int> x(2 * 5 * 3);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int>(i);
  const TensorView<int, 3> by_head = dense_view(x.data(), 2, 5, 3), by_token{x.data(), {2, 5, 3}, {3, 6, 1}};
  for (const auto& rows : {by_head, by_token}) {
    const TensorView<int, 3> some = tokens_of(rows, 2, 4);
    REQUIRE(some.extent[0] == 2);
    REQUIRE(some.extent[1] == 2);
    REQUIRE(some.extent[2] == 3);
    for (index_t h = 0; h < 2; ++h)
      for (index_t t = 0; t < 2; ++t)
        for (index_t c = 0; c < 3; ++c) REQUIRE(&some(h, t, c) == &rows(h, t + 2, c));
  }
  REQUIRE(tokens_of(dense_view(x.data(), 6, 5), 5, 5).size() == 0);
}
