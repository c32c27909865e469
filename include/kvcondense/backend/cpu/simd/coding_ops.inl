// The text of CodingOps, compiled once per instruction set, behind `row_ops.inl`: the rules of prim/group_quant.hpp for
// `width` numbers at a time.

using V __attribute__((vector_size(4 * width))) = float;
using N __attribute__((vector_size(4 * width))) = std::int32_t;
using W __attribute__((vector_size(4 * width))) = std::uint32_t;
using B __attribute__((vector_size(width))) = std::uint8_t;

template <class To, class From>
[[gnu::always_inline]] inline To bits_as(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
template <class T, class P>
[[gnu::always_inline]] inline T read_some(const P* p, index_t n) {
  T v{};
  if (n >= width) __builtin_memcpy(&v, p, sizeof v);
  else
    for (index_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
[[gnu::always_inline]] inline void write_some(float* p, const V& v, index_t n) {
  if (n >= width) __builtin_memcpy(p, &v, sizeof v);
  else
    for (index_t i = 0; i < n; ++i) p[i] = v[i];
}
[[gnu::always_inline]] inline V all(float x) { return x - V{}; }
[[gnu::always_inline]] inline W size_of_bits(const V& x) { return bits_as<W>(x) & 0x7fffffffu; }

[[gnu::always_inline]] inline V limited(const V& x, float top) {
  const W size = size_of_bits(x), most = __builtin_bit_cast(std::uint32_t, top) - W{};
  return bits_as<V>((bits_as<W>(x) & 0x80000000u) | (size < most ? size : most));
}
[[gnu::always_inline]] inline V nan_to_zero(const V& x) {
  return bits_as<V>(bits_as<W>(x) & ~bits_as<W>(size_of_bits(x) > 0x7f800000u));
}
/// -1 where a number needs repair.
[[gnu::always_inline]] inline N bad(const V& x) {
  return bits_as<N>(size_of_bits(x) > __builtin_bit_cast(std::uint32_t, largest_coded));
}
[[gnu::always_inline]] inline index_t count(const N& masks) {
  index_t n = 0;
  for (index_t i = 0; i < width; ++i) n -= masks[i];
  return n;
}

inline index_t widen_ranges(const float* x, index_t n, float* lo, float* hi) {
  N repaired{};
  for (index_t i = 0; i < n; i += width) {
    const V v = read_some<V>(x + i, n - i), y = nan_to_zero(v), l = read_some<V>(lo + i, n - i), h = read_some<V>(hi + i, n - i);
    const N out = bad(y);
    const V low = out ? all(2.0f * largest_coded) : y, high = out ? all(-2.0f * largest_coded) : y;
    write_some(lo + i, low < l ? low : l, n - i);
    write_some(hi + i, high > h ? high : h, n - i);
    repaired += bad(v);
  }
  return count(repaired);
}

/// Rounded to the parameter type, magnitudes that it cannot hold cut; `saturated` becomes -1 there.
[[gnu::always_inline]] inline V as_stored(ParamType type, const V& v, N& saturated) {
  const float top = largest_of(number_type(type));
  saturated = (v > top) | (v < -top);
  const V c = v > top ? all(top) : v < -top ? all(-top) : v;
  if (type == ParamType::f32) return c;
  std::uint16_t bits[width];
  if (type == ParamType::f16) return store_half(bits, bits_as<F>(c)), bits_as<V>(load_half(bits));
  return store_bfloat16(bits, bits_as<F>(c)), bits_as<V>(load_bfloat16(bits));
}

[[gnu::always_inline]] inline N half_even(const V& y) { return bits_as<N>(y + 0x1.8p23f) - 0x4b400000; }

template <GroupForm Form>
index_t fit_form(int bits, ParamType type, const float* lows, const float* highs, index_t n, float* scales, float* offsets,
                 float* inverses) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  const float divisor = Form == GroupForm::symmetric ? static_cast<float>((1 << (bits - 1)) - 1) : Form == GroupForm::mid_rise ? 0.5f * levels : levels;
  N repaired{};
  for (index_t i = 0; i < n; i += width) {
    V lo = read_some<V>(lows + i, n - i), hi = read_some<V>(highs + i, n - i);
    const N seen = lo <= hi;
    if (Form == GroupForm::integer_zero) {
      lo = lo < 0.0f ? lo : V{};
      hi = hi > 0.0f ? hi : V{};
    } else if (!has_offset(Form)) {
      hi = hi > -lo ? hi : -lo;
      lo = V{};
    }
    N saturated, more{};
    const V exact = (hi - lo) / divisor;
    V scale = as_stored(type, exact, saturated);
    const N constant = ~(scale >= smallest_step);
    const V inverse = constant ? V{} : 1.0f / scale;
    scale = constant ? V{} : scale;
    V offset{};
    if (Form == GroupForm::minimum) offset = as_stored(type, lo, more);
    if (Form == GroupForm::integer_zero) offset = constant ? V{} : __builtin_convertvector(half_even(limited(-lo * inverse, levels)), V);
    if (Form == GroupForm::float_zero) {
      N of_offset, of_constant;
      const V zero = as_stored(type, -lo / exact, of_offset), value = as_stored(type, lo, of_constant);
      const N lone = constant & (lo != 0.0f);
      offset = constant ? lone ? all(-1.0f) : V{} : zero;
      scale = lone ? value : scale;
      more = (~constant & of_offset) | (lone & of_constant);
    }
    repaired += seen & (saturated | more);
    write_some(scales + i, seen ? scale : V{}, n - i);
    write_some(offsets + i, seen ? offset : V{}, n - i);
    write_some(inverses + i, seen ? inverse : V{}, n - i);
  }
  return count(repaired);
}

inline index_t fit_groups(GroupForm form, int bits, ParamType type, const float* lo, const float* hi, index_t n, float* scale,
                          float* offset, float* inverse) {
  switch (form) {
    case GroupForm::minimum: return fit_form<GroupForm::minimum>(bits, type, lo, hi, n, scale, offset, inverse);
    case GroupForm::integer_zero: return fit_form<GroupForm::integer_zero>(bits, type, lo, hi, n, scale, offset, inverse);
    case GroupForm::float_zero: return fit_form<GroupForm::float_zero>(bits, type, lo, hi, n, scale, offset, inverse);
    case GroupForm::symmetric: return fit_form<GroupForm::symmetric>(bits, type, lo, hi, n, scale, offset, inverse);
    default: return fit_form<GroupForm::mid_rise>(bits, type, lo, hi, n, scale, offset, inverse);
  }
}

template <Rounding Rule>
[[gnu::always_inline]] inline N rounded(const V& y) {
  if constexpr (Rule == Rounding::half_even) return half_even(y);
  if constexpr (Rule == Rounding::half_up) {
    const V up = y + 0.5f;
    const N cut = __builtin_convertvector(up, N);
    return cut + (__builtin_convertvector(cut, V) > up);
  }
  const V size = y < 0.0f ? -y : y;
  const N cut = __builtin_convertvector(size, N);
  const N near = cut - (size - __builtin_convertvector(cut, V) >= 0.5f);
  return y < 0.0f ? -near : near;
}

template <GroupForm Form, Rounding Rule>
void code_form(int bits, const float* x, const float* offset, const float* inverse, index_t n, std::uint8_t* codes) {
  const std::int32_t last = (1 << bits) - 1, middle = (1 << (bits - 1)) - 1;
  const std::int32_t top = Form == GroupForm::symmetric ? 2 * middle : last;
  for (index_t i = 0; i < n; i += width) {
    const V v = limited(nan_to_zero(read_some<V>(x + i, n - i)), 2.0f * largest_coded);
    const V o = read_some<V>(offset + i, n - i), inv = read_some<V>(inverse + i, n - i);
    V y = (Form == GroupForm::minimum ? v - o : v) * inv;
    if (Form == GroupForm::float_zero) y = limited(y, 0x1p30f) + o;
    if (Form == GroupForm::mid_rise) y = limited(y, 0x1p30f) + 0.5f * static_cast<float>(last);
    N code = rounded<Rule>(limited(y, 0x1p20f));
    if (Form == GroupForm::integer_zero) code += __builtin_convertvector(o, N);
    if (Form == GroupForm::symmetric) code += middle;
    code = code > 0 ? code : N{};
    code = code < top ? code : top - N{};
    const B bytes = __builtin_convertvector(code, B);
    if (n - i >= width) __builtin_memcpy(codes + i, &bytes, sizeof bytes);
    else
      for (index_t k = 0; k < n - i; ++k) codes[i + k] = bytes[k];
  }
}

template <GroupForm Form>
void code_rule(Rounding rule, int bits, const float* x, const float* offset, const float* inverse, index_t n, std::uint8_t* codes) {
  if (rule == Rounding::half_even) code_form<Form, Rounding::half_even>(bits, x, offset, inverse, n, codes);
  else if (rule == Rounding::half_up) code_form<Form, Rounding::half_up>(bits, x, offset, inverse, n, codes);
  else code_form<Form, Rounding::half_away>(bits, x, offset, inverse, n, codes);
}

inline void code_row(GroupForm form, Rounding rule, int bits, const float* x, const float* offset, const float* inverse, index_t n,
                     std::uint8_t* codes) {
  switch (form) {
    case GroupForm::minimum: return code_rule<GroupForm::minimum>(rule, bits, x, offset, inverse, n, codes);
    case GroupForm::integer_zero: return code_rule<GroupForm::integer_zero>(rule, bits, x, offset, inverse, n, codes);
    case GroupForm::float_zero: return code_rule<GroupForm::float_zero>(rule, bits, x, offset, inverse, n, codes);
    case GroupForm::symmetric: return code_rule<GroupForm::symmetric>(rule, bits, x, offset, inverse, n, codes);
    default: return code_rule<GroupForm::mid_rise>(rule, bits, x, offset, inverse, n, codes);
  }
}

inline bool within(const float* x, index_t n, float most) {
  const W top = __builtin_bit_cast(std::uint32_t, most) - W{};
  N beyond{};
  for (index_t i = 0; i < n; i += width) beyond |= bits_as<N>(size_of_bits(read_some<V>(x + i, n - i)) > top);
  return count(beyond) == 0;
}

inline constexpr CodingOps coding_ops{widen_ranges, fit_groups, code_row, within};
