// The text of CodeOps where there is no instruction for products of bytes: the same integers as with one, what is added to them
// in another order. Compiled once per instruction set, inside a namespace that gives
//
//   code_pair<Bits, R>(run, at, field, folded, plane, r, sum)   sum[k][i] = products of this plane of row r + k with the i-th
//       of the 32 outputs of the pair that begins `at` bytes behind the run's blocks, in this field of them

inline float code_param(DType type, const std::byte* at, index_t i) {
  if (type == DType::f32) {
    float x;
    std::memcpy(&x, at + i * 4, sizeof x);
    return x;
  }
  std::uint16_t bits;
  std::memcpy(&bits, at + i * 2, sizeof bits);
  return type == DType::f16 ? kvcondense::detail::half_value(bits) : kvcondense::detail::bfloat16_value(bits);
}

inline void read_codes_params(DType type, const std::byte* scales, const std::byte* offsets, index_t n, const MidRule& rule, float* scale,
                              float* mid) {
  for (index_t i = 0; i < n; ++i) {
    const float s = code_param(type, scales, i), o = offsets == nullptr ? 0.0f : code_param(type, offsets, i);
    scale[i] = s;
    mid[i] = s * (o * rule.by_both + rule.by_scale) + o * rule.by_offset;
  }
}

/// Sixteen side by side, which compilers turn into vectors.
inline void multiply_codes_row(int bytes, const float* x, const float* scale, const float* mid, index_t n, index_t k, index_t r,
                               UnroundedRows& to, FoldedRows& out) {
  constexpr index_t side = UnroundedRows::side;
  float most[side] = {}, zero[side] = {};
  const index_t padded = (n + 63) / 64 * 64;
  for (index_t i = 0; i < padded; i += side) {
    float a[side] = {}, s[side], o[side] = {};
    const auto some = static_cast<std::size_t>(n - i < 0 ? 0 : n - i < side ? n - i : side) * sizeof(float);
    for (index_t c = 0; c < side; ++c) s[c] = 1.0f;
    std::memcpy(a, x + i, some);
    if (scale != nullptr) std::memcpy(s, scale + i, some);
    if (mid != nullptr) std::memcpy(o, mid + i, some);
    for (index_t c = 0; c < side; ++c) {
      const float p = a[c] * s[c], size = p < 0.0f ? -p : p;
      to.product[k][r][i + c] = p;
      most[c] = size > most[c] ? size : most[c];
      zero[c] += a[c] * o[c];
    }
  }
  float bound = 0.0f;
  for (index_t c = 0; c < side; ++c) bound = most[c] > bound ? most[c] : bound, to.zero[k][r][c] = zero[c];
  // Rows of zeros, and of NaN, give zeros: NaN lives on in what is added.
  const bool usable = bound > 1e-30f;
  const float top = FoldedRows::top(bytes);
  to.inverse[k][r] = usable ? top / bound : 0.0f;
  out.unit[r] = usable ? bound * (1.0f / top) : 1.0f;
}

inline void multiply_codes(int bytes, const RowBlock<const float>& x, index_t groups, const float* scale, const float* mid, index_t n,
                           UnroundedRows& products, FoldedRows* out) {
  for (index_t k = 0; k < groups; ++k) {
    out[k].bytes = bytes;
    for (index_t r = 0; r < x.rows; ++r)
      multiply_codes_row(bytes, x.data + r * x.step, scale == nullptr ? nullptr : scale + k * max_head_dim,
                         mid == nullptr ? nullptr : mid + k * max_head_dim, n, k, r, products, out[k]);
  }
}

inline void round_codes(const UnroundedRows& products, index_t rows, index_t groups, index_t n, float middle, FoldedRows* out) {
  constexpr index_t side = UnroundedRows::side;
  const index_t padded = (n + 63) / 64 * 64;
  for (index_t k = 0; k < groups; ++k) {
    const int bytes = out[k].bytes;
    const float top = FoldedRows::top(bytes);
    for (index_t r = 0; r < rows; ++r) {
      const float inverse = products.inverse[k][r];
      std::int32_t sum[side] = {}, all = 0;
      for (index_t i = 0; i < padded; i += side) {
        std::int8_t plane[2][side];  // bytes stored where they go might be products, for all that a compiler knows
        for (index_t c = 0; c < side; ++c) {
          const std::int32_t m = round_half_even(limit_to(without_nan(products.product[k][r][i + c] * inverse), top));
          sum[c] += m;
          plane[0][c] = static_cast<std::int8_t>(bytes == 2 ? m >> 7 : m);
          plane[1][c] = static_cast<std::int8_t>(m & 127);
        }
        for (int p = 0; p < 2; ++p) std::memcpy(out[k].plane[r][p] + i, plane[p], sizeof plane[p]);
      }
      float total = 0.0f;
      for (index_t c = 0; c < side; ++c) total += products.zero[k][r][c], all += sum[c];
      out[k].add[r] = total - static_cast<float>(all) * out[k].unit[r] * middle;
    }
  }
}

template <bool Add>
void put_codes(const std::int32_t (&sum)[32], float unit, float add, float* out) {
  for (int i = 0; i < 32; ++i) {
    const float x = static_cast<float>(sum[i]) * unit + add;
    out[i] = Add ? out[i] + x : x;
  }
}

template <int Bits, int R, bool Add>
void dot_code_rows(const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out, index_t r) {
  for (int p = 0; p < run.pairs; ++p) {
    const FoldedRows& folded = p == 0 ? first : behind;
    const index_t at = Bits == 2 ? 0 : p * run.other;
    const int field = Bits == 2 ? 2 * p : 0;
    std::int32_t sum[R][32], low[R][32];
    code_pair<Bits, R>(run, at, field, folded, 0, r, sum);
    if (folded.bytes == 2) {
      code_pair<Bits, R>(run, at, field, folded, 1, r, low);
      for (int k = 0; k < R; ++k)
        for (int i = 0; i < 32; ++i) sum[k][i] = sum[k][i] * 128 + low[k][i];
    }
    for (int k = 0; k < R; ++k) put_codes<Add>(sum[k], folded.unit[r + k], folded.add[r + k], out.data + (r + k) * out.step + 32 * p);
  }
}
template <int Bits, bool Add>
void dot_code_bits(const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  index_t r = 0;
  for (; r + 2 <= out.rows; r += 2) dot_code_rows<Bits, 2, Add>(run, first, behind, out, r);
  if (r < out.rows) dot_code_rows<Bits, 1, Add>(run, first, behind, out, r);
}
template <bool Add>
void dot_codes(int bits, const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  if (bits == 8) dot_code_bits<8, Add>(run, first, behind, out);
  else if (bits == 4) dot_code_bits<4, Add>(run, first, behind, out);
  else dot_code_bits<2, Add>(run, first, behind, out);
}

inline void scale_add_codes(const float* x, index_t n, const float* scale, const float* mid, const float* sum, const RowBlock<float>& out) {
  for (index_t r = 0; r < out.rows; ++r)
    for (index_t i = 0; i < n; ++i) out.data[r * out.step + i] += x[r * n + i] * scale[i] + sum[r] * mid[i];
}

inline constexpr CodeOps code_ops{name, read_codes_params, multiply_codes, round_codes, dot_codes<false>, dot_codes<true>, scale_add_codes};
