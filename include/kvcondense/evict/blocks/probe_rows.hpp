#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>

namespace kvcondense::evict {

/// Source: mean attention of a few probe queries, over those that see the slot: the newest ones, and some drawn at
/// random from all that are there, which are those of the step and at least the last `history`.
///
/// Needs    the queries of every step.
struct ProbeRows {
  double newest = 0.05;        ///< part of the queries that are there
  double random = 0.05;        ///< part of the others
  index_t history = 64;
  std::uint64_t seed = 1;
  prim::GroupReduce group = prim::GroupReduce::sum;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::last, history}; }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const {
    return Scratch::bytes_for<std::int32_t>(std::max(slots, history));
  }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews, RaggedView<float> out, Scratch& scratch) const {
    if (view.columns == nullptr) return Status::missing_input;
    const index_t rows = std::min(std::max(view.appended, history), view.columns->rows()), last = last_of(rows);  // more may be kept for others
    Buffer<std::int32_t> own(heap_memory());  // a list of the host's: where words run elsewhere, scratch is theirs
    std::int32_t* list = nullptr;
    if constexpr (std::same_as<B, Cpu>) {
      if (list = scratch.take<std::int32_t>(rows); list == nullptr) return Status::workspace_too_small;
    } else {
      if (const Status s = own.resize(rows); s != Status::ok) return s;
      list = own.data();
    }
    std::size_t n = 0;
    for (index_t r = 0; r < rows; ++r) {
      const auto token = static_cast<std::uint64_t>(view.seen - rows + r);
      if (r >= rows - last || random_uniform(seed, token) < static_cast<float>(random)) list[n++] = static_cast<std::int32_t>(r);
    }
    prim::ColumnRequest request;
    request.rows = rows, request.chosen = {list, n};
    request.group = group, request.row = prim::RowReduce::seen_mean;
    request.out = out;
    return view.columns->run(ctx, request);
  }

 private:
  index_t last_of(index_t rows) const {
    return std::clamp<index_t>(static_cast<index_t>(std::ceil(newest * static_cast<double>(rows) - 1e-6)), 1, rows);
  }
};

}  // namespace kvcondense::evict
