#include <kvcondense/any/tools.hpp>

#include <kvcondense/cost/deployment.hpp>
#include <kvcondense/cost/flexgen.hpp>
#include <kvcondense/cost/io_bound.hpp>
#include <kvcondense/cost/kinetics_law.hpp>
#include <kvcondense/cost/roofline.hpp>
#include <kvcondense/lowrank/kv_heads_svd.hpp>
#include <kvcondense/retrieve/prefill_mask.hpp>
#include <kvcondense/reuse/cache_craft.hpp>
#include <kvcondense/reuse/cacheblend.hpp>
#include <kvcondense/reuse/longmem.hpp>
#include <kvcondense/reuse/pie.hpp>
#include <kvcondense/reuse/prefix_groups.hpp>
#include <kvcondense/reuse/prefix_index.hpp>
#include <kvcondense/reuse/radix_tree.hpp>
#include <kvcondense/storage/alisa_placement.hpp>
#include <kvcondense/storage/flash_window.hpp>
#include <kvcondense/storage/page_replacement.hpp>
#include <kvcondense/storage/paged_view.hpp>
#include <kvcondense/storage/partial_attention.hpp>
#include <kvcondense/storage/row_pool.hpp>
#include <kvcondense/storage/storage_pages.hpp>
#include <kvcondense/storage/swap_plan.hpp>
#include <kvcondense/storage/two_tier.hpp>
#include <kvcondense/storage/virtual_arena.hpp>

namespace kvcondense::any {

namespace {

constexpr std::string_view on_both = "cpu, cuda";

constexpr Tool all[] = {
    tool<retrieve::PrefillMask>("Says which keys each query of a prompt sees, for engines whose prefill skips the others.", on_both),
    tool<lowrank::KvHeadsSvd>("Turns the KV heads of a model into fewer, so that any cache of the smaller shape serves it.", on_both),
    tool<reuse::Pie>("Edits a text that is already in a cache: what stays is turned to its new positions, only what is new is computed.", on_both),
    tool<reuse::CacheBlend>("Chooses which tokens of reused chunks are computed again, so that chunks see what stands before them.", on_both),
    tool<reuse::CacheCraft>("Tells how much of a stored chunk must be computed again behind a new prefix, and which of its tokens."),
    tool<reuse::LongMem<Cpu>>("Remembers keys and values of long ago in chunks, and mixes attention to the best of them into local attention.", on_both),
    tool<reuse::PrefixIndex>("Finds the stored blocks that a new sequence begins with."),
    tool<reuse::RadixTree>("Keeps prefixes as a tree whose edges are runs of tokens, and finds the longest one to the token."),
    tool<reuse::PrefixGroups>("Splits a batch that is known ahead into groups that share one prefix each, so that most tokens are computed once."),
    tool<storage::PagedView>("Reads and condenses a sequence where an engine stores it: in pages of the engine's own pool."),
    tool<storage::VirtualArena>("Reserves addresses for the longest sequence and maps memory only behind what is used."),
    tool<storage::RowPool>("Gives rows of one pool to whatever comes in rows of that size: keys and values of tokens, adapters."),
    tool<storage::SwapPlan>("Moves a sequence's pages between two memories in as few copies as their places allow."),
    tool<storage::TwoTier>("Keeps copies of the pages that attention read lately in a small fast memory; all pages lie in a large slow one."),
    tool<storage::StoragePages>("Gathers chosen rows from a medium that reads whole pages only, each page once."),
    tool<storage::PageReplacement>("Chooses which pages stay in a small fast memory, with or without a one-bit prediction per request."),
    tool<storage::PartialAttention>("Splits a sequence's cache over machines and says what each sends so that attention is that of one."),
    tool<storage::FlashWindow>("Keeps in fast memory what the last few steps used, and loads only what is new."),
    tool<storage::AlisaPlacement>("Plans where the tokens of a sparse window lie while an answer grows: on the device, on the host, or nowhere until they are needed."),
    tool<cost::Deployment>("Tells users per device, prefill, decode and switching times of a model with long contexts."),
    tool<cost::Roofline>("Tells whether arithmetic or memory limits each operation of a layer, and its least time."),
    tool<cost::IoBound>("Tells how many numbers any exact attention must move between memory and chip."),
    tool<cost::FlexGen>("Tells how fast a model runs whose weights, cache and activations are spread over device, host and disk."),
    tool<cost::KineticsLaw>("Tells what long answers cost in arithmetic and in memory traffic together, dense and with few slots."),
};

}  // namespace

std::span<const Tool> tools() { return all; }

const Tool* find_tool(std::string_view word) {
  for (const Tool& t : all)
    if (t.word == word) return &t;
  return nullptr;
}

}  // namespace kvcondense::any
