# What tests, benchmarks and tools need; the library's headers need nothing. Looked for on the
# system first; downloaded only when KVCONDENSE_FETCH_DEPENDENCIES is ON.

include_guard(GLOBAL)

# kvcondense_find(<target> <package> <version> <git> <tag> <debian package>)
# Sets <package>_AVAILABLE in the caller.
function(kvcondense_find target package version git tag debian)
  if(NOT TARGET ${target})
    find_package(${package} ${version} QUIET GLOBAL)
  endif()
  if(NOT TARGET ${target} AND KVCONDENSE_FETCH_DEPENDENCIES)
    message(STATUS "kvcondense: fetching ${package} ${tag}")
    include(FetchContent)
    string(TOLOWER "${package}" content)
    FetchContent_Declare(${content} GIT_REPOSITORY ${git} GIT_TAG ${tag} GIT_SHALLOW ON)
    set(BENCHMARK_ENABLE_TESTING OFF CACHE BOOL "" FORCE)
    FetchContent_MakeAvailable(${content})
    if(package STREQUAL "Catch2")
      set(Catch2_DIR "${catch2_SOURCE_DIR}/contrib" PARENT_SCOPE)
    endif()
  endif()
  if(TARGET ${target})
    set(${package}_AVAILABLE ON PARENT_SCOPE)
  else()
    set(${package}_AVAILABLE OFF PARENT_SCOPE)
    set(${package}_HINT "install ${debian}, or set KVCONDENSE_FETCH_DEPENDENCIES=ON" PARENT_SCOPE)
  endif()
endfunction()

macro(kvcondense_find_catch2)
  kvcondense_find(Catch2::Catch2 Catch2 2.13 https://github.com/catchorg/Catch2.git v2.13.10 catch2)
endmacro()

macro(kvcondense_find_benchmark)
  kvcondense_find(benchmark::benchmark benchmark 1.7
    https://github.com/google/benchmark.git v1.7.1 libbenchmark-dev)
endmacro()

macro(kvcondense_find_json)
  kvcondense_find(nlohmann_json::nlohmann_json nlohmann_json 3.11
    https://github.com/nlohmann/json.git v3.11.2 nlohmann-json3-dev)
endmacro()

macro(kvcondense_find_cli11)
  kvcondense_find(CLI11::CLI11 CLI11 2.1 https://github.com/CLIUtils/CLI11.git v2.1.2 libcli11-dev)
endmacro()

macro(kvcondense_find_eigen)
  kvcondense_find(Eigen3::Eigen Eigen3 3.4 https://gitlab.com/libeigen/eigen.git 3.4.0 libeigen3-dev)
endmacro()
