# The library's targets.
#
#   kvcondense::kvcondense   the headers
#   kvcondense::any          recipes chosen at run time, from C++ and from C; compiled once its sources exist
#   kvcondense::cuda         the headers with the CUDA backend; only where a CUDA compiler is

add_library(kvcondense INTERFACE)
add_library(kvcondense::kvcondense ALIAS kvcondense)
target_include_directories(kvcondense INTERFACE
  $<BUILD_INTERFACE:${kvcondense_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)
target_compile_features(kvcondense INTERFACE cxx_std_20)

# Codes and decisions are equal bit for bit on every machine and backend, so a multiplication and
# an addition may not become one instruction behind our back. Where one is wanted, std::fma says so.
target_compile_options(kvcondense INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-ffp-contract=off>)

file(GLOB kvcondense_any_sources CONFIGURE_DEPENDS "${kvcondense_SOURCE_DIR}/src/any/*.cpp"
  "${kvcondense_SOURCE_DIR}/src/c/*.cpp")
if(kvcondense_any_sources)
  add_library(kvcondense_any STATIC ${kvcondense_any_sources})
  target_link_libraries(kvcondense_any PUBLIC kvcondense
    PRIVATE $<BUILD_INTERFACE:kvcondense_warnings>)
  # It brings the kernels compiled: src/any/kernels.cpp.
  target_compile_definitions(kvcondense_any PUBLIC KVCONDENSE_COMPILED_KERNELS=1)
  set(kvcondense_any_link PUBLIC)
  set_target_properties(kvcondense_any PROPERTIES POSITION_INDEPENDENT_CODE ON)
else()
  add_library(kvcondense_any INTERFACE)
  target_link_libraries(kvcondense_any INTERFACE kvcondense)
  set(kvcondense_any_link INTERFACE)
endif()
target_link_libraries(kvcondense_any ${kvcondense_any_link} $<BUILD_INTERFACE:kvcondense_build>)
set_target_properties(kvcondense_any PROPERTIES EXPORT_NAME any)
add_library(kvcondense::any ALIAS kvcondense_any)

if(KVCONDENSE_HAS_CUDA)
  include(kvcondense_cuda)
endif()
