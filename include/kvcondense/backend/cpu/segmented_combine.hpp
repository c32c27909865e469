#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/segmented_combine.hpp>

namespace kvcondense::prim {

template <>
struct SegmentedCombine<Cpu> {
  template <class Heads>
  static Status run(Context<Cpu>& ctx, const CombineRequest& request, Heads&& heads) {
    ctx.parallel(request.links.heads(), [&](index_t h, index_t) {
      const MergeLinks& links = request.links;
      const std::int32_t* to = links.to.row(h);
      std::int32_t* order = request.order.row(h);
      index_t count = 0;
      const index_t n = links.slots(h);
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) order[count++] = static_cast<std::int32_t>(j);
      if (count == 0) return;
      std::sort(order, order + count, [&](std::int32_t a, std::int32_t b) { return to[a] != to[b] ? to[a] < to[b] : a < b; });
      auto head = heads(h);
      // With a fan, members of the last `fan` targets are one run of `order`, which ends where the target's own end.
      const auto target = [&](index_t t) { return to[t] == t && request.targets[h].has(t); };
      index_t end = 0, begin = 0, oldest = 0, open = 0;
      for (index_t t = 0; t < n && begin < count; ++t) {
        if (!target(t)) continue;
        if (++open > links.fan) {
          while (!target(oldest)) ++oldest;
          while (begin < count && to[order[begin]] <= oldest) ++begin;
          ++oldest, --open;
        }
        while (end < count && to[order[end]] <= t) ++end;
        if (begin < end) Fold<decltype(head)>{request, h, head, order + begin, end - begin}.into(t);
      }
    });
    return Status::ok;
  }

 private:
  template <class Head>
  struct Fold {
    const CombineRequest& request;
    index_t h;
    Head& head;
    const std::int32_t* member;
    index_t members;

    void into(index_t t) {
      alignas(64) float row[max_head_dim], sum[max_head_dim], logit[max_head_dim];
      const bool weighs = request.bias.data != nullptr;
      if (request.keys || weighs) {
        const index_t dim = head.key_dim();
        float length = 0.0f;
        std::fill_n(sum, dim, 0.0f);
        float size = -std::numeric_limits<float>::infinity();  // what all weighs whatever the query
        if (weighs) begin_mass(logit);
        const auto take = [&](index_t j) {
          head.key(j, row);
          if (weighs) {
            const float bias = request.bias.row(h)[j] - part(j, t);
            add_mass(row, dim, bias, logit);
            size = log_sum(size, bias);
          }
          if (request.angles != nullptr && request.turn.row(h)[j] != 0) rotate(row, request.turn.row(h)[j]);
          add(request.links.key.row(h)[j], row, dim, sum, length);
        };
        take(t);
        for (index_t i = 0; i < members; ++i) take(member[i]);
        if (request.split == RowSplit::direction) stretch(sum, dim, length);
        if (request.keys) head.set_key(t, sum);
        if (weighs) {
          head.key(t, row);
          const float mass = end_mass(row, dim, logit);
          request.bias.row(h)[t] = std::isfinite(mass) ? mass : size;
        }
      }
      if (request.values) {
        const index_t dim = head.value_dim();
        std::fill_n(sum, dim, 0.0f);
        const auto take = [&](index_t j) {
          head.value(j, row);
          const float w = request.links.value.row(h)[j];
          for (index_t d = 0; d < dim; ++d) sum[d] += w * row[d];
        };
        take(t);
        for (index_t i = 0; i < members; ++i) take(member[i]);
        head.set_value(t, sum);
      }
    }

    void add(float w, const float* x, index_t dim, float* sum, float& length) const {
      if (request.split == RowSplit::direction) {
        const float square = cpu::dot(x, x, dim);
        if (!(square > 0.0f)) return;
        const float own = std::sqrt(square);
        length += w * own;
        w /= own;
      }
      for (index_t d = 0; d < dim; ++d) sum[d] += w * x[d];
    }

    /// Directions that cancel out leave nothing to stretch.
    static void stretch(float* sum, index_t dim, float length) {
      const float square = cpu::dot(sum, sum, dim);
      const float factor = square > 0.0f ? length / std::sqrt(square) : 0.0f;
      for (index_t d = 0; d < dim; ++d) sum[d] *= factor;
    }

    void rotate(float* row, index_t positions) const {
      float cos[max_head_dim / 2], sin[max_head_dim / 2];
      const RopeAngles& a = *request.angles;
      rope_cos_sin(a, positions, cos, sin);
      rotate_row(row, row, cos, sin, a.pairs, a.pairing);
    }

    /// What folds into several targets is a part of each.
    float part(index_t j, index_t t) const {
      return j == t || request.links.fan == 1 ? 0.0f
                                              : std::log(static_cast<float>(request.links.targets_of(h, j, request.targets)));
    }

    static float log_sum(float a, float b) {
      const float top = std::max(a, b);
      return top + std::log(std::exp(a - top) + std::exp(b - top));
    }

    // Logarithms of the summed weights per query head of the group, of the first ones where there are more than room.
    index_t group() const { return std::min<index_t>(max_head_dim, request.queries.extent[0] / request.links.heads()); }
    void begin_mass(float* logit) const { std::fill_n(logit, group(), -std::numeric_limits<float>::infinity()); }
    float dot(const float* row, index_t dim, index_t g) const {
      const TensorView<const float, 3>& q = request.queries;
      const index_t head_of = h * (q.extent[0] / request.links.heads()) + g, last = q.extent[1] - 1;
      float s = 0.0f;
      for (index_t d = 0; d < dim; ++d) s += q(head_of, last, d) * row[d];
      return s * request.softmax_scale;
    }
    void add_mass(const float* row, index_t dim, float bias, float* logit) const {
      for (index_t g = 0; g < group(); ++g) logit[g] = log_sum(dot(row, dim, g) + bias, logit[g]);
    }
    float end_mass(const float* row, index_t dim, const float* logit) const {
      float sum = 0.0f;
      for (index_t g = 0; g < group(); ++g) sum += logit[g] - dot(row, dim, g);
      return sum / static_cast<float>(group());
    }
  };
};

}  // namespace kvcondense::prim
