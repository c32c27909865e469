// EXPECT: pass step the mass that attend measured, or call forward.
#include <type_traits>

#include <kvcondense/cpu.hpp>

using namespace kvcondense;

#ifdef KVCONDENSE_EXPECT_FAIL
constexpr auto mine = recipe(evict::H2O{});
#else
constexpr auto mine = recipe(evict::Knorm{});
#endif

Status step(Context<Cpu>& ctx, Cache<Cpu, std::remove_const_t<decltype(mine)>>& cache) {
  return cache.step(ctx, 0);
}
