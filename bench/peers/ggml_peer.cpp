// ggml's attention, and that of libraries with its interface (llama.cpp, its forks): what their CPU decode runs for one
// layer and one token, over K and V in a given type.
//
//   heads    rows of one KV head lie together (their fastest)
//   tokens   rows of one token lie together, as llama.cpp stores them
//   matmul   without flash attention: K q, softmax, V^T p, for f16 alone; V transposed, as llama.cpp stores it then

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <ggml.h>
#if __has_include(<ggml-cpu.h>)
#include <ggml-cpu.h>
#define PEER_HAS_POOL 1
#else
#define PEER_HAS_POOL 0
#endif

#include "peer.hpp"

namespace {

using peers::Problem;

enum class Layout { heads, tokens, matmul };

struct Kind {
  ggml_type type;
  Layout layout;
};

constexpr peers::Form forms[] = {
    {"f16 heads", 16}, {"f16 tokens", 16}, {"f16 matmul", 16}, {"q8_0 heads", 8}, {"q8_0 tokens", 8}, {"q4_0 heads", 4}, {"q4_0 tokens", 4},
};
constexpr Kind kinds[] = {
    {GGML_TYPE_F16, Layout::heads},  {GGML_TYPE_F16, Layout::tokens},  {GGML_TYPE_F16, Layout::matmul}, {GGML_TYPE_Q8_0, Layout::heads},
    {GGML_TYPE_Q8_0, Layout::tokens}, {GGML_TYPE_Q4_0, Layout::heads}, {GGML_TYPE_Q4_0, Layout::tokens},
};

ggml_to_float_t to_float(ggml_type type) {
#if PEER_HAS_POOL
  return ggml_get_type_traits(type)->to_float;
#else
  return ggml_internal_get_type_traits(type).to_float;
#endif
}

// One argument more in some forks.
template <class F>
auto quantize_with(F f, ggml_type type, const float* from, void* to, std::int64_t rows, std::int64_t n, int)
    -> decltype(f(type, from, to, 0, rows, n, nullptr)) {
  return f(type, from, to, 0, rows, n, nullptr);
}
template <class F>
auto quantize_with(F f, ggml_type type, const float* from, void* to, std::int64_t rows, std::int64_t n, long)
    -> decltype(f(type, from, to, 0, rows, n, nullptr, nullptr)) {
  return f(type, from, to, 0, rows, n, nullptr, nullptr);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<std::byte, Free>;

Bytes allocate(std::size_t n) {
  constexpr std::size_t page = std::size_t{1} << 21;
  return Bytes(static_cast<std::byte*>(std::aligned_alloc(page, (n + page) / page * page)));
}

class Ggml final : public peers::Attention {
 public:
  Ggml(Kind kind, const Problem& p) : kind_(kind), p_(p) {
    row_ = ggml_row_size(kind.type, p.dim);
    part_ = row_ * static_cast<std::size_t>(p.slots * p.kv_heads);
    store_ = allocate(2 * part_ * static_cast<std::size_t>(p.layers));
    if (store_ == nullptr) return;
    out_.resize(static_cast<std::size_t>(p.q_heads * p.dim));
    mask_.resize(static_cast<std::size_t>(p.slots) * mask_rows);
    if (kind.layout == Layout::matmul) logits_.resize(2 * static_cast<std::size_t>(p.slots * p.q_heads));
    fill(p.keys, store_.get(), false);
    fill(p.values, store_.get() + part_, kind.layout == Layout::matmul);
    for (long l = 1; l < p.layers; ++l) std::memcpy(store_.get() + 2 * part_ * static_cast<std::size_t>(l), store_.get(), 2 * part_);
#if PEER_HAS_POOL
    ggml_threadpool_params params = ggml_threadpool_params_default(p.threads);
    pool_ = ggml_threadpool_new(&params);
    if (pool_ == nullptr) return;
#endif
    for (long l = 0; l < p.layers; ++l)
      if (!add_graph(l)) return;
    good_ = true;
  }
  ~Ggml() override {
    for (Graph& g : graphs_) ggml_free(g.ctx);
#if PEER_HAS_POOL
    if (pool_ != nullptr) ggml_threadpool_free(pool_);
#endif
  }
  Ggml(const Ggml&) = delete;
  Ggml& operator=(const Ggml&) = delete;

  bool good() const { return good_; }
  double bytes_per_layer() const override { return 2 * static_cast<double>(part_); }

  bool attend(long layer, const float* queries, float* out) override {
    Graph& g = graphs_[static_cast<std::size_t>(layer)];
    g.q->data = const_cast<float*>(queries);
    g.out->data = out;
    return ggml_graph_compute(g.graph, &g.plan) == GGML_STATUS_SUCCESS;
  }

  bool decode(long layer, long head, float* keys, float* values) override {
    const std::byte* at = store_.get() + 2 * part_ * static_cast<std::size_t>(layer);
    for (long s = 0; s < p_.slots; ++s) {
      read(at + offset(head, s), keys + s * p_.dim);
      if (kind_.layout != Layout::matmul) read(at + part_ + offset(head, s), values + s * p_.dim);
    }
    if (kind_.layout != Layout::matmul) return true;
    const auto* v = reinterpret_cast<const ggml_fp16_t*>(at + part_);
    for (long s = 0; s < p_.slots; ++s)
      for (long c = 0; c < p_.dim; ++c) values[s * p_.dim + c] = ggml_fp16_to_fp32(v[(head * p_.dim + c) * p_.slots + s]);
    return true;
  }

 private:
  static constexpr std::size_t mask_rows = 64;  // as many as any of them pads a mask to

  struct Graph {
    ggml_context* ctx;
    ggml_cgraph* graph;
    ggml_cplan plan;
    ggml_tensor *q, *out;
  };

  std::size_t offset(long head, long slot) const {
    return row_ * static_cast<std::size_t>(kind_.layout == Layout::tokens ? slot * p_.kv_heads + head : head * p_.slots + slot);
  }
  void read(const std::byte* row, float* x) const { to_float(kind_.type)(row, x, p_.dim); }

  void fill(const float* from, std::byte* to, bool transposed) {
    for (long h = 0; h < p_.kv_heads; ++h)
      for (long s = 0; s < p_.slots; ++s) {
        const float* row = from + (h * p_.slots + s) * p_.dim;
        if (transposed) {
          auto* v = reinterpret_cast<ggml_fp16_t*>(to);
          for (long c = 0; c < p_.dim; ++c) v[(h * p_.dim + c) * p_.slots + s] = ggml_fp32_to_fp16(row[c]);
        } else {
          quantize_with([](auto... a) -> decltype(ggml_quantize_chunk(a...)) { return ggml_quantize_chunk(a...); }, kind_.type, row,
                        to + offset(h, s), 1, p_.dim, 0);
        }
      }
  }

  ggml_tensor* rows(ggml_context* ctx, std::byte* data) const {
    const bool tokens = kind_.layout == Layout::tokens;
    ggml_tensor* t = tokens ? ggml_new_tensor_3d(ctx, kind_.type, p_.dim, p_.kv_heads, p_.slots)
                            : ggml_new_tensor_3d(ctx, kind_.type, p_.dim, p_.slots, p_.kv_heads);
    t->data = data;
    if (!tokens) return t;
    ggml_tensor* turned = ggml_permute(ctx, t, 0, 2, 1, 3);
    turned->data = data;
    return turned;
  }

  bool add_graph(long layer) {
    const std::size_t room = 32 * ggml_tensor_overhead() + ggml_graph_overhead_custom(32, false) + 4096;
    ggml_init_params params{};
    params.mem_size = room, params.no_alloc = true;
    Graph g{};
    g.ctx = ggml_init(params);
    if (g.ctx == nullptr) return false;
    graphs_.push_back(g);
    Graph& mine = graphs_.back();
    std::byte* at = store_.get() + 2 * part_ * static_cast<std::size_t>(layer);
    const float scale = 1.0f / std::sqrt(static_cast<float>(p_.dim));
    mine.q = ggml_new_tensor_3d(g.ctx, GGML_TYPE_F32, p_.dim, 1, p_.q_heads);
    mine.q->data = out_.data();
    ggml_tensor* k = rows(g.ctx, at);
    if (kind_.layout == Layout::matmul) {
      ggml_tensor* v = ggml_new_tensor_3d(g.ctx, kind_.type, p_.slots, p_.dim, p_.kv_heads);
      v->data = at + part_;
      ggml_tensor* score = ggml_mul_mat(g.ctx, k, mine.q);
      score->data = logits_.data();
      ggml_tensor* weight = ggml_soft_max_ext(g.ctx, score, nullptr, scale, 0.0f);
      weight->data = logits_.data() + p_.slots * p_.q_heads;
      mine.out = ggml_mul_mat(g.ctx, v, weight);
    } else {
      ggml_tensor* v = rows(g.ctx, at + part_);
      ggml_tensor* mask = ggml_new_tensor_2d(g.ctx, GGML_TYPE_F16, p_.slots, static_cast<std::int64_t>(mask_rows));
      mask->data = mask_.data();
      mine.out = ggml_flash_attn_ext(g.ctx, mine.q, k, v, mask, scale, 0.0f, 0.0f);
    }
    mine.out->data = out_.data();
    mine.graph = ggml_new_graph_custom(g.ctx, 32, false);
    ggml_build_forward_expand(mine.graph, mine.out);
#if PEER_HAS_POOL
    mine.plan = ggml_graph_plan(mine.graph, p_.threads, pool_);
#else
    mine.plan = ggml_graph_plan(mine.graph, p_.threads);
#endif
    if (work_.size() < mine.plan.work_size + 64) work_.resize(mine.plan.work_size + 64);
    for (Graph& each : graphs_) each.plan.work_data = work_.data();
    return true;
  }

  Kind kind_;
  Problem p_;
  std::size_t row_ = 0, part_ = 0;
  Bytes store_;
  std::vector<float> out_, logits_;
  std::vector<ggml_fp16_t> mask_;
  std::vector<std::uint8_t> work_;
  std::vector<Graph> graphs_;
#if PEER_HAS_POOL
  ggml_threadpool* pool_ = nullptr;
#endif
  bool good_ = false;
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) std::size_t peer_forms(const peers::Form** list) {
  *list = forms;
  return sizeof(forms) / sizeof(forms[0]);
}

__attribute__((visibility("default"))) peers::Attention* peer_make(std::size_t form, const peers::Problem& problem) {
#if PEER_HAS_POOL
  ggml_cpu_init();
#endif
  // The first context fills tables that rows are converted by.
  ggml_init_params params{};
  params.mem_size = 1024;
  ggml_free(ggml_init(params));
  auto made = std::make_unique<Ggml>(kinds[form], problem);
  return made->good() ? made.release() : nullptr;
}

}  // extern "C"
