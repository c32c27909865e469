// EXPECT: at most one eviction stage; a budget or another wrapper takes its policy as a field.
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

#ifdef KVCONDENSE_EXPECT_FAIL
constexpr auto mine = recipe(evict::SnapKV{}, budget::Ratio<evict::H2O>{.keep = 0.25});
#else
constexpr auto mine = recipe(budget::Ratio<evict::H2O>{.keep = 0.25});
#endif

Status make() { return make_cache<Cpu>(CacheShape{}, mine).status(); }
