#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mixed_rows.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores the tokens that an eviction policy would keep in more bits than those it would drop, and drops none.
///
/// Idea     what looks unimportant now may be asked for later: a rough copy of it costs little and saves the answer.
/// Source   MiKV, arXiv:2402.18096; importance is accumulated attention, as in h2o.
/// Needs    what `Policy` needs: attention of every query row; and queries, for the balancer.
/// Shapes   of every `block` tokens of a head the ceil(important * block) with the highest scores are important. One group
///          per (token, kv head).
/// Cost     important * High + (1 - important) * Low + 32 / head_dim bits per number and one bit per token; 4 bytes per slot
///          for the sums; the exact window holds up to `block` - 1 tokens beside `keep_window`, and keys until there are `least`.
/// Numbers  keys are stored as k * b and queries read as q / b, b = sqrt(max |q| / max |k|) of a channel over the tokens that
///          are coded first, `least` of them or more, and the queries of that step; of fewer than `least` query rows the largest number
///          stands for every channel (the channel balancer). Scores as `Policy` says; NaN is not important; of equal scores the newer token is. Minimum form, half to even,
///          parameters in fp16.
/// Differs  importance is judged once, when a block leaves the exact window, and never again; the paper demotes one token
///          whenever a new one comes.
/// Errors   invalid_argument unless block is a power of two from 2 to 256 with block * head_dim <= 32768, 0 < important < 1
///          leaves both classes a token, and windows, sinks and least are not negative; incompatible with an eviction stage that
///          measures other query rows.
template <int High = 8, int Low = 2, class Policy = evict::H2O>
struct MiKV {
  static constexpr Descriptor about{"mikv", Stage::quant, "arXiv:2402.18096"};
  static constexpr Inputs needs = Policy::needs | Input::queries;

  double important = 0.2;
  index_t block = 64;
  bool balance = true;  ///< multiply keys by a factor per channel before they are coded
  index_t least = 32;   ///< rows that factors are found from: until there are as many keys, all stay exact
  index_t keep_window = 0;
  index_t sinks = 0;
  Policy policy{};

  constexpr auto key_codec() const {
    prim::ChannelScale scale{};
    if (balance) scale = {.rule = prim::ChannelScale::Rule::balance, .least_queries = least};
    return prim::Transformed{scale, value_codec()};
  }
  constexpr auto value_codec() const {
    return prim::MixedRows{prim::GroupInt<High>{}, prim::GroupInt<Low>{}, block, high_slots()};
  }
  constexpr Flush key_flush() const { return {block, keep_window, balance ? least : 0}; }
  constexpr Flush value_flush() const { return block_flush_keep(block, keep_window); }
  constexpr auto saliency() const { return policy.pipeline(); }

  Status validate(const CacheShape& shape) const {
    const bool ok = important > 0.0 && important < 1.0 && block >= 2 && block <= group_slots_divide && keep_window >= 0 && least >= 0 &&
                    codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr index_t high_slots() const { return prim::slots_of_part(important, block); }
};

}  // namespace kvcondense::quant
