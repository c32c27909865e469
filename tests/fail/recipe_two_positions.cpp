// EXPECT: kvcondense::recipe: at most one position stage.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

#ifdef KVCONDENSE_EXPECT_FAIL
const auto mine = recipe(position::Absolute{}, position::Rerotate{});
#else
const auto mine = recipe(position::Rerotate{});
#endif

Status make() { return make_cache<Cpu>(CacheShape{}, mine).status(); }
