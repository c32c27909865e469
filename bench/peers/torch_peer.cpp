// PyTorch's attention on the CPU: what a model written with it runs for one layer and one token.
//
//   sdpa     scaled_dot_product_attention with enable_gqa, which chooses its own kernel
//   expanded the same over keys and values copied to the query heads first, as models did before there was enable_gqa
//   matmul   q K^T, softmax, p V, the query heads of a KV head as rows of one product: nothing is expanded

#include <cmath>
#include <memory>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/InferenceMode.h>
#include <torch/types.h>

#include "peer.hpp"

namespace {

using peers::Problem;

enum class Way { sdpa, expanded, matmul };

struct Kind {
  at::ScalarType type;
  Way way;
};

constexpr peers::Form forms[] = {{"f16 sdpa", 16}, {"f16 expanded", 16}, {"f16 matmul", 16}, {"bf16 sdpa", 16}, {"bf16 matmul", 16}};
constexpr Kind kinds[] = {
    {at::kHalf, Way::sdpa}, {at::kHalf, Way::expanded}, {at::kHalf, Way::matmul}, {at::kBFloat16, Way::sdpa}, {at::kBFloat16, Way::matmul},
};

class Torch final : public peers::Attention {
 public:
  Torch(Kind kind, const Problem& p) : kind_(kind), p_(p) {
    at::set_num_threads(p.threads);
    const c10::InferenceMode guard;
    const auto stored = [&](const float* rows) {
      return at::from_blob(const_cast<float*>(rows), {1, p.kv_heads, p.slots, p.dim}, at::kFloat).to(kind.type, false, true);
    };
    for (long l = 0; l < p.layers; ++l) keys_.push_back(stored(p.keys)), values_.push_back(stored(p.values));
  }

  double bytes_per_layer() const override { return 2.0 * 2.0 * static_cast<double>(p_.kv_heads * p_.slots * p_.dim); }

  bool attend(long layer, const float* queries, float* out) override {
    return done([&] { answer_to(layer, queries, out); });
  }

  bool decode(long layer, long head, float* keys, float* values) override {
    return done([&] {
      const auto i = static_cast<std::size_t>(layer);
      at::from_blob(keys, {p_.slots, p_.dim}, at::kFloat).copy_(keys_[i][0][head]);
      at::from_blob(values, {p_.slots, p_.dim}, at::kFloat).copy_(values_[i][0][head]);
    });
  }

 private:
  /// False where it cannot: no memory, or a kernel that this build lacks.
  template <class F>
  static bool done(F&& work) {
    try {
      const c10::InferenceMode guard;
      work();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  void answer_to(long layer, const float* queries, float* out) const {
    if (at::get_num_threads() != p_.threads) at::set_num_threads(p_.threads);
    const at::Tensor q = at::from_blob(const_cast<float*>(queries), {1, p_.q_heads, 1, p_.dim}, at::kFloat).to(kind_.type);
    const auto i = static_cast<std::size_t>(layer);
    at::from_blob(out, {1, p_.q_heads, 1, p_.dim}, at::kFloat).copy_(answer(q, keys_[i], values_[i]).reshape({1, p_.q_heads, 1, p_.dim}));
  }
  at::Tensor answer(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    const long group = p_.q_heads / p_.kv_heads;
    if (kind_.way == Way::sdpa) return at::scaled_dot_product_attention(q, k, v, std::nullopt, 0.0, false, std::nullopt, group > 1);
    if (kind_.way == Way::expanded) {
      const auto expand = [&](const at::Tensor& x) {
        return x.unsqueeze(2).expand({1, p_.kv_heads, group, p_.slots, p_.dim}).reshape({1, p_.q_heads, p_.slots, p_.dim});
      };
      return at::scaled_dot_product_attention(q, expand(k), expand(v));
    }
    const at::Tensor rows = q.reshape({p_.kv_heads, group, p_.dim});
    const at::Tensor logits = at::bmm(rows, k[0].transpose(1, 2)) * (1.0 / std::sqrt(static_cast<double>(p_.dim)));
    return at::bmm(at::softmax(logits, -1, at::kFloat).to(kind_.type), v[0]);
  }

  Kind kind_;
  Problem p_;
  std::vector<at::Tensor> keys_, values_;
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) std::size_t peer_forms(const peers::Form** list) {
  *list = forms;
  return sizeof(forms) / sizeof(forms[0]);
}

__attribute__((visibility("default"))) peers::Attention* peer_make(std::size_t form, const peers::Problem& problem) {
  try {
    return std::make_unique<Torch>(kinds[form], problem).release();
  } catch (const std::exception&) {  // no memory
    return nullptr;
  }
}

}  // extern "C"
