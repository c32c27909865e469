#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/channel_list.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::lowrank {

/// Drops the key channels that queries care least about; values stay whole.
///
/// Idea     a channel adds q_c k_c to every score; those whose energies in queries and keys are both small change
///          little, and which ones they are is known when the prompt is over.
/// Source   ThinK, arXiv:2407.21018.
/// Needs    queries of every step: the newest `observe` of the step in which the first slots leave the exact window.
/// Shapes   per layer and KV head one list of channels; keys [slots, kept channels].
/// Cost     2 * head_dim additions per slot of the prompt, once; a gather per new slot and query row.
/// Numbers  channels are ranked by |q_c|^2 |k_c|^2, energies summed over the query group and over the slots that are about
///          to be coded; floor(ratio * head_dim) leave, ties keep the smaller channel. Logits keep the scale of the whole
///          head. The newest `recent` slots keep all channels. `pairs`: the two channels of a rotation leave together.
/// Differs  one list per KV head, not per query head; energies leave out the recent slots, which are not pruned.
/// Errors   incompatible with a position stage that stores raw keys unless `pairs`; invalid_argument unless
///          0 <= ratio < 1 and the others are not negative, and with `pairs` where the rope turns only part of a head.
struct Think {
  static constexpr Descriptor about{"think", Stage::lowrank, "arXiv:2407.21018"};
  static constexpr Inputs needs = Input::queries;

  double ratio = 0.4;    ///< part of the channels that leaves
  index_t observe = 32;  ///< newest queries that are looked at; 0: all of the step
  index_t recent = 32;   ///< newest slots that keep all channels
  index_t least = 32;    ///< slots that channels are chosen by, at least
  index_t sinks = 0;
  bool pairs = false;
  prim::RopeConfig rope{};  ///< says which channels are a pair

  prim::ChannelList key_transform(const CacheShape& shape, HeadIndex) const {
    const index_t units = pairs ? shape.head_dim / 2 : shape.head_dim;
    const index_t kept = units - static_cast<index_t>(ratio * static_cast<double>(units) + 1e-9);
    return {static_cast<std::int32_t>(pairs ? 2 * kept : kept), static_cast<std::int32_t>(observe), pairs,
            rope.pairing == prim::RopePairing::interleaved};
  }
  constexpr prim::NoTransform value_transform(const CacheShape&, HeadIndex) const { return {}; }
  constexpr Flush key_flush() const { return {1, recent, least}; }
  constexpr Flush value_flush() const { return {0, 0}; }
  constexpr bool differs_per_head() const { return false; }
  constexpr bool takes_keys(bool raw) const { return !raw || pairs; }

  Status validate(const CacheShape& shape) const {
    const bool good = ratio >= 0.0 && ratio < 1.0 && observe >= 0 && observe <= 1 << 20 && recent >= 0 && least >= 0 && sinks >= 0;
    const bool whole = !pairs || rope.rotary_dim == 0 || rope.rotary_dim == shape.head_dim;
    return good && whole ? Status::ok : Status::invalid_argument;
  }
};

}  // namespace kvcondense::lowrank
