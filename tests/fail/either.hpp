#pragma once

#include <type_traits>

namespace kvcondense::test {

inline constexpr bool wrong =
#ifdef KVCONDENSE_EXPECT_FAIL
    true;
#else
    false;
#endif

/// What is right, or with KVCONDENSE_EXPECT_FAIL what is to be refused.
template <class Right, class Wrong>
using Either = std::conditional_t<wrong, Wrong, Right>;

/// The parts of a policy, each of which it may lack.
template <class... Parts>
struct Policy : Parts... {};

}  // namespace kvcondense::test
