#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/prim/page_codec.hpp>

// Attention that multiplies codes as they are stored, in lanes: value = mid + scale * (code - middle), so that rounding the
// multiplier, which is a query times scales or a weight times a scale, costs in proportion to the range, not to the offset.

namespace kvcondense::prim::cpu {

inline constexpr index_t pair_outputs = 32, run_outputs = 64;  ///< slots or channels of a pair, and of one CodeRun
inline constexpr index_t most_code_groups = 8;

/// What attention over codes takes from their codec and from the shape of their pages: made once for all pieces of a call.
template <int Bits>
struct CodePlan {
  static constexpr float middle = 0.5f * static_cast<float>((1 << Bits) - 1);

  GroupInt<Bits> codec;
  index_t dim, scales;             ///< scales of a group of slots
  index_t group;                   ///< slots or channels that share a scale
  index_t params_at, param_bytes;  ///< where parameters begin in a page; one of them
  index_t slot_params;             ///< bytes of one of the scales of every slot
  index_t to_offsets;              ///< bytes from scales to their offsets
  bool offsets;
  DType params;
  MidRule rule;
  const CodeOps* scoring = nullptr;  ///< what multiplies codes as they are stored; null: they are unpacked into floats
  const CodeOps* summing = nullptr;

  CodePlan(const GroupInt<Bits>& of, index_t slots, index_t width)
      : codec(of), dim(width), scales(of.scales(width)), group(of.axis == GroupAxis::channel ? of.group_slots() : of.group_channels(width)),
        params_at(of.params_at(slots, width)), param_bytes(size_of(of.params)), slot_params(slots * param_bytes),
        to_offsets(scales * (of.axis == GroupAxis::channel ? param_bytes : slot_params)), offsets(has_offset(of.form)),
        params(number_type(of.params)) {
    with_form(of.form, [&]<GroupForm Form>() {
      rule = {middle + base_of<Bits, Form>(1.0f, 0.0f), Form == GroupForm::minimum ? 1.0f : 0.0f,
              has_offset(Form) && Form != GroupForm::minimum ? -1.0f : 0.0f};
    });
    const CodeLayout layout = of.layout_of(slots, width);
    if (layout == CodeLayout::rows) return;
    const CodeOps* ops = of.math == CodeMath::int8 ? &byte_code_ops() : code_ops();
    if (layout == CodeLayout::slot_lanes && can_score()) scoring = ops;
    if (layout == CodeLayout::channel_lanes && can_sum(slots)) summing = ops;
  }

  int multiplier_bytes() const { return codec.math == CodeMath::int8 ? 1 : 2; }

 private:
  bool can_score() const {
    if (codec.axis == GroupAxis::channel) return group % pair_outputs == 0;
    return group % 4 == 0 && scales <= most_code_groups;
  }
  bool can_sum(index_t slots) const {
    if (slots > max_head_dim) return false;  // planes of FoldedRows have room for as many
    return group % (codec.axis == GroupAxis::channel ? 4 : pair_outputs) == 0;
  }
};

/// Attention over pieces of pages of one shape, in turns: a piece, two groups of it, four rows. The multipliers of a turn are multiplied out
/// before the sums of the turn before it and rounded behind them, so that nothing waits for their largest.
template <int Bits>
struct CodeAttention {
  static constexpr float middle = CodePlan<Bits>::middle;

  const CodePlan<Bits>& plan;
  const CodeOps& ops;
  const index_t dim = plan.dim, group = plan.group;
  alignas(64) float scale[2 * max_head_dim];  ///< of up to two groups
  alignas(64) float mid[2 * max_head_dim];
  UnroundedRows products;
  FoldedRows folded[2][2];  ///< of this turn and of the one before

  CodeAttention(const CodePlan<Bits>& by, const CodeOps& code_ops) : plan(by), ops(code_ops) {}

  void scores(std::span<const PagePiece> pieces, const RowBlock<const float>& queries, const RowBlock<float>& out) {
    if (by_channel()) return scores_by_channel(pieces, queries, out);
    for (index_t r = 0; r < queries.rows; r += FoldedRows::most) scores_by_token(pieces, four(queries, r), four(out, r));
  }

  void accumulate(std::span<const PagePiece> pieces, const RowBlock<const float>& weights, const RowBlock<float>& out) {
    alignas(64) float padded[FoldedRows::most * max_slots];
    for (const PagePiece& piece : pieces) {
      // Whole blocks of four slots: those that were not asked for have weight 0.
      const index_t start = piece.first / 4 * 4, n = (piece.first + piece.count + 3) / 4 * 4 - start;
      for (index_t r = 0; r < weights.rows; r += FoldedRows::most) {
        RowBlock<const float> w = four(weights, r);
        w.data += piece.at;
        if (n != piece.count) {
          for (index_t i = 0; i < w.rows; ++i) {
            float* row = padded + i * max_slots;
            std::fill_n(row, n, 0.0f);
            std::copy_n(w.data + i * w.step, piece.count, row + piece.first - start);
          }
          w = {padded, w.rows, max_slots};
        }
        if (by_channel()) sum_by_channel(piece.page, start, n, w, four(out, r));
        else sum_by_token(piece.page, start, n, w, four(out, r));
      }
    }
    if (turns_ > 0) sum_turn();
  }

 private:
  static constexpr index_t max_slots = max_head_dim;  ///< of a page, as of the planes of FoldedRows

  /// What is left to do of a turn whose multipliers are known.
  struct Turn {
    const PageSpan* page;
    index_t first, count;  ///< slots
    index_t begin, groups;  ///< the first slot or channel of its groups, and how many
    RowBlock<float> out;
  };

  bool by_channel() const { return plan.codec.axis == GroupAxis::channel; }
  template <class T>
  static RowBlock<T> four(const RowBlock<T>& x, index_t r) {
    return {x.data + r * x.step, std::min(FoldedRows::most, x.rows - r), x.step};
  }
  static const std::byte* next(const PageSpan& page, const std::byte* at) { return page.next == nullptr ? nullptr : page.next + (at - page.data); }
  /// Asks for parameters of the next page. Inlined, since g++ 12 takes a function that only asks for one without effect, and drops the call.
  [[gnu::always_inline]] static void ask_for(const PageSpan& page, const std::byte* at, index_t bytes) {
    if (const std::byte* p = next(page, at); p != nullptr)
      for (index_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
  }

  /// scale[i] and the number in the middle of its range, of n parameters that lie one behind the other.
  void read(const std::byte* scales, const std::byte* offsets, index_t n, float* s, float* m) const {
    ops.read(plan.params, scales, plan.offsets ? offsets : nullptr, n, plan.rule, s, m);
  }
  /// Of a group of slots.
  void read_channels(const PageSpan& page, index_t of, index_t which = 0) {
    const index_t bytes = plan.offsets ? 2 * plan.to_offsets : plan.to_offsets;
    const std::byte* at = page.data + plan.params_at + of * bytes;
    ask_for(page, at, bytes);
    read(at, at + plan.to_offsets, dim, scale + which * max_head_dim, mid + which * max_head_dim);
  }
  /// Of the j-th group of channels, of n slots.
  void read_slots(const PageSpan& page, index_t j, index_t slot, index_t n, float* s, float* m) const {
    const std::byte* at = page.data + plan.params_at + j * plan.slot_params + slot * plan.param_bytes;
    const std::byte* offsets = at + plan.to_offsets;
    ask_for(page, at, n * plan.param_bytes);
    if (plan.offsets) ask_for(page, offsets, n * plan.param_bytes);
    read(at, offsets, n, s, m);
  }

  /// A run that begins with this slot.
  CodeRun slot_run(const PageSpan& page, index_t slot) const {
    const CodeLanes<Bits> codes{page.data, CodeLayout::slot_lanes, dim};
    CodeRun run;
    run.first = codes.block(slot, 0);
    run.second = codes.block(slot + 16, 0) - run.first;
    run.steps = dim / 4;
    run.pairs = 2, run.other = codes.block(slot + pair_outputs, 0) - run.first;
    run.next = next(page, run.first);
    return run;
  }
  /// Of up to `channels` channels: of what will be read later it asks for a share, like one that has been read up to here.
  CodeRun channel_run(const PageSpan& page, index_t slot, index_t slots, index_t channel, index_t channels) const {
    const CodeLanes<Bits> codes{page.data, CodeLayout::channel_lanes, dim};
    CodeRun run;
    run.first = codes.block(slot, channel);
    run.second = codes.block(slot, channel + 16) - run.first;
    run.step = codes.block(slot + 4, channel) - run.first;
    run.steps = slots / 4;
    if (channels > pair_outputs) run.pairs = 2, run.other = codes.block(slot, channel + pair_outputs) - run.first;
    run.next = next(page, codes.block(slot, 0) + channel * slots * Bits / 8);
    return run;
  }

  /// Multipliers of n numbers and of the groups whose parameters were read, at once.
  void fold(const RowBlock<const float>& x, const float* s, const float* m, index_t n, FoldedRows* to) {
    ops.multiply(plan.multiplier_bytes(), x, 1, s, m, n, products, to);
    ops.round(products, x.rows, 1, n, middle, to);
  }
  /// The same of a turn, around what `finish` does for the one before.
  template <class Finish>
  void take_turn(const Turn& turn, const RowBlock<const float>& x, index_t n, Finish&& finish) {
    FoldedRows* to = folded[turns_ % 2];
    ops.multiply(plan.multiplier_bytes(), x, turn.groups, scale, mid, n, products, to);
    if (turns_ > 0) finish();
    ops.round(products, x.rows, turn.groups, n, middle, to);
    turn_ = turn, ++turns_;
  }
  /// Of the groups of the last turn: what was folded for the slot or channel `at`.
  const FoldedRows& folded_at(index_t at) const { return folded[(turns_ - 1) % 2][turn_.groups == 2 && at >= turn_.begin + group]; }

  /// Calls make(slot, row block) for whole blocks of outputs, and copies what of them was asked for.
  template <class Make>
  void by_blocks(index_t first, index_t count, const RowBlock<float>& out, Make&& make) const {
    alignas(64) float part[FoldedRows::most * run_outputs];
    for (index_t slot = first / run_outputs * run_outputs; slot < first + count; slot += run_outputs) {
      const index_t begin = std::max(slot, first), end = std::min(slot + run_outputs, first + count);
      if (end - begin == run_outputs) {
        make(slot, RowBlock<float>{out.data + slot - first, out.rows, out.step});
        continue;
      }
      make(slot, RowBlock<float>{part, out.rows, run_outputs});
      for (index_t r = 0; r < out.rows; ++r)
        std::copy(part + r * run_outputs + begin - slot, part + r * run_outputs + end - slot, out.data + r * out.step + begin - first);
    }
  }

  void score_turn() const {
    by_blocks(turn_.first, turn_.count, turn_.out, [&](index_t slot, const RowBlock<float>& part) {
      ops.dot(Bits, slot_run(*turn_.page, slot), folded_at(slot), folded_at(slot + pair_outputs), part);
    });
  }

  void scores_by_channel(std::span<const PagePiece> pieces, const RowBlock<const float>& queries, const RowBlock<float>& out) {
    for (const PagePiece& piece : pieces) {
      const index_t first = piece.first, end = first + piece.count;
      index_t of = first == 0 ? 0 : first / group;  // nothing else can begin before a division has ended
      if (group < run_outputs) of = of / 2 * 2;     // outputs of a run have both
      for (index_t begin = of * group; begin < end; begin += 2 * group, of += 2) {
        const index_t groups = begin + group < end || group < run_outputs ? 2 : 1;
        for (index_t k = 0; k < groups; ++k) read_channels(piece.page, of + k, k);
        const index_t from = std::max(first, begin), to = std::min(end, begin + 2 * group);
        for (index_t r = 0; r < queries.rows; r += FoldedRows::most) {
          RowBlock<float> part = four(out, r);
          part.data += piece.at + from - first;
          take_turn({&piece.page, from, to - from, begin, groups, part}, four(queries, r), dim, [&] { score_turn(); });
        }
      }
    }
    if (turns_ > 0) score_turn();
  }

  void scores_by_token(std::span<const PagePiece> pieces, const RowBlock<const float>& q, const RowBlock<float>& out) {
    const index_t groups = plan.scales;
    FoldedRows each[most_code_groups];
    float sums[most_code_groups][FoldedRows::most];
    for (index_t j = 0; j < groups; ++j) {
      const RowBlock<const float> part{q.data + j * group, q.rows, q.step};
      fold(part, nullptr, nullptr, group, &each[j]);
      for (index_t r = 0; r < q.rows; ++r) {
        sums[j][r] = 0.0f;
        for (index_t c = 0; c < group; ++c) sums[j][r] += part.data[r * part.step + c];
      }
    }
    alignas(64) float codes[FoldedRows::most * run_outputs];
    for (const PagePiece& piece : pieces)
      by_blocks(piece.first, piece.count, {out.data + piece.at, out.rows, out.step}, [&](index_t slot, const RowBlock<float>& to) {
        CodeRun run = slot_run(piece.page, slot);
        run.steps = group / 4;
        for (index_t r = 0; r < q.rows; ++r) std::fill_n(to.data + r * to.step, run_outputs, 0.0f);
        for (index_t j = 0; j < groups; ++j, run.first += run.steps * run.step) {
          if (run.next != nullptr && j > 0) run.next += run_outputs * group * Bits / 8;
          ops.dot(Bits, run, each[j], each[j], {codes, q.rows, run_outputs});
          read_slots(piece.page, j, slot, run_outputs, scale, mid);
          ops.scale_add(codes, run_outputs, scale, mid, sums[j], to);
        }
      });
  }

  void sum_turn() const {
    const index_t begin = turn_.begin, end = std::min(dim, begin + 2 * group);
    for (index_t c = begin; c < end; c += run_outputs)
      ops.dot_add(Bits, channel_run(*turn_.page, turn_.first, turn_.count, c, end - c), folded_at(c), folded_at(c + pair_outputs),
                  {turn_.out.data + c, turn_.out.rows, turn_.out.step});
  }

  void sum_by_token(const PageSpan& page, index_t start, index_t n, const RowBlock<const float>& w, const RowBlock<float>& out) {
    for (index_t j = 0; j * group < dim; j += 2) {
      const index_t groups = (j + 1) * group < dim ? 2 : 1;
      for (index_t k = 0; k < groups; ++k) read_slots(page, j + k, start, n, scale + k * max_head_dim, mid + k * max_head_dim);
      take_turn({&page, start, n, j * group, groups, out}, w, n, [&] { sum_turn(); });
    }
  }

  void sum_by_channel(const PageSpan& page, index_t start, index_t n, const RowBlock<const float>& w, const RowBlock<float>& out) {
    alignas(64) float codes[FoldedRows::most * run_outputs];
    float sums[FoldedRows::most];
    FoldedRows& by = folded[0][0];
    for (index_t at = start; at < start + n;) {
      const index_t of = at / group, end = std::min(of * group + group, start + n), some = end - at;
      const RowBlock<const float> part{w.data + at - start, w.rows, w.step};
      read_channels(page, of);
      fold(part, nullptr, nullptr, some, &by);
      for (index_t r = 0; r < w.rows; ++r) {
        sums[r] = 0.0f;
        for (index_t i = 0; i < some; ++i) sums[r] += part.data[r * part.step + i];
      }
      for (index_t c = 0; c < dim; c += run_outputs) {
        const index_t outputs = std::min(run_outputs, dim - c);
        ops.dot(Bits, channel_run(page, at, some, c, outputs), by, by, {codes, w.rows, outputs});
        ops.scale_add(codes, outputs, scale + c, mid + c, sums, {out.data + c, w.rows, out.step});
      }
      at = end;
    }
  }

  Turn turn_{};
  index_t turns_ = 0;
};

}  // namespace kvcondense::prim::cpu
