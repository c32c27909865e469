#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/row_deviation.hpp>

namespace kvcondense::reuse {

/// Which rows tell that a token changed.
enum class Deviation : std::uint8_t { both, keys, values };

/// Chooses which tokens of reused chunks are computed again, so that chunks see what stands before them.
///
/// Idea     chunks whose keys and values were made alone know nothing of each other; few tokens change much when
///          they do, and those of one layer are mostly those of the next. Compute the first layers for all, compare,
///          and from there on only the tokens that moved most, with every query at its own position.
/// Source   CacheBlend, arXiv:2405.16444: 15 % of the tokens, chosen at the second layer.
/// Needs    reused keys and values turned to their new positions, and new ones of the layer that is compared.
/// Shapes   keys and values [kv_heads, tokens, dim]; the last `suffix` tokens (the question) are always computed.
/// Cost     layers up to `check_layer` for all tokens, the others for part of them; one pass to compare, behind which the host, which
///          chooses, waits for a backend whose words are not done when they return.
/// Numbers  deviation: sum over heads and channels of the squared differences, float32. NaN counts as largest: such a
///          row is no good. Ties take the earlier token. With `first_ratio` above `ratio` the set shrinks over
///          `settle_layers` layers, each choosing among those before it.
/// Differs  the authors' code compares values only, which finds nothing where only keys depend on what came before;
///          its mask lets a query see later tokens. `values` and explicit positions give its choice without that.
/// Errors   shape_mismatch, workspace_too_small, not_supported where words do not run on the host and the scratch has no part that it
///          writes; validate: invalid_argument for ratios outside 0 to 1 or below.
struct CacheBlend {
  static constexpr Descriptor about{"cacheblend", Stage::reuse, "arXiv:2405.16444"};

  double ratio = 0.15;
  index_t check_layer = 1;
  Deviation deviation = Deviation::both;
  double first_ratio = 0.0;   ///< at check_layer; 0: `ratio` at once
  index_t settle_layers = 0;  ///< layers after check_layer until it has come down to `ratio`

  Status validate() const {
    const bool parts = ratio >= 0.0 && ratio <= 1.0 && first_ratio >= 0.0 && first_ratio <= 1.0;
    const bool down = first_ratio == 0.0 ? settle_layers == 0 : first_ratio >= ratio;
    return parts && down && check_layer >= 0 && settle_layers >= 0 ? Status::ok : Status::invalid_argument;
  }

  /// Part of the reused tokens that is computed behind `layer`.
  double ratio_behind(index_t layer) const {
    if (layer < check_layer) return 1.0;
    const index_t step = layer - check_layer;
    if (first_ratio == 0.0 || step >= settle_layers) return ratio;
    return first_ratio + (ratio - first_ratio) * static_cast<double>(step) / static_cast<double>(settle_layers);
  }
  /// Whether a layer compares what it computed.
  bool compares(index_t layer) const { return layer >= check_layer && layer <= check_layer + settle_layers; }

  /// Of scratch that the host reads too: beside a device the steering part of a `Scratch`, page-locked.
  static std::size_t workspace_bytes(index_t tokens) { return Scratch::bytes_for<float>(tokens); }

  /// Which tokens go on behind `layer`. `tokens` (ascending, of `total`) were computed in it: rows of new and old
  /// keys and values are theirs. The chosen ones move to the front of `tokens`, ascending; returns how many in `count`.
  template <Backend B>
  Status choose(Context<B>& ctx, index_t layer, index_t total, index_t suffix, const KvView<const float>& fresh,
                const KvView<const float>& reused, std::span<index_t> tokens, index_t& count, Scratch scratch) const {
    const auto n = static_cast<index_t>(tokens.size());
    if (fresh.keys.extent[1] != n || fresh.values.extent[1] != n) return Status::shape_mismatch;
    if (!std::same_as<B, Cpu> && !scratch.apart()) return Status::not_supported;
    float* moved = scratch.take_steering<float>(n);
    if (moved == nullptr) return Status::workspace_too_small;
    std::fill_n(moved, n, 0.0f);
    Status s = Status::ok;
    if (deviation != Deviation::values) s = prim::RowDeviation<B>::run(ctx, fresh.keys, reused.keys, moved);
    if (s == Status::ok && deviation != Deviation::keys) s = prim::RowDeviation<B>::run(ctx, fresh.values, reused.values, moved);
    const Status done = ctx.wait();
    if (s == Status::ok) s = done;
    if (s != Status::ok) return s;
    count = choose(layer, total, suffix, tokens, {moved, static_cast<std::size_t>(n)});
    return Status::ok;
  }

  /// The same from deviations that are known; they are overwritten.
  index_t choose(index_t layer, index_t total, index_t suffix, std::span<index_t> tokens, std::span<float> moved) const {
    const auto wanted = static_cast<index_t>(static_cast<double>(std::max<index_t>(0, total - suffix)) * ratio_behind(layer) + 1e-9);
    for (float& x : moved) x = x != x ? std::numeric_limits<float>::infinity() : x;
    // The value that the last chosen one has, found by cutting what is left in two: no second array, no sort.
    index_t candidates = 0;
    for (const index_t t : tokens) candidates += t < total - suffix ? 1 : 0;
    float cut = -1.0f;
    index_t ties = 0;  // of those that have exactly `cut`
    if (wanted < candidates) {
      std::uint32_t bits = 0;
      for (int b = 30; b >= 0; --b) {  // deviations are not negative: their bits are in order
        const std::uint32_t higher = bits | (1u << b);
        index_t above = 0;
        for (std::size_t i = 0; i < tokens.size(); ++i) above += tokens[i] < total - suffix && as_bits(moved[i]) >= higher ? 1 : 0;
        if (above >= wanted) bits = higher;
      }
      index_t above = 0;
      for (std::size_t i = 0; i < tokens.size(); ++i) above += tokens[i] < total - suffix && as_bits(moved[i]) > bits ? 1 : 0;
      cut = from_bits(bits);
      ties = wanted - above;
    }
    index_t out = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const bool question = tokens[i] >= total - suffix;
      const bool tie = !question && moved[i] == cut && ties > 0;
      if (!question && !tie && !(moved[i] > cut)) continue;
      ties -= tie ? 1 : 0;
      tokens[static_cast<std::size_t>(out++)] = tokens[i];
    }
    return out;
  }

 private:
  static std::uint32_t as_bits(float x) { return std::bit_cast<std::uint32_t>(x); }
  static float from_bits(std::uint32_t x) { return std::bit_cast<float>(x); }
};

/// Seconds per layer and what they say about the part to compute again (CacheBlend's controller): as much as hides
/// behind loading, `least` at the very least.
inline double blend_ratio(double recompute_all_seconds, double load_seconds, double least = 0.15) {
  return std::clamp(std::fmax(least, load_seconds / recompute_all_seconds), 0.0, 1.0);
}

/// A place to keep chunks.
struct ChunkStore {
  double price = 0;             ///< per byte, in any unit
  double bytes_per_second = 1;
};

/// The cheapest store whose loading hides behind computing a part `ratio` again; -1: none does.
inline index_t cheapest_store(std::span<const ChunkStore> stores, double chunk_bytes, double recompute_all_seconds, double ratio = 0.15) {
  index_t best = -1;
  for (std::size_t i = 0; i < stores.size(); ++i)
    if (chunk_bytes / stores[i].bytes_per_second <= ratio * recompute_all_seconds &&
        (best < 0 || stores[i].price < stores[static_cast<std::size_t>(best)].price))
      best = static_cast<index_t>(i);
  return best;
}

}  // namespace kvcondense::reuse
