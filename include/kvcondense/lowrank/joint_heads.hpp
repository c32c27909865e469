#pragma once

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/projection.hpp>

namespace kvcondense::lowrank {

/// Stores the rows of neighbouring KV heads as one row of coordinates, in bases of groups of heads.
///
/// Idea     rows of neighbouring heads, side by side, have principal directions; their coordinates are one head for all of them.
///          Each head reads that one row through its own rows of the basis. Keys before rotation are reconstructed like that and
///          rotated when they are read, so that a shared head needs no basis that turns as keys do.
/// Source   Effectively Compress KV Heads for LLM, arXiv:2406.07056, of which only the algebra is published.
/// Needs    bases of this model, of groups of heads: `kvcondense-eval calibrate --method kv_heads_svd --kv-heads N` makes them, of keys
///          as they are attended or, with --keys raw and for position stages that store raw keys, of raw ones.
/// Shapes   bases [layers, groups, share * head_dim, columns]. Of a group's rows `columns` numbers are stored, 0 means head_dim; a page
///          of `page_slots` slots at a time. The cache has the model's heads; KvHeadsSvd is the same with fewer of them, for rotated keys.
/// Cost     share * head_dim * columns multiplications per slot and group; queries and sums of values as pca; with raw keys head_dim *
///          columns per slot and head that is read.
/// Numbers  float32. The newest `window` slots and what fills no page stay exact. Heads of a group that an eviction stage left other
///          tokens keep their rows exact.
/// Differs  no fine-tuning afterwards.
/// Errors   as pca; invalid_argument also for more columns than a head has numbers, for bases with means, and for keys and values of
///          other groups.
struct JointHeads {
  static constexpr Descriptor about{"joint_heads", Stage::lowrank, "arXiv:2406.07056"};
  static constexpr const char* made = "kv_heads_svd";  ///< what the bases are called
  static constexpr Inputs needs{};

  index_t columns = 0;        ///< numbers of a group's key; 0: as many as a head has
  index_t value_columns = 0;  ///< of its value, likewise
  index_t window = 32;        ///< newest slots that stay exact
  index_t sinks = 0;          ///< first slots that stay exact
  bool keys = true;
  bool values = true;
  BasisList bases{};          ///< borrowed

  prim::Projection key_transform(const CacheShape& shape, HeadIndex at) const {
    return keys ? projection(list().keys, columns, shape.head_dim, shape, at) : prim::Projection{};
  }
  prim::Projection value_transform(const CacheShape& shape, HeadIndex at) const {
    return values ? projection(list().values, value_columns, shape.values(), shape, at) : prim::Projection{};
  }
  constexpr Flush key_flush() const { return keys ? Flush{1, window} : Flush{0, 0}; }
  constexpr Flush value_flush() const { return values ? Flush{1, window} : Flush{0, 0}; }
  constexpr bool differs_per_head() const { return true; }
  RowGroups row_groups(const CacheShape& shape) const {
    const HeadBases b = keys ? list().keys : list().values;
    return {0, 1, b.groups < 1 ? 1 : shape.kv_heads / b.groups};
  }

  /// Bases of raw keys want raw keys: a rotation between coordinates and scores cannot be absorbed.
  bool takes_keys(bool raw) const { return !keys || (list().keys.keys == KeyForm::raw) == raw; }

  const char* missing() const {
    const NamedBases* found = bases.find(made);
    const bool all = found != nullptr && (!keys || !found->keys.empty()) && (!values || !found->values.empty());
    return all ? nullptr : "bases";
  }
  Status validate(const CacheShape& shape) const {
    if (!keys && !values) return Status::invalid_argument;
    if (missing() != nullptr) return Status::missing_input;
    if (window < 0 || sinks < 0 || (keys && values && list().keys.groups != list().values.groups)) return Status::invalid_argument;
    Status s = keys ? check(list().keys, shape, shape.head_dim, columns) : Status::ok;
    if (s == Status::ok && values) s = check(list().values, shape, shape.values(), value_columns);
    return s;
  }

 private:
  NamedBases list() const {
    const NamedBases* found = bases.find(made);
    return found == nullptr ? NamedBases{} : *found;
  }
  static Status check(const HeadBases& b, const CacheShape& shape, index_t dim, index_t columns) {
    if (b.layers != shape.layers || b.groups < 1 || shape.kv_heads % b.groups != 0 || b.dim != shape.kv_heads / b.groups * dim)
      return Status::shape_mismatch;
    const index_t wanted = columns == 0 ? dim : columns;
    const bool good = wanted >= 1 && wanted <= dim && wanted <= b.columns && shape.kv_heads / b.groups <= max_row_group;
    return good && b.mean == nullptr && b.finite() ? Status::ok : Status::invalid_argument;
  }
  static prim::Projection projection(const HeadBases& b, index_t columns, index_t dim, const CacheShape& shape, HeadIndex at) {
    if (b.empty() || b.groups < 1) return {};
    const index_t share = shape.kv_heads / b.groups, from = at.head % share * dim * b.columns;
    return {b.encoder(at.layer, at.head / share) + from, b.decoder(at.layer, at.head / share) + from, nullptr,
            static_cast<std::int32_t>(columns == 0 ? dim : columns), static_cast<std::int32_t>(b.columns), static_cast<std::int32_t>(dim)};
  }
};

}  // namespace kvcondense::lowrank
