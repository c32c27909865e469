#pragma once

#include <cstdint>

namespace kvcondense::quant {

/// Which entropy coder a stream is written with: bitstream/range_coder.hpp or bitstream/rans.hpp.
enum class EntropyCoder : std::uint8_t { range, rans };

}  // namespace kvcondense::quant
