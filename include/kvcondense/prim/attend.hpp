#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// The optional numbers of a slot; null means the neutral value for every slot.
///
/// logit = key_scale * (q . k) * softmax_scale + bias;  output = sum of softmax * value_scale * v.
struct SlotScalars {
  const float* key_scale = nullptr;
  const float* bias = nullptr;
  const float* value_scale = nullptr;
};

/// One slot beside those of a head, that every query sees: key [head_dim] and value [value_dim] in float32,
/// and what is added to its logit. Null: there is none.
struct SummarySlot {
  const float* key = nullptr;
  const float* value = nullptr;
  float bias = 0.0f;
};

/// A head's summary slot; heads that do not say have none.
template <class Head>
SummarySlot summary_of(const Head& head) {
  if constexpr (requires { head.summary(); }) return head.summary();
  else return {};
}

/// Slots that query `token` of `tokens` sees: the newest tokens are the queries' own, unless the head says otherwise.
template <class Head>
index_t visible_slots(const Head& head, index_t token, index_t tokens) {
  if constexpr (requires { head.visible(token, tokens); }) return head.visible(token, tokens);
  else return head.slots() - tokens + token + 1;
}

/// Numbers that a row of queries or of sums of values takes; heads that do not say want the plain ones.
template <class Head>
index_t query_width(const Head& head, index_t dim) {
  if constexpr (requires { head.query_width(); }) return head.query_width();
  else return dim;
}
template <class Head>
index_t value_width(const Head& head, index_t dim) {
  if constexpr (requires { head.value_width(); }) return head.value_width();
  else return dim;
}

/// The widest of a layer's heads: with codecs of their own, some may have one form and others two.
template <class Heads>
index_t widest_query(Heads&& heads, index_t kv_heads, index_t dim) {
  index_t width = 0;
  for (index_t h = 0; h < kv_heads; ++h) width = std::max(width, query_width(heads(h), dim));
  return width;
}
template <class Heads>
index_t widest_value(Heads&& heads, index_t kv_heads, index_t dim) {
  index_t width = 0;
  for (index_t h = 0; h < kv_heads; ++h) width = std::max(width, value_width(heads(h), dim));
  return width;
}

/// One attention call of one layer.
///
/// Shapes   queries [q_heads, tokens, head_dim], out [q_heads, tokens, value_dim], lse [q_heads, tokens]
///          or empty, mass one number per (kv head, slot) or empty.
/// Numbers  the last `tokens` slots of every head belong to the queries: query i sees all slots but the
///          last tokens - 1 - i. A head may say otherwise (`visible(token, tokens)`): then query i sees its
///          first visible(i, tokens) slots, in whatever order queries come. Mass is summed over the query
///          group and the last `mass_rows` queries. A query that sees no slot gives zeros and lse = -inf. A
///          summary slot counts in lse and output, and draws attention that no mass reports.
struct AttendRequest {
  TensorView<const float, 3> queries;
  TensorView<float, 3> out;
  TensorView<float, 2> lse{};
  RaggedView<float> mass{};
  index_t mass_rows = 0;
  float softmax_scale = 1.0f;
};

/// Where attention is added up as it is finished, on the CPU: sums[h][j] = sums[h][j] + scale * mass[h][j], which is what
/// SlotNumbers::mix with keep = 1 makes of a mass, without the mass. Of no heads: nowhere.
struct AttentionSums {
  RaggedView<float> sums{};
  float scale = 1.0f;

  explicit operator bool() const { return sums.heads > 0; }
};

/// Exact attention over weighted slots in their stored form, whatever codecs store them.
///
/// Source    `heads` is a function: heads(kv_head) -> an object with `slots()`, `key_scores(cursor, count,
///           queries, out, first_slot)`, `add_values(cursor, count, weights, out)`, `scalars()`,
///           `prepare_query(q, token, slot)`, the type `Cursor`, and maybe `summary()`. Heads that read queries
///           or sum values in another form besides the plain one have `query_width()`, `begin_queries(rows)`,
///           `value_width()`, `finish_values(rows)`, see RowTransform. Heads of which a query sees some slots less have
///           `hide(visible, first, count, logits)`, which makes their logits -inf.
/// Cost      every key and value is read once per block of query rows; codes are unpacked once for all
///           query heads of a KV head. With mass, the weights of a block are kept and read again.
/// Numbers   float32; softmax online over strips of `strip` slots, so the result does not depend on how
///           slots lie in pages.
template <Backend B>
struct Attend {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
