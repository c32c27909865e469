#pragma once

#include <functional>
#include <vector>

#include <eval/jobs.hpp>
#include <eval/result.hpp>

namespace eval {

/// Feeds one token more to one recipe; called with 0, 1, ... once per token.
using Step = std::function<void(index_t)>;

/// Tokens of a turn where recipes are compared.
inline constexpr index_t tokens_a_turn = 8;

/// Times all recipes in turn, `rounds` times, `tokens` tokens a turn, on this thread alone. The
/// first is the full cache. Ratios are taken within a round, so a machine that slows down slows
/// both.
std::vector<Speed> measure_speed(const std::vector<Step>& steps, index_t rounds, index_t tokens,
                                 Progress& progress);

}  // namespace eval
