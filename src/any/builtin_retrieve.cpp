#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using retrieve::Heads;
using retrieve::Kinetics;
using retrieve::LServe;
using retrieve::Quest;
using retrieve::ReadAll;
using retrieve::ShadowSelect;
using retrieve::TriForce;

constexpr Choice heads[] = {
    {"each", static_cast<int>(Heads::each)},
    {"group_max", static_cast<int>(Heads::group_max)},
    {"group_sum", static_cast<int>(Heads::group_sum)},
    {"group_mean", static_cast<int>(Heads::group_mean)},
};
constexpr double most_layers = 65536;

constexpr Field quest_fields[] = {
    number<Quest, &Quest::page>("page", "", "slots of a page", 1, most_slots),
    number<Quest, &Quest::tokens>("tokens", "budget", "slots that a selection reads", 1, most_slots),
    number<Quest, &Quest::dense_layers>("dense_layers", "", "first layers that read every slot", 0, most_layers),
    choice<Quest, &Quest::heads>("heads", "", "which query heads choose together", heads),
    flag<Quest, &Quest::keep_last>("keep_last", "", "read the last page without scoring it"),
};
constexpr Field lserve_fields[] = {
    number<LServe, &LServe::page>("page", "", "slots of a page", 1, most_slots),
    number<LServe, &LServe::part>("part", "", "slots that share a bound; divides page", 1, most_slots),
    number<LServe, &LServe::tokens>("tokens", "budget", "slots that a selection reads", 1, most_slots),
    number<LServe, &LServe::interval>("interval", "", "tokens between two choices", 1, most_slots),
    choice<LServe, &LServe::heads>("heads", "", "which query heads choose together", heads),
};
constexpr Field kinetics_fields[] = {
    number<Kinetics, &Kinetics::block>("block", "", "slots of a block", 1, most_slots),
    number<Kinetics, &Kinetics::blocks>("blocks", "", "blocks that are chosen", 1, most_slots),
    number<Kinetics, &Kinetics::sinks>("sinks", "", "first slots, always read", 0, most_slots),
    number<Kinetics, &Kinetics::local>("local", "", "newest slots, always read", 0, most_slots),
    number<Kinetics, &Kinetics::dense_layers>("dense_layers", "", "first layers that read every slot", 0, most_layers),
};
constexpr Field triforce_fields[] = {
    number<TriForce, &TriForce::chunk>("chunk", "", "slots of a chunk", 1, most_slots),
    number<TriForce, &TriForce::tokens>("tokens", "budget", "slots that are read, at least two chunks", 2, most_slots),
};
constexpr Field shadow_fields[] = {
    number<ShadowSelect, &ShadowSelect::chunk>("chunk", "", "slots of a chunk", 1, 1 << 20),
    number<ShadowSelect, &ShadowSelect::tokens>("tokens", "budget", "slots of the prompt that are chosen", 1, most_slots),
    number<ShadowSelect, &ShadowSelect::outliers>("outliers", "", "chunks that a mean does not describe, always read", 0, 1 << 20),
    number<ShadowSelect, &ShadowSelect::local_chunks>("local_chunks", "", "newest chunks of the prompt, always read", 0, 1 << 20),
};

constexpr Entry entries[] = {
    stage_entry<ReadAll>("Reads every slot in every call: the retrieval stage of a recipe that names none."),
    stage_entry<Quest>("Reads the pages whose keys could agree most with the query, by the range of every channel in a page.",
                       quest_fields),
    stage_entry<LServe>("Reads pages by the bounds of their parts, and goes on reading them for a few steps.", lserve_fields),
    stage_entry<Kinetics>("Reads the blocks whose mean logit is largest, one choice for all query heads of a KV head.",
                          kinetics_fields),
    stage_entry<TriForce>("Reads chunks of the prompt that its last query chose, and keeps to them: the cache of a drafting pass.",
                          triforce_fields),
    stage_entry<ShadowSelect>("Reads the chunks of the prompt whose mean key a query head attends to most, and those that a mean "
                              "does not describe.",
                              shadow_fields),
};

}  // namespace

std::span<const Entry> builtin_retrieve() { return entries; }

}  // namespace kvcondense::any::detail
