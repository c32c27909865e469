#pragma once

#include <vector>

#include <engine/model.hpp>
#include <kvcondense/core/model_arrays.hpp>

namespace engine {

/// The model's output projections as caches read them, [hidden, q_heads * value_dim] row by row. The
/// engine itself multiplies with a reordered copy, so this is memory of its own.
class OutputProjections {
 public:
  explicit OutputProjections(const Model& model) {
    for (const LayerWeights& layer : model.layers) {
      rows_ = layer.o.out(), columns_ = layer.o.in();
      matrices_.push_back(layer.o.row_major());
    }
    for (const auto& m : matrices_) addresses_.push_back(m.data());
  }

  /// Borrows this object.
  kvcondense::LayerMatrices view() const {
    return {addresses_.data(), static_cast<index_t>(addresses_.size()), rows_, columns_};
  }

 private:
  std::vector<std::vector<float>> matrices_;
  std::vector<const float*> addresses_;
  index_t rows_ = 0;
  index_t columns_ = 0;
};

}  // namespace engine
