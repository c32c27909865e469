#pragma once

#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense {

/// Rows of one column of a layer on the device, in whatever form they are stored: one type for all codecs, so that
/// policies need not know which one. Kernels read single numbers of it.
template <>
class SlotRows<Cuda> {
 public:
  SlotRows() = default;
  /// Exact numbers alone.
  SlotRows(prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads, index_t max_slots, index_t dim)
      : runs_(runs), slots_(slots), heads_(heads), max_slots_(max_slots), dim_(dim), exact_(exact) {}
  /// Exact numbers and codes.
  template <int Bits>
  SlotRows(const prim::GroupInt<Bits>& codec, prim::ExactRows exact, prim::ColumnRuns runs, const index_t* slots, index_t heads,
           index_t max_slots, index_t dim)
      : SlotRows(exact, runs, slots, heads, max_slots, dim) {
    bits_ = Bits, axis_ = codec.axis, form_ = codec.form, params_ = codec.params, layout_ = codec.layout;
    group_ = static_cast<int>(codec.axis == prim::GroupAxis::channel || codec.group_size > 0 ? codec.group_size : dim);
  }

  KVCONDENSE_HD index_t dim() const { return dim_; }
  KVCONDENSE_HD index_t heads() const { return heads_; }
  KVCONDENSE_HD index_t max_slots() const { return max_slots_; }  ///< no head has more
  __device__ index_t slots(index_t head) const { return slots_[head]; }
  bool exact() const { return bits_ == 0; }  ///< no codes: rows may be written number by number

  /// The run of a slot, with the slot's own place in it.
  __device__ prim::SlotRun locate(index_t head, index_t slot) const {
    prim::SlotRun run = prim::run_of(runs_, head, static_cast<std::int32_t>(slot));
    run.place += static_cast<std::int32_t>(slot) - run.begin;
    return run;
  }
  /// Channel c of the slot that `locate` found.
  __device__ float value(const prim::SlotRun& at, int c) const {
    using namespace prim::cuda_kernels;
    const int dim = static_cast<int>(dim_);
    if (!at.coded || bits_ == 0) return RowPage<prim::ExactRows>(exact_, at.page, 0, dim).value(at.place, c);
    switch (bits_) {
      case 1: return coded<1>(at, c);
      case 2: return coded<2>(at, c);
      case 3: return coded<3>(at, c);
      case 4: return coded<4>(at, c);
      case 5: return coded<5>(at, c);
      case 6: return coded<6>(at, c);
      case 7: return coded<7>(at, c);
      default: return coded<8>(at, c);
    }
  }
  /// Writes channel c of a slot that lies in exact numbers.
  __device__ void set(const prim::SlotRun& at, int c, float x) const {
    using namespace prim::cuda_kernels;
    write_number(exact_.dtype, RowPage<prim::ExactRows>(exact_, at.page, 0, static_cast<int>(dim_)).row(at.place), c, x);
  }

 private:
  template <int Bits>
  __device__ float coded(const prim::SlotRun& at, int c) const {
    const prim::GroupInt<Bits> codec{.axis = axis_, .group_size = group_, .form = form_, .params = params_, .layout = layout_};
    const prim::cuda_kernels::RowPage<prim::GroupInt<Bits>> page(codec, at.page, static_cast<int>(runs_.page_slots), static_cast<int>(dim_));
    return page.value(at.place, c);
  }

  prim::ColumnRuns runs_{};
  const index_t* slots_ = nullptr;
  index_t heads_ = 0, max_slots_ = 0, dim_ = 0;
  prim::ExactRows exact_{};
  int bits_ = 0;  ///< 0: no codes
  int group_ = 0;
  prim::GroupAxis axis_ = prim::GroupAxis::token;
  prim::GroupForm form_ = prim::GroupForm::minimum;
  prim::ParamType params_ = prim::ParamType::f16;
  prim::CodeLayout layout_ = prim::CodeLayout::rows;
};

}  // namespace kvcondense
