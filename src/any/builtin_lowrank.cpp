#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/lowrank/cskv.hpp>
#include <kvcondense/lowrank/eigen_attention.hpp>
#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/lorc.hpp>
#include <kvcondense/lowrank/matryoshka.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/recalkv.hpp>
#include <kvcondense/lowrank/shadowkv.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/lowrank/weight_svd.hpp>
#include <kvcondense/lowrank/xkv.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using namespace lowrank;

constexpr Choice rules[] = {
    {"part", static_cast<int>(RankRule::part)},
    {"energy", static_cast<int>(RankRule::energy)},
    {"spread", static_cast<int>(RankRule::spread)},
    {"table", static_cast<int>(RankRule::table)},
};

/// All methods of known bases have the same knobs.
template <class L>
constexpr Field basis_fields[] = {
    fraction<L, &L::keep>("keep", "", "of keys: numbers, energy or singular values, by the rule", 0.001),
    fraction<L, &L::value_keep>("value_keep", "", "of values, likewise", 0.001),
    choice<L, &L::rule>("rule", "", "what says how many columns of a basis are stored", rules),
    number<L, &L::tile>("tile", "", "ranks are multiples of it", 1, max_head_dim),
    number<L, &L::window>("window", "", std::same_as<L, Cskv> ? "slots that are coded at once" : "newest slots that stay exact",
                          std::same_as<L, Cskv> ? 1 : 0, most_slots),
    number<L, &L::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
    flag<L, &L::keys>("keys", "", "whether keys are reduced"),
    flag<L, &L::values>("values", "", "whether values are reduced"),
};

constexpr Field online_fields[] = {
    fraction<OnlinePca, &OnlinePca::keep>("keep", "", "of a key's numbers", 0.001),
    fraction<OnlinePca, &OnlinePca::value_keep>("value_keep", "", "of a value's numbers", 0.001),
    number<OnlinePca, &OnlinePca::tile>("tile", "", "ranks are multiples of it", 1, max_head_dim),
    number<OnlinePca, &OnlinePca::window>("window", "", "newest slots that stay exact", 0, most_slots),
    number<OnlinePca, &OnlinePca::least>("least", "", "slots that directions are found from, at least", 0, most_slots),
    number<OnlinePca, &OnlinePca::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
    flag<OnlinePca, &OnlinePca::center>("center", "", "whether the mean is taken off first"),
    flag<OnlinePca, &OnlinePca::keys>("keys", "", "whether keys are reduced"),
    flag<OnlinePca, &OnlinePca::values>("values", "", "whether values are reduced"),
};

constexpr Field shadow_fields[] = {
    fraction<ShadowKV, &ShadowKV::keep>("keep", "", "of a key's numbers", 0.001),
    number<ShadowKV, &ShadowKV::chunk>("chunk", "", "slots that are coded at once", 1, 4096),
    number<ShadowKV, &ShadowKV::local_chunks>("local_chunks", "", "newest whole chunks that stay exact", 0, 4096),
    number<ShadowKV, &ShadowKV::least>("least", "", "slots that directions are found from, at least", 0, most_slots),
    number<ShadowKV, &ShadowKV::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
};

constexpr Field xkv_fields[] = {
    fraction<XKv, &XKv::keep>("keep", "", "of the numbers of all keys of a group", 0.001),
    fraction<XKv, &XKv::value_keep>("value_keep", "", "of values, likewise", 0.001),
    number<XKv, &XKv::layers>("layers", "", "of a group", 1, max_row_group),
    number<XKv, &XKv::heads>("heads", "", "KV heads of each of them", 1, max_row_group),
    number<XKv, &XKv::tile>("tile", "", "ranks are multiples of it", 1, max_head_dim),
    number<XKv, &XKv::window>("window", "", "newest slots that stay exact", 0, most_slots),
    number<XKv, &XKv::least>("least", "", "slots that directions are found from, at least", 0, most_slots),
    number<XKv, &XKv::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
    flag<XKv, &XKv::keys>("keys", "", "whether keys are reduced"),
    flag<XKv, &XKv::values>("values", "", "whether values are reduced"),
};

constexpr Field joint_fields[] = {
    number<JointHeads, &JointHeads::columns>("columns", "", "numbers of a group's key; 0: as many as a head has", 0, max_head_dim),
    number<JointHeads, &JointHeads::value_columns>("value_columns", "", "of its value, likewise", 0, max_head_dim),
    number<JointHeads, &JointHeads::window>("window", "", "newest slots that stay exact", 0, most_slots),
    number<JointHeads, &JointHeads::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
    flag<JointHeads, &JointHeads::keys>("keys", "", "whether keys are reduced"),
    flag<JointHeads, &JointHeads::values>("values", "", "whether values are reduced"),
};

constexpr Field think_fields[] = {
    fraction<Think, &Think::ratio>("ratio", "", "of the channels that leave", 0.0, 0.99),
    number<Think, &Think::observe>("observe", "", "newest queries that are looked at; 0: all of the step", 0, 1 << 20),
    number<Think, &Think::recent>("recent", "", "newest slots that keep all channels", 0, most_slots),
    number<Think, &Think::least>("least", "", "slots that channels are chosen by, at least", 0, most_slots),
    number<Think, &Think::sinks>("sinks", "", "first tokens kept exactly", 0, most_slots),
    flag<Think, &Think::pairs>("pairs", "", "whether the channels of a rotation leave together"),
};

constexpr Entry entries[] = {
    stage_entry<Pca>("Stores keys and values as coordinates in the principal directions of each head, known from calibration.",
                     basis_fields<Pca>),
    stage_entry<OnlinePca>("Stores keys and values as coordinates in the principal directions of the prompt itself.",
                           online_fields),
    stage_entry<Think>("Drops the key channels that queries care least about; values stay whole.", think_fields),
    stage_entry<ShadowKV>("Stores keys before rotation as coordinates in directions found from the prompt; values stay whole.",
                          shadow_fields),
    stage_entry<XKv>("Stores the rows of a token in several layers as one row of coordinates, in directions found from the prompt.",
                     xkv_fields),
    stage_entry<Matryoshka>("Stores keys and values as coordinates in trained orthogonal bases that serve every rank.",
                            basis_fields<Matryoshka>),
    stage_entry<Cskv>("Shrinks keys and values by factors that reconstruct them layer by layer; new slots stay exact until a "
                      "block is full.",
                      basis_fields<Cskv>),
    stage_entry<EigenAttention>("Stores keys and values as coordinates in the principal directions of keys and queries "
                                "together, and of values.",
                                basis_fields<EigenAttention>),
    stage_entry<Palu>("Stores the output of a projection's right factor; keys are reconstructed tile by tile, values absorbed.",
                      basis_fields<Palu>),
    stage_entry<WeightSvd>("Stores keys and values in the output directions of their weights, decomposed plainly, scaled or "
                           "whitened.",
                           basis_fields<WeightSvd>),
    stage_entry<JointHeads>("Stores the rows of neighbouring KV heads as one row of coordinates, in bases of groups of heads.",
                            joint_fields),
    stage_entry<Lorc>("Decomposes the weights of keys and values, with ranks that fall with depth.", basis_fields<Lorc>),
    stage_entry<ReCalKV>("Decomposes the weights of keys and values; decoders of values are fitted to what calibration shows.",
                         basis_fields<ReCalKV>),
};

}  // namespace

std::span<const Entry> builtin_lowrank() { return entries; }

}  // namespace kvcondense::any::detail
