// The general promises for the words whose own tests do not ask for them. Some need numbers of the model or a step that
// is no end of a prompt: those are given, or moved there.

#include <evict/properties.hpp>
#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/dms.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/kvcrush.hpp>
#include <kvcondense/evict/kvzip.hpp>
#include <kvcondense/evict/locret.hpp>
#include <kvcondense/evict/paged_h2o.hpp>
#include <kvcondense/evict/razor_attention.hpp>
#include <kvcondense/evict/sirllm.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// A policy that chooses before a turn, made to choose where a prompt ends.
template <class P>
struct AtPromptEnd {
  static constexpr Inputs needs = P::needs;
  P policy;

  constexpr auto pipeline() const { return policy.pipeline().with_trigger(evict::PrefillOnce{}); }
  Status validate(const CacheShape& shape) const { return policy.validate(shape); }
};
template <class P>
AtPromptEnd(P) -> AtPromptEnd<P>;

const evict::H2O some{.heavy = 20, .recent = 4}, all{.heavy = 300, .recent = 4};

/// `check` with every seed, group and the shape that the promises are tried with.
template <class F>
void each_shape(F&& check) {
  for (std::uint32_t seed = 0; seed < 16; ++seed)
    for (const index_t group : {1, 2, 7, 16}) {
      const index_t heads = 1 + static_cast<index_t>(seed % 4);
      check(CacheShape{.layers = 4, .q_heads = heads * group, .kv_heads = heads, .head_dim = 3}, seed, group);
    }
}

}  // namespace

TEST_CASE("promises: compensate and keep_all", "[evict][promises]") {
  check_promises(evict::Compensate{some}, evict::Compensate{all});
  check_promises(evict::KeepAll{}, evict::KeepAll{}, {.always_fires = false});
}

TEST_CASE("promises: kvcrush, whose heads have to be equally long: one of them", "[evict][promises]") {
  each_shape([](const CacheShape& s, std::uint32_t seed, index_t group) {
    if (s.kv_heads > 1) return;
    for (const index_t block : {0, 3}) check_promises_once(evict::KVCrush{some, 0.5, block}, evict::KVCrush{all, 0.5, block}, {.fills_budget = block == 0}, seed, group);
  });
}

TEST_CASE("promises: thresholds, on what leaves a window", "[evict][promises]") {
  check_promises(evict::Dms{.window = 24, .scale = 1.0f, .offset = 0.5f}, evict::Dms{.window = 300});
  check_promises(evict::ExitThreshold{some, 0.8f, 24}, evict::ExitThreshold{some, -1.0f, 24});
}

TEST_CASE("promises: expected_attention and kvzip, which protect no newest tokens", "[evict][promises]") {
  for (const bool covariance : {false, true}) {
    const auto with = [&](double keep) {
      return evict::ExpectedAttention{.keep = keep, .sinks = 2, .horizon = 8, .covariance = covariance, .rope = {.rotary_dim = 2}};
    };
    check_promises(with(0.08), with(1.0), {.keeps_newest = false});
  }
  check_promises(AtPromptEnd{evict::KVzip{.keep = 0.08, .sinks = 2}}, AtPromptEnd{evict::KVzip{.keep = 1.0, .sinks = 2}},
                 {.keeps_newest = false, .all_workspace = false});  // probes need more
}

TEST_CASE("promises: sirllm", "[evict][promises]") {
  check_promises(AtPromptEnd{evict::SirLLM{.sinks = 4, .memory = 12, .recent = 8}}, AtPromptEnd{evict::SirLLM{.sinks = 4, .memory = 300, .recent = 8}});
}

TEST_CASE("promises: paged_h2o drops whole pages", "[evict][promises]") {
  const auto with = [](index_t page, index_t evictable) {
    return evict::PagedH2O{.page = page, .start = 4, .evictable = evictable, .recent = 4, .window = 2, .width = 3};
  };
  for (const index_t page : {1, 2, 4}) check_promises(with(page, 16), with(page, 400), {.fills_budget = false, .heads_alone = false, .always_fires = false, .mark_lane = 1});
}

TEST_CASE("promises: locret, whose network looks at all heads together", "[evict][promises]") {
  each_shape([](const CacheShape& s, std::uint32_t seed, index_t group) {
    constexpr index_t hidden = 5;
    const index_t inputs = s.q_heads * s.head_dim + s.kv_heads * (s.head_dim + s.values());
    std::vector<float> in, out;
    for (index_t i = 0; i < inputs * hidden; ++i) in.push_back(static_cast<float>(number(seed, 20, i)) - 0.5f);
    for (index_t i = 0; i < hidden * s.kv_heads; ++i) out.push_back(static_cast<float>(number(seed, 21, i)) - 0.5f);
    const std::vector<const float*> ins(at(s.layers), in.data()), outs(at(s.layers), out.data());
    const auto with = [&](index_t tokens) {
      return evict::Locret{.tokens = tokens, .stabilizers = 6, .local = 4, .retain_in = {ins.data(), s.layers, inputs, hidden},
                           .retain_out = {outs.data(), s.layers, hidden, s.kv_heads}};
    };
    check_promises_once(with(24), with(300), {.heads_alone = false}, seed, group);
  });
}

TEST_CASE("promises: razor_attention, whose heads differ", "[evict][promises]") {
  each_shape([](const CacheShape& s, std::uint32_t seed, index_t group) {
    std::vector<float> induction, echo;
    for (index_t i = 0; i < s.layers * s.kv_heads; ++i) {
      induction.push_back(static_cast<float>(number(seed, 22, i)));
      echo.push_back(static_cast<float>(number(seed, 23, i)));
    }
    const auto with = [&](double part) {
      return evict::RazorAttention{.induction_part = part, .echo_part = 0.0, .sinks = 4, .least = 20, .divisor = 20,
                                   .induction = {induction.data(), s.layers, s.kv_heads}, .echo = {echo.data(), s.layers, s.kv_heads}};
    };
    check_promises_once(with(0.3), with(1.0), {.heads_alone = false}, seed, group);
  });
}
