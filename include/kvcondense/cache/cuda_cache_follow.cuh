#pragma once

#include <cstdint>
#include <utility>

#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/cache/cuda_cache.cuh>

namespace kvcondense {

/// The tokens of a layer that takes over what another one chose, and of that one, whose step of the same tokens is enqueued before.
template <class R>
Status Cache<Cuda, R>::name_followed(Context<Cuda>& ctx, StepView<Cuda>& view, Scratch& scratch) {
  if (!pipeline_.reuse.follows(view.layer)) return Status::ok;
  Layer &own = layers_[view.layer], &first = layers_[pipeline_.reuse.first(view.layer)];
  if (first.torn) return Status::device_error;
  // What came to it since is not looked up: no slot here holds it.
  const index_t ahead = first.counters.pending, told = first.counters.seen - ahead;
  if (told != own.counters.seen) return Status::order_violation;
  if (first.total() - ahead * view.heads() > own.total()) return Status::incompatible;
  auto* slots = scratch.take_steering<index_t>(view.heads());
  const auto list = [&](const Layer& l) { return RaggedView<std::int32_t>{scratch.take<std::int32_t>(l.total()), l.device_offset(), view.heads()}; };
  const RaggedView<std::int32_t> mine = list(own), its = list(first);
  if (slots == nullptr || mine.data == nullptr || its.data == nullptr) return Status::workspace_too_small;
  for (index_t h = 0; h < view.heads(); ++h) slots[h] = first.slots(h) - ahead;
  view.followed = {mine, its, slots};
  const auto stepped = static_cast<std::int32_t>(own.counters.seen - own.counters.pending);
  const Status s = prim::HeadSlots::read<std::int32_t>(ctx, std::as_const(own.ids).view(), own.counters.pending, stepped, 1, mine);
  return s == Status::ok ? prim::HeadSlots::read<std::int32_t>(ctx, std::as_const(first.ids).view(), ahead, static_cast<std::int32_t>(told), 1, its) : s;
}

}  // namespace kvcondense
