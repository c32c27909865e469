#pragma once

#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::any {

/// What an engine knows about its model and recipes cannot say in text. Every part may be left out; a
/// recipe that needs one that is missing is refused with its name. Arrays are borrowed: they outlive
/// the caches that are made with them.
///
/// A method takes a fact by having a member of the same name and type.
struct ModelFacts {
  prim::RopeConfig rope{};      ///< fills rope fields that the text leaves out
  HeadTable gates{};            ///< of DuoAttention: how much a head needs far tokens, 0 to 1
  HeadTable induction{};        ///< of RazorAttention: attention to what followed a token's earlier self
  HeadTable echo{};             ///< of RazorAttention: attention to a token's earlier self
  HeadTable shares{};           ///< what part of a budget each head gets; they sum to 1
  LayerTable evicted{};         ///< of PrefixKV: what part of its tokens a layer gives up
  LayerTable variance{};        ///< of D2O: how much the attention that tokens draw varies in a layer
  HeadTable key_widths{};       ///< of bit_allocation: bits of a head's keys
  HeadTable value_widths{};     ///< of bit_allocation: bits of a head's values
  HeadRows key_clusters{};      ///< of SKVQ and RotateKV: the group of every key channel
  HeadRows value_clusters{};    ///< the same of values
  HeadRows key_lower{};         ///< of KVQuant: lower threshold of every key channel
  HeadRows key_upper{};         ///< upper threshold
  HeadRows key_levels{};        ///< of KVQuant: what a key's codes stand for, in -1 to 1
  HeadRows value_levels{};      ///< what a value's codes stand for
  HeadRows key_books{};         ///< of CommVQ: codewords of keys, [stages, base, head_dim]
  HeadRows value_books{};       ///< of values
  LayerMatrices output{};       ///< output projection [hidden, q_heads * value_dim], as `o_proj.weight`
  BasisList bases{};            ///< of low-rank stages: what each stores keys and values in
  LayerMatrices key_codes{};     ///< of A2ATS: [kv_heads * codes, head_dim], centroids of raw keys
  LayerMatrices key_metric{};    ///< of A2ATS: [kv_heads * head_dim, head_dim], what raw keys are compared with
  LayerMatrices key_axes{};      ///< of Loki: [kv_heads * head_dim, directions], principal directions of keys
  LayerMatrices query_axes{};    ///< of InfiniGen: [kv_heads * head_dim, head_dim], singular vectors of queries
  HashPlanes hash_planes{};      ///< of MagicPIG: random planes for all heads
  LayerMatrices retain_in{};    ///< of Locret: [inputs, hidden units]
  LayerMatrices retain_out{};   ///< of Locret: [hidden units, kv_heads]
  HeadRows query_filters{};     ///< of Q-Filters: [head_dim], the direction that a head's queries point away from
};

/// Gives `method` every fact that it has a member for.
template <class K>
constexpr void take_facts(K& method, const ModelFacts& facts) {
  if constexpr (requires { method.rope = facts.rope; }) method.rope = facts.rope;
  if constexpr (requires { method.gates = facts.gates; }) method.gates = facts.gates;
  if constexpr (requires { method.induction = facts.induction; }) method.induction = facts.induction;
  if constexpr (requires { method.echo = facts.echo; }) method.echo = facts.echo;
  if constexpr (requires { method.shares = facts.shares; }) method.shares = facts.shares;
  if constexpr (requires { method.evicted = facts.evicted; }) method.evicted = facts.evicted;
  if constexpr (requires { method.variance = facts.variance; }) method.variance = facts.variance;
  if constexpr (requires { method.key_widths = facts.key_widths; }) method.key_widths = facts.key_widths;
  if constexpr (requires { method.value_widths = facts.value_widths; }) method.value_widths = facts.value_widths;
  if constexpr (requires { method.key_clusters = facts.key_clusters; }) method.key_clusters = facts.key_clusters;
  if constexpr (requires { method.value_clusters = facts.value_clusters; }) method.value_clusters = facts.value_clusters;
  if constexpr (requires { method.key_lower = facts.key_lower; }) method.key_lower = facts.key_lower;
  if constexpr (requires { method.key_upper = facts.key_upper; }) method.key_upper = facts.key_upper;
  if constexpr (requires { method.key_levels = facts.key_levels; }) method.key_levels = facts.key_levels;
  if constexpr (requires { method.value_levels = facts.value_levels; }) method.value_levels = facts.value_levels;
  if constexpr (requires { method.key_books = facts.key_books; }) method.key_books = facts.key_books;
  if constexpr (requires { method.value_books = facts.value_books; }) method.value_books = facts.value_books;
  if constexpr (requires { method.output = facts.output; }) method.output = facts.output;
  if constexpr (requires { method.bases = facts.bases; }) method.bases = facts.bases;
  if constexpr (requires { method.key_codes = facts.key_codes; }) method.key_codes = facts.key_codes;
  if constexpr (requires { method.key_metric = facts.key_metric; }) method.key_metric = facts.key_metric;
  if constexpr (requires { method.key_axes = facts.key_axes; }) method.key_axes = facts.key_axes;
  if constexpr (requires { method.query_axes = facts.query_axes; }) method.query_axes = facts.query_axes;
  if constexpr (requires { method.query_filters = facts.query_filters; }) method.query_filters = facts.query_filters;
  if constexpr (requires { method.hash_planes = facts.hash_planes; }) method.hash_planes = facts.hash_planes;
  if constexpr (requires { method.retain_in = facts.retain_in; }) method.retain_in = facts.retain_in;
  if constexpr (requires { method.retain_out = facts.retain_out; }) method.retain_out = facts.retain_out;
}

/// A fact that a method cannot do without and has not got, and that method's word; null: nothing is missing.
struct MissingFact {
  const char* fact = nullptr;
  const char* word = nullptr;
};

/// The name of such a fact; null: none.
template <class K>
constexpr const char* missing_fact(const K& method) {
  if constexpr (requires { method.missing(); }) return method.missing();
  else return nullptr;
}

}  // namespace kvcondense::any
