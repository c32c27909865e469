#pragma once

#include <kvcondense/core/backend.hpp>

namespace kvcondense {

template <>
struct Words<Cpu> {};

}  // namespace kvcondense
