#include <iterator>

#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/alisa.hpp>
#include <kvcondense/evict/block_prefill.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/chunked.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/critical.hpp>
#include <kvcondense/evict/dms.hpp>
#include <kvcondense/evict/duo_attention.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/fastgen.hpp>
#include <kvcondense/evict/finch.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/keyformer.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/kvcrush.hpp>
#include <kvcondense/evict/kvzip.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/locret.hpp>
#include <kvcondense/evict/nacl.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/page_round.hpp>
#include <kvcondense/evict/paged_h2o.hpp>
#include <kvcondense/evict/prefixkv.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/scissorhands.hpp>
#include <kvcondense/evict/qfilters.hpp>
#include <kvcondense/evict/razor_attention.hpp>
#include <kvcondense/evict/simlayerkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/sirllm.hpp>
#include <kvcondense/evict/sliding_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/strided_blocks.hpp>
#include <kvcondense/evict/tova.hpp>

#include "ranges.hpp"

namespace kvcondense::any::detail {

namespace {

using evict::Alisa;
using evict::ChunkKV;
using evict::Dms;
using evict::DuoAttention;
using evict::FastGen;
using evict::Finch;
using evict::H2O;
using evict::KeepAll;
using evict::KeyDiff;
using evict::Keyformer;
using evict::Knorm;
using evict::KVzip;
using evict::LagKV;
using evict::Locret;
using evict::Nacl;
using evict::ObservedAttention;
using evict::PagedH2O;
using evict::PrefixKV;
using evict::QFilters;
using evict::RKV;
using evict::Scissorhands;
using evict::SimLayerKV;
using evict::SinkWindow;
using evict::SirLLM;
using evict::SlidingWindow;
using evict::SnapKV;
using evict::StridedBlocks;
using evict::Tova;

constexpr Alias keep_all_aliases[] = {{"none"}, {"full"}};

constexpr Field sliding_window_fields[] = {
    number<SlidingWindow, &SlidingWindow::window>("window", "", "newest tokens that stay", 1,
                                                  most_slots),
};

constexpr Field sink_window_fields[] = {
    number<SinkWindow, &SinkWindow::recent>("recent", "window", "newest tokens that stay", 1,
                                            most_slots),
    number<SinkWindow, &SinkWindow::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
};
constexpr Alias sink_window_aliases[] = {{"streaming_llm"}};

constexpr Field h2o_fields[] = {
    number<H2O, &H2O::heavy>("heavy", "", "tokens that drew most attention so far", 0, most_slots),
    number<H2O, &H2O::recent>("recent", "", "newest tokens that stay", 0, most_slots),
};

constexpr Field tova_fields[] = {
    number<Tova, &Tova::tokens>("tokens", "budget", "slots of a head", 1, most_slots),
};

constexpr Choice pools[] = {
    {"average", static_cast<int>(prim::Pool::average)},
    {"average_valid", static_cast<int>(prim::Pool::average_valid)},
    {"maximum", static_cast<int>(prim::Pool::maximum)},
};
constexpr Field snapkv_fields[] = {
    number<SnapKV, &SnapKV::tokens>(
        "tokens", "budget", "slots of a head after the prompt, window included", 2, most_slots),
    number<SnapKV, &SnapKV::window>(
        "window", "", "newest prompt tokens, whose queries choose and which stay", 1, most_slots),
    number<SnapKV, &SnapKV::kernel>("kernel", "", "slots that pooling joins; odd", 1, 255),
    choice<SnapKV, &SnapKV::pool>("pool", "", "how a score spreads to its neighbours", pools),
};

constexpr Field finch_fields[] = {
    fraction<Finch, &Finch::keep>("keep", "", "part of the prompt that stays, the question included"),
    number<Finch, &Finch::window>("window", "", "newest prompt tokens, the question, whose queries choose and which stay; 0: those of the step that ends the prompt", 0,
                                  most_slots),
};

constexpr Field nacl_fields[] = {
    number<Nacl, &Nacl::tokens>("tokens", "budget", "slots of a head after the prompt", 1, most_slots),
    number<Nacl, &Nacl::window>("window", "", "newest prompt tokens, whose queries score", 1, most_slots),
    number<Nacl, &Nacl::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
    number<Nacl, &Nacl::recent>("recent", "", "newest prompt tokens that stay", 0, most_slots),
    fraction<Nacl, &Nacl::drawn>("drawn", "", "part of the other places that chance fills"),
    number<Nacl, &Nacl::temperature>("temperature", "", "of the chances; high: scores matter less", 1e-3, 1000),
    number<Nacl, &Nacl::seed>("seed", "", "of the draws", 0, most_slots),
};

constexpr Field knorm_fields[] = {
    number<Knorm, &Knorm::tokens>("tokens", "budget", "slots of a head", 1, most_slots),
    number<Knorm, &Knorm::recent>("recent", "", "newest tokens that stay", 0, most_slots),
};

constexpr Choice anchors[] = {
    {"mean_direction", static_cast<int>(prim::Anchor::mean_direction)},
    {"mean_row", static_cast<int>(prim::Anchor::mean_row)},
};
constexpr Field keydiff_fields[] = {
    number<KeyDiff, &KeyDiff::tokens>("tokens", "budget", "slots of a head", 1, most_slots),
    number<KeyDiff, &KeyDiff::recent>("recent", "", "newest tokens that stay", 0, most_slots),
    choice<KeyDiff, &KeyDiff::anchor>("anchor", "", "the key that all keys are compared with",
                                      anchors),
};

constexpr Field qfilters_fields[] = {
    fraction<QFilters, &QFilters::keep>("keep", "", "part of the prompt that stays, protected tokens included"),
    number<QFilters, &QFilters::recent>("recent", "", "newest prompt tokens that stay", 0, most_slots),
};

constexpr Field observed_attention_fields[] = {
    fraction<ObservedAttention, &ObservedAttention::keep>(
        "keep", "", "part of the prompt that stays, protected tokens included"),
    number<ObservedAttention, &ObservedAttention::sinks>("sinks", "", "first tokens that stay", 0,
                                                         most_slots),
    number<ObservedAttention, &ObservedAttention::recent>(
        "recent", "", "newest prompt tokens that stay", 0, most_slots),
};

constexpr Field lagkv_fields[] = {
    number<LagKV, &LagKV::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
    number<LagKV, &LagKV::lag>("lag", "", "tokens of a block, judged by the block after it", 1,
                               most_slots),
    fraction<LagKV, &LagKV::keep>("keep", "", "part of every block that stays"),
    number<LagKV, &LagKV::value_weight>("value_weight", "", "of values, where keys count 1", 0, 1e6),
    flag<LagKV, &LagKV::across>("across", "",
                                "whether blocks that are chosen from in one step compete"),
};

constexpr Choice chunk_reductions[] = {
    {"sum", static_cast<int>(prim::ChunkReduce::sum)},
    {"mean", static_cast<int>(prim::ChunkReduce::mean)},
};
constexpr Field chunkkv_fields[] = {
    number<ChunkKV, &ChunkKV::tokens>(
        "tokens", "budget", "slots of a head after the prompt, at most; window included", 2,
        most_slots),
    number<ChunkKV, &ChunkKV::window>(
        "window", "", "newest prompt tokens, whose queries choose and which stay", 1, most_slots),
    number<ChunkKV, &ChunkKV::chunk>("chunk", "", "neighbours that stay or leave together", 1,
                                     most_slots),
    choice<ChunkKV, &ChunkKV::reduce>("reduce", "", "what the scores of a chunk become",
                                      chunk_reductions),
    number<ChunkKV, &ChunkKV::reuse>(
        "reuse", "", "neighbouring layers of which the first chooses for all; 1: each for itself, as the paper 2", 1, 65536),
};

constexpr Field rkv_fields[] = {
    number<RKV, &RKV::tokens>("tokens", "budget", "slots of a head that stay, window included", 2,
                              most_slots),
    number<RKV, &RKV::window>("window", "", "newest tokens, whose queries choose and which stay", 1,
                              most_slots),
    number<RKV, &RKV::kernel>("kernel", "", "slots that pooling joins; odd", 1, 255),
    fraction<RKV, &RKV::lambda>("lambda", "", "weight of attention; the rest is that of redundancy"),
    number<RKV, &RKV::threshold>("threshold", "", "cosine above which keys repeat each other", -1, 1),
    number<RKV, &RKV::slack>("slack", "buffer", "slots above the budget at which it acts", 1,
                             most_slots),
};

constexpr Field sirllm_fields[] = {
    number<SirLLM, &SirLLM::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
    number<SirLLM, &SirLLM::memory>("memory", "", "most surprising tokens that stay; a turn's tokens "
                                    "take their places",
                                    0, most_slots),
    number<SirLLM, &SirLLM::recent>("recent", "", "newest tokens that stay", 0, most_slots),
    number<SirLLM, &SirLLM::decay>("decay", "", "what a turn leaves of all surprise", 0, 1),
};

constexpr Choice activations[] = {
    {"silu", static_cast<int>(prim::Activation::silu)},
    {"gelu_tanh", static_cast<int>(prim::Activation::gelu_tanh)},
    {"relu", static_cast<int>(prim::Activation::relu)},
};
constexpr Field locret_fields[] = {
    number<Locret, &Locret::tokens>("tokens", "budget", "slots of a head after every chunk", 1,
                                    most_slots),
    number<Locret, &Locret::stabilizers>("stabilizers", "", "newest slots that stay after a chunk", 0,
                                         most_slots),
    number<Locret, &Locret::local>("local", "", "newest prompt tokens that stay beside the others", 0,
                                   most_slots),
    choice<Locret, &Locret::activation>("activation", "", "of the retaining heads", activations),
};

constexpr Field dms_fields[] = {
    number<Dms, &Dms::window>("window", "", "newest tokens that stay, marked or not", 1, most_slots),
    number<Dms, &Dms::scale>("scale", "", "of the gate", 1e-6, 1e9),
    number<Dms, &Dms::offset>("offset", "", "what a scaled gate must pass", 0, 1e9),
    flag<Dms, &Dms::of_previous>("of_previous", "", "whether a gate speaks of the token before"),
};

using Razor = evict::RazorAttention;
constexpr Field razor_attention_fields[] = {
    fraction<Razor, &Razor::induction_part>("induction_part", "", "part of all heads, by induction, that keep "
                                            "everything"),
    fraction<Razor, &Razor::echo_part>("echo_part", "", "part of all heads, by echo, that keep everything"),
    number<Razor, &Razor::sinks>("sinks", "", "first tokens that stay in the other heads", 0, most_slots),
    number<Razor, &Razor::least>("least", "", "newest tokens that stay there, at least", 1, most_slots),
    number<Razor, &Razor::divisor>("divisor", "", "tokens so far over newest ones that stay there", 1,
                                   most_slots),
    flag<Razor, &Razor::compensate>("compensate", "", "whether a mean stands for what left"),
};

constexpr Field kvzip_fields[] = {
    fraction<KVzip, &KVzip::keep>("keep", "", "part of what was asked about that stays", 1e-6, 1.0),
    number<KVzip, &KVzip::sinks>("sinks", "", "first tokens that stay, and that every probe sees", 0,
                                 most_slots),
    flag<KVzip, &KVzip::weighted>("weighted", "", "whether shares count by the lengths of projected values and hidden states (KVzip+)"),
};

using Expected = evict::ExpectedAttention;
constexpr Field expected_attention_fields[] = {
    fraction<Expected, &Expected::keep>("keep", "", "part of the prompt that stays", 1e-6, 1.0),
    number<Expected, &Expected::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
    number<Expected, &Expected::horizon>("horizon", "", "positions ahead whose queries are expected", 1,
                                         65536),
    number<Expected, &Expected::epsilon>("epsilon", "", "added to the attention that is expected", 0, 1e6),
    flag<Expected, &Expected::covariance>("covariance", "", "whether queries spread around their mean"),
    flag<Expected, &Expected::value_norm>("value_norm", "", "whether scores are times the value's length"),
};

using Compensate = evict::Compensate<Inner>;
using ExitThreshold = evict::ExitThreshold<Inner>;
constexpr Field exit_threshold_fields[] = {
    number<ExitThreshold, &ExitThreshold::least>("least", "threshold", "score that a slot needs to stay",
                                                 -1e30, 1e30),
    number<ExitThreshold, &ExitThreshold::window>("window", "", "newest tokens that are not yet judged",
                                                  1, most_slots),
};

constexpr Field duo_attention_fields[] = {
    fraction<DuoAttention, &DuoAttention::sparsity>(
        "sparsity", "", "part of all heads that keep only sinks and recent"),
    number<DuoAttention, &DuoAttention::sinks>("sinks", "", "first tokens that stay in every head",
                                               0, most_slots),
    number<DuoAttention, &DuoAttention::recent>("recent", "", "newest tokens that stay in every head",
                                                1, most_slots),
};

constexpr Field simlayerkv_fields[] = {
    fraction<SimLayerKV, &SimLayerKV::threshold>("threshold", "", "part of the last query's attention above which a layer is lazy"),
    number<SimLayerKV, &SimLayerKV::sinks>("sinks", "", "first tokens that stay in lazy layers", 0, most_slots),
    number<SimLayerKV, &SimLayerKV::recent>("recent", "", "newest prompt tokens that stay there", 1, most_slots),
};

constexpr Field strided_blocks_fields[] = {
    number<StridedBlocks, &StridedBlocks::block>("block", "", "tokens of a block", 1, most_slots),
    number<StridedBlocks, &StridedBlocks::local>("local", "", "newest blocks that stay", 1,
                                                 most_slots),
    number<StridedBlocks, &StridedBlocks::every>(
        "every", "stride", "of the older blocks, one in so many stays", 1, most_slots),
    flag<StridedBlocks, &StridedBlocks::shift>("shift", "", "whether heads keep different blocks"),
};

constexpr Field prefixkv_fields[] = {
    number<PrefixKV, &PrefixKV::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
    number<PrefixKV, &PrefixKV::recent>("recent", "", "newest tokens that stay", 1, most_slots),
    number<PrefixKV, &PrefixKV::distance>(
        "distance", "", "slots behind the one that leaves for a new token", 0, most_slots),
};

constexpr Field paged_h2o_fields[] = {
    number<PagedH2O, &PagedH2O::page>("page", "", "tokens that leave together", 1, most_slots),
    number<PagedH2O, &PagedH2O::start>("start", "", "first tokens that stay, whole pages", 0,
                                       most_slots),
    number<PagedH2O, &PagedH2O::evictable>("evictable", "", "tokens chosen by attention, whole pages",
                                           1, most_slots),
    number<PagedH2O, &PagedH2O::recent>("recent", "", "newest tokens that stay, whole pages", 0,
                                        most_slots),
    number<PagedH2O, &PagedH2O::window>("window", "", "newest queries of a step that count; 0: all",
                                        0, most_slots),
    number<PagedH2O, &PagedH2O::width>("width", "", "slots that attention is spread over", 1, 64),
    flag<PagedH2O, &PagedH2O::per_row>("per_row", "",
                                       "whether sums are divided by the rows that saw the token"),
};

constexpr Field scissorhands_fields[] = {
    number<Scissorhands, &Scissorhands::tokens>("tokens", "budget", "slots of a head after a drop", 1,
                                                most_slots),
    number<Scissorhands, &Scissorhands::drop>(
        "drop", "", "slots above them at which as many are dropped at once", 1, most_slots),
    number<Scissorhands, &Scissorhands::history>("history", "", "newest queries that judge", 1, 65536),
    number<Scissorhands, &Scissorhands::recent>("recent", "", "newest tokens that stay", 0, most_slots),
    number<Scissorhands, &Scissorhands::sinks>("sinks", "", "first tokens that stay", 0, most_slots),
};

constexpr Field keyformer_fields[] = {
    number<Keyformer, &Keyformer::tokens>("tokens", "budget", "slots of a head", 1, most_slots),
    number<Keyformer, &Keyformer::recent>("recent", "", "newest tokens that stay", 0, most_slots),
    number<Keyformer, &Keyformer::tau_start>("tau_start", "", "temperature in the prompt", 0.001, 1000),
    number<Keyformer, &Keyformer::tau_end>("tau_end", "", "temperature at the end of the answer", 0.001,
                                           1000),
    number<Keyformer, &Keyformer::generation>("generation", "", "tokens over which it goes there", 1,
                                              most_slots),
    number<Keyformer, &Keyformer::seed>("seed", "", "of the noise; 0: none", 0, 1e9),
};

constexpr Field alisa_fields[] = {
    fraction<Alisa, &Alisa::ratio>("ratio", "", "part of the tokens so far that stays: half of it the newest", 1e-6, 1.0),
    number<Alisa, &Alisa::history>("history", "", "newest queries that choose, at most", 1, 65536),
};

constexpr Field fastgen_fields[] = {
    fraction<FastGen, &FastGen::recovery>("recovery", "threshold", "part of a head's attention that its set keeps"),
    fraction<FastGen, &FastGen::frequent>("frequent", "", "part of the tokens so far that a frequent set has"),
    fraction<FastGen, &FastGen::local>("local", "", "part of the tokens so far that are near"),
    number<FastGen, &FastGen::profile>("profile", "", "newest queries of the prompt that heads are judged by", 1, 65536),
    flag<FastGen, &FastGen::per_row>("per_row", "", "whether attention is divided by the rows that saw the token"),
};

using BlockPrefill = evict::BlockPrefill<Inner>;
using Caote = evict::Caote<Inner>;
using Critical = evict::Critical<Inner>;
using Every = evict::Every<Inner>;
using KVCrush = evict::KVCrush<Inner>;
using InChunks = evict::InChunks<Inner>;
using PageRound = evict::PageRound<Inner>;

constexpr Field caote_fields[] = {
    flag<Caote, &Caote::fast>("fast", "", "whether the plain mean of values stands for the output"),
    flag<Caote, &Caote::greedy>("greedy", "", "whether errors are computed anew after every slot"),
};
constexpr Field critical_fields[] = {
    fraction<Critical, &Critical::first>("first", "", "part of the budget that attention alone fills"),
    number<Critical, &Critical::epsilon>("epsilon", "", "added to attention before it is weighed", 0, 1),
};
constexpr Alias critical_aliases[] = {{"criticalkv"}};
constexpr Choice signature_anchors[] = {
    {"random", static_cast<int>(prim::SignatureAnchor::random)},
    {"zeros", static_cast<int>(prim::SignatureAnchor::zeros)},
    {"ones", static_cast<int>(prim::SignatureAnchor::ones)},
    {"mean", static_cast<int>(prim::SignatureAnchor::mean)},
    {"alternating", static_cast<int>(prim::SignatureAnchor::alternating)},
};
constexpr Field kvcrush_fields[] = {
    fraction<KVCrush, &KVCrush::share>("share", "", "part of the budget that representatives fill"),
    number<KVCrush, &KVCrush::block>("block", "", "slots of a signature's block; 0: signatures of tokens", 0, most_slots),
    choice<KVCrush, &KVCrush::anchor>("anchor", "", "the signature that others are compared with", signature_anchors),
    number<KVCrush, &KVCrush::seed>("seed", "", "of a random anchor", 0, most_slots),
};
constexpr Field chunked_fields[] = {
    number<InChunks, &InChunks::chunk>("chunk", "", "neighbours that stay or leave together", 1,
                                       most_slots),
    choice<InChunks, &InChunks::reduce>("reduce", "", "what the scores of a chunk become",
                                        chunk_reductions),
};
constexpr Field page_round_fields[] = {
    number<PageRound, &PageRound::page>("page", "", "slots of a page", 1, most_slots),
};
constexpr Field every_fields[] = {
    number<Every, &Every::tokens>("tokens", "", "generated tokens between two times", 1, most_slots),
};
constexpr Field block_prefill_fields[] = {
    number<BlockPrefill, &BlockPrefill::block>("block", "", "tokens of a prompt between two times", 1,
                                               most_slots),
};

constexpr Entry entries[] = {
    stage_entry<KeepAll>("Keeps every token.", {}, keep_all_aliases),
    stage_entry<SlidingWindow>("Keeps the newest tokens.", sliding_window_fields),
    stage_entry<SinkWindow>("Keeps the first and the newest tokens.", sink_window_fields,
                            sink_window_aliases),
    stage_entry<H2O>("Keeps the newest tokens and those that drew most attention so far.",
                     h2o_fields),
    stage_entry<Tova>("Drops what the newest query attends least.", tova_fields),
    stage_entry<SnapKV>("Condenses a prompt once, to what its last queries look at, with the "
                        "neighbourhoods of that.",
                        snapkv_fields),
    stage_entry<Finch>("Condenses a prompt once, to its question and what the question looks at.", finch_fields),
    stage_entry<Nacl>("Condenses a prompt once: a part of the budget to what its last queries look at, the rest drawn by chance from what they look "
                      "at less.",
                      nacl_fields),
    stage_entry<Knorm>("Keeps the tokens whose keys are shortest, and the newest.", knorm_fields),
    stage_entry<KeyDiff>("Keeps the tokens whose keys point away from the mean key, and the newest.",
                         keydiff_fields),
    stage_entry<QFilters>("Condenses a prompt once, to the tokens whose keys reach furthest where the queries of their head tend to point.",
                          qfilters_fields),
    stage_entry<ObservedAttention>("Condenses a prompt once, to the tokens that drew most attention "
                                   "from each row that saw them.",
                                   observed_attention_fields),
    stage_entry<LagKV>("Keeps the tokens of a block whose keys and values vary most, measured by "
                       "the block after it.",
                       lagkv_fields),
    stage_entry<ChunkKV>("Condenses a prompt once, to the chunks of text that its last queries "
                         "look at, whole.",
                         chunkkv_fields),
    stage_entry<RKV>("Keeps what the newest queries look at and no other key repeats, while a long "
                     "answer is written.",
                     rkv_fields),
    stage_entry<SirLLM>("Remembers what was surprising, and forgets it slowly; makes room before every "
                        "turn of a dialogue.",
                        sirllm_fields),
    stage_entry<Locret>("Keeps the tokens that trained retaining heads say will be missed, within a "
                        "fixed budget while a long prompt comes in chunks.",
                        locret_fields),
    stage_entry<Dms>("Evicts tokens that a trained gate has marked, once they leave a window of the "
                     "newest.",
                     dms_fields),
    stage_entry<Razor>("Keeps everything in the few heads that retrieve from afar; all others hold the first "
                       "and the newest tokens, and one more slot that stands for all that left.",
                       razor_attention_fields),
    stage_entry<KVzip>("Keeps the tokens of a context that the model looks at when it is asked to repeat "
                       "the context.",
                       kvzip_fields),
    stage_entry<Expected>("Condenses a prompt once, to the tokens that queries to come are expected to "
                          "look at.",
                          expected_attention_fields),
    wrapper_entry<Compensate, &Compensate::policy>(
        Stage::evict, "Lets what leaves a head live on as one more slot: the mean of all keys and values "
                       "that left."),
    wrapper_entry<ExitThreshold, &ExitThreshold::policy>(
        Stage::evict, "Judges every token once, when it leaves a window of the newest: below a threshold "
                       "it goes.",
        exit_threshold_fields),
    stage_entry<DuoAttention>("Keeps everything in the heads that retrieve from afar, the first and "
                              "the newest tokens in all others.",
                              duo_attention_fields),
    stage_entry<SimLayerKV>("Keeps everything of a prompt, or in layers whose last query looks at hardly anything else only the first and the newest "
                            "tokens.",
                            simlayerkv_fields),
    stage_entry<StridedBlocks>(
        "Keeps the newest blocks of tokens and every so many of the older ones.",
        strided_blocks_fields),
    stage_entry<PrefixKV>(
        "Keeps of a prompt the tokens that drew most attention, of each layer its own part, then a "
        "fixed slot leaves for each new token.",
        prefixkv_fields),
    stage_entry<PagedH2O>(
        "Drops whole pages that drew least attention, never the first tokens nor the newest.",
        paged_h2o_fields),
    stage_entry<Scissorhands>("Drops, many at once, the tokens that the newest queries passed over "
                              "most often.",
                              scissorhands_fields),
    stage_entry<Keyformer>("Keeps the newest tokens and those that drew most attention so far, "
                           "measured with noise and rising temperature.",
                           keyformer_fields),
    stage_entry<Alisa>("Keeps the newest tokens, and as many of the others: those that the newest queries of "
                       "all heads look at.",
                       alisa_fields),
    stage_entry<FastGen>("Looks at a prompt how each head attends, and lets it keep the least of five sets that "
                         "serves it.",
                         fastgen_fields),
    wrapper_entry<Caote, &Caote::policy>(Stage::evict,
                                         "Ranks tokens by how far the attention output moves without "
                                         "them, instead of by their attention alone.",
                                         caote_fields),
    wrapper_entry<Critical, &Critical::policy>(
        Stage::evict,
        "Fills half of the budget by attention, the rest by attention times the weight of what a value "
        "adds to the layer's output.",
        critical_fields, critical_aliases),
    wrapper_entry<KVCrush, &KVCrush::policy>(
        Stage::evict,
        "Spends a part of the budget on tokens that represent those a policy lets go, instead of on the next best ones.",
        kvcrush_fields),
    wrapper_entry<InChunks, &InChunks::policy>(
        Stage::evict, "Keeps or drops tokens in chunks of neighbours, by the policy's scores.",
        chunked_fields),
    wrapper_entry<PageRound, &PageRound::policy>(
        Stage::evict, "Keeps or drops whole pages of slots, by the sum of the policy's scores in each.",
        page_round_fields),
    wrapper_entry<Every, &Every::policy>(
        Stage::evict,
        "Condenses again whenever so many tokens were generated, and not in between.", every_fields),
    wrapper_entry<BlockPrefill, &BlockPrefill::policy>(
        Stage::evict, "Condenses a prompt already while its chunks come.", block_prefill_fields),
};

}  // namespace

std::span<const Entry> builtin_evict() { return entries; }

}  // namespace kvcondense::any::detail
