// A condenser over single headers: what its policy computes with is missing, which the first error says.
// EXPECT: a condenser of a recipe as a type wants kvcondense/cpu.hpp, include it too.
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/external/condenser.hpp>

#ifndef KVCONDENSE_EXPECT_FAIL
#include <kvcondense/cpu.hpp>
#endif

using Asked = decltype(sizeof(kvcondense::external::Condenser<kvcondense::RecipeOf<kvcondense::evict::H2O>>));
