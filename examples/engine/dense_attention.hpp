#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include <engine/decoder.hpp>

namespace engine {

/// A plain float32 cache that forgets nothing: what the engine's own tests measure against.
///
/// Keys are kept as panels of 8 tokens and values as panels of 8 channels, so that both products
/// run through the kernel of the weights; that is all there is to its speed.
class DenseAttention {
 public:
  explicit DenseAttention(const ModelConfig& c)
      : dim_(c.head_dim),
        group_(c.q_heads / c.kv_heads),
        kv_heads_(c.kv_heads),
        heads_(static_cast<std::size_t>(c.layers * c.kv_heads)) {
    for (Head& h : heads_) h.values.resize(static_cast<std::size_t>(value_panels()));
  }

  index_t length(index_t layer) const {
    return heads_[static_cast<std::size_t>(layer * kv_heads_)].length;
  }

  void reset() {
    for (Head& h : heads_) {
      h.length = 0;
      h.keys.clear();
      for (auto& panel : h.values) panel.clear();
    }
  }

  Status operator()(const LayerChunk& chunk, TensorView<float, 3> out) {
    for (index_t h = 0; h < kv_heads_; ++h) {
      Head& head = heads_[static_cast<std::size_t>(chunk.layer * kv_heads_ + h)];
      const index_t before = head.length;
      append(head, chunk, h);
      for (index_t g = 0; g < group_; ++g) attend(head, chunk.q, out, h * group_ + g, before);
    }
    return Status::ok;
  }

 private:
  struct Head {
    index_t length = 0;
    std::vector<float> keys;                 ///< [tokens / 8, dim, 8]
    std::vector<std::vector<float>> values;  ///< per 8 channels: [tokens, 8]
  };

  index_t value_panels() const { return (dim_ + panel_width - 1) / panel_width; }

  void append(Head& head, const LayerChunk& chunk, index_t h) const {
    for (index_t t = 0; t < chunk.k.extent[1]; ++t, ++head.length) {
      const index_t lane = head.length % panel_width;
      if (lane == 0)
        head.keys.resize(head.keys.size() + static_cast<std::size_t>(dim_ * panel_width));
      float* panel = head.keys.data() + (head.length / panel_width) * dim_ * panel_width;
      for (index_t d = 0; d < dim_; ++d) panel[d * panel_width + lane] = chunk.k(h, t, d);
      for (index_t d = 0; d < value_panels() * panel_width; ++d)
        head.values[static_cast<std::size_t>(d / panel_width)].push_back(d < dim_ ? chunk.v(h, t, d)
                                                                                  : 0.0f);
    }
  }

  void attend(const Head& head, TensorView<const float, 3> q, TensorView<float, 3> out, index_t h,
              index_t before) {
    constexpr index_t rows = 16;  // queries at a time, so that their scores stay close
    const index_t width = (head.length + panel_width - 1) / panel_width * panel_width;
    scores_.resize(static_cast<std::size_t>(rows * width));
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim_)));
    for (index_t t = 0; t < q.extent[1]; t += rows) {
      const index_t count = std::min(rows, q.extent[1] - t);
      const index_t visible = before + t + count;  // to the last of these queries
      for (index_t at = 0; at < visible; at += panel_width)
        multiply_panel(&q(h, t, 0), q.stride[1], count, head.keys.data() + at * dim_, dim_,
                       scores_.data() + at, width, panel_width);
      for (index_t r = 0; r < count; ++r)
        softmax(scores_.data() + r * width, before + t + r + 1, visible, scale);
      for (index_t d = 0; d < dim_; d += panel_width)
        multiply_panel(scores_.data(), width, count,
                       head.values[static_cast<std::size_t>(d / panel_width)].data(), visible,
                       &out(h, t, d), out.stride[1], std::min(panel_width, dim_ - d));
    }
  }

  /// Over the first `seen` scores; what lies between them and `end` is the future and weighs
  /// nothing.
  static void softmax(float* scores, index_t seen, index_t end, float scale) {
    const float top = *std::max_element(scores, scores + seen);
    float sum = 0;
    for (index_t i = 0; i < seen; ++i) sum += scores[i] = std::exp((scores[i] - top) * scale);
    for (index_t i = 0; i < seen; ++i) scores[i] /= sum;
    std::fill(scores + seen, scores + end, 0.0f);
  }

  index_t dim_, group_, kv_heads_;
  std::vector<Head> heads_;
  std::vector<float> scores_;
};

}  // namespace engine
