#include <ggml/llama.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace ggml_engine {
namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

/// A context whose tensors have their memory, zeros, in it.
Context with_memory(std::size_t tensors, std::size_t bytes) {
  ggml_init_params params{};
  params.mem_size = bytes + tensors * (ggml_tensor_overhead() + 64) + 1024;
  return Context(ggml_init(params));
}

}  // namespace

Llama::Llama(const Facts& f, Options o, Weights w) : facts(f), options(o), weights_(std::move(w)) {
  pos.assign(at(o.cells), -1);
  owner_.assign(at(o.cells), -1);
  const std::int64_t width = std::int64_t{f.kv_heads} * f.dim;
  cells_ = with_memory(at(2 * f.layers), 2 * at(f.layers) * ggml_row_size(o.kv, width) * at(o.cells));
  for (int l = 0; l < f.layers && cells_ != nullptr; ++l) {
    keys_.push_back(ggml_new_tensor_2d(cells_.get(), o.kv, width, o.cells));
    values_.push_back(o.flash ? ggml_new_tensor_2d(cells_.get(), o.kv, width, o.cells) : ggml_new_tensor_2d(cells_.get(), o.kv, o.cells, width));
    // Attention multiplies what it masks by 0 too.
    for (ggml_tensor* t : {keys_.back(), values_.back()}) std::memset(t->data, 0, ggml_nbytes(t));
  }
  queries_.resize(at(f.layers));
  const float* factors = weights_.rope_factors != nullptr ? static_cast<const float*>(weights_.rope_factors->data) : nullptr;
  for (int t = 0; t < f.rotary_dim / 2; ++t)
    frequencies_.push_back(static_cast<float>(std::pow(static_cast<double>(f.rope_base), -2.0 * t / f.rotary_dim) *
                                              static_cast<double>(f.rope_scale) / static_cast<double>(factors != nullptr ? factors[t] : 1.0f)));
  cpu_.reset(ggml_backend_cpu_init());
  memory_.reset(ggml_gallocr_new(ggml_backend_cpu_buffer_type()));
  ggml_backend_cpu_set_n_threads(cpu_.get(), o.threads);
}

std::unique_ptr<Llama> Llama::load(const std::string& path, Options options, std::string& why) {
  Facts facts;
  Weights weights;
  if (options.cells < 1 || options.threads < 1 || (options.kv != GGML_TYPE_F32 && options.kv != GGML_TYPE_F16)) {
    why = "cells and threads are at least 1, cells hold F32 or F16";
    return nullptr;
  }
  if (!read(path, facts, weights, why)) {
    why = path + ": " + why;
    return nullptr;
  }
  std::unique_ptr<Llama> made(new Llama(facts, options, std::move(weights)));
  if (made->cells_ != nullptr) return made;
  why = "no memory for " + std::to_string(options.cells) + " cells";
  return nullptr;
}

int Llama::reach() const {
  const auto last = std::find_if(owner_.rbegin(), owner_.rend(), [](std::int32_t o) { return o >= 0; });
  return static_cast<int>(owner_.rend() - last);
}

int Llama::free_cells() const { return static_cast<int>(std::count(owner_.begin(), owner_.end(), -1)); }

void Llama::keep_first(int id, std::size_t n) {
  std::vector<std::int32_t>& own = sequences[id];
  for (std::size_t i = n; i < own.size(); ++i) owner_[at(own[i])] = pos[at(own[i])] = -1;
  own.resize(std::min(n, own.size()));
}

bool Llama::pass(int id, std::span<const std::int32_t> tokens, Part part) {
  const int n = static_cast<int>(tokens.size());
  if (id < 0 || n == 0 || n > free_cells()) return false;
  for (const std::int32_t t : tokens)
    if (t < 0 || t >= facts.vocab) return false;
  std::vector<std::int32_t>& own = sequences[id];
  const std::size_t before = own.size();
  const int first = own.empty() ? 0 : pos[at(own.back())] + 1;
  for (int t = 0, cell = 0; t < n; ++t, ++cell) {
    while (owner_[at(cell)] >= 0) ++cell;
    owner_[at(cell)] = id, pos[at(cell)] = first + t;
    own.push_back(cell);
  }
  if (run(id, tokens, first) && (!after_pass || after_pass(id, n, part))) return true;
  keep_first(id, before);
  return false;
}

Llama::Inputs Llama::inputs(int tokens, int reach) {
  ggml_context* c = pass_.get();
  Inputs in{};
  in.ids = ggml_new_tensor_1d(c, GGML_TYPE_I32, tokens);
  in.pos = ggml_new_tensor_1d(c, GGML_TYPE_I32, tokens);
  in.cells = ggml_new_tensor_1d(c, GGML_TYPE_I64, tokens);
  in.mask = ggml_new_tensor_2d(c, options.flash ? GGML_TYPE_F16 : GGML_TYPE_F32, reach, tokens);
  if (!options.flash) in.channels = ggml_new_tensor_1d(c, GGML_TYPE_I64, std::int64_t{tokens} * facts.kv_heads * facts.dim);
  for (ggml_tensor* t : {in.ids, in.pos, in.cells, in.mask, in.channels})
    if (t != nullptr) ggml_set_input(t);
  return in;
}

void Llama::fill(const Inputs& in, int id, std::span<const std::int32_t> tokens, int first, int reach) const {
  const std::vector<std::int32_t>& own = sequences.at(id);
  const std::size_t n = tokens.size(), width = at(facts.kv_heads * facts.dim);
  for (std::size_t t = 0; t < n; ++t) {
    const int cell = own[own.size() - n + t], position = first + static_cast<int>(t);
    static_cast<std::int32_t*>(in.ids->data)[t] = tokens[t];
    static_cast<std::int32_t*>(in.pos->data)[t] = position;
    static_cast<std::int64_t*>(in.cells->data)[t] = cell;
    if (in.channels != nullptr)
      for (std::size_t d = 0; d < width; ++d)
        static_cast<std::int64_t*>(in.channels->data)[t * width + d] = static_cast<std::int64_t>(d) * options.cells + cell;
    for (int j = 0; j < reach; ++j) {
      const float m = owner_[at(j)] == id && pos[at(j)] <= position ? 0.0f : -std::numeric_limits<float>::infinity();
      const std::size_t i = t * at(reach) + at(j);
      if (options.flash)
        static_cast<ggml_fp16_t*>(in.mask->data)[i] = ggml_fp32_to_fp16(m);
      else
        static_cast<float*>(in.mask->data)[i] = m;
    }
  }
}

ggml_tensor* Llama::turned(ggml_tensor* rows, int heads, const Inputs& in) {
  return ggml_rope_ext(pass_.get(), ggml_reshape_3d(pass_.get(), rows, facts.dim, heads, rows->ne[1]), in.pos, weights_.rope_factors,
                       facts.rotary_dim, GGML_ROPE_TYPE_NORMAL, 0, facts.rope_base, facts.rope_scale, 0.0f, 1.0f, 0.0f, 0.0f);
}

ggml_tensor* Llama::attention(int layer, ggml_tensor* x, const Inputs& in, ggml_cgraph* graph) {
  ggml_context* c = pass_.get();
  const Layer& w = weights_.layers[at(layer)];
  const std::int64_t n = x->ne[1], width = std::int64_t{facts.kv_heads} * facts.dim, reach = in.mask->ne[0];
  ggml_tensor* q = turned(ggml_mul_mat(c, w.q, x), facts.q_heads, in);
  ggml_set_output(queries_[at(layer)] = q);  // its memory is not used again in this pass
  ggml_tensor* k = ggml_reshape_2d(c, turned(ggml_mul_mat(c, w.k, x), facts.kv_heads, in), width, n);
  ggml_tensor* v = ggml_mul_mat(c, w.v, x);
  ggml_tensor *keys = keys_[at(layer)], *values = values_[at(layer)];
  ggml_build_forward_expand(graph, ggml_set_rows(c, keys, k, in.cells));
  ggml_build_forward_expand(
      graph, options.flash ? ggml_set_rows(c, values, v, in.cells)
                           : ggml_set_rows(c, ggml_reshape_2d(c, values, 1, width * options.cells), ggml_reshape_2d(c, v, 1, width * n), in.channels));

  const std::size_t one = ggml_type_size(options.kv), row = ggml_row_size(options.kv, width), head = ggml_row_size(options.kv, facts.dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(facts.dim));
  q = ggml_permute(c, q, 0, 2, 1, 3);
  k = ggml_view_3d(c, keys, facts.dim, reach, facts.kv_heads, row, head, 0);
  ggml_tensor* out = nullptr;
  if (options.flash) {
    v = ggml_view_3d(c, values, facts.dim, reach, facts.kv_heads, row, head, 0);
    out = ggml_flash_attn_ext(c, q, k, v, in.mask, scale, 0.0f, 0.0f);
    ggml_flash_attn_ext_set_prec(out, GGML_PREC_F32);
    out = ggml_reshape_2d(c, out, std::int64_t{facts.q_heads} * facts.dim, n);
  } else {
    const std::size_t channel = one * at(options.cells);
    v = ggml_view_3d(c, values, reach, facts.dim, facts.kv_heads, channel, channel * at(facts.dim), 0);
    ggml_tensor* weight = ggml_soft_max_ext(c, ggml_mul_mat(c, k, q), in.mask, scale, 0.0f);
    out = ggml_permute(c, ggml_mul_mat(c, v, weight), 0, 2, 1, 3);
    out = ggml_cont_2d(c, out, std::int64_t{facts.q_heads} * facts.dim, n);
  }
  return ggml_mul_mat(c, w.o, out);
}

bool Llama::run(int id, std::span<const std::int32_t> tokens, int first) {
  const int n = static_cast<int>(tokens.size()), cells = reach();
  const std::size_t nodes = 40 * at(facts.layers) + 40;
  ggml_init_params params{};
  params.mem_size = 2 * nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false);
  params.no_alloc = true;
  pass_.reset(ggml_init(params));
  ggml_context* c = pass_.get();
  if (c == nullptr) return false;
  ggml_cgraph* graph = ggml_new_graph_custom(c, nodes, false);
  const Inputs in = inputs(n, cells);
  ggml_tensor* x = ggml_get_rows(c, weights_.embeddings, in.ids);
  for (int l = 0; l < facts.layers; ++l) {
    const Layer& w = weights_.layers[at(l)];
    x = ggml_add(c, x, attention(l, norm(x, w.attn_norm), in, graph));
    ggml_tensor* y = norm(x, w.ffn_norm);
    y = ggml_mul(c, ggml_silu(c, ggml_mul_mat(c, w.gate, y)), ggml_mul_mat(c, w.up, y));
    x = ggml_add(c, x, ggml_mul_mat(c, w.down, y));
  }
  if (!all_logits) x = ggml_view_2d(c, x, facts.hidden, 1, x->nb[1], x->nb[1] * at(n - 1));
  logits_ = ggml_mul_mat(c, weights_.head, norm(x, weights_.norm));
  ggml_set_output(logits_);
  ggml_build_forward_expand(graph, logits_);
  if (!ggml_gallocr_alloc_graph(memory_.get(), graph)) return false;
  fill(in, id, tokens, first, cells);
  return ggml_backend_graph_compute(cpu_.get(), graph) == GGML_STATUS_SUCCESS;
}

}  // namespace ggml_engine
