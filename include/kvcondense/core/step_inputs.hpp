#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense {

/// What a policy may look at besides the keys and values that are stored.
enum class Input : std::uint16_t {
  attention = 1,     ///< the mass that `attend` measured
  queries = 2,       ///< the queries that `attend` got
  projections = 4,   ///< queries, keys and values before any rotation
  moments = 8,       ///< mean and covariance of queries before rotation
  gates = 16,        ///< a learned number per (kv head, token)
  surprise = 32,     ///< -log p of each token, from the logits before it
  classes = 64,      ///< which tokens are special, which are punctuation
  hidden_norms = 128,  ///< how long the hidden states are that tokens' queries were made of; only of tokens that ask (Phase::probe)
};

inline constexpr Input all_inputs[] = {Input::attention, Input::queries, Input::projections, Input::moments,
                                       Input::gates,     Input::surprise, Input::classes,     Input::hidden_norms};

constexpr const char* to_string(Input i) {
  switch (i) {
    case Input::attention: return "attention";
    case Input::queries: return "queries";
    case Input::projections: return "projections";
    case Input::moments: return "moments";
    case Input::gates: return "gates";
    case Input::surprise: return "surprise";
    case Input::classes: return "classes";
    case Input::hidden_norms: return "hidden_norms";
  }
  return "unknown";
}

/// A set of inputs: `Input::attention | Input::queries`.
class Inputs {
 public:
  constexpr Inputs() = default;
  constexpr Inputs(Input i) : bits_(static_cast<std::uint16_t>(i)) {}  // NOLINT(google-explicit-constructor)
  static constexpr Inputs all() {
    Inputs r;
    for (const Input i : all_inputs) r = r | i;
    return r;
  }

  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool has(Input i) const { return (bits_ & static_cast<std::uint16_t>(i)) != 0; }
  /// Whether nothing is in here that is not in `other`.
  constexpr bool within(Inputs other) const { return (bits_ & ~other.bits_) == 0; }
  constexpr Inputs operator|(Inputs other) const { return Inputs(bits_ | other.bits_); }
  constexpr Inputs without(Inputs other) const { return Inputs(bits_ & ~other.bits_); }
  friend constexpr bool operator==(Inputs, Inputs) = default;

 private:
  explicit constexpr Inputs(int bits) : bits_(static_cast<std::uint16_t>(bits)) {}
  std::uint16_t bits_ = 0;
};

constexpr Inputs operator|(Input a, Input b) { return Inputs(a) | Inputs(b); }

/// Query rows that a policy looks at: through the column sums that `attend` measures, or as queries.
struct AttentionNeed {
  enum class Rows : std::uint8_t { none, all, last };
  Rows rows = Rows::none;
  index_t count = 0;  ///< with `last`: how many of the newest query rows are summed

  /// Rows of a chunk of `queries` that count.
  constexpr index_t of(index_t queries) const {
    if (rows == Rows::none) return 0;
    return rows == Rows::all || count > queries ? queries : count;
  }
};

/// What an engine hands from `attend` to `step`.
///
/// Shapes  mass: one number per (kv head, slot), the probabilities of the head's whole query group
///         summed over the last `rows` query rows.
struct AttentionView {
  RaggedView<const float> mass{};
  index_t rows = 0;
};

/// What kind of thing a token is, from the tokenizer; special are those that stand for no text.
enum class TokenClass : std::uint8_t { plain, punctuation, special };

/// What an engine hands to a step besides the tokens; views that no policy asks for may be empty. All
/// but `queries` are of exactly the pending tokens.
struct StepInputs {
  AttentionView attention{};
  TensorView<const float, 3> queries{};      ///< [q_heads, tokens, head_dim] as `attend` got them; the newest tokens
  TensorView<const float, 3> raw_queries{};  ///< [q_heads, tokens, head_dim] before rotation
  TensorView<const float, 3> raw_keys{};     ///< [kv_heads, tokens, head_dim] before rotation
  TensorView<const float, 3> values{};       ///< [kv_heads, tokens, value_dim]
  TensorView<const float, 2> query_mean{};   ///< [q_heads, head_dim] of queries before rotation
  TensorView<const float, 3> query_covariance{};  ///< [q_heads, head_dim, head_dim] of the same
  TensorView<const float, 2> gates{};             ///< [kv_heads, tokens]
  std::span<const float> surprise{};              ///< per token; NaN where no logits came before it
  std::span<const TokenClass> classes{};          ///< per token
  std::span<const float> hidden_norms{};          ///< per token: Euclidean length of what the layer's projections get
  index_t incoming = 0;                           ///< with Phase::turn: tokens that are about to come
  index_t probe_first = 0, probe_last = 0;        ///< with Phase::probe: the tokens that are asked about
};

/// Whether an input that is not attention or queries is there in the right shape for `tokens` pending
/// tokens; attention and queries depend on the pipeline and are checked with it.
constexpr Status check_input(const StepInputs& in, Input what, const CacheShape& shape, index_t tokens) {
  const auto is = [](const auto& view, std::initializer_list<index_t> extent) {
    if (view.data == nullptr) return Status::missing_input;
    std::size_t i = 0;
    for (const index_t e : extent)
      if (view.extent[i++] != e) return Status::shape_mismatch;
    return Status::ok;
  };
  const auto both = [](Status a, Status b) { return a != Status::ok ? a : b; };
  const auto one_each = [&](std::size_t n) {
    if (n == 0) return Status::missing_input;
    return static_cast<index_t>(n) == tokens ? Status::ok : Status::shape_mismatch;
  };
  const index_t q = shape.q_heads, kv = shape.kv_heads, d = shape.head_dim;
  switch (what) {
    case Input::projections:
      return both(is(in.raw_queries, {q, tokens, d}),
                  both(is(in.raw_keys, {kv, tokens, d}), is(in.values, {kv, tokens, shape.values()})));
    case Input::moments: return both(is(in.query_mean, {q, d}), is(in.query_covariance, {q, d, d}));
    case Input::gates: return is(in.gates, {kv, tokens});
    case Input::surprise: return one_each(in.surprise.size());
    case Input::classes: return one_each(in.classes.size());
    case Input::hidden_norms: return one_each(in.hidden_norms.size());
    case Input::attention:
    case Input::queries: break;
  }
  return Status::ok;
}

}  // namespace kvcondense
