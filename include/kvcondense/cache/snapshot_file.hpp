#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <kvcondense/cache/counters.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>

// The parts of a snapshot that say nothing of where a cache keeps its slots: every backend writes and reads them so. docs/file_format.md has them
// in prose. Readers trust no number before it was compared with the bytes that are left.

namespace kvcondense::cache {

inline constexpr std::uint32_t snapshot_magic = 0x5343564b;  // "KVCS"
inline constexpr std::uint32_t snapshot_version = 6;

/// A number that differs when two caches store slots differently. Folds any list of integers.
class Fingerprint {
 public:
  template <class... T>
  Fingerprint& add(T... values) {
    (sum_.add(std::as_bytes(std::span<const std::int64_t, 1>(fold(static_cast<std::int64_t>(values)), 1))), ...);
    return *this;
  }
  Fingerprint& add_text(const char* text) {
    for (; *text != 0; ++text) add(*text);
    return add(-1);
  }
  /// How keys and values of a head are coded.
  Fingerprint& add_codes(std::int64_t keys, std::int64_t values, const Flush& k, const Flush& v) {
    add(keys, values, k.block, k.keep, k.first, v.block, v.keep, v.first);
    return k.whole || v.whole ? add(k.whole, v.whole) : *this;
  }
  std::uint64_t value() const { return sum_.value(); }

 private:
  const std::int64_t* fold(std::int64_t v) { return &(now_ = v); }
  Checksum sum_;
  std::int64_t now_ = 0;
};

/// Begun with the shape, its softmax scale named, and the stages that every recipe has.
template <class R>
Fingerprint begin_fingerprint(const CacheShape& s, const R& recipe) {
  Fingerprint f;
  f.add(s.layers, s.q_heads, s.kv_heads, s.head_dim, s.values(), static_cast<int>(s.dtype), s.page_slots);
  f.add(std::bit_cast<std::uint32_t>(s.softmax_scale));
  f.add_text(word_of(recipe.evict)).add_text(word_of(recipe.quant)).add_text(word_of(recipe.position));
  return f;
}

inline void save_begin(ByteWriter& w, std::uint64_t print, index_t layers) {
  w.put(snapshot_magic);
  w.put(snapshot_version);
  w.put(print);
  w.put(static_cast<std::uint32_t>(layers));
}
inline Status save_end(ByteWriter& w) {
  const std::uint64_t sum = w.checksum();
  w.put(sum);
  return w.status();
}

/// The bytes of the layers of a whole file that fits.
inline Status load_begin(std::span<const std::byte> file, std::uint64_t print, index_t layers, ByteReader& out) {
  std::uint64_t sum = 0;
  if (file.size() < sizeof sum) return Status::corrupt_data;
  std::memcpy(&sum, file.data() + file.size() - sizeof sum, sizeof sum);
  Checksum check;
  check.add(file.first(file.size() - sizeof sum));
  if (check.value() != sum) return Status::corrupt_data;

  ByteReader r(file.first(file.size() - sizeof sum));
  std::uint32_t magic = 0, version = 0, count = 0;
  std::uint64_t own = 0;
  if (!r.read(magic) || !r.read(version) || magic != snapshot_magic) return Status::corrupt_data;
  if (version != snapshot_version) return Status::incompatible;
  if (!r.read(own) || !r.read(count)) return Status::corrupt_data;
  if (own != print || count != static_cast<std::uint64_t>(layers)) return Status::incompatible;
  out = r;
  return Status::ok;
}

/// What a layer has counted, and the positions of its pending tokens.
inline void save_counters(ByteWriter& w, const Counters& c, const Buffer<index_t>& pending) {
  w.put(c);
  w.bytes(std::as_bytes(pending.span()));
}
inline Status load_counters(ByteReader& r, Counters& c, Buffer<index_t>& pending) {
  Counters n;
  if (!r.read(n)) return Status::corrupt_data;
  const bool sane = n.seen >= 0 && n.seen <= max_position && n.pending >= 0 && n.pending <= n.seen &&
                    n.stepped_position >= 0 && n.stepped_position <= max_position + 1 && n.prompt >= 0 && n.prompt <= n.seen &&
                    n.stepped >= n.seen - n.pending && n.stepped <= std::numeric_limits<index_t>::max() / 2;
  if (!sane || static_cast<std::uint64_t>(n.pending) > r.left() / sizeof(index_t)) return Status::corrupt_data;
  c = n;
  for (index_t i = 0; i < n.pending; ++i) {
    index_t p = 0;
    if (!r.read(p) || p < 0 || p > max_position) return Status::corrupt_data;
    if (const Status s = pending.push_back(p); s != Status::ok) return s;
  }
  return Status::ok;
}

/// Only where the recipe keeps queries: rows u32, then per row its position and its numbers.
inline void save_window(ByteWriter& w, const QueryWindow& window, const CacheShape& shape) {
  if (window.most() == 0) return;
  w.put(static_cast<std::uint32_t>(window.size()));
  for (index_t i = 0; i < window.size(); ++i) {
    w.put(window.position(i));
    w.bytes(std::as_bytes(std::span(window.row(i), static_cast<std::size_t>(shape.q_heads * shape.head_dim))));
  }
}
inline Status load_window(ByteReader& r, QueryWindow& window, const CacheShape& shape, const Counters& c) {
  if (window.most() == 0) return Status::ok;
  std::uint32_t rows = 0;
  if (!r.read(rows) || rows > window.most() || rows > c.seen - c.pending) return Status::corrupt_data;
  for (std::uint32_t i = 0; i < rows; ++i) {
    index_t position = 0;
    std::span<const std::byte> numbers;
    if (!r.read(position) || position < 0 || position > max_position) return Status::corrupt_data;
    if (!r.take(static_cast<std::uint64_t>(shape.q_heads * shape.head_dim), sizeof(float), numbers)) return Status::corrupt_data;
    std::memcpy(window.push_row(position), numbers.data(), numbers.size());
  }
  window.set_end(c.seen - c.pending);
  return Status::ok;
}

/// Slots of a head as a file has them: their tokens, and the numbers of the lanes. The bytes are those of the file.
struct SavedSlots {
  HeadCounts counts;
  std::int64_t slots = 0;
  std::span<const std::byte> ids;
  std::span<const std::byte> lane[max_lanes];

  std::int32_t token(index_t slot) const { return at<std::int32_t>(ids, slot); }
  float number(index_t l, index_t slot) const { return at<float>(lane[l], slot); }

  Status load(ByteReader& r, const Counters& c, index_t lanes) {
    if (!r.read(counts) || !r.read(slots)) return Status::corrupt_data;
    if (slots < 0 || slots > c.seen || !r.take(static_cast<std::uint64_t>(slots), sizeof(std::int32_t), ids)) return Status::corrupt_data;
    for (index_t l = 0; l < lanes; ++l)
      if (!r.take(static_cast<std::uint64_t>(slots), sizeof(float), lane[l])) return Status::corrupt_data;
    std::int32_t last = -1;
    for (index_t i = 0; i < slots; ++i) {
      const std::int32_t id = token(i);
      if (id <= last || id >= c.seen) return Status::corrupt_data;
      last = id;
    }
    // Tokens that no step has seen are all stored: attention counts on it.
    const bool newest = c.pending <= slots && (c.pending == 0 || token(slots - c.pending) == c.seen - c.pending);
    return newest ? Status::ok : Status::corrupt_data;
  }

 private:
  template <class T>
  static T at(std::span<const std::byte> bytes, index_t i) {
    T value;
    std::memcpy(&value, bytes.data() + static_cast<std::size_t>(i) * sizeof value, sizeof value);
    return value;
  }
};
/// The same numbers in front of tokens and lanes, which whoever has them writes. `ids(first, n, out)`: tokens of some slots.
template <class Ids>
void save_slots(ByteWriter& w, const HeadCounts& counts, index_t slots, Ids&& ids) {
  w.put(counts);
  w.put(static_cast<std::int64_t>(slots));
  std::int32_t some[256];
  for (index_t i = 0, n = 0; i < slots; i += n) {
    n = std::min<index_t>(256, slots - i);
    ids(i, n, some);
    w.bytes(std::as_bytes(std::span(some, static_cast<std::size_t>(n))));
  }
}

/// How a page of the coded part of a layer that shares rows lies in a file.
enum class PageForm : std::uint32_t {
  alone,   ///< its payload
  rows,    ///< bytes of what the head has of its own u32, these, then the payload of the rows
  shared,  ///< page of the head before that holds the rows u32, bytes u32, then what the head has of its own; shared + n: of the
           ///< head n further before, heads of a layer first
};

/// What stands before the payload of a page.
struct PageHead {
  std::uint64_t format = 0;
  std::uint32_t used = 0;  ///< slots written, whole groups
  std::uint64_t dead[max_page_slots / 64] = {};

  void save(ByteWriter& w) const {
    w.put(format);
    w.put(used);
    for (const std::uint64_t word : dead) w.put(word);
  }
  /// incompatible: a page of another form.
  Status load(ByteReader& r, std::uint64_t expected) {
    if (!r.read(format)) return Status::corrupt_data;
    if (format != expected) return Status::incompatible;
    return r.read(used) && r.read(dead) ? Status::ok : Status::corrupt_data;
  }
  bool alive(index_t slot) const { return (dead[slot / 64] >> (slot % 64) & 1u) == 0; }
  /// Of a page that fits.
  index_t live() const {
    index_t n = 0;
    for (index_t s = 0; s < static_cast<index_t>(used); ++s) n += alive(s);
    return n;
  }
  /// Whole groups of a page of so many slots, and one of them at least is live.
  bool fits(index_t page_slots, index_t group) const {
    return used > 0 && used <= page_slots && used % group == 0 && live() > 0;
  }
};

/// How many pages come; `payload`: bytes that each of them has at least.
inline bool load_pages(ByteReader& r, std::size_t payload, std::uint32_t& pages) {
  return r.read(pages) && pages <= r.left() / (payload + sizeof(PageHead::dead));
}

}  // namespace kvcondense::cache
