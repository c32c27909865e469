/* The library from C: a recipe as text, one call per layer and pass, the caller's own scratch. Link kvcondense::any. */

#include <kvcondense/c/kvcondense.h>

#include <stdio.h>
#include <stdlib.h>

enum { layers = 2, q_heads = 32, kv_heads = 8, dim = 128, prompt = 512 };

/* Stands for the engine: rows after projection and RoPE, [heads, tokens, dim]. */
static void project(float* rows, int64_t heads, int64_t tokens, uint32_t seed) {
  int64_t i;
  for (i = 0; i < heads * tokens * dim; ++i) {
    seed = seed * 1664525u + 1013904223u;
    rows[i] = (float)(seed >> 8) / 4194304.0f - 2.0f;
  }
}

static int stop(const char* what, kvc_status status) {
  printf("%s: %s\n", what, kvc_status_name(status));
  return 1;
}

int main(int argc, char** argv) {
  const char* recipe = argc > 1 ? argv[1] : "h2o(heavy=128, recent=128) + kivi2(group=32, residual_window=64)";
  kvc_shape shape = kvc_default_shape();
  kvc_report report = KVC_REPORT_INIT;
  kvc_context context = {NULL, 0, NULL};
  kvc_cache* cache = NULL;
  kvc_status status;
  kvc_error why;
  size_t held;
  int64_t pass, layer;
  float* q = malloc(sizeof(float) * q_heads * prompt * dim);
  float* k = malloc(sizeof(float) * kv_heads * prompt * dim);
  float* v = malloc(sizeof(float) * kv_heads * prompt * dim);
  float* out = malloc(sizeof(float) * q_heads * prompt * dim);

  shape.layers = layers, shape.q_heads = q_heads, shape.kv_heads = kv_heads, shape.head_dim = dim;
  status = kvc_make(recipe, &shape, NULL, NULL, &cache, &why);
  if (status != KVC_OK) return stop(why.message, status);

  /* Scratch is the caller's: here enough for prompts of 512 tokens. */
  context.workspace_bytes = kvc_workspace_bytes(cache, prompt, prompt, 1);
  context.workspace = malloc(context.workspace_bytes);
  if (q == NULL || k == NULL || v == NULL || out == NULL || context.workspace == NULL) return stop("malloc", KVC_OUT_OF_MEMORY);

  /* A prompt, then 16 generated tokens; every layer sees each of them once. */
  for (pass = 0; pass <= 16; ++pass)
    for (layer = 0; layer < layers; ++layer) {
      const int64_t n = pass == 0 ? prompt : 1;
      const uint32_t seed = (uint32_t)(3 * (pass * layers + layer));
      kvc_rows queries = kvc_dense(q, KVC_F32, q_heads, n, dim), keys = kvc_dense(k, KVC_F32, kv_heads, n, dim),
               values = kvc_dense(v, KVC_F32, kv_heads, n, dim);
      kvc_out sums = kvc_dense_out(out, q_heads, n, dim);
      project(q, q_heads, n, seed), project(k, kv_heads, n, seed + 1), project(v, kv_heads, n, seed + 2);
      status = kvc_forward(cache, &context, layer, &queries, &keys, &values, &sums, NULL, KVC_AUTOMATIC, NULL);
      if (status != KVC_OK) return stop("forward", status);
    }

  status = kvc_get_report(cache, &report);
  if (status != KVC_OK) return stop("report", status);
  held = report.exact_bytes + report.coded_bytes + report.side_bytes + report.index_bytes + report.fixed_bytes;
  printf("%s: %ld tokens seen, %ld slots in a head, %.1f %% of 16 bits\n", kvc_text(cache, NULL), (long)report.tokens,
         (long)kvc_slots(cache, 0, 0), 100.0 * (double)held / (double)report.dense_bytes);
  kvc_free(cache);
  free(context.workspace), free(q), free(k), free(v), free(out);
  return held < report.dense_bytes / 2 ? 0 : 1;
}
