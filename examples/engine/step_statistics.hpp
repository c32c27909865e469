#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <engine/decoder.hpp>
#include <kvcondense/backend/cpu/query_moments.hpp>
#include <kvcondense/backend/cpu/token_surprise.hpp>
#include <kvcondense/core/step_inputs.hpp>

namespace engine {

/// What some recipes want to know besides queries, keys and values: of queries before rotation their
/// mean and covariance, of tokens how surprising they were. One sequence.
class StepStatistics {
 public:
  static constexpr index_t sinks = 4;  ///< first tokens, whose queries are like no others

  kvcondense::StepInputs inputs(kvcondense::Context<kvcondense::Cpu>& context,
                                const LayerChunk& chunk, kvcondense::Inputs needs) {
    kvcondense::StepInputs in;
    in.raw_queries = chunk.raw_q, in.raw_keys = chunk.raw_k, in.values = chunk.v;
    in.classes = chunk.classes;
    if (needs.has(kvcondense::Input::moments)) add_moments(context, chunk, in);
    if (needs.has(kvcondense::Input::hidden_norms) && chunk.phase == Phase::probe) add_norms(chunk, in);
    return in;
  }

  /// logits [tokens, vocab]: of the pass that brought the tokens.
  Status surprise(kvcondense::Context<kvcondense::Cpu>& context,
                  std::span<const std::int32_t> tokens, std::span<const float> logits,
                  kvcondense::StepInputs& in) {
    const std::size_t vocab = logits.size() / tokens.size();
    // The row before the first token is the last one of the pass before; it is there from then on.
    const bool begins = tokens_.empty();
    logits_.erase(logits_.begin(), logits_.end() - static_cast<std::ptrdiff_t>(begins ? 0 : vocab));
    tokens_.erase(tokens_.begin(), tokens_.end() - (begins ? 0 : 1));
    logits_.insert(logits_.end(), logits.begin(), logits.end());
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    surprise_.resize(tokens_.size());
    const auto rows = static_cast<index_t>(tokens_.size());
    const Status s = kvcondense::prim::TokenSurprise<kvcondense::Cpu>::run(
        context, kvcondense::dense_view(std::as_const(logits_).data(), rows, vocab), tokens_,
        kvcondense::prim::SurpriseOf::this_token, surprise_);
    in.surprise = std::span<const float>(surprise_).last(tokens.size());
    return s;
  }

 private:
  struct Moments {
    std::vector<float> mean, covariance;
    index_t counted = 0;
  };

  /// How long the states are that queries, keys and values were projected from.
  void add_norms(const LayerChunk& chunk, kvcondense::StepInputs& in) {
    norms_.clear();
    for (index_t t = 0; t < chunk.inputs.extent[0]; ++t) {
      double sum = 0;
      for (index_t i = 0; i < chunk.inputs.extent[1]; ++i) {
        const auto x = static_cast<double>(chunk.inputs(t, i));
        sum += x * x;
      }
      norms_.push_back(static_cast<float>(std::sqrt(sum)));
    }
    in.hidden_norms = norms_;
  }

  void add_moments(kvcondense::Context<kvcondense::Cpu>& context, const LayerChunk& chunk,
                   kvcondense::StepInputs& in) {
    const index_t heads = chunk.raw_q.extent[0], dim = chunk.raw_q.extent[2];
    moments_.resize(std::max(moments_.size(), static_cast<std::size_t>(chunk.layer) + 1));
    Moments& m = moments_[static_cast<std::size_t>(chunk.layer)];
    m.mean.resize(static_cast<std::size_t>(heads * dim));
    m.covariance.resize(static_cast<std::size_t>(heads * dim * dim));
    const auto mean = kvcondense::dense_view(m.mean.data(), heads, dim);
    const auto covariance = kvcondense::dense_view(m.covariance.data(), heads, dim, dim);
    TensorView<const float, 3> q = chunk.raw_q;
    const index_t first = chunk.positions.empty() ? 0 : chunk.positions.front();
    const index_t skip = std::clamp<index_t>(sinks - first, 0, q.extent[1]);
    q.data += skip * q.stride[1], q.extent[1] -= skip;
    const Status s = kvcondense::prim::QueryMoments<kvcondense::Cpu>::add(context, q, m.counted,
                                                                         mean, covariance);
    m.counted += q.extent[1];
    if (s == Status::ok && m.counted > 0) in.query_mean = mean, in.query_covariance = covariance;
  }

  std::vector<Moments> moments_;  ///< of each layer
  std::vector<float> logits_, surprise_, norms_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace engine
