#pragma once

#include <string>
#include <string_view>

#include <eval/options.hpp>
#include <kvcondense/cost/deployment.hpp>

namespace eval {

/// A model's shape from a name of cost/known.hpp, a directory with config.json, or "layers=32, hidden=4096,
/// intermediate=14336, q_heads=32, kv_heads=8, head_dim=128, vocab=128256". Throws Error.
kvcondense::cost::Model model_shape(const std::string& text);

/// A device from a name of cost/known.hpp or "flops=312e12, bandwidth=2e12, memory=80e9, link=20e9". Throws Error.
kvcondense::cost::Device device_of(const std::string& text);

/// What a recipe's cache of `context` tokens holds, and what a decode step reads of it, beside 16 bits for every
/// number. Found by filling one of the model's depth and head size, with random keys and values; one KV head stands
/// for all. Throws Error.
struct CacheFactors {
  double held = 1.0;
  double read = 1.0;
};
CacheFactors cache_factors(const std::string& recipe, const kvcondense::cost::Model& model, index_t context);

/// What serving a model costs with and without each recipe, by the models of room cost, as a table.
std::string plan(const Options& options);

}  // namespace eval
