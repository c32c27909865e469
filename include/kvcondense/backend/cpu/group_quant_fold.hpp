#pragma once

#include <algorithm>

#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/backend/cpu/group_quant_tile.hpp>
#include <kvcondense/prim/page_codec.hpp>

// Attention over codes: value = code * scale + base, with the scale folded into the queries, the
// weights or the sums, and the base into one term per group.

namespace kvcondense::prim::cpu {

inline constexpr index_t fold_rows = 32;  ///< query or weight rows that share one unpacking; bounds the stack
inline constexpr index_t fold_groups = max_head_dim / lanes;

/// Calls run(in, out) for as many rows at a time as the scratch of the folds holds.
template <class F>
void by_rows(RowBlock<const float> in, RowBlock<float> out, F&& run) {
  for (index_t r = 0; r < in.rows; r += fold_rows) {
    const index_t n = std::min(fold_rows, in.rows - r);
    run(RowBlock<const float>{in.data + r * in.step, n, in.step}, RowBlock<float>{out.data + r * out.step, n, out.step});
  }
}

/// Channel axis: scales go into the query once per slot group, the base is one number per group.
template <class Page>
void scores_by_channel(const Page& from, index_t first, index_t count, RowBlock<const float> queries,
                       RowBlock<float> out) {
  const index_t dim = from.page.dim, width = padded(dim, lanes), group = from.codec.group_slots();
  alignas(64) float tile[tile_slots * max_head_dim], folded[fold_rows * max_head_dim];
  alignas(64) float scale[max_head_dim], base[max_head_dim], part[fold_rows * tile_slots];
  float zero[fold_rows];
  for (index_t done = 0; done < count;) {
    const index_t slot = first + done, end = done + std::min(group - slot % group, count - done);
    from.read_params(slot, scale, base);
    from.fold_offsets(scale, base, dim);
    for (index_t r = 0; r < queries.rows; ++r) {
      const float* q = queries.data + r * queries.step;
      float* f = folded + r * width;
      for (index_t c = 0; c < dim; ++c) f[c] = q[c] * scale[c];
      for (index_t c = dim; c < width; ++c) f[c] = 0.0f;
      zero[r] = dot(q, base, dim);
    }
    for (; done < end; done += tile_slots) {
      const index_t n = std::min(tile_slots, end - done);
      from.unpack(first + done, n, width, tile);
      dot_tile(tile, n, width, folded, queries.rows, part);
      for (index_t r = 0; r < queries.rows; ++r)
        for (index_t i = 0; i < n; ++i) out.data[r * out.step + done + i] = part[r * tile_slots + i] + zero[r];
    }
    done = end;
  }
}

/// Channel axis: codes are summed per slot group, scales and base are applied to the sums.
template <class Page>
void accumulate_by_channel(const Page& from, index_t first, index_t count, RowBlock<const float> weights,
                           RowBlock<float> out) {
  const index_t dim = from.page.dim, width = padded(dim, lanes), group = from.codec.group_slots();
  alignas(64) float tile[tile_slots * max_head_dim], sums[fold_rows * max_head_dim];
  alignas(64) float scale[max_head_dim], base[max_head_dim];
  float total[fold_rows];
  for (index_t done = 0; done < count;) {
    const index_t slot = first + done, end = done + std::min(group - slot % group, count - done);
    std::fill_n(sums, weights.rows * width, 0.0f);
    std::fill_n(total, weights.rows, 0.0f);
    for (; done < end; done += tile_slots) {
      const index_t n = std::min(tile_slots, end - done);
      from.unpack(first + done, n, width, tile);
      add_tile(tile, n, width, 0, width, weights.data + done, weights.step, weights.rows, sums);
      for (index_t r = 0; r < weights.rows; ++r)
        for (index_t i = 0; i < n; ++i) total[r] += weights.data[r * weights.step + done + i];
    }
    done = end;
    from.read_params(slot, scale, base);
    from.fold_offsets(scale, base, dim);
    for (index_t r = 0; r < weights.rows; ++r) {
      float* o = out.data + r * out.step;
      for (index_t c = 0; c < dim; ++c) o[c] += scale[c] * sums[r * width + c] + base[c] * total[r];
    }
  }
}

/// Token axis, one tile: codes, and per group j the scale and base of slot i at [j * tile_slots + i].
/// Groups that do not fill whole lanes are multiplied out in the tile instead.
template <class Page>
struct TokenTile {
  alignas(64) float codes[tile_slots * max_head_dim];
  alignas(64) float scale[fold_groups * tile_slots];
  alignas(64) float base[fold_groups * tile_slots];
  index_t width = 0, group = 0, groups = 0;  ///< groups == 0: the tile holds values

  explicit TokenTile(const Page& from) {
    const index_t dim = from.page.dim;
    width = padded(dim, lanes);
    group = from.codec.group_channels(dim);
    groups = group == dim || group % lanes == 0 ? dim / group : 0;
    if (groups == 1) group = width;
    std::fill_n(scale, std::max<index_t>(groups, 1) * tile_slots, 0.0f);
    std::fill_n(base, std::max<index_t>(groups, 1) * tile_slots, 0.0f);
  }

  void load(const Page& from, index_t slot, index_t n) {
    from.unpack(slot, n, width, codes);
    if (groups == 0) return apply(from, slot, n);
    const index_t each = from.codec.group_bytes(from.page.dim) / size_of(from.codec.params);
    float numbers[2 * fold_groups * tile_slots];
    const bool strided = from.strided();  // [numbers of a slot][slots] instead of [slots][numbers of a slot]
    if (strided)
      for (index_t j = 0; j < each; ++j)
        read_numbers(from.codec.params, from.params(slot) + j * from.params_step(), n, numbers + j * tile_slots);
    else
      read_numbers(from.codec.params, from.params(slot), n * each, numbers);
    const index_t to_slot = strided ? 1 : each, to_number = strided ? tile_slots : 1;
    with_form(from.codec.form, [&]<GroupForm Form>() {
      for (index_t i = 0; i < n; ++i)
        for (index_t j = 0; j < groups; ++j) {
          const float s = numbers[i * to_slot + j * to_number];
          const float o = has_offset(Form) ? numbers[i * to_slot + (groups + j) * to_number] : 0.0f;
          scale[j * tile_slots + i] = s;
          base[j * tile_slots + i] = base_of<Page::bits, Form>(s, o);
        }
    });
  }

 private:
  void apply(const Page& from, index_t slot, index_t n) {
    float s[max_head_dim], o[max_head_dim];
    for (index_t i = 0; i < n; ++i) {
      from.read_params(slot + i, s, o);
      from.fold_offsets(s, o, from.codec.scales(from.page.dim));
      float* t = codes + i * width;
      for (index_t c = 0; c < from.page.dim; ++c) t[c] = t[c] * s[c / group] + o[c / group];
    }
  }
};

/// Token axis: dot products of codes are scaled per group; the base meets the group sums of the query.
template <class Page>
void scores_by_token(const Page& from, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
  TokenTile<Page> tile(from);
  const index_t width = tile.width;
  alignas(64) float padded_queries[fold_rows * max_head_dim], part[fold_rows * tile_slots];
  float sums[fold_rows * fold_groups];
  for (index_t r = 0; r < queries.rows; ++r) {
    float* q = padded_queries + r * width;
    std::copy_n(queries.data + r * queries.step, from.page.dim, q);
    std::fill(q + from.page.dim, q + width, 0.0f);
    for (index_t j = 0; j < tile.groups; ++j) {
      float sum = 0.0f;
      for (index_t c = j * tile.group; c < (j + 1) * tile.group; ++c) sum += q[c];
      sums[r * tile.groups + j] = sum;
    }
  }
  for (index_t done = 0; done < count; done += tile_slots) {
    const index_t n = std::min(tile_slots, count - done);
    tile.load(from, first + done, n);
    if (tile.groups <= 1) dot_tile(tile.codes, n, width, padded_queries, queries.rows, part);
    for (index_t r = 0; r < queries.rows; ++r) {
      float* p = part + r * tile_slots;
      if (tile.groups > 1)
        for (index_t i = 0; i < n; i += 4)
          dot_1x4_scaled(padded_queries + r * width, tile.codes + i * width, width, tile.group, tile.scale + i, p + i);
      else if (tile.groups == 1)
        for (index_t i = 0; i < n; ++i) p[i] *= tile.scale[i];
      for (index_t j = 0; j < tile.groups; ++j)
        for (index_t i = 0; i < n; ++i) p[i] += tile.base[j * tile_slots + i] * sums[r * tile.groups + j];
      std::copy_n(p, n, out.data + r * out.step + done);
    }
  }
}

/// Token axis: weights are scaled per slot and group; the base is one sum per group.
template <class Page>
void accumulate_by_token(const Page& from, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
  TokenTile<Page> tile(from);
  const index_t width = tile.width;
  alignas(64) float sums[fold_rows * max_head_dim], scaled[fold_rows * tile_slots];
  float zero[fold_rows * fold_groups];
  std::fill_n(sums, weights.rows * width, 0.0f);
  std::fill_n(zero, weights.rows * tile.groups, 0.0f);
  for (index_t done = 0; done < count; done += tile_slots) {
    const index_t n = std::min(tile_slots, count - done);
    tile.load(from, first + done, n);
    if (tile.groups == 0)
      add_tile(tile.codes, n, width, 0, width, weights.data + done, weights.step, weights.rows, sums);
    for (index_t j = 0; j < tile.groups; ++j) {
      for (index_t r = 0; r < weights.rows; ++r) {
        const float* w = weights.data + r * weights.step + done;
        const float* s = tile.scale + j * tile_slots;
        const float* b = tile.base + j * tile_slots;
        float sum = 0.0f;
        for (index_t i = 0; i < n; ++i) {
          scaled[r * tile_slots + i] = w[i] * s[i];
          sum += w[i] * b[i];
        }
        zero[r * tile.groups + j] += sum;
      }
      add_tile(tile.codes, n, width, j * tile.group, (j + 1) * tile.group, scaled, tile_slots, weights.rows, sums);
    }
  }
  for (index_t r = 0; r < weights.rows; ++r) {
    float* o = out.data + r * out.step;
    for (index_t c = 0; c < from.page.dim; ++c)
      o[c] += tile.groups == 0 ? sums[r * width + c] : sums[r * width + c] + zero[r * tile.groups + c / tile.group];
  }
}

}  // namespace kvcondense::prim::cpu
