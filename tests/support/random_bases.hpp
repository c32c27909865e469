#pragma once

#include <cmath>
#include <random>
#include <string_view>
#include <vector>

#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense::test {

/// Random orthonormal bases for every KV head; outlives what borrows it.
class RandomBases {
 public:
  RandomBases(index_t layers, index_t heads, index_t dim, std::uint32_t seed, bool mean, bool pair = false) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto all = static_cast<std::size_t>(layers * heads * dim * dim);
    encode_.resize(all);
    for (index_t h = 0; h < layers * heads; ++h) {
      std::vector<std::vector<double>> columns;
      while (static_cast<index_t>(columns.size()) < dim) {
        std::vector<double> c(static_cast<std::size_t>(dim));
        for (double& x : c) x = static_cast<double>(normal(random));
        for (const auto& other : columns) {
          double along = 0;
          for (std::size_t i = 0; i < c.size(); ++i) along += c[i] * other[i];
          for (std::size_t i = 0; i < c.size(); ++i) c[i] -= along * other[i];
        }
        double size = 0;
        for (const double x : c) size += x * x;
        for (double& x : c) x /= std::sqrt(size);
        columns.push_back(c);
      }
      for (index_t i = 0; i < dim; ++i)
        for (index_t j = 0; j < dim; ++j)
          encode_[static_cast<std::size_t>((h * dim + i) * dim + j)] =
              static_cast<float>(columns[static_cast<std::size_t>(j)][static_cast<std::size_t>(i)]);
      for (index_t i = 0; i < dim; ++i) {
        mean_.push_back(normal(random) * 0.5f);
        energy_.push_back(1.0f / static_cast<float>(1 + i));
      }
      ranks_.push_back(static_cast<float>(dim / 4 * (1 + h % 3)));
    }
    // The inverse of a scaled orthonormal matrix: each column by another factor, and by its inverse.
    decode_ = encode_;
    for (std::size_t i = 0; pair && i < all; ++i) {
      const auto j = i % static_cast<std::size_t>(dim);
      const float factor = 0.5f + static_cast<float>(j % 5) * 0.25f;
      encode_[i] *= factor, decode_[i] /= factor;
    }
    view_ = {encode_.data(), pair ? decode_.data() : nullptr, mean ? mean_.data() : nullptr, energy_.data(), ranks_.data(),
             layers,         heads,                          dim,                           dim,            KeyForm::rotated};
  }
  RandomBases(const RandomBases&) = delete;
  RandomBases& operator=(const RandomBases&) = delete;

  HeadBases view(KeyForm form = KeyForm::rotated) const {
    HeadBases b = view_;
    b.keys = form;
    return b;
  }

 private:
  std::vector<float> encode_, decode_, mean_, energy_, ranks_;
  HeadBases view_{};
};

}  // namespace kvcondense::test
