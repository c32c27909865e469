#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/attend.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::cache {

/// The mean of the keys and values that left a head, and how many they are: for attention one slot
/// more, whose logit has the logarithm of their number added. Float32, made once.
class Summary {
 public:
  static constexpr index_t tile = 16;

  Summary() = default;

  static Status make(index_t head_dim, index_t value_dim, MemoryResource<Cpu>& memory, Summary& out) {
    out.numbers_ = Buffer<float>(memory);
    if (const Status s = out.numbers_.reserve(head_dim + value_dim, true); s != Status::ok) return s;
    out.key_dim_ = head_dim;
    return out.numbers_.resize(head_dim + value_dim);
  }

  bool kept() const { return key_dim_ > 0; }
  index_t count() const { return count_; }
  std::size_t bytes() const { return numbers_.bytes(); }
  index_t size() const { return numbers_.size(); }
  const float* data() const { return numbers_.data(); }

  prim::SummarySlot slot() const {
    if (count_ == 0) return {};
    return {numbers_.data(), numbers_.data() + key_dim_, static_cast<float>(std::log(static_cast<double>(count_)))};
  }

  /// Takes in those of `slots` slots that leave, in slot order. `to`: null, or per slot where it folds to; those that
  /// fold into another slot live on there.
  template <class K, class V>
  void absorb(const K& keys, const V& values, index_t slots, const Kept& kept, const std::int32_t* to) {
    alignas(64) float key[tile * max_head_dim];
    alignas(64) float value[tile * max_head_dim];
    const index_t value_dim = numbers_.size() - key_dim_;
    kept.for_gaps(0, slots, [&](index_t first, index_t last) {
      for (index_t i = first; i < last;) {
        index_t m = to == nullptr ? std::min(tile, last - i) : 0;
        for (; to != nullptr && m < std::min(tile, last - i) && to[i + m] < 0; ++m) {}
        if (m == 0) {
          ++i;
          continue;
        }
        keys.decode_from(i, {key, m, key_dim_});
        values.decode_from(i, {value, m, value_dim});
        for (index_t j = 0; j < m; ++j) add(key + j * key_dim_, value + j * value_dim, value_dim);
        i += m;
      }
    });
  }

  /// A mean forgets no single member: when tokens are taken back, only the number follows.
  void limit(index_t most) { count_ = std::clamp<index_t>(count_, 0, most); }
  void clear() { count_ = 0; }

  void fork(Summary& out) const {
    out.count_ = count_;
    std::copy_n(numbers_.data(), numbers_.size(), out.numbers_.data());  // made alike
  }
  /// For loaders: the numbers are the caller's to fill.
  float* restore(index_t count) {
    count_ = count;
    return numbers_.data();
  }

 private:
  void add(const float* key, const float* value, index_t value_dim) {
    const float part = 1.0f / static_cast<float>(++count_);
    float* mean = numbers_.data();
    for (index_t d = 0; d < key_dim_; ++d) mean[d] = count_ == 1 ? key[d] : mean[d] + (key[d] - mean[d]) * part;
    mean += key_dim_;
    for (index_t d = 0; d < value_dim; ++d) mean[d] = count_ == 1 ? value[d] : mean[d] + (value[d] - mean[d]) * part;
  }

  Buffer<float> numbers_;
  index_t key_dim_ = 0;
  index_t count_ = 0;
};

}  // namespace kvcondense::cache
