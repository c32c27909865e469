# Makes kvcondense::cuda; the build tree and the installed package both read this file.

if(NOT TARGET kvcondense::cuda)
  add_library(kvcondense::cuda INTERFACE IMPORTED GLOBAL)
  target_link_libraries(kvcondense::cuda INTERFACE kvcondense::kvcondense)
  if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    target_compile_features(kvcondense::cuda INTERFACE cuda_std_20)
  else()  # CMake 3.25 does not know that nvcc speaks C++20
    set_property(TARGET kvcondense::cuda APPEND PROPERTY INTERFACE_COMPILE_OPTIONS
      $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
  endif()
  set_property(TARGET kvcondense::cuda APPEND PROPERTY INTERFACE_COMPILE_OPTIONS
    $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Xcompiler=-ffp-contract=off>)
endif()
