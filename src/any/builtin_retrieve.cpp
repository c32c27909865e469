#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using retrieve::Heads;
using retrieve::A2ats;
using retrieve::AlisaWindow;
using retrieve::InfiniGen;
using retrieve::InfLlm;
using retrieve::Kinetics;
using retrieve::Landmark;
using retrieve::Loki;
using retrieve::LServe;
using retrieve::MagicPig;
using retrieve::PqCache;
using retrieve::Quest;
using retrieve::ReadAll;
using retrieve::ReKv;
using retrieve::RetrievalAttention;
using retrieve::RocketKV;
using retrieve::ShadowSelect;
using retrieve::SparQ;
using retrieve::Squeezed;
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

constexpr Field pqcache_fields[] = {
    number<PqCache, &PqCache::parts>("parts", "", "pieces of a key that are coded apart; divides head_dim", 1, 256),
    number<PqCache, &PqCache::bits>("bits", "", "of a code", 1, 12),
    number<PqCache, &PqCache::iterations>("iterations", "", "rounds of k-means", 1, 1000),
    fraction<PqCache, &PqCache::keep>("keep", "", "part of the slots that is read"),
    fraction<PqCache, &PqCache::recent>("recent", "", "part of these that are the newest"),
    number<PqCache, &PqCache::sinks>("sinks", "", "first slots, always read", 0, most_slots),
};
constexpr Field a2ats_fields[] = {
    fraction<A2ats, &A2ats::share>("share", "", "part of the slots that a query head chooses"),
    number<A2ats, &A2ats::sinks>("sinks", "", "first slots, always read", 0, most_slots),
    number<A2ats, &A2ats::local>("local", "", "newest slots, always read", 0, most_slots),
    number<A2ats, &A2ats::distance>("distance", "", "at which all keys are scored", 0, most_slots),
};
constexpr Field squeezed_fields[] = {
    fraction<Squeezed, &Squeezed::clusters>("clusters", "", "clusters per key", 0.000001),
    fraction<Squeezed, &Squeezed::coarse>("coarse", "", "coarse clusters per key; 0: one level"),
    fraction<Squeezed, &Squeezed::quantile>("quantile", "", "of the scores of keys, the threshold"),
    fraction<Squeezed, &Squeezed::coarse_quantile>("coarse_quantile", "", "of the scores of coarse clusters"),
    fraction<Squeezed, &Squeezed::threshold>("threshold", "", "for all heads; 0: the quantile of each"),
    number<Squeezed, &Squeezed::observe>("observe", "", "newest keys and queries of the prompt, that find the threshold", 1, most_slots),
    number<Squeezed, &Squeezed::iterations>("iterations", "", "rounds of k-means", 1, 1000),
};
constexpr Field sparq_fields[] = {
    number<SparQ, &SparQ::channels>("channels", "", "channels of all keys that are read", 1, most_slots),
    number<SparQ, &SparQ::tokens>("tokens", "budget", "slots that a query head chooses; 0: the part share", 0, most_slots),
    fraction<SparQ, &SparQ::share>("share", "", "part of the slots that a query head chooses"),
    number<SparQ, &SparQ::local>("local", "", "newest slots that are among them in any case", 0, most_slots),
};
constexpr Field loki_fields[] = {
    number<Loki, &Loki::columns>("columns", "", "directions that are compared", 1, max_head_dim),
    fraction<Loki, &Loki::share>("share", "", "part of the slots that a query head chooses"),
};
constexpr Field infinigen_fields[] = {
    fraction<InfiniGen, &InfiniGen::part>("part", "", "part of the directions that is compared", 0.000001),
    number<InfiniGen, &InfiniGen::alpha>("alpha", "", "how far below the best logit a token still counts", 0, 1e6),
    fraction<InfiniGen, &InfiniGen::share>("share", "", "part of the slots that is read at most"),
    number<InfiniGen, &InfiniGen::dense_layers>("dense_layers", "", "first layers that read every slot", 0, most_layers),
};
constexpr Field rocketkv_fields[] = {
    number<RocketKV, &RocketKV::page>("page", "", "slots of a page", 1, most_slots),
    number<RocketKV, &RocketKV::tokens>("tokens", "budget", "slots that are chosen", 1, most_slots),
    number<RocketKV, &RocketKV::channels>("channels", "", "channels that are compared", 1, most_slots),
};
constexpr Field landmark_fields[] = {
    number<Landmark, &Landmark::tokens>("tokens", "", "tokens of a block, a landmark behind them", 1, most_slots),
    number<Landmark, &Landmark::blocks>("blocks", "", "blocks that are read", 1, most_slots),
};
constexpr Field graph_fields[] = {
    number<RetrievalAttention, &RetrievalAttention::tokens>("tokens", "budget", "slots that a query head chooses", 1, most_slots),
    number<RetrievalAttention, &RetrievalAttention::sinks>("sinks", "", "first slots, always read", 0, most_slots),
    number<RetrievalAttention, &RetrievalAttention::local>("local", "", "newest slots, always read", 0, most_slots),
    number<RetrievalAttention, &RetrievalAttention::degree>("degree", "", "links of a slot to earlier ones, and to later ones", 1, 64),
    number<RetrievalAttention, &RetrievalAttention::beam>("beam", "", "best places that a walk keeps", 1, 256),
    number<RetrievalAttention, &RetrievalAttention::hubs>("hubs", "", "queries of the prompt where walks begin", 1, 1024),
    number<RetrievalAttention, &RetrievalAttention::hub_keys>("hub_keys", "", "nearest keys of each", 1, 256),
};
constexpr Field infllm_fields[] = {
    number<InfLlm, &InfLlm::block>("block", "", "slots of a block", 1, most_slots),
    number<InfLlm, &InfLlm::blocks>("blocks", "", "blocks that are read", 1, most_slots),
    number<InfLlm, &InfLlm::init>("init", "", "first slots, always read", 0, most_slots),
    number<InfLlm, &InfLlm::local>("local", "", "newest slots, always read; all others are read at this distance", 1, most_slots),
    number<InfLlm, &InfLlm::representatives>("representatives", "", "slots that stand for a block", 1, retrieve::RepresentativeKeys::most),
    number<InfLlm, &InfLlm::chunk>("chunk", "", "query tokens of a call that chooses at most", 1, 4096),
};
constexpr Field rekv_fields[] = {
    number<ReKv, &ReKv::frame>("frame", "", "slots of a frame", 1, most_slots),
    number<ReKv, &ReKv::frames>("frames", "", "frames that are read", 1, most_slots),
    number<ReKv, &ReKv::init>("init", "", "first slots, always read", 0, most_slots),
    number<ReKv, &ReKv::question>("question", "", "query tokens of a question at most", 1, 4096),
};
constexpr Field alisa_fields[] = {
    fraction<AlisaWindow, &AlisaWindow::ratio>("ratio", "", "part of the slots that is read: half of it the newest", 1e-6, 1.0),
    number<AlisaWindow, &AlisaWindow::history>("history", "", "newest queries that choose, at most", 1, 65536),
};
constexpr Field magicpig_fields[] = {
    number<MagicPig, &MagicPig::sinks>("sinks", "", "first slots, always read", 0, most_slots),
    number<MagicPig, &MagicPig::local>("local", "", "newest slots, always read", 0, most_slots),
    number<MagicPig, &MagicPig::dense_every>("dense_every", "", "layers whose number is a multiple of it read every slot; 0: none", 0,
                                             most_layers),
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
    stage_entry<RetrievalAttention>("Reads the first tokens, the newest, and those that a walk over a graph of keys finds nearest to "
                                    "the query.",
                                    graph_fields),
    stage_entry<ShadowSelect>("Reads the chunks of the prompt whose mean key a query head attends to most, and those that a mean "
                              "does not describe.",
                              shadow_fields),
    stage_entry<Squeezed>("Reads the keys of a fixed context whose cluster draws more than a threshold of attention.", squeezed_fields),
    stage_entry<A2ats>("Reads the tokens whose vector code scores best against a query at a constant distance.", a2ats_fields),
    stage_entry<Landmark>("Reads the blocks whose landmark tokens draw most, each block with its landmark's weight.", landmark_fields),
    stage_entry<AlisaWindow>("Reads the newest tokens, and as many of the others: those that the newest queries of all heads look at.",
                             alisa_fields),
    stage_entry<InfLlm>("Reads the first tokens, a window of the newest, and the blocks behind it whose busiest tokens meet the query, at one distance.",
                        infllm_fields),
    stage_entry<ReKv>("Reads the frames of a video that a question resembles, and reads them as if nothing had been between them.",
                      rekv_fields),
    stage_entry<InfiniGen>("Reads the tokens that score best in the few directions that carry most of a head's queries, as many as "
                           "lie near the best.",
                           infinigen_fields),
    stage_entry<SparQ>("Reads a few channels of all keys, then the tokens that draw most by them, and lets the mean value stand for "
                       "the rest.",
                       sparq_fields),
    stage_entry<Loki>("Reads the tokens whose keys agree best with the query in the first principal directions.", loki_fields),
    stage_entry<MagicPig>("Reads a sample of the tokens, drawn by hashes that prefer keys near the query, and weighs it by the chance "
                          "of each draw.",
                          magicpig_fields),
    stage_entry<PqCache>("Reads the tokens whose key, as product quantization has it, draws most attention of a group.", pqcache_fields),
    stage_entry<RocketKV>("Reads pages by their channel ranges in the few channels that a group's queries agree on: the second stage of "
                          "RocketKV.",
                          rocketkv_fields),
};

}  // namespace

std::span<const Entry> builtin_retrieve() { return entries; }

}  // namespace kvcondense::any::detail
