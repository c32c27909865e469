/* The header is C, and a program that knows nothing of C++ runs a cache through it. Returns the line of the first check
 * that fails, 0 when all hold. */

#include <kvcondense/c/kvcondense.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { layers = 2, q_heads = 6, kv_heads = 2, dim = 32, prompt = 96, most = 256 };

#define CHECK(x) \
  do {           \
    if (!(x)) return __LINE__; \
  } while (0)

typedef struct bytes {
  unsigned char* data;
  size_t count, room;
} bytes;

static int take(void* self, const void* from, size_t count) {
  bytes* b = (bytes*)self;
  if (b->count + count > b->room) return 0;
  memcpy(b->data + b->count, from, count);
  b->count += count;
  return 1;
}

typedef struct counted {
  size_t held, pieces;
  long refuse_after; /* negative: never */
} counted;

static void* allocate(void* self, size_t count, size_t align) {
  counted* c = (counted*)self;
  void* p;
  if (c->refuse_after == 0) return NULL;
  if (c->refuse_after > 0) --c->refuse_after;
  p = aligned_alloc(align, (count + align - 1) / align * align);
  if (p != NULL) c->held += count, ++c->pieces;
  return p;
}
static void release(void* self, void* p, size_t count, size_t align) {
  counted* c = (counted*)self;
  (void)align;
  c->held -= count, --c->pieces;
  free(p);
}

static void run_in_order(void* self, int64_t tasks, void (*body)(void*, int64_t, int64_t), void* state) {
  int64_t t;
  ++*(int64_t*)self;
  for (t = tasks - 1; t >= 0; --t) body(state, t, t % 2);
}

static float noise(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(*state >> 8) / 8388608.0f - 1.0f;
}
static void fill(float* x, int64_t n, uint32_t seed) {
  int64_t i;
  for (i = 0; i < n; ++i) x[i] = noise(&seed);
}

static float q[q_heads * most * dim], k[kv_heads * most * dim], v[kv_heads * most * dim], out[q_heads * most * dim];
static float other[q_heads * most * dim];

static kvc_status forward(kvc_cache* cache, const kvc_context* ctx, int64_t layer, int64_t n, uint32_t seed, float* to) {
  kvc_rows queries = kvc_dense(q, KVC_F32, q_heads, n, dim), keys = kvc_dense(k, KVC_F32, kv_heads, n, dim),
           values = kvc_dense(v, KVC_F32, kv_heads, n, dim);
  kvc_out sums = kvc_dense_out(to, q_heads, n, dim);
  fill(q, q_heads * n * dim, seed), fill(k, kv_heads * n * dim, seed + 1), fill(v, kv_heads * n * dim, seed + 2);
  return kvc_forward(cache, ctx, layer, &queries, &keys, &values, &sums, NULL, KVC_AUTOMATIC, NULL);
}

static int lives(const kvc_context* ctx) {
  kvc_shape shape = kvc_default_shape();
  kvc_error why;
  kvc_cache *cache = NULL, *twin = NULL, *loaded = NULL, *none = NULL;
  kvc_report report = KVC_REPORT_INIT;
  kvc_capabilities can = KVC_CAPABILITIES_INIT;
  counted memory = {0, 0, -1};
  kvc_memory calls = {allocate, release, NULL};
  bytes file = {NULL, 0, 1u << 22};
  int64_t i, map[2] = {1, 1};
  kvc_cache* both[2];
  size_t length = 0;
  calls.self = &memory;
  shape.layers = layers, shape.q_heads = q_heads, shape.kv_heads = kv_heads, shape.head_dim = dim;

  CHECK(kvc_make("h2o(hevy=3)", &shape, NULL, NULL, &cache, &why) != KVC_OK && cache == NULL);
  CHECK(why.position == 4 && strlen(why.message) > 0);
  CHECK(kvc_make("h2o(heavy=24, recent=24) + kivi2(group=16, residual_window=16)", &shape, NULL, &calls, &cache, &why) == KVC_OK);
  CHECK(strlen(kvc_text(cache, &length)) == length && strstr(kvc_text(cache, NULL), "h2o") != NULL);
  CHECK(kvc_get_capabilities(cache, &can) == KVC_OK && can.needs_attention == 1 && can.changes_length == 1 && can.lossy_slots == 1);
  CHECK(kvc_workspace_bytes(cache, most, prompt, 2) <= ctx->workspace_bytes);

  for (i = 0; i < layers; ++i) CHECK(forward(cache, ctx, i, prompt, (uint32_t)i, out) == KVC_OK);
  for (i = 0; i < layers; ++i) CHECK(forward(cache, ctx, i, 1, 90 + (uint32_t)i, out) == KVC_OK);
  CHECK(kvc_length(cache, 0) == prompt + 1 && kvc_slots(cache, 1, 1) == 48 && kvc_total_slots(cache, 0) == 96);
  CHECK(kvc_token(cache, 0, 0, 47) == prompt && kvc_token(cache, 0, 0, 48) == -1 && kvc_length(cache, layers) == -1);
  CHECK(kvc_get_report(cache, &report) == KVC_OK && report.tokens == prompt + 1 && report.coded_bytes > 0);
  CHECK(report.exact_bytes + report.coded_bytes + report.side_bytes + report.index_bytes + report.fixed_bytes <= memory.held);

  /* A fork and what a snapshot gives go on alike. */
  CHECK(kvc_fork(cache, &twin) == KVC_OK);
  file.data = (unsigned char*)malloc(file.room);
  CHECK(file.data != NULL && kvc_save(cache, take, &file) == KVC_OK);
  CHECK(kvc_make(kvc_text(cache, NULL), &shape, NULL, NULL, &loaded, NULL) == KVC_OK);
  CHECK(kvc_load(loaded, file.data, file.count - 1) == KVC_CORRUPT_DATA && kvc_length(loaded, 0) == 0);
  CHECK(kvc_load(loaded, file.data, file.count) == KVC_OK);
  CHECK(forward(cache, ctx, 0, 1, 7, out) == KVC_OK);
  CHECK(forward(twin, ctx, 0, 1, 7, other) == KVC_OK && memcmp(out, other, q_heads * dim * sizeof(float)) == 0);
  CHECK(forward(loaded, ctx, 0, 1, 7, other) == KVC_OK && memcmp(out, other, q_heads * dim * sizeof(float)) == 0);

  /* Beams: both become the second. */
  CHECK(forward(twin, ctx, 1, 1, 8, out) == KVC_OK && forward(cache, ctx, 1, 1, 9, out) == KVC_OK);
  CHECK(forward(twin, ctx, 0, 1, 8, out) == KVC_OK && forward(twin, ctx, 1, 1, 8, out) == KVC_OK);
  both[0] = cache, both[1] = twin;
  CHECK(kvc_reorder(both, 2, map) == KVC_OK && kvc_length(cache, 0) == prompt + 3);
  map[1] = 2;
  CHECK(kvc_reorder(both, 2, map) == KVC_OUT_OF_RANGE);
  CHECK(kvc_truncate(cache, prompt + 9) == KVC_OUT_OF_RANGE && kvc_turn(cache, ctx, 4) == KVC_OK);

  /* Memory that says no loses nothing. */
  memory.refuse_after = 0;
  CHECK(kvc_fork(cache, &none) == KVC_OUT_OF_MEMORY && none == NULL);
  memory.refuse_after = -1;

  kvc_free(cache);
  CHECK(memory.pieces > 0); /* the fork still has its own */
  kvc_free(twin), kvc_free(loaded), kvc_free(NULL);
  CHECK(memory.pieces == 0 && memory.held == 0);
  free(file.data);
  return 0;
}

/* append, attend and step by hand, with the mass and a table that comes by name. */
static int by_hand(const kvc_context* ctx) {
  static float mass[kv_heads * most], lse[q_heads * prompt];
  static const float gates[layers * kv_heads] = {1, 0, 0, 1};
  kvc_shape shape = kvc_default_shape();
  kvc_cache* cache = NULL;
  kvc_error why;
  kvc_array array = {"gates", gates, NULL, {layers, kv_heads, 0}};
  kvc_model model = KVC_MODEL_INIT;
  kvc_inputs inputs = kvc_no_inputs();
  kvc_rows queries, keys, values;
  kvc_out sums = kvc_dense_out(out, q_heads, prompt, dim);
  double sum = 0;
  int64_t i;
  shape.layers = layers, shape.q_heads = q_heads, shape.kv_heads = kv_heads, shape.head_dim = dim;
  CHECK(kvc_make("duo_attention(recent=16, sinks=2)", &shape, NULL, NULL, &cache, &why) == KVC_MISSING_INPUT);
  CHECK(strstr(why.message, "gates") != NULL);
  model.arrays = &array, model.array_count = 1;
  CHECK(kvc_make("duo_attention(recent=16, sinks=2)", &shape, &model, NULL, &cache, &why) == KVC_OK);
  CHECK(forward(cache, ctx, 0, prompt, 3, out) == KVC_OK);
  CHECK(kvc_slots(cache, 0, 0) == prompt && kvc_slots(cache, 0, 1) == 18);
  kvc_free(cache);
  array.name = "gaits";
  CHECK(kvc_make("keep_all", &shape, &model, NULL, &cache, &why) == KVC_INVALID_ARGUMENT && cache == NULL);

  /* Recipes that join tokens want queries already with the rows. */
  {
    kvc_capabilities can = KVC_CAPABILITIES_INIT;
    CHECK(kvc_make("dmc", &shape, NULL, NULL, &cache, NULL) == KVC_OK && kvc_get_capabilities(cache, &can) == KVC_OK && can.joins_tokens == 1);
    CHECK(can.turns_keys == 1 && can.found_maps == 0 && can.rollback_exact == 0);
    fill(q, q_heads * prompt * dim, 1), fill(k, kv_heads * prompt * dim, 2), fill(v, kv_heads * prompt * dim, 3);
    queries = kvc_dense(q, KVC_F32, q_heads, prompt, dim), keys = kvc_dense(k, KVC_F32, kv_heads, prompt, dim);
    values = kvc_dense(v, KVC_F32, kv_heads, prompt, dim);
    CHECK(kvc_append(cache, ctx, 0, &keys, &values, NULL, NULL) == KVC_MISSING_INPUT && kvc_pending(cache, 0) == 0);
    CHECK(kvc_append(cache, ctx, 0, &keys, &values, NULL, &queries) == KVC_OK && kvc_pending(cache, 0) == prompt);
    kvc_free(cache);
  }

  CHECK(kvc_make("tova(tokens=32)", &shape, NULL, NULL, &cache, NULL) == KVC_OK);
  fill(q, q_heads * prompt * dim, 1), fill(k, kv_heads * prompt * dim, 2), fill(v, kv_heads * prompt * dim, 3);
  queries = kvc_dense(q, KVC_F32, q_heads, prompt, dim), keys = kvc_dense(k, KVC_F32, kv_heads, prompt, dim);
  values = kvc_dense(v, KVC_F32, kv_heads, prompt, dim);
  CHECK(kvc_append(cache, ctx, 0, &keys, &values, NULL, NULL) == KVC_OK && kvc_pending(cache, 0) == prompt);
  CHECK(kvc_append(cache, NULL, 0, &keys, &values, NULL, NULL) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_wants_mass(cache, 0, KVC_AUTOMATIC) == 1 && kvc_total_slots(cache, 0) == kv_heads * prompt);
  CHECK(kvc_attend(cache, ctx, 0, &queries, &sums, mass, lse) == KVC_OK);
  for (i = 0; i < kv_heads * prompt; ++i) sum += (double)mass[i];
  CHECK(fabs(sum - q_heads) < 1e-3 && isfinite(lse[0]));
  CHECK(strcmp(kvc_missing(cache, 0, &inputs, KVC_AUTOMATIC), "attention") == 0);
  CHECK(kvc_step(cache, ctx, 0, &inputs, KVC_AUTOMATIC) == KVC_MISSING_INPUT && kvc_pending(cache, 0) == prompt);
  inputs.size = 0; /* forgotten */
  CHECK(kvc_step(cache, ctx, 0, &inputs, KVC_AUTOMATIC) == KVC_INVALID_ARGUMENT && kvc_pending(cache, 0) == prompt);
  inputs.size = sizeof inputs;
  inputs.mass = mass, inputs.mass_rows = kvc_mass_rows(cache, prompt);
  CHECK(kvc_missing(cache, 0, &inputs, KVC_AUTOMATIC) == NULL);
  CHECK(kvc_step(cache, ctx, 0, &inputs, KVC_AUTOMATIC) == KVC_OK && kvc_slots(cache, 0, 0) == 32 && kvc_next_position(cache, 0) == prompt);
  CHECK(kvc_read(cache, 0, 1, 0, 32, out, other) == KVC_OK && kvc_read(cache, 0, 1, 0, 33, out, other) != KVC_OK);
  i = kvc_token(cache, 0, 1, 31);
  CHECK(fabs((double)(out[31 * dim] - k[(prompt + i) * dim])) < 1e-3);
  keys.dtype = KVC_F16;
  CHECK(kvc_append(cache, ctx, 0, &keys, &values, NULL, NULL) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_append(cache, ctx, 5, &values, &values, NULL, NULL) == KVC_OUT_OF_RANGE);
  kvc_free(cache);
  return 0;
}

/* Bases of a low-rank recipe: numbers are borrowed, structs are copied. */
static int with_bases(const kvc_context* ctx) {
  static float same[layers * kv_heads * dim * dim]; /* the identity, for every head */
  const char* text = "pca(keep=50%, value_keep=75%, window=32)";
  kvc_shape shape = kvc_default_shape();
  kvc_model model = KVC_MODEL_INIT;
  kvc_bases bases[2];
  kvc_cache *cache = NULL, *twin = NULL;
  counted memory = {0, 0, -1};
  kvc_memory calls = {allocate, release, NULL};
  kvc_error why;
  int64_t h, i;
  calls.self = &memory;
  shape.layers = layers, shape.q_heads = q_heads, shape.kv_heads = kv_heads, shape.head_dim = dim, shape.dtype = KVC_F32;
  for (h = 0; h < layers * kv_heads; ++h)
    for (i = 0; i < dim; ++i) same[(h * dim + i) * dim + i] = 1;
  memset(bases, 0, sizeof bases);
  bases[0].method = "palu", bases[0].raw_keys = 1;
  bases[1].method = "pca";
  bases[1].keys.encode = same;
  bases[1].keys.layers = layers, bases[1].keys.groups = kv_heads, bases[1].keys.dim = dim, bases[1].keys.columns = dim;
  bases[1].values = bases[0].keys = bases[1].keys;

  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_MISSING_INPUT && strstr(why.message, "bases") != NULL);
  model.bases = bases, model.bases_count = 1;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_MISSING_INPUT); /* those of another method */
  model.bases_count = 2;
  model.size = offsetof(kvc_model, bases); /* a program of an older header has none */
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_MISSING_INPUT);
  model.size = sizeof model;
  bases[1].values.dim = dim / 2;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_SHAPE_MISMATCH);
  bases[1].values.dim = 0;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_INVALID_ARGUMENT);
  bases[1].values.dim = dim, bases[1].raw_keys = 1;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_INCOMPATIBLE);
  bases[1].raw_keys = 0, bases[0].method = NULL;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_INVALID_ARGUMENT);
  bases[0].method = "pca";
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_INVALID_ARGUMENT && strstr(why.message, "two") != NULL);
  bases[0].method = "palu", bases[0].keys.encode = NULL; /* sizes of nothing */
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_MISSING_INPUT && strstr(why.message, "encode") != NULL);
  memset(&bases[0].keys, 0, sizeof bases[0].keys), bases[0].keys.mean = same;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_MISSING_INPUT && strstr(why.message, "encode") != NULL);
  bases[0].keys.mean = NULL, bases[0].values.decode = same;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_MISSING_INPUT && strstr(why.message, "encode") != NULL);
  bases[0].values.decode = NULL, bases[0].keys = bases[1].keys;
  for (i = 0; i < 2; ++i) { /* a size that was forgotten, or of no header there ever was */
    model.size = i == 0 ? 0 : offsetof(kvc_model, array_count);
    CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_INVALID_ARGUMENT && strstr(why.message, "size") != NULL);
  }
  model.size = sizeof model;
  bases[0].method = "palu", model.bases = NULL;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_INVALID_ARGUMENT && cache == NULL);
  model.bases = bases;
  memory.refuse_after = 0;
  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_OUT_OF_MEMORY && cache == NULL && memory.pieces == 0);
  memory.refuse_after = -1;

  CHECK(kvc_make(text, &shape, &model, &calls, &cache, &why) == KVC_OK);
  memset(bases, 0, sizeof bases), memset(&model, 0, sizeof model);
  CHECK(kvc_fork(cache, &twin) == KVC_OK);
  kvc_free(cache);
  CHECK(forward(twin, ctx, 0, prompt, 5, out) == KVC_OK);
  CHECK(kvc_read(twin, 0, 1, 0, prompt, out, other) == KVC_OK);
  for (h = 0; h < prompt; h += prompt - 1) /* a slot of coordinates, and one of the window */
    for (i = 0; i < dim; ++i) {
      CHECK(out[h * dim + i] == (h == 0 && i >= dim / 2 ? 0 : k[(prompt + h) * dim + i]));
      CHECK(other[h * dim + i] == (h == 0 && i >= dim / 4 * 3 ? 0 : v[(prompt + h) * dim + i]));
    }
  kvc_reset(twin);
  CHECK(forward(twin, ctx, 0, prompt, 5, out) == KVC_OK && kvc_length(twin, 0) == prompt);
  kvc_free(twin);
  CHECK(memory.pieces == 0 && memory.held == 0);
  return 0;
}

static int words(void) {
  int64_t i, found = 0;
  for (i = 0; i < kvc_word_count(); ++i) {
    CHECK(strlen(kvc_word(i)) > 0 && strlen(kvc_word_idea(i)) > 0);
    found += strcmp(kvc_word(i), "snapkv") == 0;
  }
  CHECK(found == 1 && kvc_word(-1) == NULL && kvc_word(i) == NULL);
  CHECK(strcmp(kvc_status_name(KVC_ORDER_VIOLATION), "order_violation") == 0 && strlen(kvc_version()) >= 5);
  return 0;
}

int kvc_test_from_c(void);
int kvc_test_from_c(void) {
  int64_t runs = 0;
  kvc_executor team = {2, run_in_order, NULL};
  kvc_context one = {NULL, 1u << 22, NULL}, two;
  void* work = malloc(one.workspace_bytes);
  int failed;
  CHECK(work != NULL);
  one.workspace = work, two = one;
  team.self = &runs, two.executor = &team;
  failed = lives(&one);
  if (failed == 0) failed = lives(&two);
  if (failed == 0 && runs == 0) failed = __LINE__;
  if (failed == 0) failed = by_hand(&one);
  if (failed == 0) failed = with_bases(&one);
  if (failed == 0) failed = words();
  free(work);
  return failed;
}
