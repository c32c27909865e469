#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/cost/model.hpp>

namespace kvcondense::cost {

/// FLOP and bytes of generated answers, and both in one number.
struct GenerationCost {
  double flops = 0;
  double bytes = 0;
  double equivalent = 0;  ///< flops + bytes * FLOP per byte
};

/// Tells what long answers cost in arithmetic and in memory traffic together, dense and with few slots.
///
/// Idea     a byte that moves costs as much as the arithmetic that the device could have done meanwhile; then
///          long generations are paid by attention, not by parameters, and few slots change the law.
/// Source   Kinetics, arXiv:2506.05333.
/// Needs    parameters, heads, lengths of prompt and answer, answers per prompt.
/// Shapes   scalars.
/// Cost     a few operations.
/// Numbers  double. 562.5 FLOP per byte unless said otherwise. Weights count as arithmetic only: a large batch
///          shares their traffic. Answers of one prompt share its cache when dense.
/// Differs  one function of the authors' code adds half the unfilled budget instead of taking it off; here it
///          is taken off everywhere, as in their other one.
/// Errors   validate: invalid_argument unless all numbers are positive (the prompt may be empty).
struct KineticsLaw {
  static constexpr Descriptor about{"kinetics_law", Stage::cost, "arXiv:2506.05333"};

  double parameters = 0;
  index_t layers = 0;
  index_t q_heads = 0;
  index_t kv_heads = 0;
  index_t head_dim = 0;
  double prompt = 0;
  double generated = 0;
  double answers = 1;
  double flop_per_byte = 562.5;

  /// Every step attends all slots.
  GenerationCost dense() const {
    const double t = generated, c = prompt;
    return cost(answers * (2.0 * parameters * t + 2.0 * (2.0 * c + t) * t * q_width()),
                2.0 * (2.0 * c + answers * t) * t * kv_width());
  }
  /// Slots that all steps of an answer attend together when each attends `budget` of them, found for nothing.
  double slots(double budget) const {
    const double unfilled = std::max(0.0, budget - prompt);
    return budget * generated - 0.5 * unfilled * unfilled;
  }
  GenerationCost sparse(double budget) const {
    return cost(answers * (2.0 * parameters * generated + 4.0 * slots(budget) * q_width()),
                answers * 4.0 * slots(budget) * kv_width());
  }
  /// The same with a search: one mean key per block of `block` slots is scored in every step.
  GenerationCost blocks(double budget, double block) const {
    const GenerationCost s = sparse(budget);
    const double scored = std::floor((2.0 * prompt + generated) / block) * generated * q_width();
    const double read = std::floor((2.0 * prompt + answers * generated) / block) * generated * kv_width();
    return cost(s.flops + answers * scored, s.bytes + read);
  }

  Status validate() const {
    const auto sane = [](double x) { return x > 0.0 && x < 1e30; };
    const bool all = sane(parameters) && layers > 0 && q_heads > 0 && kv_heads > 0 && head_dim > 0 && prompt >= 0.0 &&
                     prompt < 1e15 && sane(generated) && sane(answers) && sane(flop_per_byte);
    return all ? Status::ok : Status::invalid_argument;
  }

 private:
  double q_width() const { return static_cast<double>(layers * head_dim * q_heads); }
  double kv_width() const { return static_cast<double>(layers * head_dim * kv_heads); }
  GenerationCost cost(double flops, double bytes) const { return {flops, bytes, flops + flop_per_byte * bytes}; }
};

}  // namespace kvcondense::cost
