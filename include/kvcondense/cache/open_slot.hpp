#pragma once

#include <algorithm>

#include <kvcondense/cache/folding.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// The newest slot of a head, which later tokens may still join: the tokens it is the mean of, as they came and with
/// what they count. Behind them the tokens that no step has seen; taking those back leaves it as it was.
///
/// Per token: key, value, weight, and 1 where it joined what was before it.
class OpenSlot {
 public:
  OpenSlot() = default;
  OpenSlot(index_t key_dim, index_t value_dim, MemoryResource<Cpu>& memory)
      : rows_(memory), key_dim_(key_dim), value_dim_(value_dim) {}

  bool kept() const { return key_dim_ > 0; }
  index_t tokens() const { return kept() ? rows_.size() / width() : 0; }
  index_t pending() const { return tokens() - settled_; }
  /// Of the newest token that a step has seen; -1: there is none to join.
  index_t token() const { return settled_ > 0 ? token_ : -1; }
  bool joined(index_t pending) const { return row(settled_ + pending)[width() - 1] != 0.0f; }
  std::size_t bytes() const { return rows_.bytes(); }

  Status reserve(index_t tokens) { return kept() ? rows_.reserve(rows_.size() + tokens * width()) : Status::ok; }

  /// After `reserve`. Key and value become those of the slot that the token joined or opened.
  void add(float* key, float* value, float weight, bool joins, index_t window) {
    const bool joined = joins && tokens() > 0;
    for (index_t d = 0; d < key_dim_; ++d) rows_.append_reserved(key[d]);
    for (index_t d = 0; d < value_dim_; ++d) rows_.append_reserved(value[d]);
    rows_.append_reserved(weight), rows_.append_reserved(joined ? 1.0f : 0.0f);
    (void)mean(first_of_newest(window), key, value);
  }

  /// At the end of a step whose newest token is `token`: what joins from here on needs only this.
  void settle(index_t token, index_t window) {
    if (!kept() || tokens() == 0) return;
    const index_t first = first_of_newest(window), end = tokens();
    if (window == 0 && end - first > 1) {  // the mean and its weight stand for all
      float* to = rows_.data() + first * width();
      const float weight = mean(first, to, to + key_dim_);
      to[width() - 2] = weight;
      index_t again = 0;  // counted as the slot was stored
      bring_into_range(to, width() - 1, DType::f32, again);
      rows_.shrink((first + 1) * width());
    }
    rows_.erase_front(first * width());
    rows_.give_back(rows_.size());
    settled_ = tokens(), token_ = token;
  }

  /// Takes the newest tokens back; where a step has seen some of them, nothing is left to join.
  void drop(index_t newest) {
    if (!kept()) return;
    if (newest > pending()) return clear();
    rows_.shrink(rows_.size() - newest * width());
  }
  void clear() { rows_.shrink(0), settled_ = 0; }

  Status fork(OpenSlot& out) const {
    if (!kept()) return Status::ok;
    out.settled_ = settled_, out.token_ = token_;
    return out.rows_.copy_from(rows_);
  }

  /// For snapshots.
  index_t width() const { return key_dim_ + value_dim_ + 2; }
  index_t settled() const { return settled_; }
  const Buffer<float>& rows() const { return rows_; }
  Status restore(index_t settled, index_t pending, index_t token) {
    settled_ = settled, token_ = token;
    return rows_.resize((settled + pending) * width());
  }
  float* restored() { return rows_.data(); }

 private:
  const float* row(index_t i) const { return rows_.data() + i * width(); }

  /// The first of the tokens of which the newest slot is the mean.
  index_t first_of_newest(index_t window) const {
    const index_t n = tokens();
    index_t first = n - 1;
    while (first > 0 && row(first)[width() - 1] != 0.0f && (window == 0 || n - first < window)) --first;
    return first;
  }

  /// The weighted mean of the tokens from `first` on, summed as they came; `key` and `value` may be those of `first`. Returns
  /// the sum of weights.
  float mean(index_t first, float* key, float* value) const {
    float sum = row(first)[width() - 2];
    std::copy_n(row(first), key_dim_, key);
    std::copy_n(row(first) + key_dim_, value_dim_, value);
    for (index_t i = first + 1; i < tokens(); ++i) {
      const float *x = row(i), weight = x[width() - 2];
      sum += weight;
      const float part = sum > 0.0f ? weight / sum : 1.0f;
      for (index_t d = 0; d < key_dim_; ++d) key[d] += part * (x[d] - key[d]);
      for (index_t d = 0; d < value_dim_; ++d) value[d] += part * (x[key_dim_ + d] - value[d]);
    }
    return sum;
  }

  Buffer<float> rows_;
  index_t key_dim_ = 0, value_dim_ = 0;
  index_t settled_ = 0;  ///< tokens that a step has seen
  index_t token_ = -1;
};

}  // namespace kvcondense::cache
