#include <bit>
#include <utility>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/bfp.hpp>
#include <kvcondense/quant/bipolar_int.hpp>
#include <kvcondense/quant/bit_allocation.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/comet.hpp>
#include <kvcondense/quant/commvq.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/gear.hpp>
#include <kvcondense/quant/ggml.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/hadamard.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/kvquant.hpp>
#include <kvcondense/quant/mikv.hpp>
#include <kvcondense/quant/mx.hpp>
#include <kvcondense/quant/nvfp4.hpp>
#include <kvcondense/quant/polar.hpp>
#include <kvcondense/quant/polar_recursive.hpp>
#include <kvcondense/quant/qjl.hpp>
#include <kvcondense/quant/qserve.hpp>
#include <kvcondense/quant/rotatekv.hpp>
#include <kvcondense/quant/skvq.hpp>
#include <kvcondense/quant/smooth_attention.hpp>
#include <kvcondense/quant/turboquant.hpp>
#include <kvcondense/quant/zipcache.hpp>

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

struct BipolarIntText : quant::BipolarInt<2> {
  index_t bits = 2;
  void stage(AnyRecipe& out) const { with_bits<quant::BipolarInt, 2>(*this, bits, out); }
};

struct QServeText : quant::QServe<4> {
  index_t bits = 4;
  void stage(AnyRecipe& out) const {
    const quant::QServe<4>& knobs = *this;
    out.quant = bits == 8 ? AnyQuant(std::bit_cast<quant::QServe<8>>(knobs)) : AnyQuant(knobs);
  }
};

/// Lengths and angles of 2 to 4 bits each.
struct PolarText : quant::Polar<4, 4> {
  index_t rho_bits = 4;
  index_t theta_bits = 4;
  void stage(AnyRecipe& out) const {
    const quant::Polar<4, 4>& knobs = *this;
    const auto use = [&]<int Rho, int Theta>() {
      if (rho_bits == Rho && theta_bits == Theta)
        out.quant = AnyQuant(std::bit_cast<quant::Polar<Rho, Theta>>(knobs));
    };
    [&]<int... Both>(std::integer_sequence<int, Both...>) {
      (use.template operator()<Both / 3 + 2, Both % 3 + 2>(), ...);
    }
    (std::make_integer_sequence<int, 9>{});
  }
};

struct GearText : quant::Gear<2> {
  index_t bits = 2;
  void stage(AnyRecipe& out) const { with_bits<quant::Gear, 2>(*this, bits, out); }
};

/// Of scales given in advance; BlockCodes takes more.
constexpr double smallest_scale = 1e-9, largest_scale = 1e9;

constexpr Choice axes[] = {
    {"token", static_cast<int>(prim::GroupAxis::token)},
    {"channel", static_cast<int>(prim::GroupAxis::channel)},
};
constexpr Choice forms[] = {
    {"minimum", static_cast<int>(prim::GroupForm::minimum)},
    {"integer_zero", static_cast<int>(prim::GroupForm::integer_zero)},
    {"float_zero", static_cast<int>(prim::GroupForm::float_zero)},
    {"symmetric", static_cast<int>(prim::GroupForm::symmetric)},
    {"mid_rise", static_cast<int>(prim::GroupForm::mid_rise)},
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

constexpr Choice nearest_roundings[] = {
    {"half_even", static_cast<int>(prim::Rounding::half_even)},
    {"half_away", static_cast<int>(prim::Rounding::half_away)},
};

constexpr Choice code_maths[] = {
    {"int16", static_cast<int>(prim::CodeMath::int16)},
    {"int8", static_cast<int>(prim::CodeMath::int8)},
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
    flag<GroupIntText, &GroupIntText::whole_window>(
        "whole_window", "", "a prompt is coded at once, then the window whenever residual_window tokens are in it"),
    choice<GroupIntText, &GroupIntText::math>("math", "", "of queries and weights when they meet codes", code_maths),
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
    choice<KiviText, &KiviText::math>("math", "", "of queries and weights when they meet codes", code_maths),
};
constexpr Alias kivi_aliases[] = {{"kivi2", "bits", {2}}, {"kivi4", "bits", {4}}};

constexpr Field kitty_fields[] = {
    number<quant::Kitty, &quant::Kitty::page>("page", "", "keys of a channel that share a scale", 1,
                                              256),
    fraction<quant::Kitty, &quant::Kitty::boost>("boost", "",
                                                 "part of the channels that has 4 bits"),
    number<quant::Kitty, &quant::Kitty::buffer>(
        "buffer", "", "newest values kept exactly; others leave in whole pages", 0, most_slots),
    number<quant::Kitty, &quant::Kitty::keep_window>(
        "keep_window", "keep", "newest keys that never enter a page", 0, most_slots),
    number<quant::Kitty, &quant::Kitty::sinks>("sinks", "", "first tokens kept exactly", 0,
                                               most_slots),
};

constexpr Choice pairings[] = {
    {"half_split", static_cast<int>(prim::RopePairing::half_split)},
    {"interleaved", static_cast<int>(prim::RopePairing::interleaved)},
};
constexpr Field polar_fields[] = {
    number<PolarText, &PolarText::rho_bits>("rho_bits", "", "of a length", 2, 4),
    number<PolarText, &PolarText::theta_bits>("theta_bits", "", "of an angle", 2, 4),
    number<PolarText, &PolarText::group_size>("group_size", "group",
                                              "keys of a pair that share a scale", 1, 256),
    choice<PolarText, &PolarText::pairing>("pairing", "", "which channels RoPE turns together",
                                           pairings),
    flag<PolarText, &PolarText::centered>("centered", "",
                                          "the circle is cut opposite to a group's mean direction"),
    number<PolarText, &PolarText::keep_window>(
        "keep_window", "keep", "newest keys that never enter a group", 0, most_slots),
    number<PolarText, &PolarText::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Field bipolar_int_fields[] = {
    number<BipolarIntText, &BipolarIntText::bits>("bits", "", "of a code", 1, 8),
    number<BipolarIntText, &BipolarIntText::group_size>(
        "group_size", "group", "numbers that share a scale, a multiple of 8; 0: the whole row", 0,
        256),
    number<BipolarIntText, &BipolarIntText::query_bits>(
        "query_bits", "", "of a number of a query, 4 to 8; 0: queries stay exact", 0, 8),
    choice<BipolarIntText, &BipolarIntText::form>("form", "", "how codes become numbers", forms),
    number<BipolarIntText, &BipolarIntText::residual_window>(
        "residual_window", "residual", "newest tokens kept exactly", 0, most_slots),
    number<BipolarIntText, &BipolarIntText::sinks>("sinks", "", "first tokens kept exactly", 0,
                                                   most_slots),
};

constexpr Choice qserve_bits[] = {{"4", 4}, {"8", 8}};
constexpr Field qserve_fields[] = {
    choice<QServeText, &QServeText::bits>("bits", "", "of a code", qserve_bits),
    choice<QServeText, &QServeText::form>("form", "", "how codes become numbers", forms),
    number<QServeText, &QServeText::residual_window>("residual_window", "residual",
                                                     "newest tokens kept exactly", 0, most_slots),
    number<QServeText, &QServeText::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Field comet_fields[] = {
    number<quant::Comet, &quant::Comet::group_size>(
        "group_size", "group", "keys of a channel that share a scale", 1, 256),
    number<quant::Comet, &quant::Comet::value_group>(
        "value_group", "", "values of a token that share a scale; 0: the whole row", 0, 256),
    number<quant::Comet, &quant::Comet::keep_window>("keep_window", "keep",
                                                     "newest tokens kept exactly", 0, most_slots),
    number<quant::Comet, &quant::Comet::sinks>("sinks", "", "first tokens kept exactly", 0,
                                               most_slots),
};
constexpr Choice gear_layouts[] = {
    {"kivi", static_cast<int>(quant::GearLayout::kivi)},
    {"kcvt", static_cast<int>(quant::GearLayout::kcvt)},
};
constexpr Field gear_fields[] = {
    number<GearText, &GearText::bits>("bits", "", "of a code", 1, 8),
    choice<GearText, &GearText::layout>("layout", "", "kcvt: a channel's chunk, or a row, shares a scale", gear_layouts),
    number<GearText, &GearText::group_size>("group_size", "group", "numbers that share a scale in layout=kivi", 1, 256),
    number<GearText, &GearText::chunk>("chunk", "", "tokens coded together, a power of two", 1, 256),
    number<GearText, &GearText::rank>("rank", "", "of the low-rank part of a chunk's error; 0: none", 0, 8),
    number<GearText, &GearText::loops>("loops", "", "of the power iteration that finds it", 1, 64),
    fraction<GearText, &GearText::sparse>("sparse", "", "part of a vector that is outliers; 0: none"),
    number<GearText, &GearText::keep_window>("keep_window", "keep", "newest tokens that never enter a chunk", 0, most_slots),
    number<GearText, &GearText::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};
constexpr Alias gear_aliases[] = {{"gear_l", "sparse", {0, 0.0}}};

constexpr Choice fp8_formats[] = {
    {"e4m3", static_cast<int>(quant::Fp8Format::e4m3)},
    {"e5m2", static_cast<int>(quant::Fp8Format::e5m2)},
};
constexpr Choice fp8_scales[] = {
    {"tensor", static_cast<int>(quant::Fp8Scale::tensor)},
    {"token", static_cast<int>(quant::Fp8Scale::token)},
    {"block", static_cast<int>(quant::Fp8Scale::block)},
};
constexpr Field fp8_fields[] = {
    choice<quant::Fp8, &quant::Fp8::format>("format", "", "exponent and mantissa bits",
                                            fp8_formats),
    choice<quant::Fp8, &quant::Fp8::scale>("scale", "", "which numbers share a scale", fp8_scales),
    number<quant::Fp8, &quant::Fp8::block>(
        "block", "", "numbers that share a scale=block, a power of two", 8, 256),
    flag<quant::Fp8, &quant::Fp8::power_of_two>("power_of_two", "", "scales are rounded up to one"),
    number<quant::Fp8, &quant::Fp8::key_scale>("key_scale", "", "of all keys, for scale=tensor",
                                               smallest_scale, largest_scale),
    number<quant::Fp8, &quant::Fp8::value_scale>(
        "value_scale", "", "of all values, for scale=tensor", smallest_scale, largest_scale),
    number<quant::Fp8, &quant::Fp8::residual_window>("residual_window", "residual",
                                                     "newest tokens kept exactly", 0, most_slots),
    number<quant::Fp8, &quant::Fp8::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Choice mx_formats[] = {
    {"fp4", static_cast<int>(quant::MxFormat::fp4)},
    {"fp6_e2m3", static_cast<int>(quant::MxFormat::fp6_e2m3)},
    {"fp6_e3m2", static_cast<int>(quant::MxFormat::fp6_e3m2)},
    {"fp8_e4m3", static_cast<int>(quant::MxFormat::fp8_e4m3)},
    {"fp8_e5m2", static_cast<int>(quant::MxFormat::fp8_e5m2)},
    {"int8", static_cast<int>(quant::MxFormat::int8)},
    {"same", static_cast<int>(quant::MxFormat::same)},
};
constexpr Choice mx_scale_rounds[] = {
    {"floor", static_cast<int>(quant::MxScaleRound::floor)},
    {"ceil", static_cast<int>(quant::MxScaleRound::ceil)},
};
constexpr Field mx_fields[] = {
    choice<quant::Mx, &quant::Mx::format>("format", "", "of keys, and of values too",
                                          std::span(mx_formats).first<6>()),
    choice<quant::Mx, &quant::Mx::value_format>("value_format", "", "of values", mx_formats),
    choice<quant::Mx, &quant::Mx::scale_round>(
        "scale_round", "", "ceil: the largest number never clips", mx_scale_rounds),
    choice<quant::Mx, &quant::Mx::rounding>("rounding", "", "of a number halfway between codes",
                                            nearest_roundings),
    number<quant::Mx, &quant::Mx::residual_window>("residual_window", "residual",
                                                   "newest tokens kept exactly", 0, most_slots),
    number<quant::Mx, &quant::Mx::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};
constexpr Alias mx_aliases[] = {
    {"mxfp4", "format", {static_cast<int>(quant::MxFormat::fp4)}},
    {"mxfp6", "format", {static_cast<int>(quant::MxFormat::fp6_e2m3)}},
    {"mxfp8", "format", {static_cast<int>(quant::MxFormat::fp8_e4m3)}},
    {"mxint8", "format", {static_cast<int>(quant::MxFormat::int8)}},
};

constexpr Field bfp_fields[] = {
    number<quant::Bfp, &quant::Bfp::bits>("bits", "", "of a key's mantissa, with its sign", 2, 8),
    number<quant::Bfp, &quant::Bfp::value_bits>("value_bits", "", "of a value's", 2, 8),
    number<quant::Bfp, &quant::Bfp::block>(
        "block", "", "numbers that share an exponent, a power of two; 0: the whole row", 0, 256),
    choice<quant::Bfp, &quant::Bfp::rounding>("rounding", "", "of a number halfway between codes",
                                              nearest_roundings),
    number<quant::Bfp, &quant::Bfp::residual_window>("residual_window", "residual",
                                                     "newest tokens kept exactly", 0, most_slots),
    number<quant::Bfp, &quant::Bfp::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Field nvfp4_fields[] = {
    number<quant::Nvfp4, &quant::Nvfp4::key_scale>(
        "key_scale", "", "second level of all keys: their largest / 2688, or 1", smallest_scale,
        largest_scale),
    number<quant::Nvfp4, &quant::Nvfp4::value_scale>(
        "value_scale", "", "second level of all values", smallest_scale, largest_scale),
    number<quant::Nvfp4, &quant::Nvfp4::residual_window>(
        "residual_window", "residual", "newest tokens kept exactly", 0, most_slots),
    number<quant::Nvfp4, &quant::Nvfp4::sinks>("sinks", "", "first tokens kept exactly", 0,
                                               most_slots),
};

constexpr Choice ggml_formats[] = {
    {"q4_0", static_cast<int>(quant::GgmlFormat::q4_0)},
    {"q4_1", static_cast<int>(quant::GgmlFormat::q4_1)},
    {"q5_0", static_cast<int>(quant::GgmlFormat::q5_0)},
    {"q5_1", static_cast<int>(quant::GgmlFormat::q5_1)},
    {"q8_0", static_cast<int>(quant::GgmlFormat::q8_0)},
    {"mxfp4", static_cast<int>(quant::GgmlFormat::mxfp4)},
    {"nvfp4", static_cast<int>(quant::GgmlFormat::nvfp4)},
    {"same", static_cast<int>(quant::GgmlFormat::same)},
};
constexpr Field ggml_fields[] = {
    choice<quant::Ggml, &quant::Ggml::format>("format", "", "of keys, and of values too",
                                              std::span(ggml_formats).first<7>()),
    choice<quant::Ggml, &quant::Ggml::value_format>("value_format", "", "of values", ggml_formats),
    number<quant::Ggml, &quant::Ggml::residual_window>("residual_window", "residual",
                                                       "newest tokens kept exactly", 0, most_slots),
    number<quant::Ggml, &quant::Ggml::sinks>("sinks", "", "first tokens kept exactly", 0,
                                             most_slots),
};
constexpr Alias ggml_aliases[] = {
    {"q4_0", "format", {static_cast<int>(quant::GgmlFormat::q4_0)}},
    {"q4_1", "format", {static_cast<int>(quant::GgmlFormat::q4_1)}},
    {"q5_0", "format", {static_cast<int>(quant::GgmlFormat::q5_0)}},
    {"q5_1", "format", {static_cast<int>(quant::GgmlFormat::q5_1)}},
    {"q8_0", "format", {static_cast<int>(quant::GgmlFormat::q8_0)}},
};

/// Makes the stage whose two widths are numbers; those offered are the ones in use.
template <template <int, int> class Q, class Knobs>
void with_two_widths(const Knobs& knobs, index_t high, index_t low, AnyRecipe& out) {
  const auto use = [&]<int High, int Low>() {
    static_assert(sizeof(Q<High, Low>) <= sizeof(Knobs));
    Q<High, Low> stage;
    std::memcpy(static_cast<void*>(&stage), &knobs, sizeof stage);
    if (high == High && low == Low) out.quant = AnyQuant(stage);
  };
  use.template operator()<4, 2>(), use.template operator()<4, 3>();
  use.template operator()<8, 2>(), use.template operator()<8, 3>(), use.template operator()<8, 4>();
}
constexpr Choice high_widths[] = {{"4", 4}, {"8", 8}};
constexpr Choice low_widths[] = {{"2", 2}, {"3", 3}};

struct ZipCacheText : quant::ZipCache<4, 2> {
  enum class High : std::uint8_t { four = 4, eight = 8 };
  enum class Low : std::uint8_t { two = 2, three = 3 };
  High high = High::four;
  Low low = Low::two;
  void stage(AnyRecipe& out) const {
    with_two_widths<quant::ZipCache>(static_cast<const quant::ZipCache<4, 2>&>(*this), static_cast<index_t>(high),
                                     static_cast<index_t>(low), out);
  }
};
// Not called MiKV: in a class made from one that is the name of the template itself, which has a parameter more.
template <int High, int Low>
using MiKVOfWidths = quant::MiKV<High, Low>;
struct MiKVText : MiKVOfWidths<8, 2> {
  ZipCacheText::High high = ZipCacheText::High::eight;
  ZipCacheText::Low low = ZipCacheText::Low::two;
  void stage(AnyRecipe& out) const {
    with_two_widths<MiKVOfWidths>(static_cast<const MiKVOfWidths<8, 2>&>(*this), static_cast<index_t>(high), static_cast<index_t>(low),
                                  out);
  }
};
constexpr Field zipcache_fields[] = {
    choice<ZipCacheText, &ZipCacheText::high>("high", "", "bits of a salient token's code", high_widths),
    choice<ZipCacheText, &ZipCacheText::low>("low", "", "bits of the others", low_widths),
    fraction<ZipCacheText, &ZipCacheText::salient>("salient", "", "part of the tokens of a block"),
    number<ZipCacheText, &ZipCacheText::block>("block", "", "tokens judged and coded together, a power of two", 2, 256),
    fraction<ZipCacheText, &ZipCacheText::newest>("newest", "", "part of the queries that are probes, the newest"),
    fraction<ZipCacheText, &ZipCacheText::random>("random", "", "part of the others that are"),
    number<ZipCacheText, &ZipCacheText::history>("history", "", "queries of earlier tokens kept as probes", 1, most_slots),
    number<ZipCacheText, &ZipCacheText::seed>("seed", "", "of the random probes", 0, most_slots),
    flag<ZipCacheText, &ZipCacheText::scale_values>("scale_values", "", "divide values by a factor per channel"),
    number<ZipCacheText, &ZipCacheText::keep_window>("keep_window", "keep", "newest tokens that never enter a block", 0, most_slots),
    number<ZipCacheText, &ZipCacheText::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};
constexpr Field mikv_fields[] = {
    choice<MiKVText, &MiKVText::high>("high", "", "bits of an important token's code", high_widths),
    choice<MiKVText, &MiKVText::low>("low", "", "bits of the others", low_widths),
    fraction<MiKVText, &MiKVText::important>("important", "", "part of the tokens of a block"),
    number<MiKVText, &MiKVText::block>("block", "", "tokens judged and coded together, a power of two", 2, 256),
    flag<MiKVText, &MiKVText::balance>("balance", "", "multiply keys by a factor per channel"),
    number<MiKVText, &MiKVText::least>("least", "", "rows that the factors are found from, at least", 0, most_slots),
    number<MiKVText, &MiKVText::keep_window>("keep_window", "keep", "newest tokens that never enter a block", 0, most_slots),
    number<MiKVText, &MiKVText::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Choice level_scales[] = {
    {"norm", static_cast<int>(prim::LevelScale::norm)},
    {"unit", static_cast<int>(prim::LevelScale::unit)},
    {"least_squares", static_cast<int>(prim::LevelScale::least_squares)},
};
constexpr Field turboquant_fields[] = {
    number<quant::TurboQuant, &quant::TurboQuant::key_bits>("key_bits", "", "of a key's code, with its sign of the rest", 1, 5),
    number<quant::TurboQuant, &quant::TurboQuant::value_bits>("value_bits", "", "of a value's code", 1, 4),
    choice<quant::TurboQuant, &quant::TurboQuant::scale>(
        "scale", "", "what goes with a row: its length, what makes decoded rows that long, or what is nearest", level_scales),
    flag<quant::TurboQuant, &quant::TurboQuant::normal_levels>("normal_levels", "",
                                                               "levels for a normal density"),
    flag<quant::TurboQuant, &quant::TurboQuant::sketch>("sketch", "",
                                                        "the last bit of a key is a sign of what the others leave"),
    number<quant::TurboQuant, &quant::TurboQuant::seed>("seed", "", "of the rotation's signs; 0: none", 0,
                                                        most_slots),
    number<quant::TurboQuant, &quant::TurboQuant::residual_window>("residual_window", "residual",
                                                                   "newest tokens kept exactly", 0, most_slots),
    number<quant::TurboQuant, &quant::TurboQuant::sinks>("sinks", "", "first tokens kept exactly", 0,
                                                         most_slots),
};

constexpr Field qjl_fields[] = {
    number<quant::Qjl, &quant::Qjl::bits>("bits", "", "signs of a key, a multiple of 8", 8, prim::SignSketch::most_bits),
    number<quant::Qjl, &quant::Qjl::strong_bits>("strong_bits", "", "signs of its strong channels", 0,
                                                 prim::SignSketch::most_bits),
    number<quant::Qjl, &quant::Qjl::first_layers>("first_layers", "", "layers with numbers of signs of their own", 0, most_slots),
    number<quant::Qjl, &quant::Qjl::first_bits>("first_bits", "", "signs of a key in the first layers", 8,
                                                prim::SignSketch::most_bits),
    number<quant::Qjl, &quant::Qjl::first_strong_bits>("first_strong_bits", "", "signs of its strong channels there", 0,
                                                       prim::SignSketch::most_bits),
    number<quant::Qjl, &quant::Qjl::channels>("channels", "", "strong channels of a group", 0, 255),
    number<quant::Qjl, &quant::Qjl::group_size>("group_size", "group", "keys that agree on their strong channels", 1, 256),
    number<quant::Qjl, &quant::Qjl::value_group>("value_group", "", "numbers of a value that share a scale; 0: the whole row",
                                                 0, 256),
    number<quant::Qjl, &quant::Qjl::buffer>("buffer", "", "newest values kept exactly; keys leave in blocks of it", 1, most_slots),
    number<quant::Qjl, &quant::Qjl::seed>("seed", "", "of the directions", 0, most_slots),
    number<quant::Qjl, &quant::Qjl::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};
constexpr Field polar_recursive_fields[] = {
    number<quant::PolarRecursive, &quant::PolarRecursive::levels>("levels", "", "of angles; blocks are of 2^levels numbers", 3, 5),
    number<quant::PolarRecursive, &quant::PolarRecursive::first_bits>("first_bits", "", "of an angle of two numbers", 1, 6),
    number<quant::PolarRecursive, &quant::PolarRecursive::bits>("bits", "", "of an angle of two lengths", 1, 3),
    number<quant::PolarRecursive, &quant::PolarRecursive::seed>("seed", "", "of the rotation's signs; 0: none", 0, most_slots),
    number<quant::PolarRecursive, &quant::PolarRecursive::residual_window>("residual_window", "residual",
                                                                           "newest tokens kept exactly", 0, most_slots),
    number<quant::PolarRecursive, &quant::PolarRecursive::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Choice row_levels[] = {{"2", 2}, {"3", 3}, {"4", 4}, {"8", 8}, {"16", 16}};
constexpr Choice cluster_params[] = {
    {"f16", static_cast<int>(prim::ClusterParam::f16)},
    {"f32", static_cast<int>(prim::ClusterParam::f32)},
    {"e4m3", static_cast<int>(prim::ClusterParam::e4m3)},
};
constexpr Field skvq_fields[] = {
    choice<quant::Skvq, &quant::Skvq::key_levels>("key_levels", "", "of a key's code", row_levels),
    choice<quant::Skvq, &quant::Skvq::value_levels>("value_levels", "", "of a value's; 3: five codes in a byte", row_levels),
    fraction<quant::Skvq, &quant::Skvq::key_clip>("key_clip", "", "part of a key's range that stays", 0.01),
    fraction<quant::Skvq, &quant::Skvq::value_clip>("value_clip", "", "part of a value's", 0.01),
    number<quant::Skvq, &quant::Skvq::group_size>("group_size", "group", "neighbours that share a scale, without clusters", 1, 256),
    choice<quant::Skvq, &quant::Skvq::params>("params", "", "type of scales and minima", cluster_params),
    number<quant::Skvq, &quant::Skvq::window>("window", "", "newest tokens kept exactly", 0, most_slots),
    number<quant::Skvq, &quant::Skvq::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};
constexpr Field rotatekv_fields[] = {
    number<quant::RotateKv, &quant::RotateKv::bits>("bits", "", "of a code", 1, 4),
    fraction<quant::RotateKv, &quant::RotateKv::clip>("clip", "", "part of a range that stays", 0.01),
    number<quant::RotateKv, &quant::RotateKv::group_size>("group_size", "group",
                                                          "rotated neighbours that share a scale, without clusters", 1, 256),
    number<quant::RotateKv, &quant::RotateKv::seed>("seed", "", "of random signs; 0: none", 0, most_slots),
    number<quant::RotateKv, &quant::RotateKv::residual_window>("residual_window", "residual", "newest tokens kept exactly", 0,
                                                               most_slots),
    number<quant::RotateKv, &quant::RotateKv::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};
constexpr Field kvquant_fields[] = {
    number<quant::KvQuant, &quant::KvQuant::bits>("bits", "", "of a code", 1, 4),
    fraction<quant::KvQuant, &quant::KvQuant::outliers>("outliers", "", "part of a row kept by itself; 0: none", 0.0, 0.5),
    number<quant::KvQuant, &quant::KvQuant::residual_window>("residual_window", "residual", "newest tokens kept exactly", 0,
                                                             most_slots),
    number<quant::KvQuant, &quant::KvQuant::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Field commvq_fields[] = {
    number<quant::CommVq, &quant::CommVq::base>("base", "", "codewords of a stage", 2, prim::ComplexVq::most_base),
    number<quant::CommVq, &quant::CommVq::stages>("stages", "", "of a row; 0: all that the books have", 0, 128),
    number<quant::CommVq, &quant::CommVq::beam>("beam", "", "codewords of a stage that are tried with every other", 1,
                                                prim::ComplexVq::most_base),
    choice<quant::CommVq, &quant::CommVq::pairing>("pairing", "", "which channels RoPE turns together", pairings),
    number<quant::CommVq, &quant::CommVq::residual_window>("residual_window", "residual", "newest tokens kept exactly", 0,
                                                           most_slots),
    number<quant::CommVq, &quant::CommVq::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Choice bit_layouts[] = {
    {"token", static_cast<int>(quant::BitLayout::token)},
    {"kivi", static_cast<int>(quant::BitLayout::kivi)},
};
constexpr Field bit_allocation_fields[] = {
    number<quant::BitAllocation, &quant::BitAllocation::key_bits>("key_bits", "", "of a key's code, without a table", 1, 8),
    number<quant::BitAllocation, &quant::BitAllocation::value_bits>("value_bits", "", "of a value's", 1, 8),
    number<quant::BitAllocation, &quant::BitAllocation::boundary>(
        "boundary", "", "first and last layers with the next width of 2, 4, 8", 0, most_slots),
    choice<quant::BitAllocation, &quant::BitAllocation::layout>(
        "layout", "", "kivi: keys share scales along tokens, newest tokens stay exact", bit_layouts),
    number<quant::BitAllocation, &quant::BitAllocation::group_size>("group_size", "group", "numbers that share a scale", 1, 256),
    number<quant::BitAllocation, &quant::BitAllocation::residual_window>("residual_window", "residual",
                                                                         "newest tokens kept exactly in layout=kivi", 0, most_slots),
    number<quant::BitAllocation, &quant::BitAllocation::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

using Hadamard = quant::Hadamard<InnerQuant>;
constexpr Field hadamard_fields[] = {
    flag<Hadamard, &Hadamard::keys>("keys", "", "whether keys are rotated"),
    flag<Hadamard, &Hadamard::values>("values", "", "whether values are rotated"),
    number<Hadamard, &Hadamard::block>(
        "block", "", "channels that mix, a power of two; 0: as many as divide the head", 0, 256),
    number<Hadamard, &Hadamard::seed>("seed", "", "of random signs; 0: none", 0, most_slots),
    flag<Hadamard, &Hadamard::spread_offsets>("spread_offsets", "",
                                              "also before groups along tokens"),
};

using BoundaryLayers = quant::BoundaryLayers<InnerQuant>;
constexpr Field boundary_layers_fields[] = {
    number<BoundaryLayers, &BoundaryLayers::first>("first", "", "exact layers at the beginning", 0, most_slots),
    number<BoundaryLayers, &BoundaryLayers::last>("last", "", "exact layers at the end", 0, most_slots),
};
using SmoothAttention = quant::SmoothAttention<InnerQuant>;
constexpr Field smooth_attention_fields[] = {
    fraction<SmoothAttention, &SmoothAttention::alpha>("alpha", "", "power of a channel's largest number", 0.01),
    number<SmoothAttention, &SmoothAttention::least>("least", "", "slots that factors are found from, at least", 0, most_slots),
};

constexpr Entry entries[] = {
    stage_entry<KeepExact>("Stores numbers in the cache's exact type."),
    stage_entry<GroupIntText>(
        "Stores keys and values as integer codes with a scale and an offset per group.",
        group_int_fields, group_int_aliases),
    stage_entry<KiviText>(
        "Stores keys per channel and values per token, in few bits, and the newest tokens exactly.",
        kivi_fields, kivi_aliases),
    stage_entry<quant::Kitty>(
        "Stores keys per channel in 2 bits, the strongest channels of each page in 4, and values "
        "per token in 2.",
        kitty_fields),
    stage_entry<PolarText>(
        "Stores the two channels of each rotation pair of a key as a length and an angle, and "
        "values exactly.",
        polar_fields),
    stage_entry<BipolarIntText>(
        "Stores keys as planes of bits that count as +1 or -1, and multiplies them with coded "
        "queries by counting bits.",
        bipolar_int_fields),
    stage_entry<QServeText>(
        "Stores keys and values in 4 or 8 bits, with a scale and a zero per token and head, as "
        "soon as they arrive.",
        qserve_fields),
    stage_entry<quant::Comet>(
        "Stores keys per channel and values per token in 4 bits: a COMET-like cache.",
        comet_fields),
    stage_entry<GearText>(
        "Stores keys and values in few bits, and beside them the outliers and a low-rank part of the error.",
        gear_fields, gear_aliases),
    stage_entry<quant::Fp8>("Stores numbers as floats of eight bits.", fp8_fields),
    stage_entry<quant::Mx>("Stores numbers in the OCP microscaling formats: blocks of 32 with a "
                           "power of two as scale.",
                           mx_fields, mx_aliases),
    stage_entry<quant::Bfp>(
        "Stores numbers as short signed mantissas that share an exponent per block of channels.",
        bfp_fields),
    stage_entry<quant::Nvfp4>(
        "Stores numbers in four bits, in blocks of 16 with a small float as scale under one scale "
        "for all.",
        nvfp4_fields),
    stage_entry<quant::Ggml>("Stores numbers in ggml's block formats, byte for byte.", ggml_fields,
                             ggml_aliases),
    stage_entry<quant::TurboQuant>("Stores a length per token and head, and the rotated direction in "
                                   "levels that suit every direction.",
                                   turboquant_fields),
    stage_entry<ZipCacheText>("Stores the tokens that probe queries look at in more bits than the others.", zipcache_fields),
    stage_entry<MiKVText>("Stores the tokens that an eviction policy would keep in more bits than those it would drop, and "
                          "drops none.", mikv_fields),
    stage_entry<quant::Qjl>("Stores of a key only the signs of its products with random directions, and its length; values per "
                            "token in 2 bits.", qjl_fields),
    stage_entry<quant::PolarRecursive>("Stores rotated keys and values as lengths of blocks and recursive angles.",
                                       polar_recursive_fields),
    stage_entry<quant::KvQuant>("Stores keys in levels that lie unevenly in calibrated ranges of channels, values in those of "
                                "their own range, and about one number in a hundred exactly.", kvquant_fields),
    stage_entry<quant::Skvq>("Stores keys and values in very few levels: channels of like range share a scale, ranges are "
                             "clipped, newest tokens stay exact.", skvq_fields),
    stage_entry<quant::RotateKv>("Rotates keys and values, groups the rotated channels that are alike, and stores them in 2 bits "
                                 "with clipped ranges; the first tokens stay exact.", rotatekv_fields),
    stage_entry<quant::CommVq>("Stores keys as a length and sums of complex codewords, with which RoPE commutes, and values in "
                               "the same way.", commvq_fields),
    stage_entry<quant::BitAllocation>("Stores keys and values of every layer and head in a number of bits of its own.",
                                      bit_allocation_fields),
    wrapper_entry<BoundaryLayers, &BoundaryLayers::base>(
        Stage::quant, "Leaves the first and the last layers exact, and has any quantizer code the others.", boundary_layers_fields),
    wrapper_entry<SmoothAttention, &SmoothAttention::base>(
        Stage::quant, "Divides key channels by a power of their largest numbers before any quantizer codes them; queries take the "
                      "factor instead.", smooth_attention_fields),
    wrapper_entry<Hadamard, &Hadamard::base>(
        Stage::quant, "Rotates keys and values before any quantizer codes them; queries are rotated "
                      "once, outputs once.",
        hadamard_fields),
};

}  // namespace

std::span<const Entry> builtin_quant() { return entries; }

}  // namespace kvcondense::any::detail
