// Compiled once per instruction set with fused products, inside a namespace that gives F, set, fma, add and mul.

/// exp(f) for |f| <= ln(2) / 2.
[[gnu::always_inline]] inline F exp_polynomial(F f) {
  F p = set(1.9875691500e-4f);
  p = fma(p, f, set(1.3981999507e-3f));
  p = fma(p, f, set(8.3334519073e-3f));
  p = fma(p, f, set(4.1665795894e-2f));
  p = fma(p, f, set(1.6666665459e-1f));
  p = fma(p, f, set(5.0000001201e-1f));
  return add(fma(p, mul(f, f), f), set(1.0f));
}
