#include <kvcondense/version.hpp>

#include "arrays.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled part of kvcondense.";
  m.attr("version") = kvcondense::version_string;
  kvcondense::python::bind_cache(m);
  kvcondense::python::bind_methods(m);
}
