// The kernels of attention, coding and ranking for all instruction sets, once for the programs that link this library.
#include <kvcondense/backend/cpu/simd/kernels.hpp>
