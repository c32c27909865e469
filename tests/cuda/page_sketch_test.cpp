// Pages of signs on CUDA, of rows and of what levels leave of them: the same bytes as on the CPU.

#include <kvcondense/backend/cpu/level_codes.hpp>
#include <kvcondense/backend/cpu/sign_sketch.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "page_pair.hpp"

using namespace kvcondense;
using cuda_pages::compare;

TEST_CASE("cuda pages: signs of what levels leave") {
  for (const index_t dim : {64, 80, 128, 256})
    for (const index_t signs : {index_t{0}, index_t{8}, dim, 2 * dim + 8, index_t{1024}})
      compare(prim::Sketched<prim::LevelCodes>{{2, prim::LevelScale::unit, prim::fit_levels(2, dim)}, {signs, 5}}, 12, dim, {{0, 12}, {4, 2}, {8, 0}});
  compare(prim::Sketched<prim::LevelCodes>{{3, prim::LevelScale::norm, prim::fit_levels(3, 50)}, {56, ~std::uint64_t{0}}}, 40, 50, {{0, 40}});
}

TEST_CASE("cuda pages: signs of rows, and of the strong channels of a group") {
  for (const index_t dim : {64, 80, 128, 256})
    for (const index_t channels : {0, 1, 8, 40})
      compare(prim::SketchRows{{2 * dim, 3}, {channels == 40 ? index_t{8} : dim, 9}, channels, channels == 8 ? 4 : channels == 40 ? 48 : 12}, 48, dim,
              channels == 0 ? std::vector<cuda_pages::Job>{{0, 48}, {5, 7}} : std::vector<cuda_pages::Job>{{0, 48}, {0, 0}});
  compare(prim::SketchRows{{1024, 3}, {16, 9}, 3, 2}, 64, 50, {{0, 64}, {6, 8}});
}
