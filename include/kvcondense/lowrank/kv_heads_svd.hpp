#pragma once

#include <cmath>
#include <concepts>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/head_mix.hpp>

namespace kvcondense::lowrank {

/// Turns the KV heads of a model into fewer, so that any cache of the smaller shape serves it.
///
/// Idea     rows of neighbouring heads stand side by side; their principal directions are one head for all of them. A query head
///          meets the shared keys through its own head's rows of the basis, and its output comes back through those rows.
/// Source   Effectively Compress KV Heads for LLM, arXiv:2406.07056, of which only the algebra is published; how the authors
///          treat rotations is not. Here keys are joined behind the rotation.
/// Needs    bases of this model, of groups of heads: `kvcondense-eval calibrate --method kv_heads_svd --kv-heads N` makes them. Without a
///          rotation, or with bases that keep pairs together (`--paired`), they fold into the weights, and nothing is left to do
///          at run time: lowrank/fit/shared_heads.hpp.
/// Shapes   bases [layers, groups, share * head_dim, columns]; a cache of `shape(model)` has `groups` KV heads and as many query heads
///          as the model. Keys and values have as many groups; their columns may differ.
/// Cost     per token share * head_dim * columns multiplications per shared head, and head_dim * columns per query head for the
///          query and for the output. A slot takes columns numbers for `share` heads.
/// Numbers  float32. The softmax scale stays that of the model's heads. With share * head_dim columns attention is the model's own.
/// Differs  no fine-tuning afterwards.
/// Errors   missing_input without bases; shape_mismatch when they are of another model; incompatible when those of keys are of raw ones,
///          which the rotation would not spare, and when rows lie where the bases do not; invalid_argument for columns out of range, NaN,
///          and bases with means: the model's queries would have to know them.
struct KvHeadsSvd {
  static constexpr Descriptor about{"kv_heads_svd", Stage::lowrank, "arXiv:2406.07056"};

  HeadBases keys{};    ///< borrowed
  HeadBases values{};  ///< borrowed
  index_t columns = 0;        ///< numbers of a shared key; 0: as many as a head has
  index_t value_columns = 0;  ///< of a shared value, likewise
  bool on_device = false;     ///< bases lie in device memory: for rows there; their numbers are validated on the host, in a method over those

  Status validate(const CacheShape& model) const {
    if (keys.empty() || values.empty()) return Status::missing_input;
    if (const Status s = kvcondense::validate(model); s != Status::ok) return s;
    if (keys.groups != values.groups) return Status::shape_mismatch;
    if (keys.keys == KeyForm::raw) return Status::incompatible;
    Status s = check(keys, model, model.head_dim, columns);
    if (s == Status::ok) s = check(values, model, model.values(), value_columns);
    return s;
  }

  /// Of the cache that holds shared heads. After `validate`.
  CacheShape shape(const CacheShape& model) const {
    CacheShape s = model;
    if (s.softmax_scale == 0.0f) s.softmax_scale = 1.0f / std::sqrt(static_cast<float>(model.head_dim));
    s.kv_heads = keys.groups;
    s.head_dim = mix(keys, 0, model.kv_heads, columns, model.head_dim).columns;
    s.value_dim = mix(values, 0, model.kv_heads, value_columns, model.values()).columns;
    return s;
  }

  /// The model's keys [kv_heads, tokens, head_dim], as attention compares them, to shared ones [groups, tokens, columns].
  template <Backend B>
  Status join_keys(Context<B>& ctx, const CacheShape& model, index_t layer, TensorView<const float, 3> rows, TensorView<float, 3> out) const {
    if (!reached<B>()) return Status::incompatible;
    return prim::HeadMixing<B>::join(ctx, rows, mix(keys, layer, model.kv_heads, columns, model.head_dim), out);
  }
  template <Backend B>
  Status join_values(Context<B>& ctx, const CacheShape& model, index_t layer, TensorView<const float, 3> rows, TensorView<float, 3> out) const {
    if (!reached<B>()) return Status::incompatible;
    return prim::HeadMixing<B>::join(ctx, rows, mix(values, layer, model.kv_heads, value_columns, model.values()), out);
  }
  /// Queries [q_heads, tokens, head_dim] to what shared keys are compared with.
  template <Backend B>
  Status map_queries(Context<B>& ctx, const CacheShape& model, index_t layer, TensorView<const float, 3> rows, TensorView<float, 3> out) const {
    if (!reached<B>()) return Status::incompatible;
    return prim::HeadMixing<B>::map(ctx, rows, decoding(keys, layer, model.kv_heads, columns, model.head_dim), keys.groups, out);
  }
  /// The cache's outputs [q_heads, tokens, value columns] to the model's [q_heads, tokens, value_dim].
  template <Backend B>
  Status map_outputs(Context<B>& ctx, const CacheShape& model, index_t layer, TensorView<const float, 3> rows, TensorView<float, 3> out) const {
    if (!reached<B>()) return Status::incompatible;
    return prim::HeadMixing<B>::back(ctx, rows, decoding(values, layer, model.kv_heads, value_columns, model.values()), values.groups, out);
  }

 private:
  /// Whether words of a backend can read the bases.
  template <Backend B>
  bool reached() const {
    return on_device == std::same_as<B, Cuda>;
  }
  Status check(const HeadBases& b, const CacheShape& model, index_t dim, index_t wide) const {
    if (b.layers != model.layers || b.groups < 1 || model.kv_heads % b.groups != 0 || b.dim != model.kv_heads / b.groups * dim)
      return Status::shape_mismatch;
    const index_t wanted = wide == 0 ? dim : wide;
    if (wanted < 1 || wanted > b.columns || wanted > max_head_dim || b.columns > b.dim || b.mean != nullptr || !(on_device || b.finite()))
      return Status::invalid_argument;
    return Status::ok;
  }
  static prim::HeadMix of(const float* data, const HeadBases& b, index_t kv_heads, index_t columns, index_t dim) {
    return {data, kv_heads / b.groups, dim, b.columns, columns == 0 ? dim : columns};
  }
  static prim::HeadMix mix(const HeadBases& b, index_t layer, index_t kv_heads, index_t columns, index_t dim) {
    return of(b.encoder(layer, 0), b, kv_heads, columns, dim);
  }
  static prim::HeadMix decoding(const HeadBases& b, index_t layer, index_t kv_heads, index_t columns, index_t dim) {
    return of(b.decoder(layer, 0), b, kv_heads, columns, dim);
  }
};

}  // namespace kvcondense::lowrank
