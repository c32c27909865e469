// abi.c, which is C, does the work; a line number says what failed.

#include <catch2/catch.hpp>

extern "C" int kvc_test_from_c(void);

TEST_CASE("c: a program in C makes, feeds, forks, saves and frees caches", "[c]") { CHECK(kvc_test_from_c() == 0); }
