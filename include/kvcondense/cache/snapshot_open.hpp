#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include <kvcondense/cache/layer.hpp>
#include <kvcondense/cache/open_slot.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// Only where tokens may join the newest slot: how many of its tokens a step has seen u32, then the rows of these and of the
/// pending ones.
inline void save_open(ByteWriter& w, const OpenSlot& open) {
  if (!open.kept()) return;
  w.put(static_cast<std::uint32_t>(open.settled()));
  w.bytes(std::as_bytes(open.rows().span()));
}

/// `window`: of the gate.
inline Status load_open(ByteReader& r, OpenSlot& open, const Counters& c, index_t window) {
  if (!open.kept()) return Status::ok;
  std::uint32_t settled = 0;
  std::span<const std::byte> rows;
  if (!r.read(settled) || settled > std::max<index_t>(window, 1) || settled > c.seen - c.pending) return Status::corrupt_data;
  const auto tokens = static_cast<index_t>(settled) + c.pending;
  if (!r.take(static_cast<std::uint64_t>(tokens * open.width()), sizeof(float), rows)) return Status::corrupt_data;
  if (const Status s = open.restore(settled, c.pending, c.seen - c.pending - 1); s != Status::ok) return s;
  float* to = open.restored();
  if (!rows.empty()) std::memcpy(to, rows.data(), rows.size());
  for (index_t i = 0; i < tokens; ++i, to += open.width()) {
    const float weight = to[open.width() - 2], joined = to[open.width() - 1];
    for (index_t d = 0; d < open.width(); ++d)
      if (!std::isfinite(to[d])) return Status::corrupt_data;
    if (weight < 0.0f || (joined != 0.0f && joined != 1.0f) || (i == 0 && c.pending == tokens && joined != 0.0f)) return Status::corrupt_data;
  }
  return Status::ok;
}

}  // namespace kvcondense::cache
