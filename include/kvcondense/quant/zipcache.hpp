#pragma once

#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/probe_rows.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/channel_scale.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mixed_rows.hpp>
#include <kvcondense/quant/group_int.hpp>

namespace kvcondense::quant {

/// Stores the tokens that probe queries look at in more bits than the others.
///
/// Idea     attention sums favour old tokens, which more queries saw; the mean over the queries that saw a token does
///          not, and a tenth of all queries tells it well enough. Salient tokens get 4 bits, the others 2.
/// Source   ZipCache, arXiv:2405.14256.
/// Needs    the queries of every step.
/// Shapes   of every `block` tokens of a head the ceil(salient * block) with the highest scores are salient, for keys and
///          values alike. Keys: one group per channel over a class of a block; values: one group per token.
/// Cost     salient * High + (1 - salient) * Low bits per number, 32 / (tokens of a class) more for keys, 32 / head_dim
///          for values, one bit per token, 8 bytes per value channel; the exact window holds up to `block` - 1 tokens beside `keep_window`. Probes are
///          read when tokens are coded: two reads of all keys for every 32 query rows of a head.
/// Numbers  probes: the newest 5 % of the queries that are there and a random 5 % of the others; mean over the probes that
///          see a token, sum over the query group; float32. NaN is not salient; of equal scores the newer token is. Minimum
///          form, half to even, parameters in fp16.
///          Values are divided by sqrt(max |v|) of their channel, over the tokens that are coded first.
/// Differs  a block is classified once, when it leaves the window, and never again: the original decodes and codes the
///          whole cache anew every 100 tokens. The divisor is the probes that see a token, not all queries that do. A
///          group of a value is one head's.
/// Errors   invalid_argument unless block is a power of two from 2 to 256 with block * head_dim <= 32768, 0 < salient < 1
///          leaves both classes a token, 0 < newest <= 1, 0 <= random <= 1, history >= 1, and windows and sinks are not negative.
template <int High = 4, int Low = 2>
struct ZipCache {
  static constexpr Descriptor about{"zipcache", Stage::quant, "arXiv:2405.14256"};
  static constexpr Inputs needs = Input::queries;

  double salient = 0.6;
  index_t block = 64;
  double newest = 0.05;
  double random = 0.05;
  index_t history = 64;  ///< queries of earlier tokens that are kept as probes
  std::uint64_t seed = 1;
  bool scale_values = true;  ///< divide values by a factor per channel before they are coded
  index_t keep_window = 0;
  index_t sinks = 0;

  constexpr auto key_codec() const {
    return prim::MixedRows{keys<High>(high_slots()), keys<Low>(block - high_slots()), block, high_slots()};
  }
  constexpr auto value_codec() const {
    const prim::ChannelScale scale{scale_values ? prim::ChannelScale::Rule::root_max : prim::ChannelScale::Rule::none};
    return prim::Transformed{scale, prim::MixedRows{prim::GroupInt<High>{}, prim::GroupInt<Low>{}, block, high_slots()}};
  }
  constexpr Flush key_flush() const { return block_flush_keep(block, keep_window); }
  constexpr Flush value_flush() const { return block_flush_keep(block, keep_window); }
  constexpr auto saliency() const {
    return evict::Pipeline{evict::ProbeRows{newest, random, history, seed}, evict::NoPool{}, evict::NoProtect{},
                           evict::Unlimited{}, evict::TopK{}, evict::Never{}};
  }

  Status validate(const CacheShape& shape) const {
    const bool parts = salient > 0.0 && salient < 1.0 && newest > 0.0 && newest <= 1.0 && random >= 0.0 && random <= 1.0;
    const bool ok = parts && block >= 2 && block <= group_slots_divide && history >= 1 && keep_window >= 0 && codecs_fit(*this, shape);
    return ok ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr index_t high_slots() const { return prim::slots_of_part(salient, block); }
  template <int Bits>
  static constexpr prim::GroupInt<Bits> keys(index_t slots) {
    return {.axis = prim::GroupAxis::channel, .group_size = slots};
  }
};

}  // namespace kvcondense::quant
