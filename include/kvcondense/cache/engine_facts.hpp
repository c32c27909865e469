#pragma once

#include <cstdint>

#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// How a model tells where a token stands.
enum class PositionKind : std::uint8_t {
  rope,      ///< queries and keys are rotated by one position per token
  axes,      ///< ... by several, as of images
  embedded,  ///< by something added to its inputs, or not at all
  biased,    ///< by a bias on logits that grows with the distance (ALiBi)
};

/// What an engine hands over, how it runs, and what its model does; the defaults are a plain engine with a plain model.
/// Heads, their size and their ratio are those of the CacheShape.
struct EngineFacts {
  // What a recipe may have.
  Inputs gives = Input::attention | Input::queries;  ///< what steps get; `forward` makes these two itself
  bool raw_rows = true;         ///< queries and keys before rotation
  bool probes = false;          ///< tokens that only ask, which are taken back
  bool output_weights = false;  ///< the output projections
  bool calibration = false;     ///< arrays that were made from the model beforehand
  bool trained = false;         ///< the model was trained with the method

  // How it runs.
  index_t drafts = 0;            ///< tokens that speculative decoding may take back in a round
  bool shares_prefixes = false;  ///< what a request stored of its prompt serves later requests with the same beginning, without a fork
  bool fixed_tables = false;     ///< a sequence holds its tokens in the places they came to: no slot may leave or move

  // The model.
  PositionKind positions = PositionKind::rope;
  index_t sliding_layers = 0;  ///< of the layers this cache is for, those whose attention sees a window only
  bool qk_norm = false;        ///< queries and keys are normalised in each head
  bool sink_logits = false;    ///< a learned logit joins every softmax
  bool capped_logits = false;  ///< logits go through a soft cap
  bool latent = false;         ///< the rows are latents of all heads at once, key and value in one (MLA)
};

/// Whether a recipe can serve an engine: ok, perhaps with a sentence to heed, or why not.
struct Admission {
  Status status = Status::ok;
  const char* sentence = "";  ///< empty: nothing to say

  constexpr explicit operator bool() const { return status == Status::ok; }
  constexpr bool warns() const { return status == Status::ok && *sentence != 0; }
};

namespace detail {

constexpr const char* lacking(Input what) {
  switch (what) {
    case Input::attention: return "the recipe needs the attention that tokens draw, which the engine does not hand over";
    case Input::queries: return "the recipe needs the queries of a step, which the engine does not hand over";
    case Input::projections: return "the recipe needs queries, keys and values before rotation in every step, which the engine does not hand over";
    case Input::moments: return "the recipe needs mean and covariance of queries, which the engine does not hand over";
    case Input::gates: return "the recipe needs the gates of a trained model, which the engine does not hand over";
    case Input::surprise: return "the recipe needs the surprise of every token, from the logits before it, which the engine does not hand over";
    case Input::classes: return "the recipe needs the classes of tokens, which the engine does not hand over";
    case Input::hidden_norms: return "the recipe needs the lengths of hidden states of tokens that ask about the context, which the engine does not hand over";
  }
  return "the recipe needs an input that the engine does not hand over";
}

}  // namespace detail

/// What no cache of any recipe can do for this model.
constexpr Admission admit(const EngineFacts& e) {
  if (e.latent)
    return {Status::not_supported, "the model's rows are latents, key and value of all heads in one: a cache stores a key and a value per head, so "
                                   "hand over what they expand to"};
  if (e.capped_logits) return {Status::not_supported, "the model caps its logits, and attention here knows no cap"};
  if (e.positions == PositionKind::biased)
    return {Status::not_supported, "the model biases logits by distance, and attention here knows no such bias"};
  if (e.sliding_layers > 0)
    return {Status::not_supported, "layers whose attention slides see a window inside a prompt too, which attention here does not: leave them with "
                                   "the engine and give this cache the others"};
  return {};
}

/// What a stage wants of the model, before there are arrays that a cache could be made with.
constexpr Admission admit(const StageTraits& wants, const EngineFacts& e) {
  if (const Admission a = admit(e); !a) return a;
  if (wants.output_weights && !e.output_weights)
    return {Status::missing_input, "the recipe reads the model's output projections, which the engine does not hand over"};
  if (wants.calibrated && !e.calibration)
    return {Status::missing_input, "the recipe needs arrays that are made from the model beforehand, which the engine does not have"};
  if (wants.key_norms && e.qk_norm)
    return {Status::not_supported, "the model normalises its keys, and the recipe tells tokens apart by nothing but the length of their keys"};
  if (wants.trained && !e.trained) return {Status::ok, "the recipe is for models that were trained with its method"};
  if (wants.key_weights && e.qk_norm)
    return {Status::ok, "the model normalises its keys behind their projection, so that bases from the projection's weights do not fit them"};
  return {};
}

/// The same with all that is known once an empty cache was made.
constexpr Admission admit(const Capabilities& can, const EngineFacts& e) {
  const Admission wants = admit(can.wants, e);
  if (!wants) return wants;
  for (const Input i : all_inputs)
    if (can.needs.without(e.gives).has(i)) return {Status::missing_input, detail::lacking(i)};
  if (can.joins_tokens && !e.gives.has(Input::queries)) return {Status::missing_input, detail::lacking(Input::queries)};
  if (can.probes && !e.probes)
    return {Status::missing_input, "the recipe wants the model to repeat its context, in tokens that are taken back, which the engine does not do"};
  if (!can.rotated_input && !e.raw_rows)
    return {Status::missing_input, "the recipe stores keys before rotation, which the engine does not hand over"};
  if (can.turns_keys && e.positions != PositionKind::rope)
    return {Status::not_supported, "the recipe turns keys by one position per token, and the model does not"};
  if (can.changes_length && e.fixed_tables)
    return {Status::not_supported, "slots leave, and the engine's tables hold every token in its place"};
  if (can.changes_length && e.shares_prefixes)
    return {Status::not_supported, "what is stored of a prompt depends on what came after it: share prompts by forks of a cache, not by their pages"};
  if (can.found_maps && e.shares_prefixes)
    return {Status::not_supported, "what is stored of a prompt is read through bases or factors found from its own sequence, which another request does "
                                   "not have: share prompts by forks of a cache, not by their pages"};
  if (e.drafts > 0 && !can.rollback_exact)
    return {Status::ok, "what a step evicts, folds or codes is not undone when drafts are taken back: append and attend them, take back what was "
                        "refused, and step after that"};
  if (!can.prefix_exact && e.shares_prefixes)
    return {Status::ok, "a shared prompt is stored in codes once tokens follow it: requests that reuse it do not repeat a fresh one bit for bit"};
  if (can.reads_part && e.drafts + 1 > can.choosing_call)
    return {Status::ok, "a call that verifies drafts reads everything, where one token alone reads a choice: answers may differ"};
  if (e.sink_logits && can.needs.has(Input::attention))
    return {Status::ok, "the model's sink logits take part in no softmax here: scale outputs by the lse that attend gives, and know that the attention "
                        "which the recipe goes by leaves them out"};
  if (e.sink_logits)
    return {Status::ok, "the model's sink logits take part in no softmax here: scale outputs by the lse that attend gives"};
  return wants;
}

}  // namespace kvcondense
