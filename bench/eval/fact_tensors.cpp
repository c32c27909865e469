#include <eval/fact_tensors.hpp>

#include <functional>
#include <numeric>

namespace eval {
namespace {

using kvcondense::HashPlanes;
using kvcondense::HeadRows;
using kvcondense::LayerMatrices;
using Facts = FactTensor::Facts;

const std::vector<FactTensor>& all_tensors() {
  static const std::vector<FactTensor> all{
      {"key.books", "key_books", "commvq", {"layers", "kv_heads", "stages", "words", "head_dim"}, &Facts::key_books},
      {"value.books", "value_books", "commvq", {"layers", "kv_heads", "stages", "words", "value_dim"}, &Facts::value_books},
      {"key.axes", "key_axes", "loki", {"layers", "kv_heads", "head_dim", "directions"}, &Facts::key_axes},
      {"query.axes", "query_axes", "infinigen", {"layers", "kv_heads", "head_dim", "directions"}, &Facts::query_axes},
      {"query.filters", "query_filters", "qfilters", {"layers", "kv_heads", "head_dim"}, &Facts::query_filters},
      {"key.codes", "key_codes", "a2ats", {"layers", "kv_heads", "codes", "head_dim"}, &Facts::key_codes},
      {"key.metric", "key_metric", "a2ats", {"layers", "kv_heads", "head_dim", "head_dim"}, &Facts::key_metric},
      {"hash.planes", "hash_planes", "magicpig", {"tables", "bits", "head_dim"}, &Facts::hash_planes},
      {"retain.in", "retain_in", nullptr, {"layers", "projections", "hidden"}, &Facts::retain_in},
      {"retain.out", "retain_out", nullptr, {"layers", "hidden", "kv_heads"}, &Facts::retain_out}};
  return all;
}

/// 0: any.
index_t size_of_axis(std::string_view axis, const CacheShape& shape) {
  if (axis == "layers") return shape.layers;
  if (axis == "kv_heads") return shape.kv_heads;
  if (axis == "head_dim") return shape.head_dim;
  if (axis == "projections") return shape.q_heads * shape.head_dim + shape.kv_heads * (shape.head_dim + shape.values());
  return axis == "value_dim" ? shape.values() : 0;
}

index_t product(const std::vector<index_t>& extent, std::ptrdiff_t from, std::ptrdiff_t left_out = 0) {
  return std::accumulate(extent.begin() + from, extent.end() - left_out, index_t{1}, std::multiplies<>());
}

using Blocks = std::vector<const float*>;

void put(const FactArray& a, const Blocks&, HeadRows& to) { to = {a.numbers.data(), a.extent[0], a.extent[1], product(a.extent, 2)}; }
void put(const FactArray& a, const Blocks& blocks, LayerMatrices& to) {
  to = {blocks.data(), a.extent[0], product(a.extent, 1, 1), a.extent.back()};
}
void put(const FactArray& a, const Blocks&, HashPlanes& to) { to = {a.numbers.data(), a.extent[0], a.extent[1], a.extent[2]}; }

}  // namespace

Blocks FactArray::block_addresses() const {
  Blocks blocks;
  for (index_t i = 0; i < extent[0]; ++i) blocks.push_back(numbers.data() + i * product(extent, 1));
  return blocks;
}

bool FactTensor::fits(const std::vector<index_t>& extent, const CacheShape& shape) const {
  bool good = extent.size() == axes.size();
  for (std::size_t i = 0; good && i < axes.size(); ++i) {
    const index_t want = size_of_axis(axes[i], shape);
    good = want > 0 ? extent[i] == want : extent[i] > 0;
  }
  return good;
}

std::string FactTensor::expected(const CacheShape& shape) const {
  std::string text;
  for (const char* axis : axes) {
    const index_t size = size_of_axis(axis, shape);
    text += (text.empty() ? "[" : ", ") + (size > 0 ? std::to_string(size) : std::string(axis));
  }
  return text + "]";
}

void FactTensor::give(const FactArray& array, const Blocks& blocks, Facts& facts) const {
  std::visit([&](auto at) { put(array, blocks, facts.*at); }, member);
}

const FactTensor* find_tensor(std::string_view name) {
  for (const FactTensor& t : all_tensors())
    if (name == t.name) return &t;
  return nullptr;
}

const FactTensor* tensor_of(std::string_view fact) {
  for (const FactTensor& t : all_tensors())
    if (fact == t.fact) return &t;
  return nullptr;
}

}  // namespace eval
