// The text of NumberOps, compiled once per instruction set, inside a namespace that gives what row_ops.inl asks for, and
//
//   D              a vector of `wide` doubles
//   set_wide(x), load_wide(p), of `wide` floats

/// Places [j, j + V * width) of all rows: a sum stays in a register until all rows are in it.
template <int V>
[[gnu::always_inline]] inline void add_scaled_at(const float* const* rows, const float* factors, index_t count, index_t j, float* out) {
  F sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = load_float(out + j + v * width);
  for (index_t r = 0; r < count; ++r) {
    const float* row = rows[r] + j;
    const F factor = set(factors[r]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = add(sum[v], mul(load_float(row + v * width), factor));
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store_float(out + j + v * width, sum[v]);
}

inline void add_scaled(const float* const* rows, const float* factors, index_t count, index_t n, float* out) {
  index_t j = 0;
  for (; j + 8 * width <= n; j += 8 * width) add_scaled_at<8>(rows, factors, count, j, out);
  for (; j + width <= n; j += width) add_scaled_at<1>(rows, factors, count, j, out);
  for (; j < n; ++j)
    for (index_t r = 0; r < count; ++r) out[j] += rows[r][j] * factors[r];
}

inline void mix(const float* x, index_t n, float scale, float keep, float* out) {
  const F s = set(scale), k = set(keep);
  index_t j = 0;
  if (keep == 0.0f) {
    for (; j + width <= n; j += width) store_float(out + j, mul(s, load_float(x + j)));
    for (; j < n; ++j) out[j] = scale * x[j];
  } else if (keep == 1.0f) {
    for (; j + width <= n; j += width) store_float(out + j, add(load_float(out + j), mul(s, load_float(x + j))));
    for (; j < n; ++j) out[j] += scale * x[j];
  } else {
    for (; j + width <= n; j += width) store_float(out + j, add(mul(k, load_float(out + j)), mul(s, load_float(x + j))));
    for (; j < n; ++j) out[j] = keep * out[j] + scale * x[j];
  }
}

inline void larger(const float* x, const float* y, index_t n, float* out) {
  index_t j = 0;
  for (; j + width <= n; j += width) store_float(out + j, larger(load_float(x + j), load_float(y + j)));
  for (; j < n; ++j) out[j] = x[j] > y[j] ? x[j] : y[j];
}

inline index_t count_from(const float* x, index_t n, float least) {
  const F l = set(least);
  const auto none = zero() > zero();
  auto below = none, below2 = none;  // -1 for each number that counts, lane by lane
  index_t j = 0, count = 0;
  for (; j + 2 * width <= n; j += 2 * width) below += load_float(x + j) >= l, below2 += load_float(x + j + width) >= l;
  below += below2;
  for (index_t i = 0; i < width; ++i) count -= below[i];
  for (; j < n; ++j) count += x[j] >= least;
  return count;
}

/// Columns [d, d + V * wide) of all rows.
template <int V>
[[gnu::always_inline]] inline void add_weighted_at(const float* const* rows, const double* weights, index_t count, index_t d, double* sum) {
  D s[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) std::memcpy(&s[v], sum + d + v * wide, sizeof s[v]);
  for (index_t i = 0; i < count; ++i) {
    const float* row = rows[i] + d;
    const D weight = set_wide(weights[i]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) s[v] += weight * load_wide(row + v * wide);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) std::memcpy(sum + d + v * wide, &s[v], sizeof s[v]);
}

inline void add_weighted(const float* const* rows, const double* weights, index_t count, index_t dim, double* sum) {
  index_t d = 0;
  for (; d + 8 * wide <= dim; d += 8 * wide) add_weighted_at<8>(rows, weights, count, d, sum);
  for (; d + wide <= dim; d += wide) add_weighted_at<1>(rows, weights, count, d, sum);
  for (; d < dim; ++d)
    for (index_t i = 0; i < count; ++i) sum[d] += weights[i] * static_cast<double>(rows[i][d]);
}

inline void square_distances(const float* centre, const float* rows, index_t count, index_t dim, float* out) {
  using Four __attribute__((vector_size(16))) = float;
  constexpr index_t sums = 16;
  constexpr int together = 4, parts = sums / width;  // rows, so that a sum need not wait for itself
  for (index_t i = 0; i < count; i += together) {
    const float* row[together];
    F sum[together * parts];
#pragma GCC unroll 16
    for (int k = 0; k < together * parts; ++k) sum[k] = zero();
    for (index_t k = 0; k < together; ++k) row[k] = rows + (i + k < count ? i + k : count - 1) * dim;
    index_t d = 0;
    for (; d + sums <= dim; d += sums)
#pragma GCC unroll 4
      for (int p = 0; p < parts; ++p) {
        const F c = load_float(centre + d + p * width);
#pragma GCC unroll 4
        for (int k = 0; k < together; ++k) {
          const F apart = sub(c, load_float(row[k] + d + p * width));
          sum[k * parts + p] = add(sum[k * parts + p], mul(apart, apart));
        }
      }
#pragma GCC unroll 4
    for (int p = 0; p < parts; ++p) {
      const index_t at = d + p * width, left = dim - at < 0 ? 0 : dim - at < width ? dim - at : width;
      if (left == 0) continue;
      const F c = load_float_some(centre + at, left);
#pragma GCC unroll 4
      for (int k = 0; k < together; ++k) {
        const F apart = sub(c, load_float_some(row[k] + at, left));
        sum[k * parts + p] = add(sum[k * parts + p], mul(apart, apart));
      }
    }
    Four part[together];
#pragma GCC unroll 4
    for (int k = 0; k < together; ++k) {
      float all[sums];
      Four quarter[4];
#pragma GCC unroll 4
      for (int p = 0; p < parts; ++p) store_float(all + p * width, sum[k * parts + p]);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) std::memcpy(&quarter[q], all + 4 * q, sizeof quarter[q]);
      part[k] = (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
    }
    // Columns of these four are rows of theirs: of each row numbers 0 and 2, 1 and 3, then both sums.
    const Four ab = __builtin_shufflevector(part[0], part[1], 0, 4, 1, 5) + __builtin_shufflevector(part[0], part[1], 2, 6, 3, 7);
    const Four cd = __builtin_shufflevector(part[2], part[3], 0, 4, 1, 5) + __builtin_shufflevector(part[2], part[3], 2, 6, 3, 7);
    const Four total = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    std::memcpy(out + i, &total, static_cast<std::size_t>(count - i < together ? count - i : together) * sizeof(float));
  }
}

inline constexpr NumberOps number_ops{add_scaled, mix, larger, count_from, add_weighted, square_distances};
