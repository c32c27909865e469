#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>

/// numpy arrays as the library's views, and a Status as Python's exception.
namespace kvcondense::python {

namespace py = pybind11;

/// What numpy copies unless it is so already. pybind11 has no public name for aligned.
inline constexpr int plain = py::array::c_style | py::array::forcecast | static_cast<int>(py::detail::npy_api::NPY_ARRAY_ALIGNED_);
using Floats = py::array_t<float, plain>;
using Integers = py::array_t<std::int64_t, plain>;

/// Raises kvcondense.Error; position -1: none.
[[noreturn]] void raise(Status why, const std::string& sentence, std::int64_t position = -1);
/// Raises unless `s` is ok: "call: status: what that means", with `detail` instead where there is one.
void require(Status s, const char* call, const char* detail = nullptr);

/// Rows [heads, tokens, dim] where an array holds them: float32 or float16, numbers of a row side by side. Others are copied.
class Rows {
 public:
  Rows() = default;
  Rows(const py::handle& object, const char* name);
  /// The same with numbers of another type, copied.
  Rows widened() const;

  bool is_half() const { return half_; }
  index_t extent(int i) const { return view_.extent[i]; }
  template <class T>
  TensorView<const T, 3> view() const {
    TensorView<const T, 3> v;
    v.data = reinterpret_cast<const T*>(view_.data);
    for (int i = 0; i < 3; ++i) v.extent[i] = view_.extent[i], v.stride[i] = view_.stride[i];
    return v;
  }

 private:
  py::array owner_;
  bool half_ = false;
  TensorView<const std::byte, 3> view_{};  ///< strides in numbers
};

/// Calls use(keys, values) with views of one type.
template <class Use>
Status with_rows(const Rows& keys, const Rows& values, Use&& use) {
  if (keys.is_half()) return use(keys.view<half>(), values.view<half>());
  return use(keys.view<float>(), values.view<float>());
}
/// Two arrays of one type: where they differ, both as float32.
void agree(Rows& a, Rows& b);

/// What a recipe knows of the model, and the arrays behind it.
struct Facts {
  any::ModelFacts facts;
  std::vector<py::array> arrays;
  std::vector<std::unique_ptr<std::vector<const float*>>> lists;
  std::vector<std::unique_ptr<std::string>> methods;  ///< of bases
  std::vector<NamedBases> bases;

  explicit Facts(const py::dict& model);
};

/// What a step may look at, and the arrays behind it. Everything is given by its name in StepInputs.
struct Given {
  StepInputs in;
  std::vector<py::array> arrays;
  std::vector<Rows> rows;

  explicit Given(const py::kwargs& named);
};

/// As pybind11's cast, but another type is a TypeError that says which argument it was.
template <class T>
T cast(const py::handle& value, const std::string& name) {
  try {
    return py::cast<T>(value);
  } catch (const py::cast_error&) {
    throw py::type_error(name + " has another type: " + py::cast<std::string>(py::str(py::type::of(value).attr("__name__"))));
  }
}

Phase phase_of(std::string_view name);
DType dtype_of(std::string_view name);
/// Positions of tokens, kept alive; none: no numbers. Numbers that are not whole are refused.
class Positions {
 public:
  explicit Positions(const py::object& given);
  std::span<const index_t> numbers() const { return numbers_; }

 private:
  Integers owner_;
  std::span<const index_t> numbers_;
};

/// A numpy array that owns what it was made from.
template <class T>
py::array_t<T> array_of(const std::vector<T>& numbers) {
  return py::array_t<T>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
}

void bind_cache(py::module_& m);
void bind_methods(py::module_& m);

}  // namespace kvcondense::python
