#include <bit>
#include <utility>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

/// Makes the stage whose code width is the number in `bits`. The widths differ in nothing but their
/// type, so the knobs of one are the bytes of another.
template <template <int> class Q, int Any>
void with_bits(const Q<Any>& knobs, index_t bits, AnyRecipe& out) {
  const auto use = [&]<int Bits>() {
    static_assert(sizeof(Q<Bits>) == sizeof(Q<Any>));
    if (bits == Bits) out.quant = AnyQuant(std::bit_cast<Q<Bits>>(knobs));
  };
  [&]<int... Less>(std::integer_sequence<int, Less...>) {
    (use.template operator()<Less + 1>(), ...);
  }
  (std::make_integer_sequence<int, 8>{});
}

struct GroupIntText : quant::GroupInt<4> {
  index_t bits = 4;
  void stage(AnyRecipe& out) const { with_bits<quant::GroupInt, 4>(*this, bits, out); }
};

struct KiviText : quant::Kivi<2> {
  index_t bits = 2;
  void stage(AnyRecipe& out) const { with_bits<quant::Kivi, 2>(*this, bits, out); }
};

constexpr Choice axes[] = {
    {"token", static_cast<int>(prim::GroupAxis::token)},
    {"channel", static_cast<int>(prim::GroupAxis::channel)},
};
constexpr Choice forms[] = {
    {"minimum", static_cast<int>(prim::GroupForm::minimum)},
    {"integer_zero", static_cast<int>(prim::GroupForm::integer_zero)},
    {"float_zero", static_cast<int>(prim::GroupForm::float_zero)},
    {"symmetric", static_cast<int>(prim::GroupForm::symmetric)},
};
constexpr Choice param_types[] = {
    {"f16", static_cast<int>(prim::ParamType::f16)},
    {"bf16", static_cast<int>(prim::ParamType::bf16)},
    {"f32", static_cast<int>(prim::ParamType::f32)},
};
constexpr Choice roundings[] = {
    {"half_even", static_cast<int>(prim::Rounding::half_even)},
    {"half_up", static_cast<int>(prim::Rounding::half_up)},
    {"half_away", static_cast<int>(prim::Rounding::half_away)},
};

constexpr Field group_int_fields[] = {
    number<GroupIntText, &GroupIntText::bits>("bits", "", "of a code", 1, 8),
    number<GroupIntText, &GroupIntText::group_size>(
        "group_size", "group", "numbers that share a scale; 0 on the token axis: the whole row", 0,
        256),
    choice<GroupIntText, &GroupIntText::key_axis>("key_axis", "", "along which keys share a scale",
                                                  axes),
    choice<GroupIntText, &GroupIntText::value_axis>("value_axis", "",
                                                    "along which values share a scale", axes),
    number<GroupIntText, &GroupIntText::residual_window>(
        "residual_window", "residual", "newest tokens kept exactly", 0, most_slots),
    number<GroupIntText, &GroupIntText::keep_window>(
        "keep_window", "keep", "newest tokens that never enter a block", 0, most_slots),
    choice<GroupIntText, &GroupIntText::form>("form", "", "how codes become numbers", forms),
    choice<GroupIntText, &GroupIntText::params>("params", "", "type of scales and offsets",
                                                param_types),
    choice<GroupIntText, &GroupIntText::rounding>("rounding", "",
                                                  "of a number halfway between codes", roundings),
    number<GroupIntText, &GroupIntText::sinks>("sinks", "", "first tokens kept exactly", 0,
                                               most_slots),
};
constexpr Alias group_int_aliases[] = {{"int8", "bits", {8}}, {"int4", "bits", {4}}};

constexpr Field kivi_fields[] = {
    number<KiviText, &KiviText::bits>("bits", "", "of a code", 1, 8),
    number<KiviText, &KiviText::group_size>("group_size", "group", "numbers that share a scale", 1,
                                            256),
    number<KiviText, &KiviText::residual_window>(
        "residual_window", "residual", "newest tokens kept exactly; keys leave it in whole blocks",
        1, most_slots),
    number<KiviText, &KiviText::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
    number<KiviText, &KiviText::keep_window>("keep_window", "keep",
                                             "newest keys that never enter a block", 0, most_slots),
};
constexpr Alias kivi_aliases[] = {{"kivi2", "bits", {2}}, {"kivi4", "bits", {4}}};

constexpr Entry entries[] = {
    stage_entry<KeepExact>("Stores numbers in the cache's exact type."),
    stage_entry<GroupIntText>(
        "Stores keys and values as integer codes with a scale and an offset per group.",
        group_int_fields, group_int_aliases),
    stage_entry<KiviText>(
        "Stores keys per channel and values per token, in few bits, and the newest tokens exactly.",
        kivi_fields, kivi_aliases),
};

}  // namespace

std::span<const Entry> builtin_quant() { return entries; }

}  // namespace kvcondense::any::detail
