// EXPECT: kvcondense::recipe: at most one quantization stage.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

#ifdef KVCONDENSE_EXPECT_FAIL
constexpr auto mine = recipe(quant::Kivi<2>{}, quant::GroupInt<8>{});
#else
constexpr auto mine = recipe(quant::Kivi<2>{});
#endif

Status make() { return make_cache<Cpu>(CacheShape{}, mine).status(); }
