#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using prim::RopeConfig;

constexpr Choice pairings[] = {
    {"half_split", static_cast<int>(prim::RopePairing::half_split)},
    {"interleaved", static_cast<int>(prim::RopePairing::interleaved)},
};
constexpr Choice scalings[] = {
    {"none", static_cast<int>(prim::RopeScaling::none)},
    {"linear", static_cast<int>(prim::RopeScaling::linear)},
    {"dynamic_ntk", static_cast<int>(prim::RopeScaling::dynamic_ntk)},
    {"llama3", static_cast<int>(prim::RopeScaling::llama3)},
    {"yarn", static_cast<int>(prim::RopeScaling::yarn)},
    {"longrope", static_cast<int>(prim::RopeScaling::longrope)},
    {"table", static_cast<int>(prim::RopeScaling::table)},
};

/// The model's rotary embedding; tables (longrope, table) come from the engine, never from text.
template <class P, auto Rope>
constexpr Field rope_fields[] = {
    number<P, Rope, &RopeConfig::base>("base", "theta", "of the frequencies", 1.0, 1e30),
    choice<P, Rope, &RopeConfig::pairing>("pairing", "", "which components turn together",
                                          pairings),
    number<P, Rope, &RopeConfig::rotary_dim>(
        "rotary_dim", "", "leading components that turn; 0: all", 0, max_head_dim),
    choice<P, Rope, &RopeConfig::scaling>("scaling", "",
                                          "rule for contexts beyond the trained length", scalings),
    number<P, Rope, &RopeConfig::factor>("factor", "", "of the scaling", 1e-6, 1e6),
    number<P, Rope, &RopeConfig::original_length>(
        "original_length", "", "trained length: dynamic_ntk, llama3, yarn, longrope", 2,
        most_slots),
    number<P, Rope, &RopeConfig::low_frequency>("low_frequency", "", "of llama3", 1e-6, 1e6),
    number<P, Rope, &RopeConfig::high_frequency>("high_frequency", "", "of llama3", 1e-6, 1e6),
    number<P, Rope, &RopeConfig::beta_fast>("beta_fast", "", "of yarn", 1e-6, 1e6),
    number<P, Rope, &RopeConfig::beta_slow>("beta_slow", "", "of yarn", 1e-6, 1e6),
    number<P, Rope, &RopeConfig::attention_factor>(
        "attention_factor", "", "of cos and sin; 0: by the scaling's rule", 0.0, 1e5),
    number<P, Rope, &RopeConfig::length>(
        "length", "", "length the frequencies are for: dynamic_ntk, longrope", 0, most_slots),
};
/// Rerotate refuses dynamic_ntk, so nothing in its text would read the length.
constexpr std::span<const Field> all_rerotate_fields =
    rope_fields<position::Rerotate, &position::Rerotate::rope>;
constexpr auto rerotate_fields = all_rerotate_fields.first(all_rerotate_fields.size() - 1);

constexpr Entry entries[] = {
    stage_entry<position::Absolute>("Keeps keys at the positions where they were written."),
    stage_entry<position::Reindex>(
        "Gives every slot its place in the cache as position: evicted tokens leave no gap.",
        rope_fields<position::Reindex, &position::Reindex::rope>),
    stage_entry<position::Rerotate>("Re-indexes slots like `Reindex`, for engines that hand over "
                                    "queries and keys already rotated.",
                                    rerotate_fields),
};

}  // namespace

std::span<const Entry> builtin_position() { return entries; }

}  // namespace kvcondense::any::detail
