/* kvcondense for C, and for every language that calls C: caches whose recipe is a text.
 *
 *   kvc_shape shape = kvc_default_shape();
 *   shape.layers = 32, shape.q_heads = 32, shape.kv_heads = 8, shape.head_dim = 128;
 *   kvc_cache* cache = NULL;
 *   kvc_error why;
 *   if (kvc_make("h2o(heavy=256, recent=256) + kivi2", &shape, NULL, NULL, &cache, &why) != KVC_OK) puts(why.message);
 *
 * One cache is one sequence. Per forward pass and layer an engine appends keys and values, attends, and steps:
 * `kvc_forward` does the three. Link kvcondense::any.
 *
 * Ownership  views, workspaces and arrays are borrowed for the call; those of a kvc_model, of a kvc_memory and of a
 *            kvc_executor as long as any cache made with them, or any fork of one, lives.
 * Threads    one cache is one thread's at a time; reading calls (const) may run side by side.
 * Errors     every call says how it ended. On anything but KVC_OK the cache is as it was before the call; nothing
 *            throws, prints or aborts. A null where a pointer is needed is KVC_INVALID_ARGUMENT.
 * Growth     structs that may grow begin with their size: set it with the KVC_..._INIT of the header you compile with.
 *
 * Not here: recipes composed as types, and what stands beside the cache. Those are C++. */

#ifndef KVCONDENSE_C_KVCONDENSE_H
#define KVCONDENSE_C_KVCONDENSE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kvc_status {
  KVC_OK,
  KVC_SHAPE_MISMATCH,      /* a view disagrees with the cache or with another view */
  KVC_INVALID_ARGUMENT,    /* a value outside its documented range */
  KVC_OUT_OF_RANGE,        /* a layer, head, slot, token or position that does not exist */
  KVC_OUT_OF_MEMORY,       /* the memory said no */
  KVC_WORKSPACE_TOO_SMALL, /* less than kvc_workspace_bytes asks for */
  KVC_MISSING_INPUT,       /* the recipe needs something the caller did not give: kvc_missing names it */
  KVC_NOT_SUPPORTED,
  KVC_INCOMPATIBLE,        /* stages that may not be combined, or a snapshot of another recipe */
  KVC_CORRUPT_DATA,
  KVC_IO_ERROR,
  KVC_ORDER_VIOLATION,     /* calls in an order that is forbidden, such as two appends without a step */
  KVC_NO_DEVICE,
  KVC_DEVICE_ERROR
} kvc_status;

typedef enum kvc_dtype { KVC_F32, KVC_F16, KVC_BF16 } kvc_dtype;

/* Where in a request a step stands. KVC_AUTOMATIC: the first step ends a prompt, every other one decodes. Prompts that
 * come in chunks, and second prompts, say so. */
typedef enum kvc_phase { KVC_AUTOMATIC, KVC_PREFILL_CHUNK, KVC_PREFILL_END, KVC_DECODE, KVC_TURN, KVC_PROBE } kvc_phase;

/* What a cache is made for; kvc_default_shape() has the defaults. */
typedef struct kvc_shape {
  int64_t layers, q_heads, kv_heads, head_dim;
  int64_t value_dim;   /* 0: head_dim */
  kvc_dtype dtype;     /* how exact parts store a number */
  int64_t page_slots;  /* slots of one page, the unit of allocation */
  float softmax_scale; /* 0: 1 / sqrt(head_dim) */
} kvc_shape;

/* One layer, one head of 64, f16, pages of 64. */
kvc_shape kvc_default_shape(void);

/* Rows [heads, tokens, dim] of numbers of one type; strides in numbers, the last one 1. */
typedef struct kvc_rows {
  const void* data;
  kvc_dtype dtype;
  int64_t extent[3];
  int64_t stride[3];
} kvc_rows;

/* Rows that lie one behind the other. */
static inline kvc_rows kvc_dense(const void* data, kvc_dtype dtype, int64_t heads, int64_t tokens, int64_t dim) {
  kvc_rows r;
  r.data = data, r.dtype = dtype;
  r.extent[0] = heads, r.extent[1] = tokens, r.extent[2] = dim;
  r.stride[0] = tokens * dim, r.stride[1] = dim, r.stride[2] = 1;
  return r;
}

/* Where results go: float, [q_heads, tokens, value_dim]. */
typedef struct kvc_out {
  float* data;
  int64_t extent[3];
  int64_t stride[3];
} kvc_out;

static inline kvc_out kvc_dense_out(float* data, int64_t heads, int64_t tokens, int64_t dim) {
  kvc_out r;
  r.data = data;
  r.extent[0] = heads, r.extent[1] = tokens, r.extent[2] = dim;
  r.stride[0] = tokens * dim, r.stride[1] = dim, r.stride[2] = 1;
  return r;
}

/* The caller's threads. `run` calls body(state, task, worker) once for every task in [0, tasks) and returns when all are
 * done; worker is in [0, workers), and no two tasks of one worker run at the same time. */
typedef struct kvc_executor {
  int64_t workers;
  void (*run)(void* self, int64_t tasks, void (*body)(void* state, int64_t task, int64_t worker), void* state);
  void* self;
} kvc_executor;

/* Scratch memory, and threads (null: this one alone). */
typedef struct kvc_context {
  void* workspace;
  size_t workspace_bytes;
  const kvc_executor* executor;
} kvc_context;

/* Where caches get their bytes. Null means "no". */
typedef struct kvc_memory {
  void* (*allocate)(void* self, size_t bytes, size_t align);
  void (*release)(void* self, void* memory, size_t bytes, size_t align);
  void* self;
} kvc_memory;

typedef enum kvc_rope_scaling {
  KVC_ROPE_NONE, KVC_ROPE_LINEAR, KVC_ROPE_DYNAMIC_NTK, KVC_ROPE_LLAMA3, KVC_ROPE_YARN, KVC_ROPE_LONGROPE, KVC_ROPE_TABLE
} kvc_rope_scaling;

/* A model's rotary embedding; the fields are those of kvcondense::prim::RopeConfig. */
typedef struct kvc_rope {
  int32_t interleaved; /* pairs are neighbours (GPT-J), not halves (Llama in Hugging Face's layout) */
  int64_t rotary_dim;  /* 0: all */
  double base;
  kvc_rope_scaling scaling;
  double factor;
  int64_t original_length, length;
  double low_frequency, high_frequency, beta_fast, beta_slow, attention_factor;
  const float* table;
  int64_t table_count;
  const float* long_table;
  int64_t long_table_count;
} kvc_rope;

kvc_rope kvc_default_rope(void);

/* One array that a recipe asks for by name: "gates", "output", ... (a refusal names what is missing; the names are those
 * of kvcondense::any::ModelFacts). Tables per layer or per layer and head: `data` and their extents, outermost first.
 * Matrices of layers: `per_layer`, extent {layers, rows, columns}. */
typedef struct kvc_array {
  const char* name;
  const float* data;
  const float* const* per_layer;
  int64_t extent[3];
} kvc_array;

/* A basis per layer and group of KV heads (kvcondense::HeadBases): the tensors key.encode, key.decode, ... or those of values
 * in a file of `kvcondense-eval calibrate`. */
typedef struct kvc_basis {
  const float* encode; /* [layers, groups, dim, columns], best column first; null, as everything else then: there is no basis */
  const float* decode; /* the same shape; null: columns are orthonormal, and encode serves for both */
  const float* mean;   /* [layers, groups, dim]; null: zeros */
  const float* energy; /* [layers, groups, columns], or null */
  const float* ranks;  /* [layers, groups], or null */
  int64_t layers, groups, dim, columns;
} kvc_basis;

/* What low-rank recipes store keys and values in, once per method. `method` is what `calibrate --method` calls it: the word of
 * the recipe ("pca", ...), but "kv_heads_svd" for joint_heads. */
typedef struct kvc_bases {
  const char* method;
  int raw_keys; /* 1: made of keys before rotation, for caches that store those */
  kvc_basis keys, values;
} kvc_bases;

/* What an engine knows of its model and a recipe's text cannot say. Numbers, lists of addresses (`per_layer`) and the words of bases
 * are borrowed as long as any cache made with them, or any fork of one, lives; kvc_model, kvc_rope, kvc_array, kvc_basis and
 * kvc_bases themselves are copied. */
typedef struct kvc_model {
  size_t size;
  const kvc_rope* rope; /* null: what the text says */
  const kvc_array* arrays;
  int64_t array_count;
  const kvc_bases* bases;
  int64_t bases_count;
} kvc_model;
#define KVC_MODEL_INIT {sizeof(kvc_model), NULL, NULL, 0, NULL, 0}

/* Why a recipe was refused. */
typedef struct kvc_error {
  char message[240]; /* one sentence */
  int64_t position;  /* byte of the recipe that is at fault, or -1 */
} kvc_error;

typedef struct kvc_cache kvc_cache;

const char* kvc_version(void);
const char* kvc_status_name(kvc_status status);

/* An empty cache. model: null, nothing is known. memory: null, the heap. error: null, not wanted. */
kvc_status kvc_make(const char* recipe, const kvc_shape* shape, const kvc_model* model, const kvc_memory* memory,
                    kvc_cache** out, kvc_error* error);
void kvc_free(kvc_cache* cache); /* null: nothing */

/* The canonical recipe; valid as long as the cache. */
const char* kvc_text(const kvc_cache* cache, size_t* length);

/* Numbers of a layer; -1 where there is no such layer, head or slot. */
int64_t kvc_length(const kvc_cache* cache, int64_t layer);        /* tokens ever appended */
int64_t kvc_pending(const kvc_cache* cache, int64_t layer);       /* of them, those that no step has seen */
int64_t kvc_next_position(const kvc_cache* cache, int64_t layer);
int64_t kvc_slots(const kvc_cache* cache, int64_t layer, int64_t head);
int64_t kvc_token(const kvc_cache* cache, int64_t layer, int64_t head, int64_t slot); /* which token it holds */
int64_t kvc_total_slots(const kvc_cache* cache, int64_t layer);   /* of all heads: the size of a mass array */
int64_t kvc_mass_rows(const kvc_cache* cache, int64_t tokens);    /* query rows that the recipe wants in the mass */
int kvc_wants_mass(const kvc_cache* cache, int64_t layer, kvc_phase phase); /* ask between append and attend */

/* Scratch that any call needs while no head holds more than `slots` slots and no call brings more than `tokens`. */
size_t kvc_workspace_bytes(const kvc_cache* cache, int64_t slots, int64_t tokens, int64_t workers);

/* What a step may look at besides the tokens. All but `queries` are of exactly the pending tokens. */
typedef struct kvc_inputs {
  size_t size;
  const float* mass; /* kvc_total_slots numbers, as kvc_attend wrote them */
  int64_t mass_rows;
  kvc_rows queries;     /* float, [q_heads, tokens, head_dim], as kvc_attend got them */
  kvc_rows raw_queries; /* float, before rotation */
  kvc_rows raw_keys;
  kvc_rows values;
  const float* query_mean;       /* [q_heads, head_dim] before rotation */
  const float* query_covariance; /* [q_heads, head_dim, head_dim] */
  const float* gates;            /* [kv_heads, tokens] */
  const float* surprise;         /* per token, -log p; NaN where no logits came before it */
  const uint8_t* classes;        /* per token: 0 plain, 1 punctuation, 2 special */
  int64_t tokens;                /* of gates, surprise, classes and hidden_norms */
  int64_t incoming;              /* with KVC_TURN: tokens that are about to come */
  int64_t probe_first, probe_last; /* with KVC_PROBE: the tokens that are asked about */
  const float* hidden_norms;       /* with KVC_PROBE: per token, Euclidean length of what the layer's projections get */
} kvc_inputs;
kvc_inputs kvc_no_inputs(void);

/* positions: one per token, or null for the next ones. queries: null unless the recipe joins tokens (kvc_capabilities);
 * then as kvc_attend gets them. */
kvc_status kvc_append(kvc_cache* cache, const kvc_context* context, int64_t layer, const kvc_rows* keys,
                      const kvc_rows* values, const int64_t* positions, const kvc_rows* queries);
/* mass: null, or kvc_total_slots numbers. lse: null, or [q_heads, tokens] natural logarithms. */
kvc_status kvc_attend(const kvc_cache* cache, const kvc_context* context, int64_t layer, const kvc_rows* queries,
                      const kvc_out* out, float* mass, float* lse);
kvc_status kvc_step(kvc_cache* cache, const kvc_context* context, int64_t layer, const kvc_inputs* inputs, kvc_phase phase);
/* Append, attend and step. What the recipe wants of attention and queries is taken from the call itself. */
kvc_status kvc_forward(kvc_cache* cache, const kvc_context* context, int64_t layer, const kvc_rows* queries,
                       const kvc_rows* keys, const kvc_rows* values, const kvc_out* out, const int64_t* positions,
                       kvc_phase phase, const kvc_inputs* inputs);
/* Between turns of a conversation: makes room for `incoming` tokens. */
kvc_status kvc_turn(kvc_cache* cache, const kvc_context* context, int64_t incoming);
/* The name of an input that the coming step needs and `inputs` lacks, or null. */
const char* kvc_missing(const kvc_cache* cache, int64_t layer, const kvc_inputs* inputs, kvc_phase phase);

kvc_status kvc_truncate(kvc_cache* cache, int64_t tokens); /* keeps the first `tokens` */
kvc_status kvc_remove(kvc_cache* cache, const kvc_context* context, int64_t first, int64_t last);
kvc_status kvc_fork(const kvc_cache* cache, kvc_cache** out); /* pages are shared until one of them writes */
kvc_status kvc_reorder(kvc_cache* const* caches, int64_t count, const int64_t* map); /* beams: caches[i] becomes map[i] */
void kvc_reset(kvc_cache* cache);

/* `write` returns 0 when it could not take all bytes. */
kvc_status kvc_save(const kvc_cache* cache, int (*write)(void* self, const void* bytes, size_t count), void* self);
kvc_status kvc_load(kvc_cache* cache, const void* bytes, size_t count);

/* Rows of a head as floats, from slot `first` on: keys [count, head_dim], values [count, value_dim]. */
kvc_status kvc_read(const kvc_cache* cache, int64_t layer, int64_t head, int64_t first, int64_t count, float* keys,
                    float* values);

/* What a cache holds and did; see kvcondense::Report. */
typedef struct kvc_report {
  size_t size;
  size_t exact_bytes, coded_bytes, side_bytes, index_bytes, fixed_bytes, dead_bytes, shared_bytes, dense_bytes;
  int64_t tokens, slots, budget_asked, budget_met, evictions, evicted_slots, merged_slots, nan_scores, repaired_numbers,
      coded_again;
  const char* kernel;
  const char *key_kernel, *value_kernel;
} kvc_report;
#define KVC_REPORT_INIT {sizeof(kvc_report), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL}
kvc_status kvc_get_report(const kvc_cache* cache, kvc_report* out);

/* What a recipe does and needs; flags are 0 or 1. */
typedef struct kvc_capabilities {
  size_t size;
  int changes_length, probes, raw_keys, rotated_input, lossy_slots, reads_part, rollback_exact, prefix_exact;
  int needs_attention, needs_queries, needs_projections, needs_moments, needs_gates, needs_surprise, needs_classes;
  int joins_tokens;
  int output_weights, calibrated, trained; /* wants the output projections, arrays made from the model, a model trained for it */
  int turns_keys, found_maps; /* turns keys by one position per token; reads codes through bases or factors found from their own sequence */
  int needs_hidden_norms; /* in probes */
} kvc_capabilities;
#define KVC_CAPABILITIES_INIT {sizeof(kvc_capabilities), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
kvc_status kvc_get_capabilities(const kvc_cache* cache, kvc_capabilities* out);

/* The words that recipes are made of. */
int64_t kvc_word_count(void);
const char* kvc_word(int64_t index);      /* null: no such word */
const char* kvc_word_idea(int64_t index); /* one sentence */

#ifdef __cplusplus
}
#endif

#endif
