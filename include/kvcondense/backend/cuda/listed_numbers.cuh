#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/chosen_slots.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// What attention reads of slots beside their rows, by a list of chosen ones: row r of selection has the number of its i-th slot at r * room + i.

namespace kvcondense::prim {

/// Where they go; null: not wanted.
struct ListedNumbers {
  float* bias = nullptr;          ///< of the slot itself and of the unit by which it was chosen
  float* value_scale = nullptr;
  std::int32_t* place = nullptr;  ///< the slot in its head
  std::uint8_t* passed = nullptr;  ///< of the list as PassedSlots has it of a head: whether its (n - pending + i)-th slot holds what the one in front of it held
  index_t room = 0;

  bool wanted() const { return bias != nullptr || value_scale != nullptr || place != nullptr || passed != nullptr; }
};

namespace cuda_kernels {

/// `unit_bias`: as the lists of units, or null; slots that were read without competing have none. Grid: blocks of slots, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) list_numbers(ChosenUnits chosen, ChosenRuns runs, PagedScalars own, PassedSlots passed, const float* unit_bias, ListedNumbers out) {
  const index_t row = blockIdx.y, head = row * chosen.heads / chosen.units.heads, i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (i >= runs.slots[row]) return;
  const ChosenInterval* const at = interval_of<&ChosenInterval::at>(chosen, runs, row, static_cast<std::int32_t>(i));
  const index_t slot = at->first + i - at->at, slots = chosen.slots[head], place = at - (runs.intervals + runs.interval_offset[row]) - 1;
  if (out.place != nullptr) out.place[row * out.room + i] = static_cast<std::int32_t>(slot);
  if (out.value_scale != nullptr) out.value_scale[row * out.room + i] = own.value_scale_of(head, slot, slots);
  if (const index_t next = slot - (slots - passed.pending); out.passed != nullptr && next >= 0) {  // all of them are read, behind all others
    bool holds = passed.passed.row(head)[next] != 0;
    if (holds && next == 0 && i > 0) {  // the slot in front of the first may not have been chosen
      const ChosenInterval* const before = interval_of<&ChosenInterval::at>(chosen, runs, row, static_cast<std::int32_t>(i - 1));
      holds = before->first + i - 1 - before->at == slot - 1;
    }
    out.passed[row * out.room + next] = static_cast<std::uint8_t>(holds);
  }
  if (out.bias == nullptr) return;
  const bool competed = unit_bias != nullptr && place >= 0 && place < chosen.count[row];
  out.bias[row * out.room + i] = own.bias_of(head, slot, slots) + (competed ? unit_bias[chosen.units.offset[row] + place] : 0.0f);
}

}  // namespace cuda_kernels

/// Behind `ChosenSlots::lay`. `own`, `passed`: of the slots of KV heads. `most`: no row has more slots.
struct ListNumbers {
  static Status run(Context<Cuda>& ctx, const ChosenUnits& chosen, const ChosenRuns& runs, const PagedScalars& own, const PassedSlots& passed, const float* unit_bias, index_t most,
                    const ListedNumbers& out) {
    if (!out.wanted()) return Status::ok;
    return cuda::launch(ctx, cuda_kernels::list_numbers<256>, {cuda::covering(most, 256), chosen.units.heads}, 256, 0, chosen, runs, own, passed, unit_bias, out);
  }
};

}  // namespace kvcondense::prim
