#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <eval/fact_tensors.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>

namespace eval {

/// Bases of one side, keys or values, with the arrays that HeadBases borrows; arrays that are not there are empty.
struct SideBases {
  std::vector<float> encode, decode, mean, energy, ranks;
  index_t layers = 0, groups = 0, dim = 0, columns = 0;
  kvcondense::KeyForm keys = kvcondense::KeyForm::rotated;

  kvcondense::HeadBases view() const;
};

/// Maps from layer to layer, with the arrays that LayerMaps borrows.
struct LayerArrays {
  std::vector<float> first_keys, first_values, keys, values;  ///< empty: there are none
  index_t layers = 0, key_channels = 0, value_channels = 0;
};

/// What `calibrate` made for one method: bases, or arrays of other kinds, or maps.
struct MethodBases {
  std::string method;
  SideBases keys, values;
  std::vector<FactArray> arrays;
  LayerArrays maps;
  nlohmann::ordered_json made;  ///< how
};

/// What several files hold together, in one list that recipes borrow.
class BasesFile {
 public:
  explicit BasesFile(std::vector<MethodBases> all);
  BasesFile(const BasesFile&) = delete;
  BasesFile& operator=(const BasesFile&) = delete;
  BasesFile(BasesFile&&) = default;  // moved vectors keep their buffers

  kvcondense::BasisList view() const { return {named_.data(), static_cast<index_t>(named_.size())}; }
  /// `facts` with what is there for recipes. They borrow this object.
  kvcondense::any::ModelFacts add_to(kvcondense::any::ModelFacts facts) const;
  /// Of aquakv; empty where there are none.
  kvcondense::LayerMaps maps() const;

 private:
  std::vector<MethodBases> all_;
  std::vector<kvcondense::NamedBases> named_;
  std::vector<std::vector<const float*>> blocks_;  ///< of every array of all files in turn, for facts to borrow
};

/// Reads files of bases, one method each, and refuses those of a model of another shape. Throws Error with the tensor at
/// fault.
BasesFile read_bases(const std::vector<std::string>& paths, const CacheShape& shape);
/// A file that read_bases reads (safetensors, float32).
std::string bases_bytes(const MethodBases& bases);

}  // namespace eval
