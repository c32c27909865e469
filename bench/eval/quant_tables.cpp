#include <eval/quant_tables.hpp>

#include <algorithm>
#include <cmath>

#include <eval/error.hpp>
#include <eval/host.hpp>
#include <kvcondense/backend/cpu/group_bits.hpp>
#include <kvcondense/quant/bit_search.hpp>
#include <kvcondense/quant/channel_clusters.hpp>
#include <kvcondense/quant/level_search.hpp>

namespace eval {
namespace {

using kvcondense::Scratch;
using kvcondense::Workspace;
namespace prim = kvcondense::prim;
namespace quant = kvcondense::quant;

constexpr index_t widths[] = {1, 2, 3, 4, 5, 6, 8};

/// Rows [tokens, dim] of one head.
std::vector<float> rows_of(const std::vector<float>& all, index_t tokens, index_t heads, index_t dim, index_t head) {
  std::vector<float> rows;
  for (index_t t = 0; t < tokens; ++t) {
    const float* at = all.data() + (t * heads + head) * dim;
    rows.insert(rows.end(), at, at + dim);
  }
  return rows;
}

TensorView<const float, 2> view(const std::vector<float>& rows, index_t dim) {
  return {rows.data(), {static_cast<index_t>(rows.size()) / dim, dim}, {dim, 1}};
}

Workspace room(std::size_t bytes) {
  Workspace work;
  require(work.reserve(bytes), "tables of quantizers");
  return work;
}

void append(std::vector<float>& to, const std::vector<float>& more) { to.insert(to.end(), more.begin(), more.end()); }

std::vector<float> levels_of(const std::vector<float>& numbers, index_t bits) {
  std::vector<float> levels(std::size_t{1} << bits);
  Workspace work = room(quant::fit_levels_bytes(static_cast<index_t>(numbers.size()), static_cast<index_t>(levels.size())));
  require(quant::fit_levels_1d(numbers, {}, levels, Scratch(work.bytes())), "levels of a head");
  return levels;
}

/// Keys over their thresholds' range, without outliers; the thresholds too.
std::vector<float> within_thresholds(const std::vector<float>& keys, index_t dim, double outliers, HeadsFile& to) {
  std::vector<float> lower(static_cast<std::size_t>(dim)), upper = lower, numbers;
  Workspace work = room(Scratch::bytes_for<float>(static_cast<index_t>(keys.size()) / dim));
  require(quant::find_thresholds(view(keys, dim), outliers, lower, upper, Scratch(work.bytes())), "thresholds of a head");
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const float lo = lower[i % lower.size()], hi = upper[i % lower.size()];
    if (keys[i] >= lo && keys[i] <= hi && hi > lo) numbers.push_back((2 * keys[i] - lo - hi) / (hi - lo));
  }
  append(to.key_lower.numbers, lower), append(to.key_upper.numbers, upper);
  return numbers;
}

/// Values over the range of their own row without its `outliers` largest and smallest numbers.
std::vector<float> within_rows(const std::vector<float>& values, index_t dim, double outliers) {
  std::vector<float> numbers, row;
  const auto each = outliers > 0 ? static_cast<index_t>(outliers / 2 * static_cast<double>(dim)) + 1 : 0;
  for (std::size_t at = 0; at < values.size(); at += static_cast<std::size_t>(dim)) {
    row.assign(values.begin() + static_cast<std::ptrdiff_t>(at), values.begin() + static_cast<std::ptrdiff_t>(at) + dim);
    std::sort(row.begin(), row.end());
    const float lo = row[static_cast<std::size_t>(each)], hi = row[static_cast<std::size_t>(dim - 1 - each)];
    for (index_t i = each; i < dim - each && hi > lo; ++i) numbers.push_back((2 * row[static_cast<std::size_t>(i)] - lo - hi) / (hi - lo));
  }
  return numbers;
}

std::vector<float> coded(const std::vector<float>& rows, index_t dim, index_t bits, index_t group) {
  using Codec = prim::PageCodec<kvcondense::Cpu, prim::GroupBits>;
  const prim::GroupBits codec{static_cast<int>(bits), prim::GroupAxis::token, group};
  if (!codec.valid(dim)) throw Error("--width-group " + std::to_string(group) + " does not divide a head of " + std::to_string(dim));
  const auto n = static_cast<index_t>(rows.size()) / dim;
  std::vector<std::byte> bytes(codec.page_bytes(n, dim));
  std::vector<float> back(rows.size());
  Codec::encode(codec, {bytes.data(), n, dim}, 0, n, {rows.data(), n, dim});
  Codec::decode(codec, {bytes.data(), n, dim}, 0, n, {back.data(), n, dim});
  return back;
}

/// Outputs of the newest queries of the query heads of one KV head, one after another.
std::vector<double> outputs(const Recording& r, index_t layer, index_t head, index_t queries, const std::vector<float>& keys,
                            const std::vector<float>& values) {
  const index_t dim = r.shape.head_dim, value_dim = r.shape.values(), group = r.shape.group();
  const double scale = r.shape.softmax_scale > 0 ? static_cast<double>(r.shape.softmax_scale) : 1 / std::sqrt(static_cast<double>(dim));
  std::vector<double> out, p;
  for (index_t t = r.tokens - std::min(queries, r.tokens); t < r.tokens; ++t)
    for (index_t g = 0; g < group; ++g) {
      const float* q = r.layers[static_cast<std::size_t>(layer)].q.data() + (t * r.shape.q_heads + head * group + g) * dim;
      p.assign(static_cast<std::size_t>(t + 1), 0.0);
      double top = -HUGE_VAL, sum = 0;
      for (index_t i = 0; i <= t; ++i) {
        const float* k = keys.data() + i * dim;
        double s = 0;
        for (index_t c = 0; c < dim; ++c) s += static_cast<double>(q[c]) * static_cast<double>(k[c]);
        p[static_cast<std::size_t>(i)] = s * scale;
        top = std::max(top, s * scale);
      }
      for (double& x : p) sum += x = std::exp(x - top);
      const std::size_t at = out.size();
      out.resize(at + static_cast<std::size_t>(value_dim));
      for (index_t i = 0; i <= t; ++i)
        for (index_t c = 0; c < value_dim; ++c)
          out[at + static_cast<std::size_t>(c)] += p[static_cast<std::size_t>(i)] / sum * static_cast<double>(values[static_cast<std::size_t>(i * value_dim + c)]);
    }
  return out;
}

/// Square error of outputs as a part of the outputs' own squares.
double part_of(const std::vector<double>& out, const std::vector<double>& other) {
  double off = 0, all = 0;
  for (std::size_t i = 0; i < out.size(); ++i) off += (out[i] - other[i]) * (out[i] - other[i]), all += out[i] * out[i];
  return all > 0 ? off / all : 0;
}

}  // namespace

void add_quant_tables(const Recording& r, const QuantProbe& how, HeadsFile& to) {
  const index_t heads = r.shape.kv_heads, dim = r.shape.head_dim, value_dim = r.shape.values();
  to.layers = r.shape.layers, to.kv_heads = heads;
  std::vector<double> errors;
  for (index_t l = 0; l < r.shape.layers; ++l)
    for (index_t h = 0; h < heads; ++h) {
      const auto& layer = r.layers[static_cast<std::size_t>(l)];
      const auto keys = rows_of(layer.k, r.tokens, heads, dim, h), values = rows_of(layer.v, r.tokens, heads, value_dim, h);
      append(to.key_levels.numbers, levels_of(within_thresholds(keys, dim, how.outliers, to), how.level_bits));
      append(to.value_levels.numbers, levels_of(within_rows(values, value_dim, how.outliers), how.level_bits));
      std::vector<float> cluster(static_cast<std::size_t>(dim));
      require(quant::cluster_channels(view(keys, dim), how.clusters, cluster), "groups of key channels");
      append(to.key_clusters.numbers, cluster);
      cluster.resize(static_cast<std::size_t>(value_dim));
      require(quant::cluster_channels(view(values, value_dim), how.clusters, cluster), "groups of value channels");
      append(to.value_clusters.numbers, cluster);
      const auto exact = outputs(r, l, h, how.queries, keys, values);
      for (const bool of_keys : {true, false})
        for (const index_t bits : widths)
          errors.push_back(part_of(exact, outputs(r, l, h, how.queries, of_keys ? coded(keys, dim, bits, how.width_group) : keys,
                                                  of_keys ? values : coded(values, value_dim, bits, how.width_group))));
    }
  constexpr index_t choices = std::size(widths);
  const index_t items = 2 * r.shape.layers * heads;
  std::vector<index_t> cost;
  for (index_t i = 0; i < items; ++i) cost.insert(cost.end(), std::begin(widths), std::end(widths));
  const quant::BitChoices from{{cost.data(), {items, choices}, {choices, 1}}, {errors.data(), {items, choices}, {choices, 1}}};
  const auto budget = static_cast<index_t>(how.mean_width * static_cast<double>(items) + 1e-9);
  std::vector<std::int32_t> choice(static_cast<std::size_t>(items));
  Workspace work = room(quant::bit_search_bytes(from, budget));
  require(quant::allocate_bits(from, budget, choice, Scratch(work.bytes())), "bits of heads");
  for (std::size_t i = 0; i < choice.size(); ++i)
    (i % 2 == 0 ? to.key_widths : to.value_widths).push_back(static_cast<float>(widths[choice[i]]));
}

}  // namespace eval
