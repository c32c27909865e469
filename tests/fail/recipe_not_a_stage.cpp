// EXPECT: a stage is a copyable struct with a member 'static constexpr kvcondense::Descriptor about'.
#include <kvcondense/cpu.hpp>

using namespace kvcondense;

// Two bits of what? The number alone is no stage.
#ifdef KVCONDENSE_EXPECT_FAIL
const auto mine = recipe(evict::H2O{}, 2);
#else
const auto mine = recipe(evict::H2O{}, quant::Kivi<2>{});
#endif
