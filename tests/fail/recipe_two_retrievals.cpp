// EXPECT: kvcondense::recipe: at most one retrieval stage.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

#ifdef KVCONDENSE_EXPECT_FAIL
constexpr auto mine = recipe(retrieve::Quest{}, retrieve::Kinetics{});
#else
constexpr auto mine = recipe(retrieve::Quest{});
#endif

Status make() { return make_cache<Cpu>(CacheShape{}, mine).status(); }
