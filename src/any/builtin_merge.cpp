#include <iterator>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/merge/cam.hpp>
#include <kvcondense/merge/centroid.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/dmc.hpp>
#include <kvcondense/merge/elastic_cache.hpp>
#include <kvcondense/merge/ems.hpp>
#include <kvcondense/merge/keepkv.hpp>
#include <kvcondense/merge/kvmerger.hpp>
#include <kvcondense/merge/lookm.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/merge/tome.hpp>
#include <kvcondense/merge/value_merge.hpp>
#include <kvcondense/merge/weightedkv.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using merge::CaM;
using merge::Centroid;
using merge::D2O;
using merge::Dmc;
using merge::ElasticCache;
using merge::Ems;
using merge::KeepKV;
using merge::KVMerger;
using merge::LookM;
using merge::Mass;
using merge::MiniCache;
using merge::Place;
using merge::ToMe;
using merge::ValueMerge;
using merge::WeightedKV;

constexpr Choice masses[] = {
    {"none", static_cast<int>(Mass::none)},
    {"log_count", static_cast<int>(Mass::log_count)},
    {"exact", static_cast<int>(Mass::exact)},
    {"value_scale", static_cast<int>(Mass::value_scale)},
};
constexpr Choice places[] = {
    {"as_cached", static_cast<int>(Place::as_cached)},
    {"pivot", static_cast<int>(Place::pivot)},
    {"latest", static_cast<int>(Place::latest)},
};
template <class M>
constexpr Field mass_field() {
  return choice<M, &M::mass>("mass", "", "what keeps a slot as heavy as what it stands for", masses);
}
template <class M>
constexpr Field place_field() {
  return choice<M, &M::place>("place", "", "where keys stand while they are summed", places);
}

constexpr Field d2o_fields[] = {
    fraction<D2O, &D2O::keep>("keep", "alpha", "how much of the threshold stays in a step"),
    fraction<D2O, &D2O::add>("add", "beta", "how much of the step's mean similarity joins it"),
    flag<D2O, &D2O::exponential>("exponential", "", "weights exp(cosine), divided by their sum"),
    mass_field<D2O>(),
    place_field<D2O>(),
};

constexpr Field kvmerger_fields[] = {
    number<KVMerger, &KVMerger::least>("least", "threshold", "cosine above which neighbours join", -1.0, 1.0),
    fraction<KVMerger, &KVMerger::keep>("keep", "", "part of the slots that stays, instead of by `least`; 0: by it"),
    number<KVMerger, &KVMerger::sigma>("sigma", "", "width of the Gaussian; 0: as wide as a set", 0.0, 1e6),
    fraction<KVMerger, &KVMerger::heavy>("heavy", "", "part that stays alone, with most attention"),
    fraction<KVMerger, &KVMerger::recent>("recent", "", "newest part of a prompt that is not looked at yet"),
    number<KVMerger, &KVMerger::window>("window", "", "newest tokens that are not looked at, and how many are at a time", 1, most_slots),
    number<KVMerger, &KVMerger::sinks>("sinks", "", "first tokens that stay as they are", 0, most_slots),
    mass_field<KVMerger>(),
    place_field<KVMerger>(),
};

constexpr Field cam_fields[] = {
    number<CaM, &CaM::targets>("targets", "", "kept tokens that share a value", 1, 256),
    number<CaM, &CaM::seed>("seed", "", "of the draws", 0, most_slots),
    mass_field<CaM>(),
};

constexpr Field ems_fields[] = {
    number<Ems, &Ems::window>("window", "", "newest queries whose attention is the local one", 1, most_slots),
    number<Ems, &Ems::folds>("folds", "", "slots that may fold per kept one", 0.0, 1e6),
    fraction<Ems, &Ems::least>("least", "", "redundancy below which a slot is dropped"),
    mass_field<Ems>(),
    place_field<Ems>(),
};

constexpr Field elastic_cache_fields[] = {
    number<ElasticCache, &ElasticCache::sinks>("sinks", "start", "first tokens, which are no anchors", 0, most_slots),
    number<ElasticCache, &ElasticCache::newest>("newest", "", "newest tokens, which are no anchors", 0, most_slots),
    mass_field<ElasticCache>(),
    place_field<ElasticCache>(),
};

constexpr Choice lookm_kernels[] = {
    {"average", static_cast<int>(LookM::Kernel::average)},
    {"pivotal", static_cast<int>(LookM::Kernel::pivotal)},
    {"weighted", static_cast<int>(LookM::Kernel::weighted)},
    {"shared", static_cast<int>(LookM::Kernel::shared)},
};
constexpr Field lookm_fields[] = {
    choice<LookM, &LookM::kernel>("kernel", "", "how tokens that join are summed", lookm_kernels),
    flag<LookM, &LookM::alike_only>("alike_only", "", "drops tokens that are less alike than the mean"),
    mass_field<LookM>(),
    place_field<LookM>(),
};

template <class M>
constexpr Field pairs_tokens() {
  return number<M, &M::tokens>("tokens", "budget", "slots of a head", 1, most_slots);
}
template <class M>
constexpr Field pairs_slack() {
  return number<M, &M::slack>("slack", "", "slots beyond the budget before generated tokens fold", 0, most_slots);
}
template <class M>
constexpr Field pairs_sinks() {
  return number<M, &M::sinks>("sinks", "", "first slots, which do not fold", 0, most_slots);
}
template <class M>
constexpr Field pairs_recent() {
  return number<M, &M::recent>("recent", "", "newest slots, which do not fold", 0, most_slots);
}
constexpr Field tome_fields[] = {
    pairs_tokens<ToMe>(), pairs_slack<ToMe>(), pairs_sinks<ToMe>(), pairs_recent<ToMe>(), mass_field<ToMe>(), place_field<ToMe>(),
};
constexpr Field centroid_fields[] = {
    pairs_tokens<Centroid>(),
    number<Centroid, &Centroid::chunk>("chunk", "", "slots among which pairs are sought", 2, most_slots),
    pairs_slack<Centroid>(),
    pairs_sinks<Centroid>(),
    pairs_recent<Centroid>(),
    mass_field<Centroid>(),
    place_field<Centroid>(),
};

constexpr Field keepkv_fields[] = {
    number<KeepKV, &KeepKV::decay>("decay", "alpha", "how much of a score stays from query to query", 0.0, 0.999999),
    number<KeepKV, &KeepKV::window>("window", "", "newest queries of a prompt that count", 1, most_slots),
    number<KeepKV, &KeepKV::least>("least", "threshold", "cosine below which a token is dropped", -1.0, 1.0),
    flag<KeepKV, &KeepKV::scaled>("scaled", "", "stretches keys, instead of saying it in votes"),
    mass_field<KeepKV>(),
    place_field<KeepKV>(),
};

constexpr Field weightedkv_fields[] = {mass_field<WeightedKV>()};

constexpr Field value_merge_fields[] = {
    number<ValueMerge, &ValueMerge::least>("least", "threshold", "cosine below which a token is dropped", -1.0, 1.0),
    fraction<ValueMerge, &ValueMerge::part>("part", "", "of the tokens that leave, the most alike ones fold"),
    mass_field<ValueMerge>(),
};

constexpr Field dmc_fields[] = {
    number<Dmc, &Dmc::window>("window", "", "newest tokens of a slot that it is the mean of; 0: all", 0, most_slots),
    number<Dmc, &Dmc::init>("init", "", "key component above which a token joins, and what is added to the query's", -1e6, 1e6),
    number<Dmc, &Dmc::slack>("slack", "", "added to every weight", 0.0, 1e6),
    flag<Dmc, &Dmc::first>("first", "", "the first component decides, instead of the last"),
    flag<Dmc, &Dmc::rotated>("rotated", "", "queries and keys come with the model's rotation"),
};

constexpr Choice aparts[] = {
    {"fraction", static_cast<int>(prim::Apart::fraction)},
    {"range", static_cast<int>(prim::Apart::range)},
};
constexpr Field minicache_fields[] = {
    fraction<MiniCache, &MiniCache::weight>("weight", "t", "of the deeper layer in the direction between two rows"),
    fraction<MiniCache, &MiniCache::start>("start", "", "first part of the layers, which share nothing"),
    choice<MiniCache, &MiniCache::apart>("apart", "", "which rows stay as they are: a fraction of them, or a part of the range of angles", aparts),
    fraction<MiniCache, &MiniCache::part>("part", "gamma", "how large that fraction or part is"),
    number<MiniCache, &MiniCache::recent>("recent", "", "newest tokens that stay as they are", 0, most_slots),
};

constexpr Entry entries[] = {
    stage_entry<D2O>("Folds a token that leaves into the kept one whose key is most like its own, if it is more "
                     "alike than such tokens have been lately.",
                     d2o_fields),
    stage_entry<KVMerger>("Folds runs of neighbours whose keys are alike into the one that drew most attention.",
                          kvmerger_fields),
    stage_entry<Dmc>("Joins a token to the newest slot of its head, where a model that was trained for it says so.", dmc_fields),
    stage_entry<CaM>("Spreads the value of a token that leaves over the next kept ones, the likelier the more "
                     "attention it drew.",
                     cam_fields),
    stage_entry<Ems>("Folds the better part of what leaves into kept tokens that say the same in keys and values; the "
                     "rest is dropped.",
                     ems_fields),
    stage_entry<ElasticCache>("Folds each token of a prompt that leaves into the kept one that stands nearest in the text.",
                              elastic_cache_fields),
    stage_entry<LookM>("Folds what leaves into the kept token whose key is most like its own, by one of three means.",
                       lookm_fields),
    stage_entry<MiniCache>("Stores keys and values of two neighbouring layers as one direction between theirs and two lengths.",
                           minicache_fields),
    stage_entry<ToMe>("Folds the most alike pairs of slots until a head is within its budget.", tome_fields),
    stage_entry<Centroid>("Folds the most alike pairs inside chunks of neighbours, weighing each slot by the tokens it "
                          "stands for.",
                          centroid_fields),
    stage_entry<KeepKV>("Folds what leaves into the most alike kept token so that the output of a predicted query does not "
                        "change.",
                        keepkv_fields),
    stage_entry<WeightedKV>("Drops the key of a token that leaves and folds its value into that of the next kept one, by "
                            "the attention they drew.",
                            weightedkv_fields),
    stage_entry<ValueMerge>("Folds the value of what leaves into the kept token whose key is most like its own, by "
                            "likeness and length.",
                            value_merge_fields),
};

}  // namespace

std::span<const Entry> builtin_merge() { return entries; }

}  // namespace kvcondense::any::detail
