#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/group_quant_fold.hpp>
#include <kvcondense/backend/cpu/group_quant_tile.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>

// What codecs share that keep small numbers and a scale per group of channels: rows are unpacked a tile at a
// time, scores scale the dot product of each group, sums scale the weights; nothing is multiplied out.

namespace kvcondense::prim::cpu {

/// Numbers of up to `tile_slots` slots before their scales, and of group j and slot i the scale and the minimum
/// at [j * tile_slots + i]. Columns beyond the row are zero.
struct ScaledTile {
  alignas(64) float elements[tile_slots * max_head_dim];
  alignas(64) float scale[max_head_dim / lanes * tile_slots];
  alignas(64) float base[max_head_dim / lanes * tile_slots];
  index_t dim, group, groups, width;
  bool based;  ///< there are minima

  /// Groups are at least `lanes` numbers, or one.
  ScaledTile(index_t row_dim, index_t row_group, bool minima)
      : dim(row_dim), group(row_group), groups((row_dim + row_group - 1) / row_group), based(minima) {
    if (groups == 1) group = padded(dim, lanes);
    width = groups * group;
    std::fill_n(elements, tile_slots * width, 0.0f);
    std::fill_n(scale, tile_slots * groups, 0.0f);
    std::fill_n(base, tile_slots * groups, 0.0f);
  }
};

/// `load(tile, at, n)` unpacks slots [at, at + n) of the run into a tile.
template <class Tile, class Load>
void decode_tiles(Tile& tile, Load&& load, index_t dim, index_t count, RowBlock<float> rows) {
  for (index_t done = 0; done < count; done += tile_slots) {
    const index_t n = std::min(tile_slots, count - done);
    load(tile, done, n);
    for (index_t i = 0; i < n; ++i) {
      const float* element = tile.elements + i * tile.width;
      float* x = rows.data + (done + i) * rows.step;
      for (index_t j = 0; j < tile.groups; ++j) {
        const float s = tile.scale[j * tile_slots + i], b = tile.base[j * tile_slots + i];
        const index_t end = std::min(dim, (j + 1) * tile.group);
        if (tile.based)
          for (index_t c = j * tile.group; c < end; ++c) x[c] = element[c] * s + b;
        else
          for (index_t c = j * tile.group; c < end; ++c) x[c] = element[c] * s;
      }
    }
  }
}

/// out[r][i] = queries[r] . (slot i), `fold_rows` queries at a time.
template <class Tile, class Load>
void score_tiles(Tile& tile, Load&& load, index_t dim, index_t count, RowBlock<const float> queries, RowBlock<float> out) {
  const index_t width = tile.width, step = tile_slots;
  alignas(64) float padded_queries[fold_rows * max_head_dim], part[fold_rows * tile_slots];
  float sums[fold_rows * (max_head_dim / lanes)];
  by_rows(queries, out, [&](RowBlock<const float> some, RowBlock<float> to) {
    const index_t rows = some.rows;
    for (index_t r = 0; r < rows; ++r) {
      float* q = padded_queries + r * width;
      std::copy_n(some.data + r * some.step, dim, q);
      std::fill(q + dim, q + width, 0.0f);
      for (index_t j = 0; j < (tile.based ? tile.groups : 0); ++j) {
        float sum = 0.0f;
        for (index_t c = j * tile.group; c < (j + 1) * tile.group; ++c) sum += q[c];
        sums[r * tile.groups + j] = sum;
      }
    }
    for (index_t done = 0; done < count; done += step) {
      const index_t n = std::min(step, count - done);
      load(tile, done, n);
      if (tile.groups == 1) dot_tile(tile.elements, n, width, padded_queries, rows, part);
      for (index_t r = 0; r < rows; ++r) {
        float* p = part + r * step;
        if (tile.groups == 1)
          for (index_t i = 0; i < n; ++i) p[i] *= tile.scale[i];
        else
          for (index_t i = 0; i < n; i += 4)
            dot_1x4_scaled(padded_queries + r * width, tile.elements + i * width, width, tile.group, tile.scale + i, p + i);
        for (index_t j = 0; j < (tile.based ? tile.groups : 0); ++j)
          for (index_t i = 0; i < n; ++i) p[i] += tile.base[j * step + i] * sums[r * tile.groups + j];
        std::copy_n(p, n, to.data + r * to.step + done);
      }
    }
  });
}

/// out[r][:] += sum_i weights[r][i] * (slot i), `fold_rows` rows at a time.
template <class Tile, class Load>
void add_tiles(Tile& tile, Load&& load, index_t dim, index_t count, RowBlock<const float> weights, RowBlock<float> out) {
  const index_t width = tile.width, step = tile_slots;
  alignas(64) float sums[fold_rows * max_head_dim], scaled[fold_rows * tile_slots];
  float zero[fold_rows * (max_head_dim / lanes)];
  by_rows(weights, out, [&](RowBlock<const float> some, RowBlock<float> to) {
    const index_t rows = some.rows;
    std::fill_n(sums, rows * width, 0.0f);
    std::fill_n(zero, rows * tile.groups, 0.0f);
    for (index_t done = 0; done < count; done += step) {
      const index_t n = std::min(step, count - done);
      load(tile, done, n);
      for (index_t j = 0; j < tile.groups; ++j) {
        const float* s = tile.scale + j * step;
        const float* b = tile.base + j * step;
        for (index_t r = 0; r < rows; ++r) {
          const float* w = some.data + r * some.step + done;
          for (index_t i = 0; i < n; ++i) scaled[r * step + i] = w[i] * s[i];
          float sum = 0.0f;
          for (index_t i = 0; i < (tile.based ? n : 0); ++i) sum += w[i] * b[i];
          zero[r * tile.groups + j] += sum;
        }
        add_tile(tile.elements, n, width, j * tile.group, (j + 1) * tile.group, scaled, step, rows, sums);
      }
    }
    for (index_t r = 0; r < rows; ++r) {
      float* o = to.data + r * to.step;
      for (index_t j = 0; j < tile.groups; ++j)
        for (index_t c = j * tile.group; c < std::min(dim, (j + 1) * tile.group); ++c)
          o[c] += sums[r * width + c] + zero[r * tile.groups + j];
    }
  });
}

}  // namespace kvcondense::prim::cpu
