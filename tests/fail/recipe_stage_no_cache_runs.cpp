// EXPECT: kvcondense::recipe: this stage is not one that a cache runs.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

struct Pages {
#ifdef KVCONDENSE_EXPECT_FAIL
  static constexpr Descriptor about{"pages", Stage::storage, "none"};
#else
  static constexpr Descriptor about{"pages", Stage::evict, "none"};
#endif
};

const auto mine = recipe(Pages{});
