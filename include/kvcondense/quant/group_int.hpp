#pragma once

#include <algorithm>

#include <kvcondense/core/codec_of.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/group_quant.hpp>

namespace kvcondense::quant {

/// A page of any cache can hold whole groups of this many slots.
inline constexpr index_t group_slots_divide = 256;

/// Can `codec` store rows of `dim` numbers, in pages, with this flush rule?
template <class Codec>
constexpr bool group_codec_fits(const Codec& codec, index_t dim, const Flush& flush, index_t sinks) {
  if (!codec.valid(dim)) return false;
  const index_t slots = codec.group_slots();
  if (group_slots_divide % slots != 0 || flush.block < 0 || flush.block % slots != 0) return false;
  constexpr index_t sane = index_t{1} << 30;
  return flush.block <= sane && flush.keep >= 0 && flush.keep <= sane && sinks >= 0 && sinks <= sane;
}

/// Can the codecs of a stage store what this cache holds, with its flush rules, in every head?
template <class Stage>
constexpr bool codecs_fit(const Stage& s, const CacheShape& shape) {
  const bool each = differs_per_head(s);
  for (index_t layer = 0; layer < (each ? shape.layers : 1); ++layer)
    for (index_t head = 0; head < (each ? shape.kv_heads : 1); ++head) {
      const HeadIndex at{layer, head};
      if (!group_codec_fits(key_codec_of(s, shape, at), shape.head_dim, key_flush_of(s, shape, at), s.sinks) ||
          !group_codec_fits(value_codec_of(s, shape, at), shape.values(), value_flush_of(s, shape, at), s.sinks))
        return false;
    }
  return true;
}

/// Stores keys and values as integer codes with a scale and an offset per group.
///
/// Idea     Numbers that share a range need few bits each; the group decides what shares one.
/// Source   the group quantizers of the field in one form: KIVI, FlexGen, QuaRot, Atom, QServe, LMDeploy.
/// Needs    keys and values only.
/// Shapes   token axis: `group_size` consecutive channels of a slot (0: the whole row);
///          channel axis: `group_size` consecutive slots of a channel.
/// Cost     Bits + (scale and offset bits) / group size per number, plus the exact window. On the token
///          axis slots are coded one by one once they leave the window (window 0: at once); on the
///          channel axis in blocks of max(group_size, residual_window), the newest `keep_window` exact. With
///          `whole_window` a prompt is coded at once and the window whenever it is full, as Hugging Face's quantized cache does.
/// Numbers  codes from the stored parameters; error at most half a step, a whole one for integer_zero;
///          NaN is coded as 0, infinities as the end of their group's range, both counted. On the CPU `math=int8` rounds queries and
///          weights to a byte where they meet codes in lanes: of normal rows outputs are within 3e-2 of what the codes
///          stand for (6e-2 where logits spread by 6), in place of 4e-4.
/// Differs  Hugging Face's cache codes everything anew in every flush. Groups of a slot's own channels come out as they were, but for
///          rounding of parameters that are far from 0, so here they are coded once.
/// Errors   invalid_argument when a group does not divide its row, block or page; whole windows of no slot, on the channel axis, or
///          beside keep_window.
template <int Bits>
struct GroupInt {
  static constexpr Descriptor about{"group_int", Stage::quant, "arXiv:2303.06865"};

  prim::GroupAxis key_axis = prim::GroupAxis::token;
  prim::GroupAxis value_axis = prim::GroupAxis::token;
  index_t group_size = 32;
  index_t residual_window = 0;
  index_t keep_window = 0;
  prim::GroupForm form = prim::GroupForm::minimum;
  prim::ParamType params = prim::ParamType::f16;
  prim::Rounding rounding = prim::Rounding::half_even;
  index_t sinks = 0;  ///< slots at the start that stay exact
  bool whole_window = false;  ///< token axis: a prompt is coded at once, then the window whenever it is full
  prim::CodeMath math = prim::CodeMath::int16;  ///< what codes are multiplied with, on the CPU

  constexpr prim::GroupInt<Bits> key_codec() const { return codec(key_axis).for_scores(); }
  constexpr prim::GroupInt<Bits> value_codec() const { return codec(value_axis).for_sums(); }
  constexpr Flush key_flush() const { return flush(key_axis); }
  constexpr Flush value_flush() const { return flush(value_axis); }

  constexpr Status validate(const CacheShape& shape) const {
    const bool tokens = key_axis == prim::GroupAxis::token && value_axis == prim::GroupAxis::token;
    const bool ok = codecs_fit(*this, shape) && (!whole_window || (tokens && residual_window > 0 && keep_window == 0));
    return ok && residual_window >= 0 && keep_window >= 0 ? Status::ok : Status::invalid_argument;
  }

 private:
  constexpr prim::GroupInt<Bits> codec(prim::GroupAxis axis) const {
    return {.axis = axis, .group_size = group_size, .form = form, .params = params, .rounding = rounding, .math = math};
  }
  constexpr Flush flush(prim::GroupAxis axis) const {
    if (whole_window) return whole_flush(residual_window);
    return axis == prim::GroupAxis::token ? fifo_flush(std::max(residual_window, keep_window))
                                          : block_flush_keep(std::max(group_size, residual_window), keep_window);
  }
};

}  // namespace kvcondense::quant
