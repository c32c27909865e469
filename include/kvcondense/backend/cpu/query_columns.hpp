#pragma once

#include <kvcondense/backend/cpu/attend_columns.hpp>
#include <kvcondense/core/step_view.hpp>

namespace kvcondense {

/// Attention of the newest queries of a layer over its slots, as policies ask for it.
template <>
class QueryColumns<Cpu> {
 public:
  virtual ~QueryColumns() = default;
  /// Query tokens at hand; a request may name that many rows or fewer.
  virtual index_t rows() const noexcept = 0;
  /// Brings its own scratch memory. Errors as prim::AttendColumns; out_of_range with too many rows.
  virtual Status run(Context<Cpu>& ctx, const prim::ColumnRequest& request) const noexcept = 0;
};

}  // namespace kvcondense
