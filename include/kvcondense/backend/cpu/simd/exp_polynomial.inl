// Compiled once per instruction set with fused products, inside a namespace that gives F, set, fma, add and mul.

/// exp(f) for |f| <= ln(2) / 2.
[[gnu::always_inline]] inline F exp_polynomial(F f) {
  F p = set(1.3843643654e-3f);
  p = fma(p, f, set(8.3741637744e-3f));
  p = fma(p, f, set(4.1668002601e-2f));
  p = fma(p, f, set(1.6666431166e-1f));
  p = fma(p, f, set(4.9999994205e-1f));
  p = fma(p, f, set(1.0000000322f));
  return fma(p, f, set(1.0f));
}
