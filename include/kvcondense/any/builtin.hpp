#pragma once

#include <kvcondense/any/registry.hpp>

namespace kvcondense::any {

/// All methods of the library. A new method is one entry in src/any/builtin_<room>.cpp.
const Registry& builtin();

namespace detail {

// One list per room, so that rooms compile apart.
std::span<const Entry> builtin_evict();
std::span<const Entry> builtin_budget();
std::span<const Entry> builtin_merge();
std::span<const Entry> builtin_lowrank();
std::span<const Entry> builtin_quant();
std::span<const Entry> builtin_position();
std::span<const Entry> builtin_retrieve();

}  // namespace detail
}  // namespace kvcondense::any
