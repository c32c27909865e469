#include <kvcondense/any/builtin.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/global_top.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/layer_pattern.hpp>
#include <kvcondense/budget/prefix_mass.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/budget/variance.hpp>
#include <kvcondense/cpu.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using Ada = budget::Ada<Inner>;
using GlobalTop = budget::GlobalTop<Inner>;
using HeadTableBudget = budget::HeadTableBudget<Inner>;
using LayerPattern = budget::LayerPattern<Inner>;
using PrefixMass = budget::PrefixMass<Inner>;
using Pyramid = budget::Pyramid<Inner>;
using Ratio = budget::Ratio<Inner>;
using SkipLayers = budget::SkipLayers<Inner>;
using Uniform = budget::Uniform<Inner>;
using Variance = budget::Variance<Inner>;

constexpr Field uniform_fields[] = {
    number<Uniform, &Uniform::tokens>("tokens", "budget", "slots of a head", 1, most_slots),
};

constexpr Field ratio_fields[] = {
    fraction<Ratio, &Ratio::keep>("keep", "", "part of all tokens that stays", 1e-6, 1.0),
    number<Ratio, &Ratio::min_keep>("min_keep", "", "slots that stay however small the part", 1,
                                    most_slots),
};

constexpr Choice pyramid_forms[] = {
    {"exact", static_cast<int>(evict::PyramidForm::exact)},
    {"integer_step", static_cast<int>(evict::PyramidForm::integer_step)},
    {"ratio", static_cast<int>(evict::PyramidForm::ratio)},
};
constexpr Field pyramid_fields[] = {
    number<Pyramid, &Pyramid::beta>("beta", "", "mean budget over that of the last layer", 1.0,
                                    1e6),
    choice<Pyramid, &Pyramid::form>("form", "", "roundings: ours or of a published code",
                                    pyramid_forms),
};

constexpr Choice ada_forms[] = {
    {"exact", static_cast<int>(evict::HeadShare::exact)},
    {"rounded", static_cast<int>(evict::HeadShare::rounded)},
    {"safeguard", static_cast<int>(evict::HeadShare::safeguard)},
};
constexpr Field ada_fields[] = {
    fraction<Ada, &Ada::floor>("floor", "", "part of its own budget that every head is sure of"),
    choice<Ada, &Ada::form>("form", "", "roundings: ours or of a published code", ada_forms),
};

constexpr Field global_top_fields[] = {
    fraction<GlobalTop, &GlobalTop::keep>("keep", "", "part of all slots of all layers that stays", 1e-6,
                                          1.0),
    flag<GlobalTop, &GlobalTop::strict>("strict", "", "whether ties at the threshold leave"),
};

constexpr Field skip_layers_fields[] = {
    number<SkipLayers, &SkipLayers::layers>("layers", "", "first layers that keep everything", 0,
                                            65536),
};

constexpr Field head_table_fields[] = {
    number<HeadTableBudget, &HeadTableBudget::beta>(
        "beta", "", "a head's own budget over the part of it that the table shares", 1.0, 1e6),
};

constexpr Field layer_pattern_fields[] = {
    fraction<LayerPattern, &LayerPattern::full>("full", "",
                                                "part of the layers, in the middle, that is full"),
};

constexpr Field variance_fields[] = {
    fraction<Variance, &Variance::least>("least", "", "part of all tokens that any layer keeps"),
};

constexpr Entry entries[] = {
    replaces_budget(
        wrapper_entry<Uniform, &Uniform::policy>(Stage::budget,
                                                 "Gives every head of every layer the same number "
                                                 "of slots, whatever the policy's own fields say.",
                                                 uniform_fields)),
    replaces_budget(wrapper_entry<Ratio, &Ratio::policy>(
        Stage::budget, "Gives every head a part of the tokens seen so far.", ratio_fields)),
    wrapper_entry<Pyramid, &Pyramid::policy>(Stage::budget,
                                             "Gives lower layers more slots and upper layers "
                                             "fewer; the policy's own budget is the mean.",
                                             pyramid_fields),
    wrapper_entry<Ada, &Ada::policy>(
        Stage::budget, "Lets the heads of a layer share their slots by their scores.", ada_fields),
    replaces_budget(wrapper_entry<GlobalTop, &GlobalTop::policy>(
        Stage::budget,
        "Lets all heads of all layers share one pool of slots by their scores, before every turn.",
        global_top_fields)),
    wrapper_entry<SkipLayers, &SkipLayers::policy>(
        Stage::budget, "Keeps everything in the first layers.", skip_layers_fields),
    wrapper_entry<LayerPattern, &LayerPattern::policy>(
        Stage::budget, "Keeps everything in the layers of the middle.", layer_pattern_fields),
    wrapper_entry<HeadTableBudget, &HeadTableBudget::policy>(
        Stage::budget,
        "Gives each head of the model a part of all slots that was measured beforehand.",
        head_table_fields),
    wrapper_entry<PrefixMass, &PrefixMass::policy>(
        Stage::budget,
        "Gives each layer what holds the same part of its attention in all layers."),
    wrapper_entry<Variance, &Variance::policy>(
        Stage::budget,
        "Gives layers that attend evenly more slots than layers that look at few tokens.",
        variance_fields),
};

}  // namespace

std::span<const Entry> builtin_budget() { return entries; }

}  // namespace kvcondense::any::detail
