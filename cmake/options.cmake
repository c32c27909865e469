# Every knob of the build. All begin with KVCONDENSE_; a project that embeds this one gets the
# library alone unless it asks for more.

if(CMAKE_SOURCE_DIR STREQUAL kvcondense_SOURCE_DIR)
  set(KVCONDENSE_IS_TOP ON)
else()
  set(KVCONDENSE_IS_TOP OFF)
endif()

option(KVCONDENSE_TESTS "Build the tests" ${KVCONDENSE_IS_TOP})
option(KVCONDENSE_BENCHMARKS "Build the benchmarks (needs Google Benchmark)" ${KVCONDENSE_IS_TOP})
option(KVCONDENSE_EXAMPLES "Build the examples" ${KVCONDENSE_IS_TOP})
option(KVCONDENSE_EVAL "Build kvcondense-eval, the evaluation tool" ${KVCONDENSE_IS_TOP})
option(KVCONDENSE_PYTHON "Build the Python module (needs pybind11; its tests need numpy)" OFF)
option(KVCONDENSE_INSTALL "Create the install rules" ${KVCONDENSE_IS_TOP})
option(KVCONDENSE_WERROR "Warnings of this project's own programs are errors" OFF)
option(KVCONDENSE_FETCH_DEPENDENCIES "Download what find_package does not find" OFF)
option(KVCONDENSE_NATIVE "Build this project's own programs with -march=native" OFF)

set(KVCONDENSE_PEERS "" CACHE STRING
  "Built checkouts of ggml, llama.cpp or forks that attend_peers times: name=sources[,build] (list)")
set(KVCONDENSE_GGML "" CACHE STRING "A built checkout of ggml or llama.cpp for examples/16_engine_ggml: sources[,build]")
option(KVCONDENSE_FUZZ "Build the fuzz targets for libFuzzer (clang)" OFF)
set(KVCONDENSE_SANITIZE "" CACHE STRING "address,undefined or thread, or empty for none")
set(KVCONDENSE_CUDA AUTO CACHE STRING "ON, OFF, or AUTO: use a CUDA compiler when there is one")
set_property(CACHE KVCONDENSE_CUDA PROPERTY STRINGS AUTO ON OFF)

set(KVCONDENSE_TEST_ROOMS "" CACHE STRING "Build the tests of these rooms only (list), empty: all")
set(KVCONDENSE_TEST_PREFIX "" CACHE STRING "Put before the name of every test in CTest")
option(KVCONDENSE_TEST_HOUSE "Register house rules, must-not-compile and consumer tests" ON)
option(KVCONDENSE_TEST_CUDA_DEVICE "Build the CUDA tests for this machine's GPU and run them" OFF)
mark_as_advanced(KVCONDENSE_TEST_ROOMS KVCONDENSE_TEST_PREFIX KVCONDENSE_TEST_HOUSE)

if(NOT KVCONDENSE_SANITIZE MATCHES "^(|address,undefined|address|undefined|thread)$")
  message(FATAL_ERROR "kvcondense: KVCONDENSE_SANITIZE is '${KVCONDENSE_SANITIZE}'; use "
    "address,undefined or address or undefined or thread, or leave it empty.")
endif()
if(NOT KVCONDENSE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "kvcondense: KVCONDENSE_CUDA is '${KVCONDENSE_CUDA}'; use AUTO, ON or OFF.")
endif()

# AUTO turns a language on in this project only; inside another it follows what that one did.
set(KVCONDENSE_HAS_CUDA OFF)
if(NOT KVCONDENSE_CUDA STREQUAL "OFF")
  get_property(kvcondense_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
  if("CUDA" IN_LIST kvcondense_languages)
    set(KVCONDENSE_HAS_CUDA ON)
  elseif(KVCONDENSE_IS_TOP OR KVCONDENSE_CUDA STREQUAL "ON")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80)
      endif()
      enable_language(CUDA)
      set(KVCONDENSE_HAS_CUDA ON)
    elseif(KVCONDENSE_CUDA STREQUAL "ON")
      message(FATAL_ERROR "kvcondense: KVCONDENSE_CUDA is ON and no CUDA compiler was found; "
        "set CUDACXX or CMAKE_CUDA_COMPILER.")
    else()
      message(STATUS "kvcondense: no CUDA compiler; target kvcondense::cuda is not made")
    endif()
  endif()
endif()
