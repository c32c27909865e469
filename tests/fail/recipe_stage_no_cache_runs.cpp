// EXPECT: kvcondense::recipe: this stage is not one that a cache runs.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

struct Merge {
#ifdef KVCONDENSE_EXPECT_FAIL
  static constexpr Descriptor about{"lowrank", Stage::lowrank, "none"};
#else
  static constexpr Descriptor about{"lowrank", Stage::evict, "none"};
#endif
};

const auto mine = recipe(Merge{});
