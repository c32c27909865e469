// The text of RowOps, compiled once per instruction set, inside a namespace that gives
//
//   F              a vector of `width` floats
//   tall           rows of four vectors that a kernel may keep in registers, besides what it reads
//   zero, set, fma, add, mul, sub, larger (the second one where either is NaN), exp_of_negative
//   load_float, load_half, load_bfloat16, and each with _some: the first n < width numbers, zeros behind them
//   store_float, store_half, store_bfloat16, and each with _some
//   sum4(a, b, c, d, out): out[k] = the sum of the lanes of the k-th
//   largest_lane(v), of numbers that are no NaN
//   prefetch(p)

struct Float {
  using T = float;
  [[gnu::always_inline]] static inline F load(const T* p) { return load_float(p); }
  [[gnu::always_inline]] static inline F some(const T* p, index_t n) { return load_float_some(p, n); }
};
struct Half {
  using T = std::uint16_t;
  [[gnu::always_inline]] static inline F load(const T* p) { return load_half(p); }
  [[gnu::always_inline]] static inline F some(const T* p, index_t n) { return load_half_some(p, n); }
};
struct Bfloat {
  using T = std::uint16_t;
  [[gnu::always_inline]] static inline F load(const T* p) { return load_bfloat16(p); }
  [[gnu::always_inline]] static inline F some(const T* p, index_t n) { return load_bfloat16_some(p, n); }
};

/// total[r][s] = query r . (the slot that begins at x + at[s]), of R queries and S slots; R * S is a multiple of four.
template <class Row, int R, int S>
[[gnu::always_inline]] inline void dot_block(const typename Row::T* x, const index_t (&at)[S], const float* const (&query)[R],
                                             index_t dim, const std::byte* ahead, float (&total)[R * S]) {
  F sum[R * S], y[R];
#pragma GCC unroll 16
  for (int k = 0; k < R * S; ++k) sum[k] = zero();
  constexpr index_t bytes = S * width * static_cast<index_t>(sizeof(typename Row::T));
  index_t d = 0;
  for (; d + width <= dim; d += width, ahead += bytes) {
#pragma GCC unroll 8
    for (index_t b = 0; b < bytes; b += 64) prefetch(ahead + b);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) y[r] = load_float(query[r] + d);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const F v = Row::load(x + at[s] + d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r * S + s] = fma(y[r], v, sum[r * S + s]);
    }
  }
  if (d < dim) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) y[r] = load_float_some(query[r] + d, dim - d);
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      const F v = Row::some(x + at[s] + d, dim - d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r * S + s] = fma(y[r], v, sum[r * S + s]);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < R * S; k += 4) sum4(sum[k], sum[k + 1], sum[k + 2], sum[k + 3], total + k);
}

/// Rows and queries that are not there repeat the last one.
template <class Row, int R, int S>
void dot_run(const typename Row::T* x, index_t count, index_t dim, const RowBlock<const float>& q, const RowBlock<float>& out,
             const std::byte* ahead) {
  const index_t step = ahead == nullptr ? 0 : S * dim * static_cast<index_t>(sizeof(typename Row::T));
  if (ahead == nullptr) ahead = reinterpret_cast<const std::byte*>(x);
  index_t at[S];
  const float* query[R];
  float total[R * S];
  for (int s = 0; s < S; ++s) at[s] = s * dim;
  for (int r = 0; r < R; ++r) query[r] = q.data + (r < q.rows ? r : q.rows - 1) * q.step;
  index_t i = 0;
  for (; i + S <= count; i += S, ahead += step) {
    dot_block<Row, R, S>(x + i * dim, at, query, dim, ahead, total);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      if (r < q.rows) std::memcpy(out.data + r * out.step + i, total + r * S, S * sizeof(float));
  }
  if (i == count) return;
  for (int s = 0; s < S; ++s) at[s] = (i + s < count ? s : count - 1 - i) * dim;
  dot_block<Row, R, S>(x + i * dim, at, query, dim, ahead, total);
  for (int r = 0; r < R && r < q.rows; ++r)
    for (int s = 0; s < S && i + s < count; ++s) out.data[r * out.step + i + s] = total[r * S + s];
}

template <class Row>
void dot_all(const void* rows, index_t count, index_t dim, const RowBlock<const float>& q, const RowBlock<float>& out,
             const void* ahead) {
  const auto* x = static_cast<const typename Row::T*>(rows);
  auto* next = static_cast<const std::byte*>(ahead);
  for (index_t r = 0; r < q.rows; r += 8, next = nullptr) {
    const RowBlock<const float> some{q.data + r * q.step, q.rows - r < 8 ? q.rows - r : 8, q.step};
    const RowBlock<float> to{out.data + r * out.step, some.rows, out.step};
    if (some.rows > 4) dot_run<Row, 8, tall / 2>(x, count, dim, some, to, next);
    else if (some.rows > 2) dot_run<Row, 4, tall>(x, count, dim, some, to, next);
    else if (some.rows == 2) dot_run<Row, 2, 2 * tall>(x, count, dim, some, to, next);
    else dot_run<Row, 1, 8>(x, count, dim, some, to, next);
  }
}

/// R sums of rows, C vectors of columns of them.
template <class Row, int R, int C>
void add_block(const typename Row::T* x, index_t dim, index_t count, const float* const (&w)[R], float* const (&out)[R],
               const std::byte* ahead, index_t ahead_step) {
  F sum[R * C], v[C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r * C + c] = load_float(out[r] + c * width);
  for (index_t i = 0; i < count; ++i, x += dim, ahead += ahead_step) {
#pragma GCC unroll 8
    for (index_t b = 0; b < C * width * static_cast<index_t>(sizeof(typename Row::T)); b += 64) prefetch(ahead + b);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) v[c] = Row::load(x + c * width);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F weight = set(w[r][i]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r * C + c] = fma(weight, v[c], sum[r * C + c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store_float(out[r] + c * width, sum[r * C + c]);
}

template <class Row, int R, int C>
void add_run(const typename Row::T* x, index_t count, index_t dim, const RowBlock<const float>& weights, const RowBlock<float>& out,
             const std::byte* ahead) {
  float spare[C * width] = {};  // where rows that are not there are summed
  const float* w[R];
  float *o[R], *at[R];
  for (int r = 0; r < R; ++r) {
    const bool there = r < weights.rows;
    w[r] = weights.data + (there ? r : weights.rows - 1) * weights.step;
    o[r] = there ? out.data + r * out.step : nullptr;
  }
  constexpr index_t size = sizeof(typename Row::T);
  const bool known = ahead != nullptr;
  const auto* from = known ? ahead : reinterpret_cast<const std::byte*>(x);
  index_t d = 0;
  const auto place = [&] {
    for (int r = 0; r < R; ++r) at[r] = o[r] == nullptr ? spare : o[r] + d;
  };
  // What comes next is read in one stream, a share per pass over the slots.
  for (; d + C * width <= dim; d += C * width) {
    place();
    add_block<Row, R, C>(x + d, dim, count, w, at, from + (known ? count * d * size : 0), known ? C * width * size : 0);
  }
  for (; d + width <= dim; d += width) {
    place();
    add_block<Row, R, 1>(x + d, dim, count, w, at, from + (known ? count * d * size : 0), known ? width * size : 0);
  }
  if (d == dim) return;
  for (int r = 0; r < R; ++r) {
    if (o[r] == nullptr) continue;
    F sum = load_float_some(o[r] + d, dim - d);
    for (index_t i = 0; i < count; ++i) sum = fma(set(w[r][i]), Row::some(x + i * dim + d, dim - d), sum);
    store_float_some(o[r] + d, sum, dim - d);
  }
}

template <class Row>
void add_all(const void* rows, index_t count, index_t dim, const RowBlock<const float>& weights, const RowBlock<float>& out,
             const void* ahead) {
  const auto* x = static_cast<const typename Row::T*>(rows);
  auto* next = static_cast<const std::byte*>(ahead);
  for (index_t r = 0; r < weights.rows; r += 8, next = nullptr) {
    const RowBlock<const float> some{weights.data + r * weights.step, weights.rows - r < 8 ? weights.rows - r : 8, weights.step};
    const RowBlock<float> to{out.data + r * out.step, some.rows, out.step};
    if (some.rows > 4) add_run<Row, 8, tall / 2>(x, count, dim, some, to, next);
    else if (some.rows > 2) add_run<Row, 4, tall>(x, count, dim, some, to, next);
    else if (some.rows == 2) add_run<Row, 2, 2 * tall>(x, count, dim, some, to, next);
    else add_run<Row, 1, 2 * tall>(x, count, dim, some, to, next);
  }
}

inline void dot_rows(DType type, const void* rows, index_t count, index_t dim, const RowBlock<const float>& queries,
                     const RowBlock<float>& out, const void* ahead) {
  if (type == DType::f32) dot_all<Float>(rows, count, dim, queries, out, ahead);
  else if (type == DType::f16) dot_all<Half>(rows, count, dim, queries, out, ahead);
  else dot_all<Bfloat>(rows, count, dim, queries, out, ahead);
}

inline void add_rows(DType type, const void* rows, index_t count, index_t dim, const RowBlock<const float>& weights,
                     const RowBlock<float>& out, const void* ahead) {
  if (type == DType::f32) add_all<Float>(rows, count, dim, weights, out, ahead);
  else if (type == DType::f16) add_all<Half>(rows, count, dim, weights, out, ahead);
  else add_all<Bfloat>(rows, count, dim, weights, out, ahead);
}

inline void squares(const float* rows, index_t count, index_t dim, float* out) {
  for (index_t i = 0; i < count; i += 4) {
    const float* x[4];
    F sum[4], v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) x[k] = rows + (i + k < count ? i + k : count - 1) * dim, sum[k] = zero();
    index_t d = 0;
    for (; d + width <= dim; d += width)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) v[k] = load_float(x[k] + d), sum[k] = fma(v[k], v[k], sum[k]);
    if (d < dim)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) v[k] = load_float_some(x[k] + d, dim - d), sum[k] = fma(v[k], v[k], sum[k]);
    float total[4];
    sum4(sum[0], sum[1], sum[2], sum[3], total);
    for (index_t k = 0; k < 4 && i + k < count; ++k) out[i + k] = total[k];
  }
}

inline float largest(const float* x, index_t n, float top) {
  F most[4];
  for (F& m : most) m = set(top);
  index_t i = 0;
  for (; i + 4 * width <= n; i += 4 * width)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) most[k] = larger(load_float(x + i + k * width), most[k]);
  for (; i + width <= n; i += width) most[0] = larger(load_float(x + i), most[0]);
  top = largest_lane(larger(larger(most[0], most[1]), larger(most[2], most[3])));
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

inline float exp_below(const float* x, index_t n, float top, float* out) {
  const F t = set(top);
  F sum = zero(), sum2 = zero();
  index_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    const F a = exp_of_negative(sub(load_float(x + i), t)), b = exp_of_negative(sub(load_float(x + i + width), t));
    sum = add(sum, a), sum2 = add(sum2, b);
    store_float(out + i, a), store_float(out + i + width, b);
  }
  for (; i < n; i += width) {
    const index_t m = n - i < width ? n - i : width;
    const F a = exp_of_negative(sub(load_float_some(x + i, m), t));
    store_float_some(out + i, a, m);
    sum = add(sum, load_float_some(out + i, m));
  }
  float total[4];
  sum4(add(sum, sum2), zero(), zero(), zero(), total);
  return total[0];
}

inline void scale(float* x, index_t n, float factor) {
  const F f = set(factor);
  index_t i = 0;
  for (; i + width <= n; i += width) store_float(x + i, mul(load_float(x + i), f));
  for (; i < n; ++i) x[i] *= factor;
}

/// Half-split pairs of one row, from pair t on in vectors; interleaved ones, which few models have, one by one.
inline void turn_row(float* row, const float* c, const float* s, index_t pairs, bool interleaved, bool back) {
  const index_t far = interleaved ? 1 : pairs, each = interleaved ? 2 : 1;
  index_t t = 0;
  for (; !interleaved && t + width <= pairs; t += width) {
    const F x = load_float(row + t), y = load_float(row + pairs + t), cs = load_float(c + t), sn = load_float(s + t);
    const F xs = mul(x, sn), ys = mul(y, sn);
    store_float(row + t, back ? add(mul(x, cs), ys) : sub(mul(x, cs), ys));
    store_float(row + pairs + t, back ? sub(mul(y, cs), xs) : add(mul(y, cs), xs));
  }
  for (; t < pairs; ++t) {
    const float x = row[t * each], y = row[t * each + far], sn = back ? -s[t] : s[t];
    row[t * each] = x * c[t] - y * sn;
    row[t * each + far] = y * c[t] + x * sn;
  }
}

inline void turn_rows(float* rows, index_t count, index_t step, const float* cos_sin, index_t cos_step, index_t pairs,
                      bool interleaved, bool back) {
  for (index_t i = 0; i < count; ++i)
    turn_row(rows + i * step, cos_sin + i * cos_step, cos_sin + i * cos_step + pairs, pairs, interleaved, back);
}

inline void narrow(DType type, const float* x, index_t n, std::uint16_t* out) {
  const bool half = type == DType::f16;
  index_t i = 0;
  for (; i + width <= n; i += width) {
    if (half) store_half(out + i, load_float(x + i));
    else store_bfloat16(out + i, load_float(x + i));
  }
  for (; i < n; ++i) out[i] = half ? kvcondense::detail::half_bits(x[i]) : kvcondense::detail::bfloat16_bits(x[i]);
}

inline void widen(DType type, const std::uint16_t* x, index_t n, float* out) {
  const bool half = type == DType::f16;
  index_t i = 0;
  for (; i + width <= n; i += width) store_float(out + i, half ? load_half(x + i) : load_bfloat16(x + i));
  for (; i < n; ++i) out[i] = half ? kvcondense::detail::half_value(x[i]) : kvcondense::detail::bfloat16_value(x[i]);
}

inline constexpr RowOps row_ops{name, dot_rows, add_rows, largest, exp_below, scale, turn_rows, narrow, widen, squares};
