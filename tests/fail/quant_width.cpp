// EXPECT: kvcondense: QServe stores numbers in 4 or 8 bits.
#include <kvcondense/quant/qserve.hpp>

#ifdef KVCONDENSE_EXPECT_FAIL
const kvcondense::quant::QServe<3> three;
#else
const kvcondense::quant::QServe<4> four;
#endif

int main() { return 0; }
